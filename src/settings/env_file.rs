//! `.env` in the working directory: values for variables that the environment does not set.
//!
//! Deployments of the existing daemon have such files, so they are read in its form: `NAME=value` on each line,
//! with or without `export`, in quotes or without, `${NAME}` and `${NAME:-default}` replaced in all values. A `$`
//! that begins neither is a `$`, as passwords have it.
//!
//! A value may be a secret: no message holds one, nor any other text of the file but names of variables.

use std::env;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;

use super::reader::SettingsErrors;
use crate::sys;

/// The file, in the folder that the program was started in.
const FILE: &str = ".env";

/// The largest file, and the most that all its values take together.
const MOST_BYTES: usize = 1 << 20;

/// The longest value. The system executes no program with a variable of more than 128 KiB.
const LONGEST_VALUE: usize = 100_000;

/// The longest name, in bytes, that is looked for in a value.
const LONGEST_REFERENCE: usize = 1000;

const LONGEST_NAME: usize = 255;

/// Errors that are reported of one file.
const MOST_FAULTS: usize = 20;

/// What `.env` has given to the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnvFile {
    /// The file, if it was read.
    path: Option<PathBuf>,
    /// The names of variables that have their values from it.
    taken: Vec<String>,
    /// The lines of all its variables.
    lines: IndexMap<String, usize>,
    /// The names of variables that it holds too and that were set already.
    already_set: Vec<String>,
    /// What may be a mistake.
    warnings: Vec<String>,
}

impl EnvFile {
    /// Reads the file if there is one, and sets the variables of this process that are not set yet; an empty one
    /// counts as set. Processes that this one starts inherit them. To be called before there is a second thread.
    ///
    /// # Errors
    /// The lines that are not understood, or why the file cannot be used.
    pub fn load() -> Result<Self, SettingsErrors> {
        let path = env::current_dir().map_or_else(|_| FILE.into(), |folder| folder.join(FILE));
        let shown = path.display();
        let refused = |why: String| SettingsErrors(vec![format!("{shown}: {why}")]);
        let faulty = |faults: Vec<Fault>| {
            let lines = faults.into_iter();
            let lines = lines.map(|Fault { line, what }| format!("{shown}:{line}: {what}"));
            SettingsErrors(lines.collect())
        };
        let bytes = match read(Path::new(FILE)) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Self::default()),
            Err(Unread::PassedOver(why)) => {
                let warnings = vec![format!("{shown} is not read: {why}")];
                return Ok(Self {
                    warnings,
                    ..Self::default()
                });
            }
            Err(Unread::Refused(why)) => return Err(refused(why)),
        };
        let text = decode(&bytes).map_err(|fault| faulty(vec![fault]))?;
        let content = Content::parse(text, &|name| env::var_os(name)).map_err(faulty)?;
        let values = content.values.into_iter();
        let values = values.filter_map(|(name, value)| Some((name, value?)));
        let (already_set, new): (Vec<_>, Vec<_>) =
            values.partition(|(name, _)| env::var_os(name).is_some());
        let names = |variables: &[(String, OsString)]| {
            variables.iter().map(|(name, _)| name.clone()).collect()
        };
        let without = content.without_value.into_iter();
        let without = without.map(|line| format!("{shown}:{line}: has no `=` and no effect"));
        let file = Self {
            taken: names(&new),
            already_set: names(&already_set),
            lines: content.lines,
            warnings: without.collect(),
            path: Some(path.clone()),
        };
        sys::set_variables(new).map_err(|error| refused(error.to_string()))?;
        Ok(file)
    }

    /// Whether it has set this variable.
    pub fn has_set(&self, name: &str) -> bool {
        self.taken.iter().any(|taken| taken == name)
    }

    /// The file and the line from which this variable has its value, if it has it from there.
    pub fn origin(&self, name: &str) -> Option<(&Path, usize)> {
        let line = self.lines.get(name).filter(|_| self.has_set(name))?;
        Some((self.path.as_deref()?, *line))
    }

    /// What may be a mistake, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Which file was read, and the names of its variables; `None` if none was.
    pub fn summary(&self) -> Option<String> {
        let path = self.path.as_ref()?.display();
        let list = |names: &[String]| match names {
            [] => "none".to_owned(),
            names => names.join(", "),
        };
        let mut text = format!("{path}: variables taken: {}", list(&self.taken));
        if !self.already_set.is_empty() {
            text += &format!("; already set: {}", list(&self.already_set));
        }
        Some(text)
    }
}

