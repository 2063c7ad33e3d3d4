//! The manual: the pages of packaging/manual, and a page for each command.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use roff::{Roff, bold, roman};

use super::File;
use super::markdown::{self, Edition};

const CHANGELOG: &str = include_str!("../../CHANGELOG.md");
const VERSION: &str = env!("CARGO_PKG_VERSION");
const SOURCE: &str = concat!("conserver ", env!("CARGO_PKG_VERSION"));
const MANUAL: &str = "conserver";

/// The folder of the pages.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/manual")
}

/// The names of the pages and their Markdown, in the order of their names.
///
/// # Errors
/// If one cannot be read.
pub fn sources() -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(folder())? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "md") {
            let name = path.file_name().unwrap_or_default();
            let text = fs::read_to_string(&path)?;
            sources.push((name.to_string_lossy().into_owned(), text));
        }
    }
    sources.sort();
    Ok(sources)
}

/// Every page for man(1).
///
/// # Errors
/// Names the page and what is wrong with it.
pub fn pages() -> Result<Vec<File>, Box<dyn Error>> {
    let date = release_date()?;
    let mut pages = Vec::new();
    for (name, text) in sources()? {
        let edition = Edition {
            date,
            source: SOURCE,
            manual: MANUAL,
        };
        let page = markdown::page(&text, edition)
            .map_err(|error| format!("packaging/manual/{name} {error}"))?;
        let name = name.trim_end_matches(".md");
        pages.push((format!("man/{name}"), finish(&page.render())));
    }
    let mut program = conserver::cli::command().disable_help_subcommand(true);
    program.build();
    for command in shown(&program) {
        of_command(command, date, &mut pages)?;
    }
    Ok(pages)
}

fn finish(page: &str) -> Vec<u8> {
    markdown::tidy(page).into_bytes()
}

/// The day that CHANGELOG.md gives for this version.
fn release_date() -> Result<&'static str, String> {
    let head = format!("## [{VERSION}] - ");
    let mut lines = CHANGELOG.lines();
    let date = lines.find_map(|line| line.strip_prefix(&head));
    date.ok_or_else(|| format!("CHANGELOG.md has no line `{head}YYYY-MM-DD`: add it"))
}

/// The commands that the help shows.
pub fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|it| !it.is_hide_set())
}

/// The page of a command, and those of its own commands.
fn of_command(command: &Command, date: &str, pages: &mut Vec<File>) -> Result<(), Box<dyn Error>> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .date(date)
        .source(SOURCE)
        .manual(MANUAL);
    let mut page = Vec::new();
    man.render(&mut page)?;
    let mut more = Roff::new();
    more.control("SH", ["SEE ALSO"]);
    more.text([
        bold("conserver"),
        roman("(1), "),
        bold("conserver.yml"),
        roman("(5)"),
    ]);
    let page = String::from_utf8(page)? + &more.to_roff();
    pages.push((format!("man/{name}.1"), finish(&page)));
    for command in shown(command) {
        of_command(command, date, pages)?;
    }
    Ok(())
}
