//! `conserver submit`: vCons from files into Redis and onto an ingress list.

mod document;
mod wait;

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use nix::libc;
use serde_json::value::RawValue;

use self::document::{Names, is_named};
use self::wait::{Lookout, Outcome};
use super::shown::{complain, say, shortened};
use crate::config::{ListName, Plan};
use crate::exit::Exit;
use crate::queue::{DeadLetter, QueueError, Server, StoredReason, Submitter};
use crate::settings::Settings;
use crate::vcon::{JsonBodies, Outgoing, VconId, decode};

/// So many vCons are handed in with one round trip.
const BATCH: usize = 100;

/// From so many files on there is a progress bar.
const MANY: usize = 20;

/// So many characters of an error are told; `dlq show` has all of it.
const LONGEST_ERROR: usize = 1000;

/// What to submit, and where to.
#[derive(Debug, Args)]
pub struct Submit {
    /// Files with one or more vCons, folders of *.json and *.vcon files, or - for standard input
    #[arg(required = true, value_name = "FILE|DIR|-")]
    sources: Vec<PathBuf>,

    /// The ingress list
    #[arg(long, default_value = "default")]
    list: ListName,

    /// Let the documents expire from Redis after so many seconds
    #[arg(long, value_name = "SECONDS")]
    expire: Option<u64>,

    /// Print the UUID of each vCon that was submitted on a line of its own, and nothing else on
    /// standard output
    #[arg(long)]
    print: bool,

    /// The UUID of a signed or encrypted vCon whose protected header has none
    ///
    /// Without it, that is the name of its file, as in <UUID>.json.
    #[arg(long, value_name = "UUID")]
    uuid: Option<VconId>,

    /// Wait until the vCons are done: in no ingress list, and with no worker
    ///
    /// The daemon may be on another machine. Exits 65 when one of them went to a dead letter queue. While
    /// Redis is away it tries again, for five minutes at a time if there is no --timeout.
    #[arg(long)]
    wait: bool,

    /// Wait no longer than so many seconds, and exit 69 when vCons are not done by then
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    timeout: Option<u64>,
}

impl Submit {
    /// Submits every vCon that can be used, and names those that cannot.
    pub fn run(&self, settings: &Settings) -> Exit {
        let (submitter, lookout) = match self.connect(settings) {
            Ok(connected) => connected,
            Err(error) => {
                complain(error);
                return Exit::Unavailable;
            }
        };
        let mut intake = Intake::new(submitter, settings.json_bodies, self);
        match self.take_all(&mut intake).and_then(|()| intake.flush()) {
            Ok(()) => {
                let unserved = !intake.submitted.is_empty() && is_unserved(&self.list, settings);
                let exit = intake.report(&self.list);
                match lookout {
                    // Without an end to it.
                    Some(_) if unserved && self.timeout.is_none() => {
                        complain("Not waiting for them; with --timeout it waits all the same");
                        Exit::Unavailable
                    }
                    Some(lookout) => self.wait(lookout, intake.submitted, exit),
                    None => exit,
                }
            }
            Err(error) => {
                let submitted = intake.submitted.len();
                complain(error);
                complain(format_args!("Submitted {submitted} vCons before that"));
                Exit::Unavailable
            }
        }
    }

    fn connect(&self, settings: &Settings) -> Result<(Submitter, Option<Lookout>), QueueError> {
        let lease = Server::new(&settings.redis_url)?.connect("conserver:submit")?;
        let (list, sorted_set) = (self.list.clone(), settings.sorted_set.clone());
        let format = settings.redis_format;
        let submitter = Submitter::new(lease, list, sorted_set, self.expire, format)?;
        // Before anything is submitted: what becomes a dead letter from now on counts.
        let lookout = self.wait.then(|| Lookout::new(settings, &self.list));
        Ok((submitter, lookout.transpose()?))
    }

    /// Waits for those that were submitted; `exit` is what came of submitting them.
    fn wait(&self, lookout: Lookout, ids: Vec<VconId>, exit: Exit) -> Exit {
        let all = ids.len();
        let Outcome { undone, dead, gone } =
            match lookout.wait(ids, self.timeout.map(Duration::from_secs)) {
                Ok(outcome) => outcome,
                Err(error) => {
                    complain(error);
                    complain("Whether the vCons are done is not known");
                    return Exit::Unavailable;
                }
            };
        for letter in &dead {
            complain(told(letter));
        }
        let done = all - undone;
        let queue = if dead.is_empty() {
            String::new()
        } else {
            format!(", {} of them to a dead letter queue", dead.len())
        };
        self.tell(&format!("{done} of {all} vCons are done{queue}"));
        if gone > 0 {
            complain(format_args!(
                "{gone} of them are not in Redis any more, which was away: they have expired, or are lost"
            ));
        }
        if undone > 0 || gone > 0 {
            Exit::Unavailable
        } else if dead.is_empty() {
            exit
        } else {
            Exit::Data
        }
    }

    /// Says it where it does not get between the UUIDs.
    fn tell(&self, line: &str) {
        if self.print {
            complain(line);
        } else {
            say(line);
        }
    }