/// The variables of a file in this form, in its order: those of another deployment, so that the environment of this
/// process does not count.
///
/// # Errors
/// The lines that are not understood, or why the file cannot be read.
pub fn variables_of(path: &Path) -> Result<Vec<(String, OsString)>, SettingsErrors> {
    let shown = path.display();
    let refused =
        |error: io::Error| SettingsErrors(vec![format!("{shown}: could not be read: {error}")]);
    let faulty = |faults: Vec<Fault>| {
        let lines = faults.into_iter();
        let lines = lines.map(|Fault { line, what }| format!("{shown}:{line}: {what}"));
        SettingsErrors(lines.collect())
    };
    let mut file = open(path).map_err(refused)?;
    if !file.metadata().map_err(refused)?.is_file() {
        return Err(refused(io::Error::other("it is not a regular file")));
    }
    let bytes = content_of(&mut file).map_err(refused)?;
    let text = decode(&bytes).map_err(|fault| faulty(vec![fault]))?;
    let content = Content::parse(text, &|_| None).map_err(faulty)?;
    let values = content.values.into_iter();
    Ok(values
        .filter_map(|(name, value)| Some((name, value?)))
        .collect())
}

/// Why there is no text of a file that is there.
enum Unread {
    /// The program goes on without it.
    PassedOver(String),
    /// The program ends.
    Refused(String),
}

/// The bytes of the file; `None` if it is not there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Unread> {
    let refused = |error: io::Error| Unread::Refused(error.to_string());
    let mut file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            // In a folder that this user cannot look into, nobody knows of a file.
            return match path.metadata() {
                Ok(_) => Err(Unread::PassedOver(error.to_string())),
                Err(_) => Ok(None),
            };
        }
        Err(error) => return Err(refused(error)),
    };
    let metadata = file.metadata().map_err(refused)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(Unread::PassedOver("it is a folder".to_owned()));
    }
    // `/dev/null` hides a file in a container.
    if !kind.is_file() && !kind.is_char_device() {
        return Err(Unread::Refused("is not a regular file".to_owned()));
    }
    let folder = Path::new(".").metadata().map_err(refused)?;
    let is_shared = folder.mode() & 0o022 != 0;
    // Of a symbolic link, too: anybody could put one to a file of root's into a folder for all.
    let itself = path.symlink_metadata().map_err(refused)?;
    for owner in [metadata.uid(), itself.uid()] {
        check_owner(geteuid().as_raw(), owner, folder.uid(), is_shared)
            .map_err(Unread::PassedOver)?;
    }
    content_of(&mut file).map(Some).map_err(refused)
}

/// Whether this user may trust a file with this owner, in a folder of that owner to which others may write.
fn check_owner(user: u32, owner: u32, of_folder: u32, is_shared: bool) -> Result<(), String> {
    if user == 0 && owner != 0 && of_folder != 0 {
        // It may name programs, and root would run them.
        return Err(format!(
            "it and its folder belong to UID {owner}, and this is root; run this as that user"
        ));
    }
    if is_shared && ![user, 0, of_folder].contains(&owner) {
        return Err(format!(
            "others may write to the folder, and it belongs to UID {owner}"
        ));
    }
    Ok(())
}

/// Opens a file without waiting: nobody may be at the other end of a FIFO.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags.bits()).open(path)
}

