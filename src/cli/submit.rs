//! `conserver submit`: vCons from files into Redis and onto an ingress list.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::shown::say;
use crate::config::{ListName, Plan};
use crate::exit::Exit;
use crate::queue::{QueueError, Server, Submitter};
use crate::settings::Settings;
use crate::vcon::{Outgoing, Vcon, VconId, Version};

/// So many vCons are handed in with one round trip.
const BATCH: usize = 100;

/// From so many files on there is a progress bar.
const MANY: usize = 20;

/// What to submit, and where to.
#[derive(Debug, Args)]
pub struct Submit {
    /// Files with one or more vCons, folders of *.json files, or - for standard input
    #[arg(required = true, value_name = "FILE|DIR|-")]
    sources: Vec<PathBuf>,

    /// The ingress list
    #[arg(long, default_value = "default")]
    list: ListName,

    /// Let the documents expire from Redis after so many seconds
    #[arg(long, value_name = "SECONDS")]
    expire: Option<u64>,
}

impl Submit {
    /// Submits every vCon that can be used, and names those that cannot.
    pub fn run(&self, settings: &Settings) -> Exit {
        let submitter = Server::new(&settings.redis_url)
            .and_then(|server| server.connect("conserver:submit"))
            .map_err(QueueError::from)
            .and_then(|lease| {
                let sorted_set = settings.sorted_set.clone();
                let format = settings.redis_format;
                Submitter::new(lease, self.list.clone(), sorted_set, self.expire, format)
            });
        let mut intake = match submitter {
            Ok(submitter) => Intake::new(submitter),
            Err(error) => {
                eprintln!("{error}");
                return Exit::Unavailable;
            }
        };
        match self.take_all(&mut intake).and_then(|()| intake.flush()) {
            Ok(()) => {
                if intake.submitted > 0 {
                    warn_if_unserved(&self.list, settings);
                }
                intake.report(&self.list)
            }
            Err(error) => {
                eprintln!("{error}\nSubmitted {} vCons before that", intake.submitted);
                Exit::Unavailable
            }
        }
    }

    fn take_all(&self, intake: &mut Intake) -> Result<(), QueueError> {
        let mut files = Vec::new();
        for source in &self.sources {
            match files_of(source) {
                Ok(found) => files.extend(found),
                Err(error) => intake.refuse(&source.display().to_string(), &error.to_string()),
            }
        }
        let progress = progress(files.len());
        for path in &files {
            let name = path.display().to_string();
            match read(path) {
                Ok(text) => intake.take(&name, &text)?,
                Err(error) => intake.refuse(&name, &error.to_string()),
            }
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(())
    }
}

/// Where the configuration is another machine's, nothing is known.
fn warn_if_unserved(list: &ListName, settings: &Settings) {
    let plan = Plan::load(&settings.config_file);
    if plan.is_ok_and(|plan| !plan.ingress_lists().contains(list)) {
        let file = settings.config_file.display();
        eprintln!("warning: no enabled chain of {file} takes from list {list}: they wait there");
    }
}

/// A folder stands for its `*.json` files, in the order of their names.
fn files_of(source: &Path) -> io::Result<Vec<PathBuf>> {
    if !source.is_dir() {
        return Ok(vec![source.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn read(path: &Path) -> io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    fs::read_to_string(path)
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

struct Intake {
    submitter: Submitter,
    /// With the names of the files they come from.
    waiting: Vec<(String, Outgoing)>,
    submitted: usize,
    refused: usize,
}

impl Intake {
    fn new(submitter: Submitter) -> Self {
        Self {
            submitter,
            waiting: Vec::new(),
            submitted: 0,
            refused: 0,
        }
    }

    /// Takes the vCons of one file: one, or several one after the other.
    fn take(&mut self, name: &str, text: &str) -> Result<(), QueueError> {
        let documents = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
        let mut count = 0;
        for document in documents {
            count += 1;
            let name = format!("{name} (document {count})");
            let read = document.map_err(|error| format!("is not JSON: {error}"));
            match read.and_then(|document| vcon(document.get())) {
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

    fn flush(&mut self) -> Result<(), QueueError> {
        let (names, vcons): (Vec<String>, Vec<Outgoing>) =
            std::mem::take(&mut self.waiting).into_iter().unzip();
        let refusals = self.submitter.submit(&vcons)?;
        for (name, refusal) in names.iter().zip(refusals) {
            match refusal {
                Some(why) => self.refuse(name, &why),
                None => self.submitted += 1,
            }
        }
        Ok(())
    }

    fn refuse(&mut self, name: &str, why: &str) {
        self.refused += 1;
        eprintln!("{name}: {why}");
    }

    fn report(&self, list: &ListName) -> Exit {
        let all = self.submitted + self.refused;
        say(format_args!(
            "Submitted {} of {all} vCons to list {list}",
            self.submitted
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
    #[derive(Deserialize)]
    struct Named {
        uuid: Option<String>,
    }
    let named: Named =
        serde_json::from_str(text).map_err(|error| format!("is not a vCon: {error}"))?;
    let uuid = named.uuid.ok_or("has no `uuid`")?;
    let id: VconId = uuid.parse().map_err(|error| format!("`uuid`: {error}"))?;
    let mut vcon = Vcon::parse(id, text.to_owned()).map_err(|error| error.to_string())?;
    Ok(vcon.outgoing(Version::Current))
}
