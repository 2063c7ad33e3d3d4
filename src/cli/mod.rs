//! The command line: one file for each command, `service` for whose settings they use, `output` for what they
//! print, and `storage_access` for the documents they read and delete.

mod audit;
mod check;
mod complete;
mod config;
mod control;
mod delete;
mod demo;
mod dlq;
mod find;
mod get;
mod logs;
pub mod migrate;
mod output;
mod pause;
mod run;
mod service;
mod status;
mod storage_access;
mod submit;
mod top;
mod version;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory, Parser, Subcommand};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use self::output::Refusal;
use self::service::{Needs, ServiceArgs};
use crate::config::Config;
use crate::exit::Exit;
use crate::settings::{EnvFile, Settings, SettingsErrors};
use crate::sys;

/// Worker daemon for vCon conversations: from a Redis list, through a chain of links, to every
/// storage.
///
/// Settings come from the environment and from .env in the working directory (REDIS_URL,
/// CONSERVER_CONFIG_FILE, CONSERVER_WORKERS, ...; conserver-settings(7) lists them all), chains from
/// config.yml.
///
/// If a service conserver is on this machine, and neither the environment nor .env names a Redis or any other
/// CONSERVER_ setting, a command uses the settings of that service; root does so as its user.
#[derive(Debug, Parser)]
#[command(version, long_version = version::details(), about, propagate_version = true)]
struct Cli {
    /// Read this configuration instead of the one CONSERVER_CONFIG_FILE names
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    service: ServiceArgs,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon until SIGTERM or SIGINT (what plain `conserver` does)
    Run,
    /// Check the settings and config.yml, try to reach Redis and every storage, and print a table
    ///
    /// Warns on standard error of settings that have no effect or are probably mistakes.
    ///
    /// Exits 0 when all is well, 78 when a setting or the configuration is wrong (with
    /// --deny-warnings also when there is a warning), 69 when a server cannot be reached.
    Check(check::CheckArgs),
    /// Show the configuration in force, write one to start with, print its schema
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Show what the daemon on this machine does: its workers, what they work on, their memory
    ///
    /// Reads the scoreboard the daemon keeps, without touching Redis. Exits 0 when a daemon runs,
    /// 69 when none does, or its supervisor has stood still for half a minute.
    Status(status::StatusArgs),
    /// Show live in a terminal what the daemon on this machine does: rates, times, workers, queues
    ///
    /// Rates and times are those of the last minute, counts those since the daemon started. q, Esc
    /// or Ctrl-C ends it. Reads the scoreboard, and asks Redis for the lengths of the lists; without
    /// Redis, these are left out. Exits 69 when no daemon runs, 64 without a terminal.
    Top(top::TopArgs),
    /// Pause ingress lists or chains on all instances: what waits there stays until it is resumed
    ///
    /// Kept in Redis, so a pause outlasts restarts. vCons in work go on to their end; those that wait
    /// keep their order, and their documents do not expire. Without names, lists what is paused.
    ///
    /// Exits 0 once every running instance has confirmed that it claims nothing there any more, 69
    /// when one has not in time (the pause stays set) or Redis cannot be reached, 64 for a name that
    /// the configuration does not have.
    Pause(pause::PauseArgs),
    /// Resume ingress lists or chains that were paused
    ///
    /// Exits 0 once every running instance has confirmed it, 69 when one has not in time or Redis
    /// cannot be reached, 64 for a name that is neither paused nor in the configuration.
    Resume(pause::ResumeArgs),
    /// Change the number of workers of the daemon on this machine, until it is restarted
    ///
    /// A worker that is one too many finishes what it has in work first. Only root and the daemon's
    /// user can do this. Exits 0 when the daemon has the new number, 69 when no daemon runs.
    Scale(control::ScaleArgs),
    /// Make the daemon on this machine read config.yml again and replace its workers one by one
    ///
    /// Checks the file first, as `check --offline` does. Only root and the daemon's user can do this.
    ///
    /// Exits 0 when the reload has begun (with --wait, when it is over), 78 when the configuration is
    /// refused and the former one stays, 69 when no daemon runs or it ends meanwhile.
    Reload(control::ReloadArgs),
    /// Make the daemon on this machine finish what it has in work, and end
    ///
    /// The same as SIGTERM: after CONSERVER_DRAIN_TIMEOUT, what is not finished goes back to its list.
    /// Only root and the daemon's user can do this. Where systemd would start the daemon again, nothing
    /// is done, and `systemctl stop` named, which drains it too.
    ///
    /// Exits 0 when the drain has begun (with --wait, when the daemon has ended), 69 when no daemon
    /// runs, 64 under systemd.
    Drain(control::DrainArgs),
    /// Show the log of the service, as the journal of systemd has it
    ///
    /// Becomes journalctl, and exits as that does: 1 when no line was found for a UUID. Exits 69 when there is no
    /// journal, or this user may not read it.
    Logs(logs::LogsArgs),
    /// Store vCons in Redis as the API server does, and push their UUIDs onto an ingress list
    ///
    /// A file may hold one vCon or several, also as JSON strings. Signed (JWS) and encrypted (JWE) ones
    /// are stored as they are.
    ///
    /// Exits 0 when all were submitted, 65 when some could not be used (each is named, the others
    /// are submitted), 69 when Redis cannot be reached. With --wait also 65 when one went to a dead
    /// letter queue, 69 when --timeout was over before all were done.
    Submit(submit::SubmitArgs),
    /// Get the document of a vCon from Redis, or else from the first storage that has it
    ///
    /// Names on standard error where it was found, and whether it waits, is in work or is a dead letter at this
    /// moment. A storage that cannot be reached is named too, and the others are still asked.
    ///
    /// Exits 0 when it was found, 65 when it is nowhere, 69 when it was not found but Redis or a
    /// storage could not be reached, 64 for a storage that does not exist or cannot be asked.
    Get(get::GetArgs),
    /// Tell where vCons are: on a list, in work, dead, waiting for a storage, or done
    ///
    /// Looks at every place: all lists of config.yml and those that daemons have recorded (with the number
    /// from the head), the claims of all daemons, the dead letters and the backlog of storages, the
    /// progress that is kept for the next turn, the document in Redis, and each storage. Of very long
    /// lists, a million entries at either end are looked at.
    ///
    /// Exits 0 when all were found, 65 when one is nowhere, 69 when one was not found but Redis or a
    /// storage could not be reached.
    Where(find::WhereArgs),
    /// Delete a vCon from every storage and from Redis, for good
    ///
    /// Deletes from Redis its document and its entry in the sorted set VCON_SORTED_SET_NAME. Entries
    /// of egress lists and dead letter queues stay, and so do contexts, which belong to entries of
    /// lists and expire by themselves. While it waits in an ingress list or a worker has it, it
    /// would come back: nothing is deleted then.
    ///
    /// Exits 0 when it is deleted, 65 when it is nowhere or would come back, 69 when Redis or a
    /// storage could not be reached (it is deleted from the others), 64 for a storage that does not
    /// exist.
    Delete(delete::DeleteArgs),
    /// List, show, retry and drop dead letters
    ///
    /// A vCon that fails goes to the dead letter queue of its list, with the step that failed and
    /// why. It stays there until somebody retries or drops it; its document expires after
    /// VCON_DLQ_EXPIRY. One that a single storage refused is in the queue of that storage,
    /// storage:NAME.
    ///
    /// Exits 0 when all is well, 65 when the named list or vCon does not exist or a storage
    /// refuses a vCon again, 69 when Redis or a storage is unavailable or somebody else replays the
    /// dead letters of the storage, 78 when the configuration is wrong.
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Find vCons that are in Redis but in no list, with no worker and in no storage
    ///
    /// An earlier daemon, or a host that died, may have lost vCons: their documents are still in
    /// Redis, but nothing will ever work on them. This looks for them beside running daemons,
    /// without holding up the server, and looks again after a pause before it reports one.
    ///
    /// Exits 0 when there are none (or all were put back), 65 when there are, 69 when Redis or a
    /// storage cannot be reached, as a vCon may be there.
    Audit(audit::AuditArgs),
    /// Plan the switch of a deployment from the Python worker of vCon Server, and the way back
    ///
    /// Reads config.yml, the environment and Redis of the deployment, and changes nothing. Tells what
    /// runs built in, what in Python and what is refused; what differs for exactly this deployment;
    /// what waits in its lists; the settings of the service; and the commands for the switch, in
    /// order, and for the way back. Secrets are not shown.
    ///
    /// Exits 0; with --check 65 when something would not work: the configuration is refused, a Python
    /// module is missing, a setting is wrong, or Redis cannot be reached. Exits 64 when --env-file
    /// cannot be read.
    Migrate(migrate::MigrateArgs),
    /// Show the whole job on sample vCons, with a private Redis that needs nothing set up
    Demo(demo::DemoArgs),
    /// Show what this program was built from: version, commit, date, target, links, storages, libraries
    ///
    /// Commit and date are those of the source, and unknown if the build did not name them.
    Version(version::VersionArgs),
    #[command(hide = true)]
    Complete(complete::CompleteArgs),
    #[command(hide = true)]
    Child(run::ChildCommand),
    #[command(hide = true)]
    Candidate(run::CandidateCommand),
    #[command(hide = true)]
    Forkserver(run::ForkserverCommand),
    #[command(hide = true)]
    Reaper,
}