/// All that is in the file.
fn content_of(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(MOST_BYTES).unwrap_or(u64::MAX);
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MOST_BYTES {
        return Err(io::Error::other("has more than 1 MiB"));
    }
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<&str, Fault> {
    str::from_utf8(bytes).map_err(|error| {
        let good = &bytes[..error.valid_up_to()];
        Fault {
            line: 1 + good.iter().filter(|byte| **byte == b'\n').count(),
            what: "is not UTF-8 text",
        }
    })
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    line: usize,
    what: &'static str,
}

/// The variables of a file.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    /// `None` for a name without `=`.
    values: IndexMap<String, Option<OsString>>,
    /// The lines on which their statements begin.
    lines: IndexMap<String, usize>,
    /// The lines of those.
    without_value: Vec<usize>,
}

impl Content {
    /// Reads the text; `environment` has the variables that are set already, and comes before the file where one
    /// variable is part of another's value.
    fn parse(
        text: &str,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Vec<Fault>> {
        let mut lines = Lines::new(text);
        let mut content = Self {
            values: IndexMap::new(),
            lines: IndexMap::new(),
            without_value: Vec::new(),
        };
        let mut bytes = 0;
        let mut faults = Vec::new();
        while let Some((line, statement)) = lines.next()
            && faults.len() < MOST_FAULTS
        {
            let value = statement.and_then(|statement| match statement {
                None => Ok(None),
                Some((name, None)) => named(name).map(|name| Some((name, None))),
                Some((name, Some(value))) => {
                    let name = named(name)?;
                    let value = content.expand(&value, environment)?;
                    bytes += name.len() + value.len();
                    if bytes > MOST_BYTES {
                        return Err("with this one, all values together have more than 1 MiB");
                    }
                    Ok(Some((name, Some(value))))
                }
            });
            match value {
                Ok(None) => {}
                Ok(Some((name, value))) => {
                    if value.is_none() {
                        content.without_value.push(line);
                    }
                    content.lines.insert(name.clone(), line);
                    content.values.insert(name, value);
                }
                Err(what) => faults.push(Fault { line, what }),
            }
        }
        if faults.is_empty() {
            Ok(content)
        } else {
            Err(faults)
        }
    }

    /// The value with those of other variables in the places of their names.
    fn expand(
        &self,
        value: &str,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<OsString, &'static str> {
        let mut expanded = OsString::new();
        let mut rest = value;
        // Behind it nothing ends. Known once, so that not each of many beginnings has to be followed to the end.
        let last = value.rfind('}').unwrap_or(0);
        while let Some((before, inner)) = rest.split_once("${") {
            if value.len() - inner.len() > last {
                break;
            }
            expanded.push(before);
            rest = match Reference::at_start_of(inner) {
                Some((reference, behind)) => {
                    if let Some(found) = self.value_of(&reference, environment) {
                        expanded.push(found);
                    }
                    behind
                }
                None => {
                    expanded.push("${");
                    inner
                }
            };
            if expanded.len() > LONGEST_VALUE {
                break;
            }
        }
        expanded.push(rest);
        if expanded.len() > LONGEST_VALUE {
            return Err("the value has more than 100 kB");
        }
        if expanded.as_encoded_bytes().contains(&0) {
            return Err("the value has a NUL");
        }
        Ok(expanded)
    }

    fn value_of(
        &self,
        reference: &Reference<'_>,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Option<OsString> {
        if let Some(value) = environment(reference.name) {
            return Some(value);
        }
        match self.values.get(reference.name) {
            Some(value) => value.clone(),
            None => reference.default.map(OsString::from),
        }
    }
}

/// The name, if it can be one. What is none may be part of a secret over several lines that lacks its quotes.
fn named(name: &str) -> Result<String, &'static str> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.len() > LONGEST_NAME || !name.chars().all(is_good) {
        return Err("a name has at most 255 letters of ASCII, digits, `_`, `.` and `-`");
    }
    Ok(name.to_owned())
}

