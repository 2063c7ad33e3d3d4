//! The service as systemd knows it: its user and its settings, from its unit and the files that this names.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Group, geteuid};

use super::super::output::eprint_line;
use super::{Refusal, Service, denied, name_config};
use crate::exit::Exit;
use crate::runtime_dir;
use crate::sys::{self, Account};

/// Where it is on every system that has it. The caller's PATH does not matter.
const SYSTEMCTL: &str = "/usr/bin/systemctl";

/// There while systemd runs the machine (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// What a service has without a `PATH` of its own.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";

/// What systemctl is asked for.
const PROPERTIES: &str = "LoadState,ActiveState,UnitFileState,User,Group,SupplementaryGroups,WorkingDirectory,UMask,\
                          Environment,EnvironmentFiles,RuntimeDirectory,StateDirectory,AmbientCapabilities,\
                          ExecStart,DynamicUser";

/// A unit that is installed.
pub(super) struct Unit {
    name: String,
    /// The lines of `systemctl show`.
    properties: Vec<(String, String)>,
}

impl Unit {
    /// Asks systemd for the unit; `None` if there is none, or systemd does not run this machine.
    pub fn ask(name: &str) -> Result<Option<Self>, Refusal> {
        if !Path::new(BOOTED).is_dir() {
            return Ok(None);
        }
        let Some(text) = systemctl(&["show", "--property", PROPERTIES, "--", name])? else {
            return Ok(None);
        };
        let unit = Self::parse(name, &text);
        Ok((unit.get("LoadState") == "loaded").then_some(unit))
    }

    fn parse(name: &str, text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        Self {
            name: name.to_owned(),
            properties: lines.map(own).collect(),
        }
    }

    fn get(&self, key: &str) -> &str {
        self.all(key).next().unwrap_or_default()
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        let properties = self.properties.iter();
        properties.filter_map(move |(name, value)| (name == key).then_some(value.as_str()))
    }

