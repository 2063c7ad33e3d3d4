//! The steps of a chain: one trait ([`Link`]), one file for each link, one table that lists them
//! ([`MODULES`]).
//!
//! To add a link, see the front page of the crate. `tag` is the shortest one that changes a vCon,
//! `tag_router` one that reads it, `webhook` one that calls a server.
//!
//! A link reads and changes the vCon it is given, in memory. It knows nothing of queues, workers
//! or the supervisor; what it wants done in Redis it leaves in [`Context`].

mod ai;
mod analyze;
mod analyze_and_label;
mod analyze_vcon;
mod check_and_tag;
mod delay;
mod detect_engagement;
mod diet;
mod exec;
mod expire_vcon;
mod jq_link;
mod post_analysis_to_slack;
mod python;
mod sampler;
mod service;
mod tag;
mod tag_router;
mod transcribe;
mod webhook;

pub(crate) use python::PythonLink;

#[cfg(any(test, fuzzing))]
pub(crate) use jq_link::fuzz;

use std::any::Any;
use std::cell::Cell;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::list_name::ListName;
use crate::options::Options;
use crate::options::yaml::Mapping;
use crate::program::{Clock, ProgramError, Reply, Stream};
use crate::scoreboard::AnswerTimes;
use crate::settings::Critical;
use crate::vcon::{Vcon, VconError, VconId, Version};

/// One step of a chain, owned by one lane.
pub trait Link: Send {
    /// Does the step's work on `vcon`. What it asks of a server or program ends by the context's
    /// deadline, as a transient failure.
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError>;

    /// Whether it reads and writes the vCon in Redis by itself: what earlier links have done is
    /// written there before it runs, and the document is read again after it.
    fn works_in_redis(&self) -> bool {
        false
    }

    /// Whether all it does is to change the vCon. Then a vCon whose `critical` names an extension that is
    /// not known here does not come to it, and goes on unchanged (see `VCON_CRITICAL`).
    fn rewrites(&self) -> bool {
        false
    }

    /// The longest time that a run may take by its own limits; nothing for a link that only computes.
    fn longest_call(&self) -> Duration {
        Duration::ZERO
    }

    /// From now on the time of each answer to a post is counted there, by its status. Nothing changes for one that
    /// posts nothing to a webhook.
    fn count_answers(&mut self, _: &AnswerTimes) {}

    /// How long a run waits at least, whatever the vCon; no deadline cuts that.
    fn waits(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether it asks for a permit for each request that it makes ([`Context::permit`]); otherwise each of
    /// its runs counts as one where its entry has a `limit`.
    fn counts_requests(&self) -> bool {
        false
    }

    /// Whether this system lets it do its step at all.
    ///
    /// # Errors
    /// A sentence on why not.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Answers whether what the link depends on could be used now, within a few seconds and
    /// without doing the step. A link that depends on nothing always could. What may take longer
    /// ends when `_drain` is disconnected: the worker drains.
    fn probe(&mut self, _drain: &Receiver<()>) -> Result<(), Failure> {
        Ok(())
    }

    /// The lists on which it may want vCons announced.
    fn routes(&self) -> Vec<ListName> {
        Vec::new()
    }
}

/// What the chain does after a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Go on with this vCon.
    Continue,
    /// A part of the step is done and must not be lost: the document is written to Redis, and the link runs
    /// again for the rest.
    Again,
    /// End the chain here: no storage, no egress, no error.
    Halt,
    /// The rest of the chain works on that vCon.
    Switch(VconId),
}

impl Next {
    /// What the answer of a program, which messages call `name`, means for the chain of this vCon.
    fn of(reply: &Reply, id: &VconId, name: &str) -> Result<Self, LinkError> {
        if reply.halt {
            return Ok(Self::Halt);
        }
        match &reply.uuid {
            None => Ok(Self::Continue),
            Some(uuid) if uuid == id.as_str() => Ok(Self::Continue),
            Some(uuid) => match uuid.parse::<VconId>() {
                // In upper case, say.
                Ok(other) if other == *id => Ok(Self::Continue),
                Ok(other) => Ok(Self::Switch(other)),
                Err(error) => {
                    let message = format!("`{name}` answered with a vCon that is none: {error}");
                    Err(Failure::permanent(message).into())
                }
            },
        }
    }
}