/// `${name}` or `${name:-default}`.
struct Reference<'a> {
    name: &'a str,
    default: Option<&'a str>,
}

impl<'a> Reference<'a> {
    /// Reads what stands behind `${`; returns what stands behind the `}` too.
    fn at_start_of(text: &'a str) -> Option<(Self, &'a str)> {
        let is_end = |(_, byte): &(usize, u8)| matches!(byte, b'}' | b':');
        let bytes = text.bytes().enumerate().take(LONGEST_REFERENCE);
        let (end, _) = bytes.into_iter().find(is_end)?;
        let (name, rest) = text.split_at(end);
        if let Some(rest) = rest.strip_prefix('}') {
            let default = None;
            return Some((Self { name, default }, rest));
        }
        let (default, rest) = rest.strip_prefix(":-")?.split_once('}')?;
        let default = Some(default);
        Some((Self { name, default }, rest))
    }
}

/// A name, and its value if it has a `=`; nothing for a comment.
type Statement<'a> = Option<(&'a str, Option<String>)>;

/// The statements of a text. One in quotes may have several lines.
struct Lines<'a> {
    text: &'a str,
    rest: &'a str,
    /// The number of the line in which the first `counted` bytes end.
    line: usize,
    counted: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self {
            text,
            rest: text,
            line: 1,
            counted: 0,
        }
    }

    /// The next statement with the line that it begins in; behind a faulty one, the rest of its line is skipped.
    fn next(&mut self) -> Option<(usize, Result<Statement<'a>, &'static str>)> {
        self.take(char::is_whitespace);
        if self.rest.is_empty() {
            return None;
        }
        let line = self.line();
        let statement = self.statement();
        if statement.is_err() {
            self.take(|c| !is_line_end(c));
        }
        Some((line, statement))
    }

    /// The number of the present line, which does not begin between a `\r` and its `\n`.
    fn line(&mut self) -> usize {
        let here = self.text.len() - self.rest.len();
        let passed = &self.text[self.counted..here];
        let ends = passed.matches(is_line_end).count() - passed.matches("\r\n").count();
        self.line += ends;
        self.counted = here;
        self.line
    }

    /// Goes on behind the characters that `belongs` accepts, and returns them.
    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !belongs(c));
        let (taken, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn statement(&mut self) -> Result<Statement<'a>, &'static str> {
        // Before a blank alone: a variable may have this name.
        if let Some(rest) = self.rest.strip_prefix("export")
            && rest.starts_with(is_blank)
        {
            self.rest = rest;
            self.take(is_blank);
        }
        let name = match self.rest.chars().next() {
            Some('#') => None,
            Some('\'') => Some(self.quoted_name()?),
            _ => Some(self.take(|c| !c.is_whitespace() && !matches!(c, '=' | '#'))),
        };
        if name == Some("") {
            return Err("has no name");
        }
        self.take(is_blank);
        let value = match self.rest.strip_prefix('=') {
            Some(rest) => {
                self.rest = rest;
                Some(self.value()?)
            }
            None => None,
        };
        self.take(is_blank);
        if self.rest.starts_with('#') {
            self.take(|c| !is_line_end(c));
        }
        if !self.rest.is_empty() && !self.rest.starts_with(is_line_end) {
            return Err(match value {
                None => "has no `=` behind the name",
                Some(_) => "has text behind the closing quote",
            });
        }
        Ok(name.map(|name| (name, value)))
    }

    fn quoted_name(&mut self) -> Result<&'a str, &'static str> {
        let inner = self.rest.strip_prefix('\'').unwrap_or(self.rest);
        let (name, rest) = inner
            .split_once('\'')
            .ok_or("a quote is opened and not closed")?;
        self.rest = rest;
        Ok(name)
    }

    fn value(&mut self) -> Result<String, &'static str> {
        let blanks = self.take(is_blank);
        match self.rest.chars().next() {
            // `NAME= # comment`; in `NAME=#a` the `#` is part of the value.
            Some('#') if !blanks.is_empty() => Ok(String::new()),
            Some('\'') => self.quoted('\'', |c| matches!(c, '\\' | '\'').then_some(c)),
            Some('"') => self.quoted('"', escaped),
            _ => Ok(self.unquoted().to_owned()),
        }
    }

    /// To the end of the line, or to a `#` behind white space.
    fn unquoted(&mut self) -> &'a str {
        let line = self.take(|c| !is_line_end(c));
        let mut marks = line.match_indices('#').map(|(at, _)| &line[..at]);
        let before = marks.find(|before| before.ends_with(char::is_whitespace));
        before.unwrap_or(line).trim_end()
    }

    /// To the closing quote; a backslash escapes what `escaped` knows, and otherwise stays.
    fn quoted(
        &mut self,
        quote: char,
        escaped: impl Fn(char) -> Option<char>,
    ) -> Result<String, &'static str> {
        let mut value = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.rest = &self.rest[at + c.len_utf8()..];
                return Ok(value);
            }
            if c != '\\' {
                value.push(c);
                continue;
            }
            let Some((_, next)) = chars.next() else { break };
            match escaped(next) {
                Some(meant) => value.push(meant),
                None => value.extend([c, next]),
            }
        }
        Err("a quote is opened and not closed")
    }
}

