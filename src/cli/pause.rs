//! `conserver pause` and `conserver resume`: lists and chains from which no instance claims, kept in Redis.
//!
//! Once a command has returned, what it did is in force: it waits until every instance that is alive has confirmed it.

use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use nix::unistd::gethostname;

use super::output::{Refusal, eprint_line, print_line, print_lines, table};
use super::service;
use super::status::find;
use crate::config::{Chain, ListName, Plan};
use crate::exit::Exit;
use crate::queue::{PauseTable, PauseTarget, Pauses, QueueError, Server, storage_letters_list};
use crate::settings::Settings;
use crate::spelling::did_you_mean;
use crate::view;
use crate::visible::visible_json;

/// How long connecting to Redis, or a reply, may take.
const REDIS_LIMIT: Duration = Duration::from_secs(5);

/// The pause between two looks at what they have confirmed.
const LOOK: Duration = Duration::from_millis(20);

/// What to pause.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// Ingress lists and chains of the configuration, as NAME, list:NAME or chain:NAME; without any, lists what is paused
    #[arg(value_name = "LIST|CHAIN")]
    names: Vec<String>,

    /// Do not wait until every running instance has confirmed that it claims nothing from there any more
    #[arg(long)]
    no_wait: bool,

    /// How long the instances may take to confirm
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,

    /// Also pause what the configuration does not have; a name alone is that of a list
    #[arg(long)]
    force: bool,

    /// Without names: print what is paused as JSON
    #[arg(long, conflicts_with = "names")]
    json: bool,
}

/// What to resume.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// What was paused, as NAME, list:NAME or chain:NAME
    #[arg(value_name = "LIST|CHAIN", required_unless_present = "all")]
    names: Vec<String>,

    /// Resume everything that is paused
    #[arg(long, conflicts_with = "names")]
    all: bool,

    /// Do not wait until every running instance has confirmed it
    #[arg(long)]
    no_wait: bool,

    /// How long the instances may take to confirm
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

impl PauseArgs {
    /// Pauses, or lists what is paused.
    pub fn run(&self, settings: &Settings) -> Exit {
        finish(table_of(settings).and_then(|mut table| {
            if self.names.is_empty() {
                self.list(&mut table)
            } else {
                self.pause(&mut table, settings)
            }
        }))
    }

    fn list(&self, pauses: &mut PauseTable) -> Result<Exit, Refusal> {
        let paused = view::pauses(&pauses.all().map_err(unavailable)?);
        if self.json {
            let json = serde_json::to_string(&paused);
            let json = json.map_err(|error| Refusal::new(Exit::Internal, error.to_string()))?;
            print_line(visible_json(&json));
        } else if paused.is_empty() {
            print_line("Nothing is paused.");
        } else {
            let mut table = table(&["Kind", "Name", "Since", "By"]);
            for it in paused {
                table.add_row([it.kind.to_owned(), it.name, it.since, it.by]);
            }
            print_lines(table);
        }
        Ok(Exit::Ok)
    }

    fn pause(&self, pauses: &mut PauseTable, settings: &Settings) -> Result<Exit, Refusal> {
        let known = KnownNames::of(settings);
        let targets = self.names.iter().map(|name| match &known {
            Ok(known) => known.target(name, self.force),
            Err(_) if self.force => prefixed(name).unwrap_or_else(|| list_of(name)),
            Err(why) => Err(format!(
                "could not look up {name} in the configuration, --force pauses it all the same: {why}"
            )),
        });
        let targets: Result<Vec<PauseTarget>, String> = targets.collect();
        let targets = targets.map_err(|why| Refusal::new(Exit::Usage, why))?;
        let by = operator();
        for target in &targets {
            let is_new = pauses.pause(target, &by).map_err(unavailable)?;
            if !is_new {
                let before = pauses.all().map_err(unavailable)?;
                let told = view::pauses(&before).into_iter();
                let mut told =
                    told.filter(|it| it.kind == target.kind() && it.name == target.name());
                let told = told.next().map_or(target.to_string(), |it| it.told());
                print_line(format_args!("paused before: {told}"));
            }
        }
        self.confirm(pauses, &targets)
    }