/// Why a link did not finish.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It could not do its work.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The worker drains, and the link gave up waiting; the vCon goes back to its list.
    #[error("interrupted by the drain of the worker")]
    Interrupted,
    /// Its budget is used up until then; the vCon goes back to its list, and waits.
    #[error("its budget is used up")]
    OverBudget(Instant),
}

impl From<ProgramError> for LinkError {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::Failed(failure) | ProgramError::TimedOut(failure) => failure.into(),
            ProgramError::Interrupted => Self::Interrupted,
        }
    }
}

/// The vCon cannot be changed as the link would: it becomes a dead letter.
impl From<VconError> for LinkError {
    fn from(error: VconError) -> Self {
        Self::Failed(Failure::permanent(error.to_string()))
    }
}

/// What a link sees of the world besides the vCon, and what it leaves for the lane to do.
pub struct Context<'a> {
    drain: &'a Receiver<()>,
    /// What is asked for permits, if there is a budget.
    permits: Option<&'a dyn Fn() -> Result<Permit, LinkError>>,
    /// How long work that cannot be interrupted without harm may go on when the worker drains.
    drain_time: Duration,
    drain_end: Option<&'a Cell<Option<Instant>>>,
    /// By when the vCon must be done.
    pub deadline: Deadline,
    /// The version in which vCons leave, from `EGRESS_FORMAT_VERSION`.
    pub version: Version,
    /// What becomes of a change to a vCon that nobody may change who does not know its extensions.
    pub critical: Critical,
    /// The extensions for which the link has made no change.
    pub left_alone: Option<String>,
    /// Time to live, in seconds, that the vCon's key in Redis gets when its work is done.
    pub expire: Option<u64>,
    /// Lists on which the vCon is announced when its work is done, besides the chain's own, also
    /// where a link ends the chain.
    pub routes: Vec<ListName>,
    /// The dialogs for which the link has failed for good in runs that ended with [`Next::Again`], with why.
    /// It goes on with others, and fails in the end.
    pub refused: Vec<(usize, Failure)>,
}

impl<'a> Context<'a> {
    /// A context whose `drain` channel is disconnected when the worker drains.
    pub fn new(drain: &'a Receiver<()>, version: Version) -> Self {
        Self {
            drain,
            permits: None,
            drain_time: Duration::ZERO,
            drain_end: None,
            deadline: Deadline::NONE,
            version,
            critical: Critical::Pass,
            left_alone: None,
            expire: None,
            routes: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Asks for the permit to make one request to the server of the link, and holds it until the request is
    /// done. The time until it has it is not the link's.
    ///
    /// # Errors
    /// The link's budget is used up. The link ends with this error.
    pub fn permit(&mut self) -> Result<Permit, LinkError> {
        let Some(ask) = self.permits else {
            return Ok(Permit::default());
        };
        let asked = Instant::now();
        let permit = ask();
        self.deadline = self.deadline.later_by(asked.elapsed());
        permit
    }

    /// The same, with a budget that is asked for permits.
    pub fn with_budget(self, permits: &'a dyn Fn() -> Result<Permit, LinkError>) -> Self {
        Self {
            permits: Some(permits),
            ..self
        }
    }

    /// The same, with time to finish when the worker drains. The first to notice the drain sets
    /// when that time is over, for all that share `end`.
    pub fn finishing_within(self, drain_time: Duration, end: &'a Cell<Option<Instant>>) -> Self {
        Self {
            drain_time,
            drain_end: Some(end),
            ..self
        }
    }

    /// The same, with a deadline.
    pub fn by(self, deadline: Deadline) -> Self {
        Self { deadline, ..self }
    }

    /// Starts the time limit of a program's work, which takes `own` at most, or what is left until the
    /// deadline.
    fn clock(&self, own: Duration) -> Clock<'a> {
        let clock = Clock::new(self.deadline.begin(own));
        clock.draining(self.drain, self.drain_time, self.drain_end)
    }

    /// Why a vCon is not changed whose `critical` names these extensions.
    pub fn refusal(extensions: &str) -> Failure {
        let why = "its `critical` names extensions that are not known here";
        Failure::permanent(format!("the vCon may not be changed: {why}: {extensions}"))
    }

    /// Waits for `time`, or ends with [`LinkError::Interrupted`] as soon as the worker drains.
    pub fn wait(&self, time: Duration) -> Result<(), LinkError> {
        match self.drain.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(LinkError::Interrupted),
        }
    }
}

