//! Completions of the command line for shells.

use clap::Command;
use clap_complete::{Shell, generate};

use super::File;

const NAME: &str = "conserver";

/// A script for each shell, with the name it has in the shell's folder.
pub fn scripts() -> Vec<File> {
    [
        (Shell::Bash, "completions/bash/conserver"),
        (Shell::Zsh, "completions/zsh/_conserver"),
        (Shell::Fish, "completions/fish/conserver.fish"),
    ]
    .into_iter()
    .map(|(shell, name)| {
        let mut script = Vec::new();
        generate(shell, &mut shown(), NAME, &mut script);
        (name.to_owned(), script)
    })
    .collect()
}

/// The command line without what the program only says to itself, which clap_complete would offer.
fn shown() -> Command {
    let all = conserver::cli::command();
    let commands = all.get_subcommands().filter(|it| !it.is_hide_set());
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .args(all.get_arguments().cloned())
        .subcommands(commands.cloned())
}
