//! Values that do not stand in the configuration file: `${VARIABLE}` and `${file:NAME}` in the
//! texts of options, and the files that options like `password_file` name.
//!
//! They are looked up once, when the configuration is read, and no message shows one.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::mem;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::libc;

use crate::secret::Secret;

/// The most bytes of a file that holds one value.
const MOST_BYTES: u64 = 1 << 20;

/// The most bytes that one configuration gets from variables and files: its text may name each of
/// them many thousand times.
const MOST_FILLED: usize = 16 << 20;

/// What reading a file counts at least.
const LEAST_FILE: usize = 4096;

/// The folder in which systemd puts what `LoadCredential=` names.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// What stands before the name of a file.
const FILE: &str = "file:";

/// A text in which values have taken the places of their names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expanded {
    pub text: String,
    /// Whether a `${` was kept that neither names a variable nor is written `$${`.
    pub has_stray: bool,
}

/// What surrounds the process when it reads a configuration.
pub(crate) struct Environment {
    variables: HashMap<OsString, OsString>,
    filled: AtomicUsize,
    looked_up: Mutex<Vec<Secret>>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        Self::new(std::env::vars_os().collect())
    }

    /// One of these variables alone.
    pub fn new(variables: HashMap<OsString, OsString>) -> Self {
        Self {
            variables,
            filled: AtomicUsize::new(0),
            looked_up: Mutex::new(Vec::new()),
        }
    }

    /// One of these texts.
    #[cfg(test)]
    pub fn of<const N: usize>(variables: [(&str, &str); N]) -> Self {
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        Self::new(variables.into())
    }

    /// The text with the values in the places of their names; `None` where it names none. `$${`
    /// stands for `${`, and so does a `${` that no name and `}` follow.
    ///
    /// # Errors
    /// The variable or file that cannot be looked up.
    pub fn expand(&self, text: &str) -> Result<Option<Expanded>, String> {
        if !text.contains("${") {
            return Ok(None);
        }
        let mut expanded = String::new();
        let mut has_stray = false;
        let mut rest = text;
        while let Some((before, inside)) = rest.split_once("${") {
            if let Some(before) = before.strip_suffix('$') {
                expanded.push_str(before);
                expanded.push_str("${");
                rest = inside;
                continue;
            }
            expanded.push_str(before);
            let named = inside.split_once('}');
            match named.filter(|(name, _)| is_reference(name)) {
                Some((name, after)) => {
                    let value = self.value(name);
                    let text = |why| format!("{why}; write `$${{` for the text `${{`");
                    expanded.push_str(&value.map_err(text)?);
                    rest = after;
                }
                None => {
                    has_stray = true;
                    expanded.push_str("${");
                    rest = inside;
                }
            }
        }
        expanded.push_str(rest);
        Ok(Some(Expanded {
            text: expanded,
            has_stray,
        }))
    }

    /// The text in a file, without the line break at its end. A relative name is that of a file in
    /// systemd's folder of credentials, or else in the current directory.
    pub fn file(&self, name: &str) -> Result<String, String> {
        let place = self.place(name)?;
        let read = read_regular_file(&place, MOST_BYTES);
        let bytes = read.map_err(|why| unreadable(&place, &why))?;
        self.count(bytes.len().max(LEAST_FILE))?;
        let text = String::from_utf8(bytes)
            .map_err(|_| format!("the file {} is not UTF-8 text", place.display()))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            return Err(format!("the file {} is empty", place.display()));
        }
        Ok(self.note(text))
    }

    /// The text of a variable, if it is one and holds something.
    pub fn variable(&self, name: &str) -> Option<String> {
        let value = self.variables.get(&OsString::from(name));
        let text = value.and_then(|value| value.to_str());
        let text = text.filter(|text| !text.trim().is_empty())?;
        Some(self.note(text))
    }

    /// What has been looked up since it was last asked for: none of it is to be shown.
    pub fn take_looked_up(&self) -> Vec<Secret> {
        mem::take(&mut *self.lock())
    }

    fn note(&self, value: &str) -> String {
        let mut looked_up = self.lock();
        if !looked_up.iter().any(|known| known.reveal() == value) {
            looked_up.push(Secret::new(value));
        }
        value.to_owned()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Secret>> {
        self.looked_up
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn value(&self, name: &str) -> Result<String, String> {
        if let Some(file) = name.strip_prefix(FILE) {
            return self.file(file);
        }
        let value = self.variables.get(&OsString::from(name));
        let value = value.ok_or_else(|| format!("the variable {name} is not set"))?;
        self.count(value.len())?;
        let text = value.to_str();
        text.map(|text| self.note(text))
            .ok_or_else(|| format!("the variable {name} is not UTF-8 text"))
    }

    fn count(&self, bytes: usize) -> Result<(), String> {
        let before = self.filled.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > MOST_FILLED {
            let megabytes = MOST_FILLED >> 20;
            return Err(format!(
                "the values from variables and files are larger than {megabytes} MiB together"
            ));
        }
        Ok(())
    }

    /// Where the file of this name is.
    pub fn place(&self, name: &str) -> Result<PathBuf, String> {
        if name.is_empty() {
            return Err("names no file".to_owned());
        }
        let Some(folder) = self.variables.get(&OsString::from(CREDENTIALS)) else {
            return Ok(name.into());
        };
        // An absolute name takes the place of the folder.
        let place = Path::new(folder).join(name);
        match place.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound && Path::new(name).exists() => {
                Ok(name.into())
            }
            _ => Ok(place),
        }
    }
}