    /// Whether somebody wants this service, which does not run: it is enabled, has failed, or is the one that the
    /// caller means. A template exists under any name; an instance has a folder.
    pub fn is_in_use(&self, is_meant: bool, instance: Option<&str>) -> Result<bool, Refusal> {
        if self.get("UnitFileState") == "enabled" || self.get("ActiveState") != "inactive" {
            return Ok(true);
        }
        let Some(instance) = instance else {
            return Ok(is_meant);
        };
        let folder = Path::new("/etc/conserver").join(instance);
        match fs::metadata(&folder) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Err(denied(&runtime_dir::denied(&folder)))
            }
            found => Ok(found.is_ok_and(|found| found.is_dir())),
        }
    }

    /// Whether its user only exists while it runs (`DynamicUser=`), and does not now.
    pub fn lacks_its_user(&self) -> bool {
        let user = self.get("User");
        self.get("DynamicUser") == "yes" && (user.is_empty() || Account::find(user).is_err())
    }

    /// The service with the settings of its unit.
    ///
    /// # Errors
    /// If the caller may not read them, or they are wrong.
    pub fn service(&self) -> Result<Service, Refusal> {
        let refused = |why: String| Refusal::new(Exit::Config, format!("{}: {why}", self.name));
        let user = match self.get("User") {
            "" => "root",
            user => user,
        };
        if self.lacks_its_user() {
            let why = "it has its user only while it runs (DynamicUser=): start it";
            return Err(refused(why.to_owned()));
        }
        let account = Account::find(user).map_err(&refused)?;
        let mut credentials = account.credentials();
        let group = |name: &str| -> Result<u32, Refusal> {
            if let Ok(id) = name.parse() {
                return Ok(id);
            }
            let found = Group::from_name(name).ok().flatten();
            let id = found.map(|group| group.gid.as_raw());
            id.ok_or_else(|| refused(format!("this system knows no group {name:?}")))
        };
        if !self.get("Group").is_empty() {
            credentials.group = group(self.get("Group"))?;
        }
        for name in self.get("SupplementaryGroups").split_whitespace() {
            credentials.groups.push(group(name)?);
        }
        let capabilities = self.get("AmbientCapabilities");
        credentials.may_switch |= ["cap_kill", "cap_setgid", "cap_setuid"]
            .iter()
            .all(|needed| capabilities.contains(needed));
        let home = account.home.clone();
        let folder = match self.get("WorkingDirectory").trim_start_matches('!') {
            "" => PathBuf::from("/"),
            "~" | "[home]" => home.clone(),
            folder => folder.into(),
        };
        let mut variables = Variables::default();
        variables.set("PATH", PATH);
        variables.set("HOME", home);
        variables.set("USER", account.name());
        variables.set("LOGNAME", account.name());
        for (above, key, variable) in [
            ("/run", "RuntimeDirectory", "RUNTIME_DIRECTORY"),
            ("/var/lib", "StateDirectory", "STATE_DIRECTORY"),
        ] {
            let folders = self.get(key).split_whitespace();
            let folders: Vec<String> = folders.map(|name| format!("{above}/{name}")).collect();
            // It is made when the service starts, and the one below /run only lasts as long as it runs.
            if folders
                .first()
                .is_some_and(|first| Path::new(first).exists())
            {
                variables.set(variable, folders.join(":"));
            }
        }
        for word in words(self.get("Environment")) {
            if let Some((name, value)) = word.split_once('=') {
                variables.set(name, value);
            }
        }
        for line in self.all("EnvironmentFiles") {
            self.read_file(line, &mut variables)?;
        }
        // ExecStart={ path=/usr/bin/conserver ; argv[]=/usr/bin/conserver --config x ; ignore_errors=no ; …
        let argv = self.get("ExecStart").split(" ; ");
        if let Some(argv) = argv.into_iter().find_map(|it| it.strip_prefix("argv[]=")) {
            let argv = words(argv).into_iter().map(OsString::from);
            name_config(argv.collect(), &mut variables.0);
        }
        let user = geteuid();
        let is_allowed = user.is_root() || user.as_raw() == credentials.user;
        self.add_credentials(is_allowed, &mut variables)?;
        Ok(Service {
            variables: variables.0,
            folder,
            mask: u32::from_str_radix(self.get("UMask"), 8).ok(),
            credentials,
        })
    }

    /// Reads a file of `EnvironmentFile=`, as `/etc/conserver/conserver.env (ignore_errors=yes)`.
    fn read_file(&self, line: &str, variables: &mut Variables) -> Result<(), Refusal> {
        let (path, is_optional) = match line.rsplit_once(" (ignore_errors=") {
            Some((path, ignore)) => (path, ignore.starts_with("yes")),
            None => (line, false),
        };
        match fs::read(path) {
            Ok(bytes) => assignments(&bytes)
                .into_iter()
                .for_each(|(name, value)| variables.set(&name, OsString::from_vec(value))),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(denied(&runtime_dir::denied(Path::new(path))));
            }
            Err(error) if error.kind() == ErrorKind::NotFound && is_optional => {}
            Err(error) => {
                let why = format!("{}: could not read {path}: {error}", self.name);
                return Err(Refusal::new(Exit::Config, why));
            }
        }
        Ok(())
    }

    /// Where its credentials are, or a word on where they are not.
    fn add_credentials(&self, is_allowed: bool, variables: &mut Variables) -> Result<(), Refusal> {
        let folder = Path::new("/run/credentials").join(&self.name);
        let name = &self.name;
        if matches!(
            self.get("ActiveState"),
            "active" | "reloading" | "activating"
        ) {
            if folder.exists() {
                variables.set("CREDENTIALS_DIRECTORY", folder);
                if !is_allowed {
                    eprint_line(format_args!(
                        "note: the credentials of {name} are for its user alone; use sudo if they are needed"
                    ));
                }
            }
            return Ok(());
        }
        let text = systemctl(&["cat", "--", name])?.unwrap_or_default();
        let is_credential = |line: &str| {
            let key = line.split('=').next().unwrap_or_default().trim_end();
            let keys = ["LoadCredential", "SetCredential", "ImportCredential"];
            keys.iter().any(|it| {
                key.strip_prefix(it)
                    .is_some_and(|end| matches!(end, "" | "Encrypted"))
            })
        };
        if text.lines().any(is_credential) {
            eprint_line(format_args!(
                "note: {name} does not run, so its credentials are not there; start it, or use \
                 /usr/libexec/conserver/check-service"
            ));
        }
        Ok(())
    }
}

/// systemctl with nothing of this process's: neither its environment, which may be one of another user's, nor its
/// terminal.
pub(in crate::cli) fn systemctl_alone() -> Command {
    let mut command = Command::new(SYSTEMCTL);
    command
        .arg("--no-pager")
        .env_clear()
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null());
    sys::detach(&mut command);
    command
}

