//! Packages that are missing: the command that installs them, and what `CONSERVER_PIP_INSTALL` does instead.
//!
//! The existing daemon has each worker install what it cannot import. Here one process installs it, before any
//! worker needs it, into a folder of the daemon's own; daemons that share the folder take turns.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use indexmap::IndexSet;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{HostSetup, packages_folder};
use crate::deadline::Deadline;
use crate::program::{Clock, ProgramError};
use crate::secret::Secret;
use crate::sys::{self, End};
use crate::{runtime_dir, visible};

/// The longest time that pip may take, and the longest wait for another daemon's.
pub const TIME_LIMIT: Duration = Duration::from_secs(600);

/// The pause between two looks whether the other daemon is done.
const PAUSE: Duration = Duration::from_millis(50);

/// The file in the folder that the daemon has locked that installs.
const LOCK: &str = ".lock";

/// The folder in it for temporary files: what is unpacked there becomes part of the folder by being renamed.
const TEMPORARY: &str = ".pip";

/// The command that installs these packages, for a shell.
pub fn line(interpreter: &str, packages: &[String]) -> String {
    let packages: Vec<String> = packages.iter().map(|it| quoted(&shown(it))).collect();
    format!("{interpreter} -m pip install {}", packages.join(" "))
}

fn quoted(package: &str) -> String {
    format!("'{}'", package.replace('\'', r"'\''"))
}

/// A text without the passwords and tokens of the URLs in it.
fn shown(text: &str) -> String {
    let hide = |text: String, login: &str| text.replace(&format!("://{login}@"), "://***@");
    logins(text).into_iter().fold(text.to_owned(), hide)
}

/// What stands before the `@` of each URL in the text.
fn logins(text: &str) -> Vec<&str> {
    let after = text.split("://").skip(1);
    let hosts = after.map(|rest| {
        let end = rest.find(|c: char| "/?#'\"".contains(c) || c.is_whitespace());
        &rest[..end.unwrap_or(rest.len())]
    });
    hosts
        .filter_map(|host| Some(host.rsplit_once('@')?.0))
        .collect()
}

/// The right to install, which one process has at a time.
pub struct Installer<'a> {
    setup: &'a HostSetup,
    folder: PathBuf,
    /// Held until it is dropped.
    _lock: Flock<File>,
}

impl<'a> Installer<'a> {
    /// Makes the folder for packages, and waits until no other daemon installs there.
    ///
    /// # Errors
    /// In words: the folder cannot be used, the wait is too long, or this process is told to end.
    pub fn begin(setup: &'a HostSetup) -> Result<Self, String> {
        let folder = packages_folder()
            .ok_or("there is no folder for them; STATE_DIRECTORY or HOME must name one")?;
        Self::in_folder(setup, folder)
    }

    fn in_folder(setup: &'a HostSetup, folder: PathBuf) -> Result<Self, String> {
        let lock = lock(&folder)?;
        Ok(Self {
            setup,
            folder,
            _lock: lock,
        })
    }

    /// Installs these packages.
    ///
    /// # Errors
    /// In words, with the last that pip has said.
    pub fn install(&self, packages: &IndexSet<String>) -> Result<(), String> {
        let temporary = self.folder.join(TEMPORARY);
        // An installation that was killed has left it.
        let _ = fs::remove_dir_all(&temporary);
        private_folder(&temporary)?;
        let begun = Instant::now();
        let (named, folder) = (packages.iter().map(|it| quoted(&shown(it))), &self.folder);
        let named: Vec<String> = named.collect();
        let named = visible::printable(&named.join(" ")).into_owned();
        log::info!("Installing {named} into {} with pip", folder.display());
        let done = self.run_pip(packages, &temporary);
        let _ = fs::remove_dir_all(&temporary);
        done?;
        let seconds = begun.elapsed().as_secs_f64();
        log::info!("Installed {named}: took {seconds:.1} s");
        Ok(())
    }

    fn run_pip(&self, packages: &IndexSet<String>, temporary: &Path) -> Result<(), String> {
        let interpreter = self.setup.settings.interpreter.as_str();
        let folder = self.folder.to_string_lossy();
        let list = temporary.join("packages.txt");
        write_list(&list, packages)?;
        let list = list.to_string_lossy();
        let words = [
            interpreter,
            "-m",
            "pip",
            "install",
            "--target",
            &folder,
            "--no-input",
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--progress-bar=off",
            // Not as arguments, which everybody can see: a URL may hold a login.
            "-r",
            &list,
        ];
        let argv = words.into_iter().map(str::to_owned).collect();
        let variables = [("TMPDIR", temporary.into()), ("PIP_USER", "0".into())];
        let logins = packages.iter().flat_map(|package| logins(package));
        let secrets = logins.map(Secret::new).collect();
        let pip = self
            .setup
            .program_of(argv, "pip", TIME_LIMIT, &variables, secrets);
        let limit = Deadline::NONE.begin(TIME_LIMIT);
        match pip.run(b"", &mut Clock::new(limit).heeding_signals()) {
            Ok(ran) if ran.end == End::Exited(0) => Ok(()),
            Ok(ran) => Err(shown(&format!(
                "pip has ended with {}{}",
                ran.end, ran.reason
            ))),
            Err(ProgramError::Failed(failure) | ProgramError::TimedOut(failure)) => {
                Err(shown(&failure.message))
            }
            Err(ProgramError::Interrupted) => Err(INTERRUPTED.to_owned()),
        }
    }
}

