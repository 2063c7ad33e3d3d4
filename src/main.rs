//! The `conserver` program: reads its command line and calls one function.

use std::process::ExitCode;

fn main() -> ExitCode {
    conserver::cli::main().into()
}
