//! `conserver submit`: vCons from files into Redis and onto an ingress list.
//!
//! A [`Submission`] reads documents and hands them to Redis in batches; [`parse_document`] tells a
//! document's kind and UUID.

mod wait;

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use self::wait::{CompletionWait, WaitResult};
use super::output::{LONGEST_ERROR, counted, eprint_line, print_line, progress_bar, truncated};
use crate::config::{ListName, Plan};
use crate::exit::Exit;
use crate::queue::{DeadLetter, QueueError, Server, StoredReason, Submitter};
use crate::settings::Settings;
use crate::vcon::{JsonBodies, Outgoing, Sealed, Vcon, VconId, Version, decode, sealed};

/// vCons submitted in one round trip.
const BATCH: usize = 100;

/// What to submit, and where to.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// Files with one or more vCons, folders of *.json and *.vcon files, or - for standard input
    #[arg(required = true, value_name = "FILE|DIR|-")]
    sources: Vec<PathBuf>,

    /// The ingress list
    #[arg(long, default_value = "default")]
    list: ListName,

    /// Let the documents expire from Redis after this time
    #[arg(long, value_name = "SECONDS")]
    expire: Option<u64>,

    /// Print the UUID of each vCon that was submitted on a line of its own, and nothing else on
    /// standard output
    #[arg(long)]
    print: bool,

    /// The UUID of a signed or encrypted vCon whose protected header has none
    ///
    /// Without it, the UUID is the name of its file, as in <UUID>.json.
    #[arg(long, value_name = "UUID")]
    uuid: Option<VconId>,

    /// Wait until the vCons are done: in no ingress list, and with no worker
    ///
    /// The daemon may be on another machine. Exits 65 when one of them went to a dead letter queue. While
    /// Redis is unavailable it tries again, for five minutes at a time if there is no --timeout.
    #[arg(long)]
    wait: bool,

    /// Wait no longer than this, and exit 69 when vCons are not done by then
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    timeout: Option<u64>,

    /// The sources, if they were opened earlier.
    #[arg(skip)]
    opened: Option<Vec<Source>>,
}

/// What one argument names.
#[derive(Debug)]
struct Source {
    name: String,
    /// Its files, or why they are not known.
    files: io::Result<Vec<SourceFile>>,
}

/// A file with vCons.
#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    /// Whether it was found in a folder, so that nobody has named it.
    is_of_folder: bool,
    /// The file, if it was opened earlier.
    file: Option<File>,
}