/// Writes the packages into a file of requirements that nobody else can read.
fn write_list(path: &Path, packages: &IndexSet<String>) -> Result<(), String> {
    let is_option = |package: &&String| package.trim_start().starts_with(['-', '#']);
    let is_odd = |package: &&String| is_option(package) || package.contains(['\n', '\r']);
    if let Some(odd) = packages.iter().find(is_odd) {
        return Err(format!(
            "{} is not the name of a package",
            quoted(&shown(odd))
        ));
    }
    let lines: String = packages
        .iter()
        .map(|package| format!("{package}\n"))
        .collect();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options
        .open(path)
        .and_then(|mut file| file.write_all(lines.as_bytes()));
    written.map_err(|error| format!("{}: {error}", path.display()))
}

const INTERRUPTED: &str = "interrupted";

fn lock(folder: &Path) -> Result<Flock<File>, String> {
    private_folder(folder)?;
    let path = folder.join(LOCK);
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    let mut file = runtime_dir::open(&path, &mut options).map_err(|error| failed(&error))?;
    let begun = Instant::now();
    let mut is_told = false;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, error)) => return Err(failed(&error)),
        };
        if sys::end_is_pending() {
            return Err(INTERRUPTED.to_owned());
        }
        if begun.elapsed() > TIME_LIMIT {
            let seconds = TIME_LIMIT.as_secs();
            return Err(failed(&format!(
                "another process has had it locked for {seconds} s"
            )));
        }
        if !is_told {
            log::info!(
                "Waiting for another daemon that installs into {}",
                folder.display()
            );
            is_told = true;
        }
        thread::sleep(PAUSE);
    }
}

/// Makes the folder, and those above it, if it is missing.
fn private_folder(path: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::settings::PythonSettings;

    #[test]
    fn logins_of_urls_are_not_shown() {
        for (text, expected) in [
            ("plain==1.0", "plain==1.0"),
            ("user@host", "user@host"),
            (
                "x @ git+https://token@host/x.git@v1",
                "x @ git+https://***@host/x.git@v1",
            ),
            (
                "at https://a:b@h:1 and 'https://u:p%40@i/?q@' https://j/@",
                "at https://***@h:1 and 'https://***@i/?q@' https://j/@",
            ),
            ("://", "://"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }

    #[test]
    fn the_command_is_one_for_a_shell() {
        let packages = ["it's; rm".to_owned(), "https://t@h/x".to_owned()];
        let expected = r"py -m pip install 'it'\''s; rm' 'https://***@h/x'";
        assert_eq!(line("py", &packages), expected);
    }

    /// An interpreter that is a shell script.
    fn setup(folder: &Path, script: &str) -> HostSetup {
        let path = folder.join("interpreter");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        HostSetup {
            settings: PythonSettings {
                interpreter: path.display().to_string(),
                ..PythonSettings::default()
            },
            ..HostSetup::default()
        }
    }

    #[test]
    fn pip_gets_the_packages_in_a_file_and_a_temporary_folder_of_its_own() {
        let top = tempfile::tempdir().unwrap();
        let (folder, told) = (top.path().join("a/python"), top.path().join("told"));
        let script = format!(
            "printf '%s\\n' \"$@\" \"$TMPDIR\" >{0}; cat \"$TMPDIR/packages.txt\" >>{0}",
            told.display()
        );
        let setup = setup(top.path(), &script);
        let installer = Installer::in_folder(&setup, folder.clone()).unwrap();
        installer
            .install(&IndexSet::from([
                "a @ https://t@h/a".to_owned(),
                "b".to_owned(),
            ]))
            .unwrap();
        for odd in ["--evil", "# no", "a\nb"] {
            let refused = installer.install(&IndexSet::from([odd.to_owned()]));
            assert!(
                refused
                    .unwrap_err()
                    .contains("is not the name of a package")
            );
        }
        let told = fs::read_to_string(told).unwrap();
        let words: Vec<&str> = told.lines().collect();
        let temporary = folder.join(".pip");
        assert_eq!(words[..4], ["-m", "pip", "install", "--target"]);
        assert_eq!(words[4], folder.display().to_string());
        let list = temporary.join("packages.txt").display().to_string();
        let temporary_name = temporary.display().to_string();
        let last = ["-r", &list, &temporary_name, "a @ https://t@h/a", "b"];
        assert_eq!(words[words.len() - 5..], last);
        assert!(!temporary.exists());
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn an_error_has_the_last_words_of_pip_without_secrets() {
        let top = tempfile::tempdir().unwrap();
        let script = "echo 'no https://else:where@h and longtoken' >&2; exit 3";
        let setup = setup(top.path(), script);
        let installer = Installer::in_folder(&setup, top.path().join("p")).unwrap();
        let error = installer.install(&IndexSet::from(["https://longtoken@h/x".to_owned()]));
        let expected = "pip has ended with exit code 3: no https://***@h and ***";
        assert_eq!(error.unwrap_err(), expected);
    }

    #[test]
    fn one_installs_at_a_time() {
        let top = tempfile::tempdir().unwrap();
        let setup = HostSetup::default();
        let first = Installer::in_folder(&setup, top.path().to_owned()).unwrap();
        let file = File::open(top.path().join(LOCK)).unwrap();
        let second = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        let (file, error) = second.unwrap_err();
        assert_eq!(error, Errno::EWOULDBLOCK);
        drop(first);
        assert!(Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok());
    }
}