impl Command {
    /// What it needs of the settings of a service.
    fn needs(&self) -> Needs {
        match self {
            Self::Dlq(dlq) if dlq.is_for_monitor() => Needs::Nothing,
            Self::Check(_)
            | Self::Submit(_)
            | Self::Get(_)
            | Self::Where(_)
            | Self::Delete(_)
            | Self::Dlq(_)
            | Self::Audit(_)
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::Scale(_)
            | Self::Reload(_)
            | Self::Drain(_) => Needs::Settings,
            Self::Config(config) if config.shows_settings() => Needs::Settings,
            Self::Status(_) | Self::Top(_) | Self::Complete(_) => Needs::Scoreboard,
            Self::Migrate(_) => Needs::IfAsked,
            Self::Run
            | Self::Config(_)
            | Self::Demo(_)
            | Self::Logs(_)
            | Self::Version(_)
            | Self::Child(_)
            | Self::Candidate(_)
            | Self::Forkserver(_)
            | Self::Reaper => Needs::Nothing,
        }
    }

    /// Whether it works with Redis, so that it matters which one that is.
    fn uses_redis(&self) -> bool {
        match self {
            Self::Status(status) => status.asks_redis(),
            Self::Check(check) => check.asks_redis(),
            Self::Scale(_) | Self::Reload(_) | Self::Drain(_) => false,
            Self::Config(_) | Self::Complete(_) => false,
            command => matches!(command.needs(), Needs::Settings | Needs::Scoreboard),
        }
    }
}

