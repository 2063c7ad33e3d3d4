//! Completions of the command line for shells.
//!
//! What clap_complete writes knows commands and options. Names of lists, chains, storages and queues, and UUIDs, are
//! those of the moment: a script asks `conserver complete` for them. Each argument that takes such a name is given a
//! single possible value, the mark, and in each script a call takes the place of the mark.

use clap::{Arg, Command};
use clap_complete::{Shell, generate};

use super::File;

const NAME: &str = "conserver";

/// What a mark begins with; behind it stand the kinds of names, with `_` between them.
const MARK: &str = "COMPLETE_";

/// A script for each shell, with the name it has in the shell's folder.
pub fn scripts() -> Vec<File> {
    type Finish = fn(&str, &Command) -> String;
    let shells: [(Shell, &str, Finish); 3] = [
        (Shell::Bash, "completions/bash/conserver", |script, _| {
            bash(script)
        }),
        (Shell::Zsh, "completions/zsh/_conserver", |script, _| {
            zsh(script)
        }),
        (Shell::Fish, "completions/fish/conserver.fish", fish),
    ];
    shells
        .into_iter()
        .map(|(shell, name, finish)| {
            let mut script = Vec::new();
            let mut command = marked(shown(), false);
            generate(shell, &mut command, NAME, &mut script);
            let script = finish(&String::from_utf8_lossy(&script), &command);
            (name.to_owned(), script.into_bytes())
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

/// The command with a mark in each argument that takes a name.
fn marked(command: Command, is_dlq: bool) -> Command {
    let is_dlq = is_dlq || command.get_name() == "dlq";
    // There, it is that of a new vCon.
    let is_submit = command.get_name() == "submit";
    command
        .mut_args(|argument| match mark_of(&argument, is_dlq) {
            Some("COMPLETE_uuids") if is_submit => argument,
            Some(mark) => argument.default_value(None::<&str>).value_parser([mark]),
            None => argument,
        })
        .mut_subcommands(|command| marked(command, is_dlq))
}

/// The mark of the names that an argument takes, by what the help calls its value.
fn mark_of(argument: &Arg, is_dlq: bool) -> Option<&'static str> {
    if !argument
        .get_num_args()
        .is_none_or(|range| range.takes_values())
    {
        return None;
    }
    let names = argument.get_value_names()?.iter();
    let names: Vec<&str> = names.map(|name| name.as_str()).collect();
    let names = names.join(" ");
    let has = |word: &str| {
        names
            .split(|c: char| !c.is_ascii_alphanumeric())
            .any(|it| it == word)
    };
    let is_of_queue = is_dlq && (has("LIST") || has("QUEUE"));
    Some(match (has("UUID"), has("LIST"), has("CHAIN")) {
        (true, ..) if is_of_queue => "COMPLETE_queues_uuids",
        (true, ..) => "COMPLETE_uuids",
        _ if is_of_queue => "COMPLETE_queues",
        (_, true, true) => "COMPLETE_lists_chains",
        (_, true, false) => "COMPLETE_lists",
        (_, false, true) => "COMPLETE_chains",
        _ if has("STORAGE") => "COMPLETE_storages",
        _ => return None,
    })
}

/// The script with what `call` makes of the kinds in the place of each mark.
fn replaced(script: &str, call: impl Fn(&str) -> String) -> String {
    let mut text = String::new();
    let mut rest = script;
    while let Some((before, after)) = rest.split_once(MARK) {
        let is_end = |c: char| !c.is_ascii_lowercase() && c != '_';
        let (kinds, behind) = after.split_at(after.find(is_end).unwrap_or(after.len()));
        text.push_str(before);
        text.push_str(&call(&kinds.replace('_', ",")));
        rest = behind;
    }
    text + rest
}

/// The program in PATH, not the one on the line: a Tab executes nothing that lies in a folder by chance.
///
/// Words that bash would split at a colon are asked for as a whole, and offered without what stands before it.
const BASH_NAMES: &str = r#"_conserver_names() {
    local line="${COMP_LINE:0:COMP_POINT}" name
    local word="${line##*[[:space:]]}"
    [[ $2 == -* ]] && return
    command conserver complete "$1" -- "$word" 2>/dev/null | while read -r name; do
        echo "${name#"${word%"$2"}"}"
    done
}

"#;

fn bash(script: &str) -> String {
    let mut text = String::from(BASH_NAMES);
    for line in script.lines() {
        if line.contains(MARK) {
            // Else it would offer files if there is no such name.
            let indent = &line[..line.len() - line.trim_start().len()];
            text += &format!("{indent}compopt +o default +o bashdefault 2>/dev/null\n");
        }
        text += &replaced(line, |kinds| {
            format!("$(_conserver_names {kinds} \"${{cur}}\")")
        });
        text.push('\n');
    }
    text
}

const ZSH_NAMES: &str = r#"_conserver_names() {
    local -a names
    names=(${(f)"$(_call_program names conserver complete $1 -- ${(q)PREFIX} 2>/dev/null)"})
    compadd -a names
}

"#;

fn zsh(script: &str) -> String {
    let mut text = String::new();
    for line in script.lines() {
        if line == "_conserver() {" {
            text += ZSH_NAMES;
        }
        // The parentheses of a list of values.
        let line = line.replace(&format!("({MARK}"), MARK);
        let mut rest = &*line;
        while let Some(at) = rest.find(MARK) {
            let end = rest[at..].find(')').map_or(rest.len(), |end| at + end);
            text += &replaced(&rest[..end], |kinds| format!("_conserver_names {kinds}"));
            rest = rest.get(end + 1..).unwrap_or_default();
        }
        text += rest;
        text.push('\n');
    }
    text
}

/// How fish asks for names.
fn fish_call(kinds: &str) -> String {
    format!("(conserver complete {kinds} -- (commandline -ct) 2>/dev/null)")
}

fn fish(script: &str, command: &Command) -> String {
    let mut text = replaced(script, fish_call).replace("2>/dev/null)\\t''\"", "2>/dev/null)\"");
    // clap_complete leaves out arguments without a name.
    for command in command.get_subcommands() {
        add_to_fish(
            &mut text,
            command,
            &format!("__fish_conserver_using_subcommand {}", command.get_name()),
        );
        for inner in command.get_subcommands() {
            let when = format!(
                "__fish_conserver_using_subcommand {}; and __fish_seen_subcommand_from {}",
                command.get_name(),
                inner.get_name()
            );
            add_to_fish(&mut text, inner, &when);
        }
    }
    text
}

fn add_to_fish(text: &mut String, command: &Command, when: &str) {
    let mut all: Vec<String> = Vec::new();
    for argument in command.get_positionals() {
        for value in argument.get_possible_values() {
            if let Some(kinds) = value.get_name().strip_prefix(MARK) {
                all.extend(kinds.split('_').map(str::to_owned));
            }
        }
    }
    all.sort();
    all.dedup();
    if !all.is_empty() {
        let call = fish_call(&all.join(","));
        *text += &format!("complete -c {NAME} -n \"{when}\" -f -a \"{call}\"\n");
    }
}
