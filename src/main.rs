//! The `conserver` program: reads its command line and calls one function.

use std::process::ExitCode;

use conserver::sys::LargeBlockAllocator;

#[global_allocator]
static ALLOCATOR: LargeBlockAllocator = LargeBlockAllocator;

fn main() -> ExitCode {
    conserver::cli::main().into()
}
