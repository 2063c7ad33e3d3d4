//! Hooks and tracers: Python code of a deployment that is called around the links of every chain.

use super::host::Host;
use super::{PythonModule, json};
use crate::program::{Clock, ProgramError};
use crate::vcon::VconId;

/// The hooks that there are. One that does nothing counts as none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hooks {
    /// `hook.before_processing(uuid, chain, context)`
    pub before_processing: bool,
    /// `hook.after_processing(uuid, chain, context, error=)`
    pub after_processing: bool,
    /// `after_link_hook.after_link(…)`
    pub after_link: bool,
}

impl Hooks {
    /// Those with these names.
    pub(super) fn named(names: &[String]) -> Self {
        let has = |name: &str| names.iter().any(|it| it == name);
        Self {
            before_processing: has("before_processing"),
            after_processing: has("after_processing"),
            after_link: has("after_link"),
        }
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// How a link has ended, as the hook after it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkStatus<'a> {
    /// It has done its work, or ended the chain.
    Success,
    /// It has failed, with this error.
    Error(&'a str),
}

/// What the hook after a link is told.
#[derive(Debug, Clone)]
pub struct AfterLink<'a> {
    /// The vCon that the link has worked on.
    pub id: &'a VconId,
    /// The link's name in `config.yml`.
    pub link: &'a str,
    /// Its module, as in `links.tag`.
    pub module: &'a str,
    /// The same as a Python module, if it is one.
    pub python: Option<&'a PythonModule>,
    /// Its options as JSON, if it has any.
    pub options: Option<&'a str>,
    /// How it has ended.
    pub status: LinkStatus<'a>,
    /// The telephone numbers and mail addresses of the vCon's parties.
    pub parties: &'a [String],
}

/// What a tracer is told.
#[derive(Debug, Clone, Copy)]
pub struct Trace<'a> {
    /// What the link has returned: the vCon with which the chain goes on, if it goes on.
    pub inward: &'a VconId,
    /// The vCon that the link has worked on.
    pub outward: &'a VconId,
    /// The links of the chain.
    pub links: &'a [String],
    /// Which of them has run; -1 before the first.
    pub index: i64,
}

impl Host {
    /// Returns whether the vCon is to be processed. `chain` and `context` are JSON.
    pub fn before_processing<'a>(
        &self,
        id: &VconId,
        chain: &str,
        context: &str,
        clock: impl Fn() -> Clock<'a>,
    ) -> Result<bool, ProgramError> {
        let request = format!(
            "{{\"do\":\"before\",\"uuid\":\"{id}\",\"chain\":{chain},\"context\":{context}}}\n"
        );
        self.call(None, &request, clock).map(|reply| !reply.halt)
    }

    /// Tells that the vCon has been processed, or why not. `claimed` is the one that it was before a link
    /// has switched to another.
    pub fn after_processing<'a>(
        &self,
        id: &VconId,
        claimed: &VconId,
        chain: &str,
        context: &str,
        error: Option<&str>,
        clock: impl Fn() -> Clock<'a>,
    ) -> Result<(), ProgramError> {
        let error = error.map_or_else(|| "null".to_owned(), json);
        let request = format!(
            "{{\"do\":\"after\",\"uuid\":\"{id}\",\"claimed\":\"{claimed}\",\"chain\":{chain},\"context\":{context},\"error\":{error}}}\n"
        );
        self.call(None, &request, clock).map(drop)
    }

    /// Tells how a link has ended.
    pub fn after_link<'a>(
        &self,
        told: &AfterLink<'_>,
        clock: impl Fn() -> Clock<'a>,
    ) -> Result<(), ProgramError> {
        let (status, error) = match told.status {
            LinkStatus::Success => ("success", "null".to_owned()),
            LinkStatus::Error(text) => ("error", json(text)),
        };
        let vendor = told.python.and_then(PythonModule::vendor);
        let vendor = vendor.map_or_else(|| "null".to_owned(), json);
        let parties: Vec<String> = told.parties.iter().map(|party| json(party)).collect();
        let request = format!(
            "{{\"do\":\"after_link\",\"uuid\":\"{}\",\"link\":{},\"module\":{},\"vendor\":{vendor},\
             \"options\":{},\"status\":\"{status}\",\"error\":{error},\"parties\":[{}]}}\n",
            told.id,
            json(told.link),
            json(told.module),
            told.options.unwrap_or("null"),
            parties.join(",")
        );
        self.call(told.python, &request, clock).map(drop)
    }

    /// Calls a tracer.
    pub fn trace<'a>(
        &self,
        tracer: &PythonModule,
        told: Trace<'_>,
        clock: impl Fn() -> Clock<'a>,
    ) -> Result<(), ProgramError> {
        let links: Vec<String> = told.links.iter().map(|link| json(link)).collect();
        let request = format!(
            "{{\"do\":\"trace\",\"module\":{},\"in\":\"{}\",\"out\":\"{}\",\"name\":{},\
             \"links\":[{}],\"index\":{},\"options\":{}}}\n",
            json(&tracer.module),
            told.inward,
            told.outward,
            json(&tracer.entry),
            links.join(","),
            told.index,
            tracer.options.as_deref().unwrap_or("null")
        );
        self.call(Some(tracer), &request, clock).map(drop)
    }
}