/// A flag that the first SIGINT, SIGTERM or SIGHUP sets; the second ends the program.
fn interruption() -> io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register_conditional_default(signal, Arc::clone(&interrupted))?;
        flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}

/// Loads the configuration, or prints its errors and returns the exit code.
fn load_config(settings: &Settings) -> Result<Config, Exit> {
    Config::load(&settings.config_file).map_err(|errors| {
        output::eprint_lines(errors);
        Exit::Config
    })
}

/// Takes variables from `.env`.
fn env_file(command: Option<&Command>) -> Result<EnvFile, SettingsErrors> {
    use Command::{Candidate, Child, Dlq, Forkserver, Logs, Migrate, Reaper, Version};
    // What a process of the daemon executes has the environment of that, with what it took from the file. A file that
    // has changed since is for the next start.
    if let Some(Child(_) | Candidate(_) | Forkserver(_) | Reaper) = command {
        return Ok(EnvFile::default());
    }
    if let Some(Dlq(dlq)) = command
        && dlq.is_for_monitor()
    {
        return Ok(EnvFile::default());
    }
    // They have no settings.
    if let Some(Logs(_) | Version(_)) = command {
        return Ok(EnvFile::default());
    }
    if let Some(Migrate(migrate)) = command
        && migrate.has_env_file()
    {
        // The variables of this process do not count.
        return Ok(EnvFile::default());
    }
    EnvFile::load()
}