    fn confirm(&self, pauses: &mut PauseTable, targets: &[PauseTarget]) -> Result<Exit, Refusal> {
        let names = names(targets);
        if self.no_wait {
            print_line(format_args!(
                "paused: {names}; every instance follows within a second"
            ));
            return Ok(Exit::Ok);
        }
        match wait_until_followed(pauses, targets, self.timeout).map_err(unavailable)? {
            Followed::ByAll(instances) if instances.is_empty() => print_line(format_args!(
                "paused: {names}; no instance runs on this Redis, one that starts follows"
            )),
            Followed::ByAll(instances) => print_line(format_args!(
                "paused: {names}; nothing more is claimed there (instances: {})",
                instances.join(", ")
            )),
            Followed::NotBy(instances) => {
                return Err(Refusal::new(
                    Exit::Unavailable,
                    format!(
                        "paused: {names}; but not confirmed within {} s by {}, which may still claim there: it is \
                         busy, hangs, or is of a version that does not know pauses",
                        self.timeout,
                        instances.join(", ")
                    ),
                ));
            }
        }
        Ok(Exit::Ok)
    }
}

impl ResumeArgs {
    /// Resumes.
    pub fn run(&self, settings: &Settings) -> Exit {
        finish(table_of(settings).and_then(|mut table| self.resume(&mut table, settings)))
    }

    fn resume(&self, pauses: &mut PauseTable, settings: &Settings) -> Result<Exit, Refusal> {
        let paused = pauses.all().map_err(unavailable)?;
        let targets: Vec<PauseTarget> = if self.all {
            paused.iter().map(|(target, _)| target.clone()).collect()
        } else {
            let known = KnownNames::of(settings).unwrap_or_default();
            let targets = self
                .names
                .iter()
                .map(|name| paused_target(name, &paused, &known));
            let targets: Result<_, String> = targets.collect();
            targets.map_err(|why| Refusal::new(Exit::Usage, why))?
        };
        if targets.is_empty() {
            print_line("Nothing is paused.");
            return Ok(Exit::Ok);
        }
        for target in &targets {
            if !pauses.resume(target).map_err(unavailable)? {
                print_line(format_args!("{target} is not paused"));
            }
        }
        let names = names(&targets);
        if self.no_wait {
            print_line(format_args!(
                "resumed: {names}; every instance follows within a second"
            ));
            return Ok(Exit::Ok);
        }
        match wait_until_followed(pauses, &targets, self.timeout).map_err(unavailable)? {
            Followed::ByAll(_) => print_line(format_args!("resumed: {names}")),
            Followed::NotBy(instances) => {
                return Err(Refusal::new(
                    Exit::Unavailable,
                    format!(
                        "resumed: {names}; but not confirmed within {} s by {}",
                        self.timeout,
                        instances.join(", ")
                    ),
                ));
            }
        }
        let left = pauses.all().map_err(unavailable)?;
        if let Ok(known) = KnownNames::of(settings) {
            for target in &targets {
                if let PauseTarget::List(list) = target
                    && left.hold(list, &known.chains)
                {
                    eprint_line(format_args!("{target} still waits: its chain is paused"));
                }
            }
        }
        Ok(Exit::Ok)
    }
}

fn table_of(settings: &Settings) -> Result<PauseTable, Refusal> {
    let server = Server::new(&settings.redis_url).map_err(QueueError::from);
    Ok(PauseTable::new(server.map_err(unavailable)?, REDIS_LIMIT))
}

fn unavailable(error: QueueError) -> Refusal {
    Refusal::new(Exit::Unavailable, error.to_string())
}

fn finish(result: Result<Exit, Refusal>) -> Exit {
    result.unwrap_or_else(|Refusal { exit, why }| {
        eprint_line(why);
        exit
    })
}