/// What systemctl prints; `None` if it is not there or fails, as it does where the user may not ask.
fn systemctl(arguments: &[&str]) -> Result<Option<String>, Refusal> {
    match systemctl_alone().args(arguments).output() {
        Ok(output) if output.status.success() => {
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unasked(&error)),
    }
}

fn unasked(error: &io::Error) -> Refusal {
    let why = format!(
        "could not ask systemd for the service: {error}; --no-service uses your own settings"
    );
    Refusal::new(Exit::Internal, why)
}

/// Variables, of which the last of a name counts.
#[derive(Default)]
struct Variables(Vec<(OsString, OsString)>);

impl Variables {
    fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.into(), value.into()));
    }
}

/// The words of a property of several values. One with spaces or quotes is shown as `"…"` or `$'…'`, with a backslash
/// before what would end it.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (inner, end) = match (rest.strip_prefix("$'"), rest.strip_prefix('"')) {
            (Some(inner), _) => (inner, Some('\'')),
            (None, Some(inner)) => (inner, Some('"')),
            (None, None) => (rest, None),
        };
        let mut word = String::new();
        let mut characters = inner.chars();
        while let Some(c) = characters.next() {
            match c {
                '\\' if end.is_some() => word.extend(characters.next().map(|c| match c {
                    'n' => '\n',
                    't' => '\t',
                    c => c,
                })),
                c if end == Some(c) || end.is_none() && c == ' ' => break,
                c => word.push(c),
            }
        }
        words.push(word);
        rest = characters.as_str().trim_start();
    }
    words
}

/// The assignments of a file of `EnvironmentFile=` (systemd.exec(5)): shell-like, without expansion. Lines that are
/// none are passed over, as systemd does.
fn assignments(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut rest = bytes.iter().copied().peekable();
    let mut found = Vec::new();
    while let Some(first) = rest.find(|byte| !byte.is_ascii_whitespace()) {
        let is_end = |byte: u8| matches!(byte, b'\n' | b'\r');
        let mut name = vec![first];
        if matches!(first, b'#' | b';') {
            rest.find(|byte| is_end(*byte));
            continue;
        }
        let mut is_assignment = first == b'=';
        while !is_assignment && let Some(byte) = rest.next_if(|byte| !is_end(*byte)) {
            is_assignment = byte == b'=';
            if !is_assignment {
                name.push(byte);
            }
        }
        if is_assignment {
            let value = value(&mut rest);
            let name = String::from_utf8_lossy(&name).trim_end().to_owned();
            let is_good = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.chars().all(is_good) && !name.starts_with(|c: char| c.is_ascii_digit()) {
                found.push((name, value));
            }
        }
    }
    found
}

