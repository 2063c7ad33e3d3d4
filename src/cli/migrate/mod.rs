//! `conserver migrate`: a plan for the switch of a deployment from the existing worker, made of what its
//! configuration, its variables and its Redis say.
//!
//! | To find | look in |
//! |---|---|
//! | what is looked at | `deployment.rs`, `environment.rs`, `python.rs`, and `src/queue/survey.rs` |
//! | what differs on purpose | `differences.rs` |
//! | the plan as data, which is its JSON | `plan.rs` |
//! | the commands for the switch and the way back | `steps.rs` |
//! | the plan for people | `print.rs` |
//!
//! It reads, and changes nothing anywhere. Whatever is wrong becomes part of the plan, so a deployment that
//! cannot be switched over yet still gets one.

mod deployment;
mod differences;
mod environment;
mod plan;
mod print;
mod python;
mod steps;

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;

pub use self::differences::markdown_table;

use self::deployment::{Deployment, Generation, RedisFindings};
use self::environment::Variables;
use self::plan::Plan;
use super::output::{eprint_lines, output_failed};
use crate::exit::Exit;
use crate::visible::{printable_lines, visible_json};

/// What to look at, and how to print the plan.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Take the variables from this file of the existing deployment: its .env, or the file that docker gets
    ///
    /// A relative CONSERVER_CONFIG_FILE in it is one from its folder. Without this option, the variables
    /// are those of this process.
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,

    /// Plan without asking Redis
    #[arg(long)]
    offline: bool,

    /// The generation of vCon Server, older or newer, if the documents in Redis do not tell it
    ///
    /// The older one keeps documents as RedisJSON, the newer one as plain strings.
    #[arg(long, value_name = "GENERATION", hide_possible_values = true)]
    generation: Option<Generation>,

    /// Print the plan as one JSON document
    #[arg(long)]
    json: bool,

    /// Exit with 65 if something would not work
    #[arg(long)]
    check: bool,
}

impl MigrateArgs {
    /// Whether the variables are those of a file.
    pub(super) fn has_env_file(&self) -> bool {
        self.env_file.is_some()
    }

    /// Makes the plan, and prints it.
    pub fn run(&self, config: Option<PathBuf>) -> Exit {
        let variables = match &self.env_file {
            None => Variables::of_process(),
            Some(path) => match Variables::of_file(path) {
                Ok(variables) => variables,
                Err(errors) => {
                    eprint_lines(errors);
                    return Exit::Usage;
                }
            },
        };
        let deployment = Deployment::read(variables, config);
        let redis = if self.offline {
            RedisFindings::NotAsked
        } else {
            deployment.ask_redis()
        };
        let plan = Plan::of(&deployment.with_redis(redis, self.generation));
        match self.print(&plan) {
            Err(error) => output_failed(&error),
            Ok(()) if self.check && !plan.works => Exit::Data,
            Ok(()) => Exit::Ok,
        }
    }

    fn print(&self, plan: &Plan) -> io::Result<()> {
        let text = if self.json {
            visible_json(&serde_json::to_string(plan)?)
        } else {
            printable_lines(&print::text(plan))
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }
}