/// What a backslash and this character mean between double quotes.
fn escaped(c: char) -> Option<char> {
    Some(match c {
        '\\' | '\'' | '"' => c,
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        _ => return None,
    })
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r')
}

fn is_blank(c: char) -> bool {
    c.is_whitespace() && !is_line_end(c)
}

/// What a fuzzer runs on the content of such a file.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz {
    use super::{Content, Fault, MOST_BYTES, decode, is_line_end};

    /// Names and values can be set in an environment, and faults are in lines of the file.
    pub fn content(data: &[u8]) {
        let lines = 1 + String::from_utf8_lossy(data).matches(is_line_end).count();
        let is_there = |fault: &Fault| (1..=lines).contains(&fault.line);
        let text = match decode(data) {
            Ok(text) => text,
            Err(fault) => return assert!(is_there(&fault), "{fault:?}"),
        };
        let environment = |name: &str| (name == "SET").then(|| "set".into());
        match Content::parse(text, &environment) {
            Ok(content) => {
                let mut bytes = 0;
                for (name, value) in &content.values {
                    let value = value.as_ref().map_or(&[][..], |it| it.as_encoded_bytes());
                    assert!(!name.is_empty() && !name.contains(['=', '\0']), "{name:?}");
                    assert!(!value.contains(&0), "{name:?}");
                    bytes += name.len() + value.len();
                }
                assert!(bytes <= MOST_BYTES + data.len(), "{bytes}");
            }
            Err(faults) => assert!(faults.iter().all(is_there), "{faults:?}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment(name: &str) -> Option<OsString> {
        match name {
            "SET" => Some("set".into()),
            "EMPTY" => Some("".into()),
            _ => None,
        }
    }

    fn parse(text: &str) -> Result<Vec<(String, String)>, Vec<Fault>> {
        let content = Content::parse(text, &environment)?;
        let values = content.values.into_iter();
        let values = values.filter_map(|(name, value)| Some((name, value?.into_string().unwrap())));
        Ok(values.collect())
    }

    fn value(text: &str) -> String {
        let [(name, value)] = &parse(text).unwrap()[..] else {
            panic!("{text:?}: {:?}", parse(text))
        };
        assert_eq!(name, "A", "{text:?}");
        value.clone()
    }

    #[test]
    fn many_references_without_an_end_are_text_and_take_no_time() {
        for begin in ["${", "${a:-", "${a"] {
            for end in ["", "}", ":"] {
                // Within the limit, or far beyond it: a quadratic search would not come to an end.
                let value = begin.repeat(LONGEST_VALUE / 8) + end;
                let _ = Content::parse(&format!("A={value}\n"), &|_| None);
                let value = begin.repeat(1 << 18) + end;
                let _ = Content::parse(&format!("A={value}\n"), &|_| None);
            }
        }
    }

    #[test]
    fn a_file_of_somebody_else_is_not_for_root_nor_from_a_folder_for_all() {
        for (user, owner, of_folder, is_shared, is_taken) in [
            (1000, 1000, 1000, false, true),
            (1000, 0, 0, false, true),
            (1000, 1001, 1000, true, false),
            (1000, 1001, 1001, false, true),
            (0, 0, 0, true, true),
            // As in a container, where the folder is root's.
            (0, 1000, 0, false, true),
            (0, 1000, 0, true, false),
            (0, 1000, 1000, false, false),
        ] {
            let found = check_owner(user, owner, of_folder, is_shared);
            assert_eq!(
                found.is_ok(),
                is_taken,
                "{user} {owner} {of_folder} {is_shared}"
            );
        }
    }

    #[test]
    fn values_are_those_that_the_existing_daemon_reads() {
        for (text, expected) in [
            ("A=b", "b"),
            ("  A = b  ", "b"),
            ("A\t=\tb", "b"),
            ("export A=b", "b"),
            ("export \tA=b", "b"),
            ("'A'=b", "b"),
            ("\u{feff}A=b", "b"),
            ("A=", ""),
            ("A=\n", ""),
            ("A=''", ""),
            ("A=\"\"", ""),
            // Comments.
            ("# B=c\nA=b\n  # B=c", "b"),
            ("A=b # c", "b"),
            ("A=b\t #c # d", "b"),
            ("A=b#c", "b#c"),
            ("A=#b", "#b"),
            ("A= # b", ""),
            ("A='b # c' # d", "b # c"),
            ("A='b'#c", "b"),
            // What other forms of such files would change or refuse.
            ("A=two words", "two words"),
            (
                "A=Authorization=Basic cGs6c2s=",
                "Authorization=Basic cGs6c2s=",
            ),
            ("A=pa$$w0rd$x", "pa$$w0rd$x"),
            ("A=\"pa$$w0rd$x\"", "pa$$w0rd$x"),
            ("A=C:\\new\\table", "C:\\new\\table"),
            ("A={\"b\": ['c']}", "{\"b\": ['c']}"),
            ("A=b'c", "b'c"),
            ("A=b\"c", "b\"c"),
            // Quotes.
            ("A='b  '", "b  "),
            ("A='b\nc'", "b\nc"),
            ("A='b\r\nc'", "b\r\nc"),
            ("A='\\'\\\\\\n'", "'\\\\n"),
            (
                "A=\"\\a\\b\\f\\n\\r\\t\\v\\'\\\"\\\\\\x\"",
                "\u{7}\u{8}\u{c}\n\r\t\u{b}'\"\\\\x",
            ),
            // References.
            ("A=${SET}", "set"),
            ("A='<${SET}>'", "<set>"),
            ("A=\"<${SET}${SET}>\"", "<setset>"),
            ("A=$SET", "$SET"),
            ("A=${NONE}", ""),
            ("A=${}", ""),
            ("A=${NONE:-b c}", "b c"),
            ("A=${NONE:-}", ""),
            ("A=${SET:-b}", "set"),
            ("A=${EMPTY:-b}", ""),
            ("A=${NONE:b}", "${NONE:b}"),
            ("A=${NONE:-b", "${NONE:-b"),
            ("A=${SET", "${SET"),
            ("A=${x${SET}", ""),
            ("A=$${SET}", "$set"),
            ("A=1\nA=${A}2", "12"),
            // Names that look like something else.
            ("A=export B=c", "export B=c"),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
        }
        let all = parse("export=1\rA=2\r\nb.c-d=3\n1=${A}${export}\nSET=4\nS=${SET}\nA=5").unwrap();
        let all: Vec<_> = all
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        let expected = [
            ("export", "1"),
            ("A", "5"),
            ("b.c-d", "3"),
            ("1", "21"),
            ("SET", "4"),
            ("S", "set"),
        ];
        assert_eq!(all, expected);
        assert_eq!(parse(" \n\n# a\n"), Ok(vec![]));
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn a_name_without_an_equals_sign_is_no_variable() {
        let content = Content::parse("\nB\nA=1\nexport A # c\nC=<${A:-d}>", &environment).unwrap();
        assert_eq!(content.without_value, [2, 4]);
        let values: Vec<_> = content
            .values
            .iter()
            .map(|(name, value)| (&**name, value.clone()))
            .collect();
        assert_eq!(values, [("B", None), ("A", None), ("C", Some("<>".into()))]);
    }

    #[test]
    fn faults_name_their_lines_and_the_rest_is_still_read() {
        let unclosed = "a quote is opened and not closed";
        for (text, expected) in [
            (
                "A=1\n=2\nB C=3\r\n\r\nA='4' 5\n",
                vec![
                    (2, "has no name"),
                    (3, "has no `=` behind the name"),
                    (5, "has text behind the closing quote"),
                ],
            ),
            ("\rA='1\nB=2\n", vec![(2, unclosed)]),
            ("A=\"1\\\"\n", vec![(1, unclosed)]),
            ("A='1\\", vec![(1, unclosed)]),
            ("A='1\n2'\n'", vec![(3, unclosed)]),
            ("''=1", vec![(1, "has no name")]),
            ("export =1", vec![(1, "has no name")]),
            ("A=a\0b", vec![(1, "the value has a NUL")]),
            (
                "pass/word=1",
                vec![(
                    1,
                    "a name has at most 255 letters of ASCII, digits, `_`, `.` and `-`",
                )],
            ),
            ("-----END KEY-----", vec![(1, "has no `=` behind the name")]),
        ] {
            let faults = parse(text).unwrap_err();
            let faults: Vec<_> = faults.iter().map(|it| (it.line, it.what)).collect();
            assert_eq!(faults, expected, "{text:?}");
        }
        assert_eq!(parse(&"=\n".repeat(1000)).unwrap_err().len(), MOST_FAULTS);
        assert!(parse(&format!("{}=1", "n".repeat(LONGEST_NAME))).is_ok());
        assert!(parse(&format!("{}=1", "n".repeat(LONGEST_NAME + 1))).is_err());
        let fault = decode(b"A=1\nB=\xff\n").unwrap_err();
        assert_eq!((fault.line, fault.what), (2, "is not UTF-8 text"));
    }

    #[test]
    fn references_cannot_grow_without_bound() {
        let fits = "x".repeat(LONGEST_VALUE);
        assert_eq!(value(&format!("A={fits}")), fits);
        let fault = |text: &str| parse(text).unwrap_err()[0].what;
        assert_eq!(
            fault(&format!("A={fits}y")),
            "the value has more than 100 kB"
        );
        let mut text = "V0=0123456789\n".to_owned();
        for number in 1..60 {
            let before = format!("${{V{}}}", number - 1);
            text += &format!("V{number}={}\n", before.repeat(10));
        }
        assert_eq!(fault(&text), "the value has more than 100 kB");
        let many = format!("A={fits}\n{}", "B=${A}\n".repeat(11));
        assert_eq!(
            fault(&many),
            "with this one, all values together have more than 1 MiB"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,60}|[A='\"\\\\${}:\\- #\\r\\nexport]{0,60}") {
            fuzz::content(text.as_bytes());
        }
    }
}
