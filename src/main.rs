//! The `conserver` program: reads its command line and calls one function.

fn main() {}