/// The permit to make one request, until it is dropped.
#[derive(Default)]
pub struct Permit {
    _slot: Option<Box<dyn Any>>,
}

impl Permit {
    /// A permit that holds what is given back at its end.
    pub fn holding(slot: impl Any) -> Self {
        Self {
            _slot: Some(Box::new(slot)),
        }
    }
}

/// Answers whether a link's program can be started, and has begun; not for longer than until the worker
/// drains.
fn probe(stream: &mut Stream, drain: &Receiver<()>) -> Result<(), Failure> {
    stream.program().check()?;
    let mut clock = Clock::probing(stream.program().timeout(), drain);
    stream.begin(&mut clock)?;
    Ok(())
}

/// One row of the table of known links.
pub struct Module {
    /// The name in `config.yml`, as in `module: links.tag`.
    pub name: &'static str,
    /// Reads the options and makes the link. What is wrong with the options is recorded there;
    /// the link made then is not used.
    pub open: fn(&mut Options) -> Box<dyn Link>,
}

const fn module(name: &'static str, open: fn(&mut Options) -> Box<dyn Link>) -> Module {
    Module { name, open }
}

/// Every link there is, one line each.
pub const MODULES: &[Module] = &[
    module("links.tag", tag::open),
    module("links.tag_router", tag_router::open),
    module("links.jq_link", jq_link::open),
    module("links.sampler", sampler::open),
    module("links.diet", diet::open),
    module("links.delay", delay::open),
    module("links.expire_vcon", expire_vcon::open),
    module("links.webhook", webhook::open),
    module("links.transcribe", transcribe::open),
    module("links.deepgram_link", transcribe::open_deepgram),
    module("links.openai_transcribe", transcribe::open_openai),
    module("links.groq_whisper", transcribe::open_groq),
    module("links.hugging_face_whisper", transcribe::open_hugging_face),
    module("links.analyze", analyze::open),
    module("links.analyze_and_label", analyze_and_label::open),
    module("links.analyze_vcon", analyze_vcon::open),
    module("links.check_and_tag", check_and_tag::open),
    module("links.detect_engagement", detect_engagement::open),
    module("links.post_analysis_to_slack", post_analysis_to_slack::open),
    module("links.exec", exec::open),
    module("links.python", python::open),
];

/// Whether an entry with these options means the Python module of that name, although one is built in: the model in
/// it, which runs on this machine.
pub(crate) fn means_python(module: &str, options: &Mapping) -> bool {
    module == "links.transcribe" && transcribe::has_model_in_python(options)
}

/// What the tests of links share.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod testing {
    use super::*;

    /// A link with these options, in YAML, of which none is unknown or wrong.
    pub(super) fn opened(open: fn(&mut Options) -> Box<dyn Link>, options: &str) -> Box<dyn Link> {
        let mut options = Options::from_yaml(options);
        let link = open(&mut options);
        options.finish();
        assert_eq!(options.faults(), [""; 0]);
        link
    }

    /// What a link left: how the chain goes on, the vCon, and its wishes.
    pub(super) struct LinkRun {
        pub(super) next: Result<Next, LinkError>,
        pub(super) vcon: Vcon,
        pub(super) routes: Vec<ListName>,
        pub(super) expire: Option<u64>,
    }

    impl LinkRun {
        /// Why it failed.
        pub(super) fn failure(&self) -> &Failure {
            match &self.next {
                Err(LinkError::Failed(failure)) => failure,
                other => unreachable!("{other:?}"),
            }
        }
    }

    /// Runs a link on a document, in a worker that does not drain.
    pub(super) fn run(link: &mut dyn Link, document: &str) -> LinkRun {
        let (_drain, drained) = crossbeam_channel::bounded(0);
        let mut context = Context::new(&drained, Version::Current);
        let mut vcon = Vcon::read(VconId::random(), document).unwrap();
        let next = link.run(&mut vcon, &mut context);
        LinkRun {
            next,
            routes: context.routes,
            expire: context.expire,
            vcon,
        }
    }
}
