//! Writes the files of a package that come from the program itself: the manual, completions for
//! shells, and the file of settings.
//!
//! `cargo run --example generate -- FOLDER`

mod completions;
mod manual;
mod markdown;
pub mod readme;
mod settings_file;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or("usage: generate FOLDER")?;
    for (name, content) in files()? {
        write(&folder.join(name), &content)?;
    }
    Ok(())
}

/// A name below the folder, and what is to be there.
pub type File = (String, Vec<u8>);

/// Every file.
pub fn files() -> Result<Vec<File>, Box<dyn Error>> {
    let mut files = manual::pages()?;
    files.extend(completions::scripts());
    let settings = settings_file::text().into_bytes();
    files.push(("conserver.env".to_owned(), settings));
    Ok(files)
}

fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    let named = |error| format!("could not write {}: {error}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(named)?;
    }
    fs::write(path, content).map_err(named)
}
