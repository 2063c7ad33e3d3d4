//! Libraries that change what a program does from its first line on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles such a library, for `LD_PRELOAD`, in this folder.
pub fn preload(folder: &Path, code: &str) -> PathBuf {
    let (source, library) = (folder.join("preload.c"), folder.join("preload.so"));
    fs::write(&source, code).expect("a file");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status();
    assert!(compiled.expect("a C compiler").success());
    library
}