impl SubmitArgs {
    /// Opens all files now, because this process is about to become a user who may not read them. One that cannot be
    /// opened is tried again when its turn comes.
    pub fn open_sources(&mut self) {
        if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
            // Else as many as there is room for.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
        }
        let mut sources: Vec<Source> = self.sources.iter().map(|it| Source::find(it)).collect();
        let files = sources.iter_mut().flat_map(|source| source.files.as_mut());
        for file in files.flatten() {
            file.file = open(&file.path, file.is_of_folder).ok();
        }
        self.opened = Some(sources);
    }

    /// Submits every vCon that can be used, and names those that cannot.
    pub fn run(mut self, settings: &Settings) -> Exit {
        let opened = self.opened.take();
        let sources = || self.sources.iter().map(|it| Source::find(it)).collect();
        let sources = opened.unwrap_or_else(sources);
        let (submitter, completion) = match self.connect(settings) {
            Ok(connected) => connected,
            Err(error) => {
                eprint_line(error);
                return Exit::Unavailable;
            }
        };
        let mut submission = Submission::new(submitter, settings.json_bodies, &self);
        match read_all(sources, &mut submission).and_then(|()| submission.flush()) {
            Ok(()) => {
                let is_unserved =
                    !submission.submitted.is_empty() && has_no_chain(&self.list, settings);
                let exit = submission.report(&self.list);
                match completion {
                    // It would wait for ever.
                    Some(_) if is_unserved && self.timeout.is_none() => {
                        eprint_line("Not waiting for them; with --timeout it waits all the same");
                        Exit::Unavailable
                    }
                    Some(completion) => self.wait(completion, submission.submitted, exit),
                    None => exit,
                }
            }
            Err(error) => {
                let submitted = counted(submission.submitted.len(), "vCon");
                eprint_line(error);
                eprint_line(format_args!("Submitted {submitted} before that"));
                Exit::Unavailable
            }
        }
    }

    fn connect(
        &self,
        settings: &Settings,
    ) -> Result<(Submitter, Option<CompletionWait>), QueueError> {
        let connection = Server::new(&settings.redis_url)?.connect("conserver:submit")?;
        let (list, sorted_set) = (self.list.clone(), settings.sorted_set.clone());
        let format = settings.redis_format;
        let submitter = Submitter::new(connection, list, sorted_set, self.expire, format)?;
        // Made before anything is submitted: dead letters count from then on.
        let completion = self.wait.then(|| CompletionWait::new(settings, &self.list));
        Ok((submitter, completion.transpose()?))
    }

    /// Waits for the vCons that were submitted; `exit` is the exit code if all of them succeed.
    fn wait(&self, completion: CompletionWait, ids: Vec<VconId>, exit: Exit) -> Exit {
        let all = ids.len();
        let WaitResult {
            pending,
            dead,
            missing,
        } = match completion.wait(ids, self.timeout.map(Duration::from_secs)) {
            Ok(result) => result,
            Err(error) => {
                eprint_line(error);
                eprint_line("could not find out whether the vCons are done");
                return Exit::Unavailable;
            }
        };
        for letter in &dead {
            eprint_line(dead_letter_line(letter));
        }
        let done = all - pending;
        let queue = if dead.is_empty() {
            String::new()
        } else {
            format!(", {} of them to a dead letter queue", dead.len())
        };
        self.print_summary(&format!("{done} of {all} vCons are done{queue}"));
        if missing > 0 {
            eprint_line(format_args!(
                "{missing} of them are not in Redis any more, which was unavailable: they have expired, or are lost"
            ));
        }
        if pending > 0 || missing > 0 {
            Exit::Unavailable
        } else if dead.is_empty() {
            exit
        } else {
            Exit::Data
        }
    }

    /// Prints a line; with `--print` on standard error, as standard output is for UUIDs alone.
    fn print_summary(&self, line: &str) {
        if self.print {
            eprint_line(line);
        } else {
            print_line(line);
        }
    }
}