/// What stands in each `${…}` of a text: the name of a variable, or that of a file after `file:`.
pub(crate) fn references(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once("${") {
        rest = inside;
        if !before.ends_with('$')
            && let Some((name, after)) = inside.split_once('}')
            && is_reference(name)
        {
            found.push(name);
            rest = after;
        }
    }
    found
}

/// Whether a text between `${` and `}` names a variable or a file; if not, it is text like all else.
pub(crate) fn is_reference(name: &str) -> bool {
    name.starts_with(FILE) || is_variable(name)
}

fn is_variable(name: &str) -> bool {
    let mut letters = name.bytes();
    let first = letters.next();
    first.is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == b'_')
}

fn unreadable(place: &Path, why: &std::io::Error) -> String {
    let shown = place.display();
    if why.kind() == ErrorKind::NotFound && place.is_relative() {
        return format!(
            "the file {shown} is neither in $CREDENTIALS_DIRECTORY nor in the current directory"
        );
    }
    format!("the file {shown} could not be read: {why}")
}

/// The bytes of a regular file of at most `most` bytes. Neither a pipe nor a device keeps the
/// caller waiting.
pub(crate) fn read_regular_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Without waiting: a pipe would keep us until someone writes to it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    read_open_file(file, most)
}

/// The bytes of a file that is open.
pub(crate) fn read_open_file(file: File, most: u64) -> io::Result<Vec<u8>> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    // It may grow while it is read.
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let megabytes = most >> 20;
        return Err(io::Error::other(format!(
            "it is larger than {megabytes} MiB, the most that is read of such a file"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn variables_stand_for_the_whole_text_or_parts_of_it() {
        let environment = Environment::of([("USER_1", "me"), ("_PW", "p$w}${X}"), ("NONE", "")]);
        for (text, expected) in [
            ("plain", None),
            ("", None),
            ("$USER_1 $$ } {", None),
            ("${USER_1}", Some("me")),
            ("a${USER_1}b${USER_1}", Some("amebme")),
            ("${NONE}", Some("")),
            // What comes from a variable is not looked at again.
            ("${_PW}", Some("p$w}${X}")),
            ("$${USER_1}", Some("${USER_1}")),
            ("$$${USER_1}", Some("$${USER_1}")),
            ("$${a}${USER_1}", Some("${a}me")),
            ("é${USER_1}é", Some("émeé")),
        ] {
            let found = environment.expand(text).unwrap();
            let found = found.map(|found| (found.text, found.has_stray));
            let expected = expected.map(|text| (text.to_owned(), false));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_variables_form_stays_text() {
        let environment = Environment::of([("X", "1")]);
        for (text, expected) in [
            ("w7${k", "w7${k"),
            ("a${X }", "a${X }"),
            ("a${}b", "a${}b"),
            ("${2x}", "${2x}"),
            ("${X:-y}", "${X:-y}"),
            ("${", "${"),
            ("$${a${", "${a${"),
            ("${${X}}", "${1}"),
            ("${é}${X}", "${é}1"),
        ] {
            let found = environment.expand(text).unwrap().unwrap();
            let expected = Expanded {
                text: expected.to_owned(),
                has_stray: true,
            };
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_looked_up_is_named_but_never_what_may_be_a_password() {
        let environment = Environment::of([]);
        for (text, why) in [
            (
                "hunter2${MISSING}",
                "the variable MISSING is not set; write `$${` for the text `${`",
            ),
            ("${file:}", "names no file"),
            (
                "${file:/none/there}",
                "/none/there could not be read: No such file",
            ),
        ] {
            let error = environment.expand(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{text}: {error}");
        }
    }

    #[test]
    fn a_relative_name_is_first_that_of_a_credential() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("pw"), "Geheim\n").unwrap();
        let path = folder.path().display().to_string();
        let environment = Environment::of([(CREDENTIALS, path.as_str())]);
        assert_eq!(environment.file("pw").as_deref(), Ok("Geheim"));
        let expanded = environment.expand("Bearer ${file:pw}").unwrap().unwrap();
        assert_eq!(expanded.text, "Bearer Geheim");
        // This one is in the current directory alone.
        let here = environment.file("Cargo.toml").unwrap();
        assert!(here.starts_with("[package]"));
        let missing = environment.file("nowhere").unwrap_err();
        assert!(missing.contains(&path), "{missing}");
        let missing = Environment::of([]).file("nowhere").unwrap_err();
        assert!(
            missing.contains("neither in $CREDENTIALS_DIRECTORY"),
            "{missing}"
        );
    }

    #[test]
    fn a_file_gives_its_text_without_the_line_break_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("value");
        for (bytes, expected) in [
            (&b"word"[..], Ok("word")),
            (b"word\n", Ok("word")),
            (b"word\r\n", Ok("word")),
            (b" two\nlines \n\n", Ok(" two\nlines \n")),
            (b"", Err("is empty")),
            (b"\n", Err("is empty")),
            (b"\xff", Err("is not UTF-8 text")),
        ] {
            fs::write(&path, bytes).unwrap();
            let found = Environment::of([]).file(path.to_str().unwrap());
            match expected {
                Ok(text) => assert_eq!(found.as_deref(), Ok(text)),
                Err(why) => assert!(found.unwrap_err().contains(why), "{bytes:?}"),
            }
        }
    }

    #[test]
    fn what_is_filled_in_is_bounded() {
        let word = "x".repeat(1 << 20);
        let environment = Environment::of([("WORD", word.as_str())]);
        for _ in 0..16 {
            assert!(environment.expand("${WORD}").is_ok());
        }
        let error = environment.expand("${WORD}").unwrap_err();
        assert!(error.contains("larger than 16 MiB together"), "{error}");
        let environment = Environment::of([]);
        let error = environment.expand(&"${file:Cargo.toml}".repeat(5000));
        assert!(error.unwrap_err().contains("larger than 16 MiB"));
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        for path in [pipe.as_path(), folder.path(), Path::new("/dev/zero")] {
            let error = Environment::of([])
                .file(path.to_str().unwrap())
                .unwrap_err();
            assert!(error.contains("it is not a regular file"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_expanded_or_refused(text in "[$}{a-z:é]{0,20}") {
            let _ = Environment::of([("a", "1")]).expand(&text);
        }
    }
}