    fn take_all(&self, intake: &mut Intake) -> Result<(), QueueError> {
        let mut files = Vec::new();
        for source in &self.sources {
            match files_of(source) {
                Ok(found) if found.is_empty() => {
                    let why = "is a folder without *.json or *.vcon files";
                    intake.refuse(&source.display().to_string(), why);
                }
                Ok(found) => files.extend(found.into_iter().map(|file| (file, source.is_dir()))),
                Err(error) => intake.refuse(&source.display().to_string(), &error.to_string()),
            }
        }
        let progress = progress(files.len());
        for (path, is_of_folder) in &files {
            let name = path.display().to_string();
            match read(path, *is_of_folder) {
                Ok(text) => intake.take(path, &name, &text)?,
                Err(why) => intake.refuse(&name, &why),
            }
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(())
    }
}

fn told(letter: &DeadLetter) -> String {
    let (entry, list) = (&letter.entry, &letter.list);
    match &letter.reason {
        Some(StoredReason::Known { stage, error, .. }) => {
            let error = shortened(error, LONGEST_ERROR);
            format!("vCon {entry} is in the dead letter queue DLQ:{list}: {stage}: {error}")
        }
        _ => format!("vCon {entry} is in the dead letter queue DLQ:{list}"),
    }
}

/// Whether nobody takes from the list, with a warning. Where the configuration is another machine's, nothing
/// is known.
fn is_unserved(list: &ListName, settings: &Settings) -> bool {
    let plan = Plan::load(&settings.config_file);
    let is_unserved = plan.is_ok_and(|plan| !plan.ingress_lists().contains(list));
    if is_unserved {
        let file = settings.config_file.display();
        complain(format_args!(
            "warning: no enabled chain of {file} takes from list {list}: they wait there"
        ));
    }
    is_unserved
}

/// A folder stands for its `*.json` and `*.vcon` files, in the order of their names.
fn files_of(source: &Path) -> io::Result<Vec<PathBuf>> {
    if !source.is_dir() {
        return Ok(vec![source.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        if is_named(&path) && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn read(path: &Path, is_of_folder: bool) -> Result<String, String> {
    let bytes = if is_of_folder {
        read_regular(path)
    } else if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        fs::read(path)
    };
    let bytes = bytes.map_err(|error| error.to_string())?;
    decode(bytes).map_err(|error| error.to_string())
}

/// Reads a file that nobody has named. In a folder that others may write to, a pipe could have its name: it would keep
/// us waiting until they write to it.
fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A bar on a terminal, where there is something to wait for.
pub(super) fn progress(steps: usize) -> ProgressBar {
    if steps < MANY || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps as u64);
    // Without the style the bar has its usual look.
    match ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

struct Intake<'a> {
    submitter: Submitter,
    bodies: JsonBodies,
    options: &'a Submit,
    /// With the names of the files they come from.
    waiting: Vec<(String, Outgoing)>,
    submitted: Vec<VconId>,
    refused: usize,
    /// Whether `--uuid` has named one already.
    is_given: bool,
}

impl<'a> Intake<'a> {
    fn new(submitter: Submitter, bodies: JsonBodies, options: &'a Submit) -> Self {
        Self {
            submitter,
            bodies,
            options,
            waiting: Vec::new(),
            submitted: Vec::new(),
            refused: 0,
            is_given: false,
        }
    }

    /// Takes the vCons of one file: one, or several one after the other.
    fn take(&mut self, path: &Path, name: &str, text: &str) -> Result<(), QueueError> {
        let text = text.trim_start_matches('\u{feff}');
        let documents = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
        let mut count = 0;
        for document in documents {
            count += 1;
            let name = format!("{name} (document {count})");
            let read = document.map_err(|error| format!("is not JSON: {error}"));
            match read.and_then(|document| self.vcon(path, document.get())) {
                Ok(vcon) => self.waiting.push((name, vcon)),
                Err(why) => self.refuse(&name, &why),
            }
            if self.waiting.len() >= BATCH {
                self.flush()?;
            }
        }
        if count == 0 {
            self.refuse(name, "holds no vCon");
        }
        Ok(())
    }

    fn vcon(&mut self, file: &Path, text: &str) -> Result<Outgoing, String> {
        let given = self.options.uuid.as_ref();
        let vcon = document::vcon(text, Names { given, file }, self.bodies)?;
        if given == Some(&vcon.id) && std::mem::replace(&mut self.is_given, true) {
            return Err("another vCon has the UUID of --uuid already".to_owned());
        }
        Ok(vcon)
    }

    fn flush(&mut self) -> Result<(), QueueError> {
        let (names, vcons): (Vec<String>, Vec<Outgoing>) =
            std::mem::take(&mut self.waiting).into_iter().unzip();
        let refusals = self.submitter.submit(&vcons)?;
        for ((name, vcon), refusal) in names.iter().zip(vcons).zip(refusals) {
            match refusal {
                Some(why) => self.refuse(name, &why),
                None => {
                    if self.options.print {
                        say(&vcon.id);
                    }
                    self.submitted.push(vcon.id);
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, name: &str, why: &str) {
        self.refused += 1;
        complain(format_args!("{name}: {why}"));
    }

    fn report(&self, list: &ListName) -> Exit {
        let submitted = self.submitted.len();
        let all = submitted + self.refused;
        self.options.tell(&format!(
            "Submitted {submitted} of {all} vCons to list {list}"
        ));
        if self.refused == 0 {
            Exit::Ok
        } else {
            Exit::Data
        }
    }
}

/// Checks one document, and makes it ready for Redis.
pub(super) fn vcon(text: &str) -> Result<Outgoing, String> {
    let names = Names {
        given: None,
        file: Path::new("-"),
    };
    document::vcon(text, names, JsonBodies::default())
}