fn read_all(sources: Vec<Source>, submission: &mut Submission) -> Result<(), QueueError> {
    let mut files = Vec::new();
    for source in sources {
        match source.files {
            Ok(found) if found.is_empty() => {
                submission.refuse(&source.name, "is a folder without *.json or *.vcon files");
            }
            Ok(found) => files.extend(found),
            Err(error) => submission.refuse(&source.name, &error.to_string()),
        }
    }
    let bar = progress_bar(files.len());
    for file in files {
        let path = file.path.clone();
        let name = path.display().to_string();
        match file.read() {
            Ok(text) => submission.add_file(&path, &name, &text)?,
            Err(why) => submission.refuse(&name, &why),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

impl Source {
    /// The file itself, or the `*.json` and `*.vcon` files of a folder in the order of their names.
    fn find(source: &Path) -> Self {
        let is_of_folder = source.is_dir();
        let file = |path| SourceFile {
            path,
            is_of_folder,
            file: None,
        };
        let files = files_of(source).map(|files| files.into_iter().map(file).collect());
        let name = source.display().to_string();
        Self { name, files }
    }
}

impl SourceFile {
    fn read(self) -> Result<String, String> {
        let mut bytes = Vec::new();
        let read = if self.path == Path::new("-") {
            io::stdin().read_to_end(&mut bytes)
        } else {
            let file = self
                .file
                .map_or_else(|| open(&self.path, self.is_of_folder), Ok);
            file.and_then(|mut file| file.read_to_end(&mut bytes))
        };
        read.map_err(|error| error.to_string())?;
        decode(bytes).map_err(|error| error.to_string())
    }
}

/// Opens a file. One of a folder must be regular: if others may write to the folder, a pipe could have its name, and
/// opening it would wait until they write to it.
fn open(path: &Path, is_of_folder: bool) -> io::Result<File> {
    if !is_of_folder {
        return File::open(path);
    }
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

fn dead_letter_line(letter: &DeadLetter) -> String {
    let (entry, list) = (&letter.entry, &letter.list);
    match &letter.reason {
        Some(StoredReason::Known { stage, error, .. }) => {
            let error = truncated(error, LONGEST_ERROR);
            format!("vCon {entry} is in the dead letter queue DLQ:{list}: {stage}: {error}")
        }
        _ => format!("vCon {entry} is in the dead letter queue DLQ:{list}"),
    }
}

/// Warns if no chain in service takes from the list, and returns whether that is so. Unknown, and taken
/// for served, without a configuration on this machine.
fn has_no_chain(list: &ListName, settings: &Settings) -> bool {
    let plan = Plan::load(&settings.config_file);
    let is_unserved = plan.is_ok_and(|plan| !plan.ingress_lists().contains(list));
    if is_unserved {
        let file = settings.config_file.display();
        eprint_line(format_args!(
            "warning: no enabled chain of {file} takes from list {list}: they wait there"
        ));
    }
    is_unserved
}

/// The file itself, or the `*.json` and `*.vcon` files of a folder in the order of their names.
fn files_of(source: &Path) -> io::Result<Vec<PathBuf>> {
    if !source.is_dir() {
        return Ok(vec![source.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        if has_vcon_ending(&path) && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Collects vCons from files, and submits them in batches.
struct Submission<'a> {
    submitter: Submitter,
    bodies: JsonBodies,
    options: &'a SubmitArgs,
    /// Read but not yet submitted, with the names of their files.
    unsent: Vec<(String, Outgoing)>,
    submitted: Vec<VconId>,
    refused: usize,
    /// Whether a vCon has taken the UUID of `--uuid`.
    is_uuid_used: bool,
}

impl<'a> Submission<'a> {
    fn new(submitter: Submitter, bodies: JsonBodies, options: &'a SubmitArgs) -> Self {
        Self {
            submitter,
            bodies,
            options,
            unsent: Vec::new(),
            submitted: Vec::new(),
            refused: 0,
            is_uuid_used: false,
        }
    }

    /// Adds the vCons of one file, which may hold several one after the other.
    fn add_file(&mut self, path: &Path, name: &str, text: &str) -> Result<(), QueueError> {
        let text = text.trim_start_matches('\u{feff}');
        let documents = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
        let mut count = 0;
        for document in documents {
            count += 1;
            let name = format!("{name} (document {count})");
            let read = document.map_err(|error| format!("is not JSON: {error}"));
            match read.and_then(|document| self.parse(path, document.get())) {
                Ok(vcon) => self.unsent.push((name, vcon)),
                Err(why) => self.refuse(&name, &why),
            }
            if self.unsent.len() >= BATCH {
                self.flush()?;
            }
        }
        if count == 0 {
            self.refuse(name, "holds no vCon");
        }
        Ok(())
    }

    fn parse(&mut self, file: &Path, text: &str) -> Result<Outgoing, String> {
        let given = self.options.uuid.as_ref();
        let vcon = parse_document(text, IdHints { given, file }, self.bodies)?;
        if given == Some(&vcon.id) && std::mem::replace(&mut self.is_uuid_used, true) {
            return Err("another vCon has the UUID of --uuid already".to_owned());
        }
        Ok(vcon)
    }

    fn flush(&mut self) -> Result<(), QueueError> {
        let (names, vcons): (Vec<String>, Vec<Outgoing>) =
            std::mem::take(&mut self.unsent).into_iter().unzip();
        let refusals = self.submitter.submit(&vcons)?;
        for ((name, vcon), refusal) in names.iter().zip(vcons).zip(refusals) {
            match refusal {
                Some(why) => self.refuse(name, &why),
                None => {
                    if self.options.print {
                        print_line(&vcon.id);
                    }
                    self.submitted.push(vcon.id);
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, name: &str, why: &str) {
        self.refused += 1;
        eprint_line(format_args!("{name}: {why}"));
    }

    fn report(&self, list: &ListName) -> Exit {
        let submitted = self.submitted.len();
        let all = submitted + self.refused;
        self.options.print_summary(&format!(
            "Submitted {submitted} of {all} vCons to list {list}"
        ));
        if self.refused == 0 {
            Exit::Ok
        } else {
            Exit::Data
        }
    }
}

/// Parses a plain vCon, as `submit` does.
pub(super) fn parse_vcon(text: &str) -> Result<Outgoing, String> {
    let hints = IdHints {
        given: None,
        file: Path::new("-"),
    };
    parse_document(text, hints, JsonBodies::default())
}

/// A vCon may be a JSON string within a JSON string, this many deep.
const MOST_STRINGS: usize = 3;

/// The endings of files with vCons.
const ENDINGS: [&str; 2] = ["json", "vcon"];

/// Sources of the UUID of a signed or encrypted vCon whose protected header has none.
#[derive(Clone, Copy)]
struct IdHints<'a> {
    /// That of `--uuid`.
    pub given: Option<&'a VconId>,
    /// The file it is read from.
    pub file: &'a Path,
}

/// Whether the name is that of a file with vCons.
fn has_vcon_ending(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| ENDINGS.iter().any(|it| it.eq_ignore_ascii_case(ending)))
}

/// Parses one document, and writes it as it goes to Redis. A JSON string stands for the vCon that it
/// holds; a signed or encrypted vCon stays as it is.
fn parse_document(text: &str, hints: IdHints<'_>, bodies: JsonBodies) -> Result<Outgoing, String> {
    let mut text = Cow::Borrowed(trimmed(text));
    let mut strings = 0;
    while text.starts_with('"') {
        strings += 1;
        if strings > MOST_STRINGS {
            return Err("is a JSON string in a JSON string".to_owned());
        }
        let held: String =
            serde_json::from_str(&text).map_err(|error| format!("is not JSON: {error}"))?;
        text = Cow::Owned(trimmed(&held).to_owned());
    }
    let id = match id_of_plain(&text, strings > 0)? {
        Some(id) => id,
        None => id_of_sealed(&text, hints)?,
    };
    let vcon = Vcon::read(id, &text).map_err(|error| error.to_string())?;
    Ok(vcon.writing(bodies).outgoing(Version::Current))
}

/// The text without a byte order mark and white space around it.
fn trimmed(text: &str) -> &str {
    text.trim_start_matches('\u{feff}').trim()
}

/// The UUID of a plain vCon; `None` if it is signed or encrypted.
fn id_of_plain(text: &str, is_string: bool) -> Result<Option<VconId>, String> {
    #[derive(Deserialize)]
    struct Parts {
        uuid: Option<Value>,
        payload: Option<IgnoredAny>,
        ciphertext: Option<IgnoredAny>,
    }
    // A list of three would be read as one, too.
    if text.starts_with('[') {
        return Err(match is_string {
            true => "is a JSON string that holds no vCon: it holds a list".to_owned(),
            false => "is a list, not a vCon: hand in each vCon by itself".to_owned(),
        });
    }
    let parts: Parts = serde_json::from_str(text).map_err(|error| match is_string {
        true => format!("is a JSON string that holds no vCon: {error}"),
        false => format!("is not a vCon: {error}"),
    })?;
    if (parts.payload.is_some() || parts.ciphertext.is_some()) && sealed(text).is_some() {
        return Ok(None);
    }
    let uuid = parts.uuid.ok_or("has no `uuid`")?;
    let uuid = uuid.as_str().ok_or("`uuid` is not a string")?;
    let id = uuid.parse().map_err(|error| format!("`uuid`: {error}"))?;
    Ok(Some(id))
}

/// The UUID of a signed or encrypted vCon: from its protected header, else the one given, the
/// file's name, an unprotected header, or the vCon that is signed.
fn id_of_sealed(text: &str, hints: IdHints<'_>) -> Result<VconId, String> {
    #[derive(Deserialize)]
    struct Envelope {
        payload: Option<Value>,
        #[serde(flatten)]
        own: Headers,
        unprotected: Option<Value>,
        #[serde(default)]
        signatures: Vec<Headers>,
        #[serde(default)]
        recipients: Vec<Headers>,
    }
    #[derive(Deserialize)]
    struct Headers {
        protected: Option<Value>,
        header: Option<Value>,
    }
    let envelope: Envelope =
        serde_json::from_str(text).map_err(|error| format!("is not a vCon: {error}"))?;
    let parts = || {
        let others = envelope.signatures.iter().chain(&envelope.recipients);
        std::iter::once(&envelope.own).chain(others)
    };
    let mut protected = None;
    for header in parts().filter_map(|part| decode_json(part.protected.as_ref()?)) {
        let Some(uuid) = uuid_in(&header) else {
            continue;
        };
        let id: VconId = uuid
            .parse()
            .map_err(|error| format!("`uuid` of its protected header: {error}"))?;
        if protected.as_ref().is_some_and(|other| *other != id) {
            return Err("its protected headers have several UUIDs".to_owned());
        }
        protected = Some(id);
    }
    if let (Some(id), Some(given)) = (&protected, hints.given)
        && id != given
    {
        return Err(format!("is vCon {id} by its protected header, not {given}"));
    }
    let unprotected = || {
        let headers = parts().filter_map(|part| part.header.as_ref());
        let mut headers = headers.chain(envelope.unprotected.as_ref());
        headers.find_map(|header| uuid_in(header)?.parse().ok())
    };
    let payload = || {
        uuid_in(&decode_json(envelope.payload.as_ref()?)?)?
            .parse()
            .ok()
    };
    protected
        .or_else(|| hints.given.cloned())
        .or_else(|| id_of_file_name(hints.file))
        .or_else(unprotected)
        .or_else(payload)
        .ok_or_else(|| {
            let kind = sealed(text).map_or("sealed", Sealed::as_str);
            format!(
                "is {kind}, and no header says which vCon it is; name the file <uuid>.json or \
                 give --uuid"
            )
        })
}

fn uuid_in(object: &Value) -> Option<&str> {
    object.get("uuid")?.as_str()
}

/// The JSON in a base64url text.
fn decode_json(text: &Value) -> Option<Value> {
    let text = text.as_str()?.trim_end_matches('=');
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// The UUID that is the name of the file without its endings.
fn id_of_file_name(file: &Path) -> Option<VconId> {
    let mut name = file.file_name()?.to_str()?;
    while let Some((stem, ending)) = name.rsplit_once('.')
        && ENDINGS.iter().any(|it| it.eq_ignore_ascii_case(ending))
    {
        name = stem;
    }
    name.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ONE: &str = "0a1b2c3d-0000-4000-8000-000000000001";
    const TWO: &str = "0a1b2c3d-0000-4000-8000-000000000002";

    fn parsed(text: &str, file: &str, given: Option<&str>) -> Result<Outgoing, String> {
        let given: Option<VconId> = given.map(|id| id.parse().unwrap());
        let hints = IdHints {
            given: given.as_ref(),
            file: Path::new(file),
        };
        parse_document(text, hints, JsonBodies::default())
    }

    fn id(text: &str, file: &str, given: Option<&str>) -> Result<String, String> {
        parsed(text, file, given).map(|vcon| vcon.id.to_string())
    }

    fn encoded(text: &str) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }

    fn signed(protected: &str, payload: &str) -> String {
        let (protected, payload) = (encoded(protected), encoded(payload));
        format!(
            r#"{{"payload":"{payload}", "signatures":[{{"protected":"{protected}","signature":"c2ln"}}]}}"#
        )
    }

    #[test]
    fn a_string_stands_for_the_vcon_in_it() {
        let plain = format!(r#"{{"uuid":"{ONE}","parties":[]}}"#);
        let mut text = plain.clone();
        for _ in 0..MOST_STRINGS {
            text = serde_json::to_string(&text).unwrap();
            let found = parsed(&text, "x.json", None).unwrap();
            assert_eq!(found.id.as_str(), ONE);
            assert_eq!(found.json, parsed(&plain, "x.json", None).unwrap().json);
        }
        let text = serde_json::to_string(&text).unwrap();
        assert!(parsed(&text, "x.json", None).is_err());
        for (text, why) in [
            (r#""hello""#, "a JSON string that holds no vCon"),
            (r#""{\"uuid\":\"x\"}""#, "`uuid`:"),
            (r#""[]""#, "a JSON string that holds no vCon"),
            ("[]", "is a list, not a vCon: hand in each vCon by itself"),
            (
                "[null, null, null]",
                "is a list, not a vCon: hand in each vCon by itself",
            ),
            ("{}", "has no `uuid`"),
            (r#"{"uuid":7}"#, "`uuid` is not a string"),
            (r#"{"uuid":null}"#, "has no `uuid`"),
        ] {
            let error = parsed(text, "x.json", None).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_mark_before_the_document_is_passed_over() {
        let text = format!("\u{feff}{{\"uuid\":\"{ONE}\"}}");
        assert_eq!(id(&text, "x", None).as_deref(), Ok(ONE));
        let inner = serde_json::to_string(&text).unwrap();
        assert_eq!(id(&inner, "x", None).as_deref(), Ok(ONE));
    }

    #[test]
    fn a_sealed_vcon_is_named_by_its_protected_header_first() {
        let header = format!(r#"{{"alg":"RS256","uuid":"{ONE}"}}"#);
        let general = signed(&header, &format!(r#"{{"uuid":"{TWO}"}}"#));
        let protected = encoded(&header);
        let flattened =
            format!(r#"{{"protected":"{protected}","iv":"aXY","ciphertext":"Ym9k","tag":"dGFn"}}"#);
        for text in [&general, &flattened] {
            for file in ["x.json", &format!("{TWO}.vcon.json")] {
                assert_eq!(id(text, file, None).as_deref(), Ok(ONE), "{text}");
            }
            assert_eq!(id(text, "x", Some(ONE)).as_deref(), Ok(ONE));
            let error = id(text, "x", Some(TWO)).unwrap_err();
            assert!(error.contains(ONE) && error.contains(TWO), "{error}");
            assert_eq!(*parsed(text, "x", None).unwrap().json, **text);
        }
        let bad = signed(r#"{"uuid":"../x"}"#, "{}");
        assert!(
            id(&bad, ONE, None)
                .unwrap_err()
                .contains("protected header")
        );
    }

    #[test]
    fn a_sealed_vcon_without_a_name_of_its_own_takes_the_one_given_or_that_of_its_file() {
        let text = signed(r#"{"alg":"RS256"}"#, "{}");
        for ending in ["", ".json", ".vcon", ".vcon.json", ".VCON", ".jws.json"] {
            let file = format!("/a/{ONE}{ending}");
            let found = id(&text, &file, None);
            match ending {
                ".jws.json" => assert!(found.is_err(), "{file}"),
                _ => assert_eq!(found.as_deref(), Ok(ONE), "{file}"),
            }
            assert_eq!(id(&text, &file, Some(TWO)).as_deref(), Ok(TWO));
        }
        let error = id(&text, "-", None).unwrap_err();
        assert!(
            error.contains("signed") && error.contains("--uuid"),
            "{error}"
        );
    }

    #[test]
    fn what_is_signed_and_unprotected_headers_come_last() {
        let payload = format!(r#"{{"uuid":"{TWO}"}}"#);
        assert_eq!(id(&signed("{}", &payload), "x", None).as_deref(), Ok(TWO));
        assert_eq!(id(&signed("{}", &payload), ONE, None).as_deref(), Ok(ONE));
        let header = format!(
            r#"{{"payload":"","signatures":[{{"header":{{"uuid":"{ONE}"}},"signature":""}}]}}"#
        );
        assert_eq!(id(&header, "x", None).as_deref(), Ok(ONE));
        let unprotected =
            format!(r#"{{"unprotected":{{"uuid":"{ONE}"}},"ciphertext":"c","recipients":[]}}"#);
        assert_eq!(id(&unprotected, "x", None).as_deref(), Ok(ONE));
    }

    #[test]
    fn the_files_of_a_folder_are_known_by_their_endings() {
        for (name, is_one) in [
            ("a.json", true),
            ("a.vcon", true),
            ("a.vcon.json", true),
            ("a.JSON", true),
            ("a.txt", false),
            ("json", false),
            (".json", false),
            ("a.json.gz", false),
        ] {
            assert_eq!(has_vcon_ending(Path::new(name)), is_one, "{name}");
        }
    }
}
