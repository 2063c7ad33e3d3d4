//! Writes the files of a package that come from the program itself: the manual, completions for
//! shells, the file of settings, and the schema of config.yml.
//!
//! ```sh
//! cargo run --example generate -- FOLDER
//! cargo run --example generate -- --update-manual    # the tables in packaging/manual
//! ```

mod completions;
pub mod manual;
pub mod markdown;
mod settings_file;
pub mod tables;

use std::error::Error;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("--update-manual") => tables::update(),
        Some(folder) => {
            for (name, content) in files()? {
                write(&Path::new(folder).join(name), &content)?;
            }
            Ok(())
        }
        None => Err("usage: generate FOLDER | --update-manual".into()),
    }
}

/// A name below the folder, and the content of that file.
pub type File = (String, Vec<u8>);

/// Every file.
///
/// # Errors
/// Names what the manual lacks.
pub fn files() -> Result<Vec<File>, Box<dyn Error>> {
    let mut files = manual::pages()?;
    files.extend(completions::scripts());
    let settings = settings_file::text().into_bytes();
    files.push(("conserver.env".to_owned(), settings));
    let schema = serde_json::to_vec_pretty(&conserver::config::json_schema())?;
    files.push(("config.schema.json".to_owned(), schema));
    Ok(files)
}

fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    let named = |error| format!("could not write {}: {error}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(named)?;
    }
    fs::write(path, content).map_err(named)
}