/// Gives this process the variables that count: the caller's and those of `.env`, or those of the service, as whose
/// user it goes on then. Prints what may be a mistake in `.env`, unless the command does that itself.
fn take_settings(cli: &mut Cli) -> Result<EnvFile, Refusal> {
    let faulty = |errors: SettingsErrors| Refusal::new(Exit::Config, errors.to_string());
    let mut file = EnvFile::default();
    if !cli.service.as_service {
        file = env_file(cli.command.as_ref()).map_err(faulty)?;
    }
    let needs = cli.command.as_ref().map_or(Needs::Nothing, Command::needs);
    if let Some(service) = cli.service.find(needs, cli.config.is_some())? {
        if let (Some(Command::Submit(submit)), true) = (&mut cli.command, service.switches()) {
            submit.open_sources();
        }
        // The service is in another folder.
        if let Some(Ok(config)) = cli.config.as_deref().map(std::path::absolute) {
            cli.config = Some(config);
        }
        service.take_on()?;
        file = env_file(cli.command.as_ref()).map_err(faulty)?;
    } else if let Some(name) = cli.service.instance() {
        sys::set_variables(vec![("CONSERVER_INSTANCE", name.into())]).map_err(|error| {
            let why = format!("could not set CONSERVER_INSTANCE: {error}");
            Refusal::new(Exit::Internal, why)
        })?;
    }
    if !matches!(
        cli.command,
        None | Some(Command::Run | Command::Check(_) | Command::Complete(_))
    ) {
        for warning in file.warnings() {
            output::eprint_line(format_args!("warning: {warning}"));
        }
    }
    Ok(file)
}

/// The command line as clap describes it, for the manual and for completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the command line, and runs the command.
pub fn main() -> Exit {
    // First of all: a signal before there is a handler must wait. A SIGHUP would end a daemon that is
    // to read its configuration again. Setting a mask does not fail.
    let held = sys::hold_signals();
    sys::give_back_large_blocks();
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output, errors to standard error. If neither can be
            // written, there is still the exit code.
            if error.use_stderr() {
                output::eprint_lines(error.render());
                return Exit::Usage;
            }
            let _ = error.print();
            return Exit::Ok;
        }
    };
    let env_file = match take_settings(&mut cli) {
        Ok(file) => file,
        Err(refusal) => return refusal.report(),
    };
    let config = cli.config.clone().map(OsString::from);
    let lookup = |name: &str| match name {
        "CONSERVER_CONFIG_FILE" if config.is_some() => config.clone(),
        name => std::env::var_os(name),
    };
    let settings = match Settings::from_lookup(&lookup) {
        Ok(settings) => settings,
        Err(errors) => {
            match &cli.command {
                // The plan names what is wrong.
                Some(Command::Migrate(migrate)) => return migrate.run(cli.config),
                Some(Command::Logs(logs)) => return logs.run(cli.service.instance()),
                Some(Command::Version(version)) => return version.run(),
                _ => {}
            }
            output::eprint_lines(errors);
            return Exit::Config;
        }
    };
    let is_daemons = matches!(
        cli.command,
        None | Some(
            Command::Run | Command::Child(_) | Command::Candidate(_) | Command::Forkserver(_)
        )
    );
    if let (true, Ok(held)) = (is_daemons, held) {
        // The daemon unblocks them when its handlers are ready.
        held.keep();
    }
    if cli.command.as_ref().is_some_and(Command::uses_redis) {
        service::tell_other_redis(&settings);
    }
    match cli.command {
        None | Some(Command::Run) => run::run(settings, &env_file),
        Some(Command::Check(check)) => check.run(&settings, &env_file),
        Some(Command::Config(command)) => command.run(&settings, &env_file, cli.config.is_some()),
        Some(Command::Complete(complete)) => complete.run(&settings),
        Some(Command::Status(status)) => status.run(&settings),
        Some(Command::Top(top)) => top.run(&settings),
        Some(Command::Pause(pause)) => pause.run(&settings),
        Some(Command::Resume(resume)) => resume.run(&settings),
        Some(Command::Scale(scale)) => scale.run(&settings),
        Some(Command::Reload(reload)) => reload.run(&settings),
        Some(Command::Drain(drain)) => drain.run(&settings),
        Some(Command::Logs(logs)) => logs.run(cli.service.instance()),
        Some(Command::Submit(submit)) => submit.run(&settings),
        Some(Command::Get(get)) => get.run(&settings),
        Some(Command::Where(place)) => place.run(&settings),
        Some(Command::Delete(delete)) => delete.run(&settings),
        Some(Command::Dlq(dlq)) => dlq.run(&settings),
        Some(Command::Audit(audit)) => audit.run(&settings),
        Some(Command::Migrate(migrate)) => migrate.run(cli.config),
        Some(Command::Demo(demo)) => demo.run(),
        Some(Command::Version(version)) => version.run(),
        Some(Command::Child(child)) => child.run(settings),
        Some(Command::Candidate(candidate)) => candidate.run(&settings),
        Some(Command::Forkserver(server)) => server.run(settings),
        Some(Command::Reaper) => run::reaper(&settings),
    }
}