/// A value: parts in quotes, one after the other, then what stands without any up to the end of the line.
fn value(rest: &mut std::iter::Peekable<impl Iterator<Item = u8>>) -> Vec<u8> {
    let mut value = Vec::new();
    loop {
        match rest.next() {
            None | Some(b'\n' | b'\r') => return value,
            Some(b'\'') => value.extend(rest.by_ref().take_while(|byte| *byte != b'\'')),
            Some(b'"') => {
                while let Some(byte) = rest.next().filter(|byte| *byte != b'"') {
                    match (byte, rest.peek()) {
                        (b'\\', Some(b'"' | b'\\' | b'`' | b'$')) => value.extend(rest.next()),
                        (b'\\', Some(b'\n')) => {
                            rest.next();
                        }
                        (byte, _) => value.push(byte),
                    }
                }
            }
            Some(byte) if byte.is_ascii_whitespace() => {}
            Some(mut byte) => {
                let mut length = value.len();
                loop {
                    if byte == b'\\' {
                        // Before the end of a line, it goes on in the next one.
                        value.extend(rest.next().filter(|byte| *byte != b'\n'));
                        length = value.len();
                    } else {
                        value.push(byte);
                        if !byte.is_ascii_whitespace() {
                            length = value.len();
                        }
                    }
                    match rest.next() {
                        None | Some(b'\n' | b'\r') => break,
                        Some(next) => byte = next,
                    }
                }
                value.truncate(length);
                return value;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_settings_is_read_as_systemd_does() {
        let text = b"# a comment \\\nREDIS_URL=redis://host/5\n;another\n\n  A = b c  \nB='x # y'\"\\$z\\q\" \n\
            C=a\\\nb\nD=\nnothing here\n1E=x\nF=it's \"so\"\nG=\"two\nlines\"\nH=x\\ \nI=last";
        let found = assignments(text);
        let shown: Vec<(&str, &str)> = found
            .iter()
            .map(|(name, value)| (name.as_str(), str::from_utf8(value).unwrap()))
            .collect();
        let expected = [
            ("REDIS_URL", "redis://host/5"),
            ("A", "b c"),
            ("B", "x # y$z\\q"),
            ("C", "ab"),
            ("D", ""),
            ("F", "it's \"so\""),
            ("G", "two\nlines"),
            ("H", "x "),
            ("I", "last"),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn values_that_systemctl_quotes_are_read() {
        let expected = ["A=1", "B=a b", "C=it's", "D=\"q\""];
        assert_eq!(words("A=1 \"B=a b\" C=it's \"D=\\\"q\\\"\""), expected);
        assert_eq!(words("A=1 $'B=a b' $'C=it\\'s' $'D=\"q\"'"), expected);
        assert!(words("").is_empty());
    }

    #[test]
    fn a_service_that_nobody_has_enabled_counts_for_who_means_it() {
        let unit = |text| Unit::parse("x.service", text);
        let disabled = unit("UnitFileState=disabled\nActiveState=inactive\n");
        assert!(!disabled.is_in_use(false, None).unwrap());
        assert!(disabled.is_in_use(true, None).unwrap());
        assert!(!disabled.is_in_use(true, Some("no-such-instance")).unwrap());
        for text in [
            "UnitFileState=enabled\nActiveState=inactive\n",
            "UnitFileState=disabled\nActiveState=failed\n",
        ] {
            assert!(
                unit(text)
                    .is_in_use(false, Some("no-such-instance"))
                    .unwrap()
            );
        }
    }

    #[test]
    fn a_unit_is_a_service_with_its_user_and_settings() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("conserver.env");
        fs::write(&file, "REDIS_URL=redis://host/5\nCONSERVER_HTTP=off\n").unwrap();
        let text = format!(
            "LoadState=loaded\nActiveState=active\nUser=root\nGroup=\nWorkingDirectory={}\nUMask=0077\nEnvironment=CONSERVER_HTTP=unix:/x \
             TZ=UTC\nExecStart={{ path=/usr/bin/conserver ; argv[]=/usr/bin/conserver -c /srv/x.yml ; \
             ignore_errors=no ; pid=0 }}\nEnvironmentFiles=/none (ignore_errors=yes)\nEnvironmentFiles={} (ignore_errors=no)\n",
            folder.path().display(),
            file.display()
        );
        let unit = Unit::parse("conserver.service", &text);
        let service = unit.service().unwrap();
        let get = |name: &str| {
            let found = service.variables.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.to_str().unwrap().to_owned())
        };
        assert_eq!(get("REDIS_URL").as_deref(), Some("redis://host/5"));
        assert_eq!(get("CONSERVER_HTTP").as_deref(), Some("off"));
        assert_eq!(get("TZ").as_deref(), Some("UTC"));
        assert_eq!(get("USER").as_deref(), Some("root"));
        assert_eq!(get("CONSERVER_CONFIG_FILE").as_deref(), Some("/srv/x.yml"));
        assert_eq!(
            (service.folder.as_path(), service.mask),
            (folder.path(), Some(0o77))
        );
        assert_eq!(service.credentials.user, 0);
        let without_user = Unit::parse("x.service", "DynamicUser=yes\nUser=no-such-user\n");
        assert!(without_user.lacks_its_user() && without_user.service().is_err());
        // Without a name it is not root's.
        assert!(
            Unit::parse("x.service", "DynamicUser=yes\nUser=\n")
                .service()
                .is_err()
        );
        let with_user = Unit::parse("x.service", "DynamicUser=yes\nUser=root\n");
        assert!(!with_user.lacks_its_user());
        let broken = Unit::parse(
            "x.service",
            "ActiveState=active\nEnvironmentFiles=/none (ignore_errors=no)\n",
        );
        assert!(broken.service().unwrap_err().why.contains("/none"));
    }
}