fn names(targets: &[PauseTarget]) -> String {
    let names: Vec<String> = targets.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// Who runs this command: `user@host`.
fn operator() -> String {
    let host = gethostname().unwrap_or_default();
    format!("{}@{}", service::caller(), host.to_string_lossy())
}

/// The instances that follow, or those that do not in time.
enum Followed {
    ByAll(Vec<String>),
    NotBy(Vec<String>),
}

/// Waits for at most so many seconds until each instance that is alive follows what Redis says of these targets now.
fn wait_until_followed(
    pauses: &mut PauseTable,
    targets: &[PauseTarget],
    seconds: u64,
) -> Result<Followed, QueueError> {
    let (begun, limit) = (Instant::now(), Duration::from_secs(seconds));
    loop {
        let wanted = pauses.all()?;
        let found = pauses.confirmations()?;
        let follows = |confirmed: Option<&Pauses>| {
            let confirmed = |target| confirmed.and_then(|it| it.get(target));
            targets
                .iter()
                .all(|target| confirmed(target) == wanted.get(target))
        };
        let late: Vec<String> = found
            .iter()
            .filter(|it| !follows(it.pauses.as_ref()))
            .map(|it| it.instance.clone())
            .collect();
        if late.is_empty() {
            return Ok(Followed::ByAll(
                found.into_iter().map(|it| it.instance).collect(),
            ));
        }
        if begun.elapsed() >= limit {
            return Ok(Followed::NotBy(late));
        }
        thread::sleep(LOOK);
    }
}

/// The lists and chains that can be paused.
#[derive(Debug, Default)]
struct KnownNames {
    chains: Vec<Chain>,
    /// Ingress lists, and the queues of storages that defer.
    lists: Vec<String>,
}

impl KnownNames {
    /// Those of the daemon on this machine, else of the configuration in the settings.
    fn of(settings: &Settings) -> Result<Self, String> {
        let running = find(settings).ok();
        let kept = running.and_then(|snapshot| Plan::load_kept(&snapshot.config).ok());
        match kept {
            Some(plan) => Ok(Self::in_plan(plan)),
            None => {
                let plan = Plan::load(&settings.config_file);
                plan.map(Self::in_plan).map_err(|errors| errors.to_string())
            }
        }
    }

    fn in_plan(plan: Plan) -> Self {
        let ingress = plan.chains.iter().flat_map(|chain| &chain.ingress_lists);
        let ingress = ingress.map(|list| list.as_str().to_owned());
        let storages = plan.deferring.iter();
        let storages = storages.map(|storage| storage_letters_list(storage));
        Self {
            lists: ingress.chain(storages).collect(),
            chains: plan.chains,
        }
    }

    fn has(&self, target: &PauseTarget) -> bool {
        match target {
            PauseTarget::List(list) => self.lists.iter().any(|it| it == list.as_str()),
            PauseTarget::Chain(name) => self.chains.iter().any(|it| it.name == *name),
        }
    }

    /// What `name` means. With `force`, also what is not known.
    fn target(&self, name: &str, force: bool) -> Result<PauseTarget, String> {
        let near = |name: &str, kind: Option<&str>| {
            let lists = self.lists.iter().map(String::as_str);
            let chains = self.chains.iter().map(|it| it.name.as_str());
            match kind {
                Some("list") => did_you_mean(name, lists),
                Some(_) => did_you_mean(name, chains),
                None => did_you_mean(name, lists.chain(chains)),
            }
        };
        if let Some(target) = prefixed(name) {
            let target = target?;
            if force || self.has(&target) {
                return Ok(target);
            }
            let near = near(target.name(), Some(target.kind()));
            return Err(format!(
                "the configuration has no {target}{near} (--force pauses it all the same)"
            ));
        }
        let list = name.parse::<ListName>().ok().map(PauseTarget::List);
        let list = list.filter(|list| self.has(list));
        let chain = Some(PauseTarget::Chain(name.to_owned())).filter(|chain| self.has(chain));
        match (list, chain) {
            (Some(_), Some(_)) => Err(is_both(name)),
            (Some(target), None) | (None, Some(target)) => Ok(target),
            (None, None) if force => list_of(name),
            (None, None) => Err(format!(
                "the configuration has no list or chain {name}{} (--force pauses a list of this name all the same)",
                near(name, None)
            )),
        }
    }
}

fn is_both(name: &str) -> String {
    format!("{name} is both a list and a chain: say list:{name} or chain:{name}")
}

/// The target of `list:NAME` or `chain:NAME`.
fn prefixed(name: &str) -> Option<Result<PauseTarget, String>> {
    match name.split_once(':')? {
        ("list", name) => Some(list_of(name)),
        ("chain", "") => Some(Err("a chain has a name".to_owned())),
        ("chain", name) => Some(Ok(PauseTarget::Chain(name.to_owned()))),
        _ => None,
    }
}

/// The list of this name.
fn list_of(name: &str) -> Result<PauseTarget, String> {
    let list = name.parse().map(PauseTarget::List);
    list.map_err(|error| error.to_string())
}

/// What `name` means among what is paused; else what the configuration has under it.
fn paused_target(name: &str, paused: &Pauses, known: &KnownNames) -> Result<PauseTarget, String> {
    if let Some(target) = prefixed(name) {
        let target = target?;
        if paused.get(&target).is_some() || known.has(&target) {
            return Ok(target);
        }
    }
    let named: Vec<&PauseTarget> = paused
        .iter()
        .map(|(target, _)| target)
        .filter(|target| target.name() == name)
        .collect();
    match &named[..] {
        [target] => Ok((*target).clone()),
        [] => known.target(name, false).map_err(|_| {
            let names = paused.iter().map(|(target, _)| target.name());
            format!("{name} is not paused{}", did_you_mean(name, names))
        }),
        _ => Err(is_both(name)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn known() -> KnownNames {
        let text =
            "chains: {main: {ingress_lists: [default, both]}, both: {ingress_lists: [main-in]}}\n";
        let config = Config::parse(text, Path::new("config.yml")).unwrap();
        KnownNames {
            lists: ["default", "both", "main-in"].map(str::to_owned).to_vec(),
            chains: config.chains,
        }
    }

    #[test]
    fn a_name_is_that_of_a_list_of_and_a_wrong_one_names_the_near() {
        let known = known();
        for (name, expected) in [
            ("default", "list default"),
            ("list:default", "list default"),
            ("main", "chain main"),
            ("chain:both", "chain both"),
            ("list:both", "list both"),
        ] {
            let found = known.target(name, false).unwrap();
            assert_eq!(found.to_string(), expected);
        }
        for (name, expected) in [
            ("both", "say list:both or chain:both"),
            ("defautl", "did you mean `default`?"),
            ("list:main", "has no list main"),
            ("chain:mian", "did you mean `main`?"),
            ("list:", "not the name of a list"),
            ("chain:", "a chain has a name"),
            ("a\nb", "--force"),
        ] {
            let why = known.target(name, false).unwrap_err();
            assert!(why.contains(expected), "{name}: {why}");
        }
        for (name, expected) in [
            ("new", "list new"),
            ("chain:new", "chain new"),
            ("list:main", "list main"),
        ] {
            let found = known.target(name, true).unwrap();
            assert_eq!(found.to_string(), expected);
        }
        assert!(known.target("a\nb", true).is_err());
        assert!(known.target("both", true).is_err());
    }

    #[test]
    fn what_is_resumed_is_looked_for_among_what_is_paused_first() {
        let known = known();
        let list = |name: &str| PauseTarget::List(name.parse().unwrap());
        let chain = |name: &str| PauseTarget::Chain(name.to_owned());
        let paused: Pauses = [list("gone"), chain("both"), list("x"), chain("x")].into();
        for (name, expected) in [
            ("gone", "list gone"),
            // Only the chain of this name is paused.
            ("both", "chain both"),
            ("chain:x", "chain x"),
            // The configuration has it, and it is not paused.
            ("default", "list default"),
            ("list:both", "list both"),
        ] {
            let found = paused_target(name, &paused, &known).unwrap();
            assert_eq!(found.to_string(), expected);
        }
        for (name, expected) in [
            ("x", "say list:x or chain:x"),
            ("gona", "gona is not paused; did you mean `gone`?"),
        ] {
            let why = paused_target(name, &paused, &known).unwrap_err();
            assert!(why.contains(expected), "{name}: {why}");
        }
    }
}
