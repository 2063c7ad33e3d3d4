//! Why a vCon did not get to the end of its chain.

use super::Stage;
use crate::failure::{Failure, FailureKind};

/// Why a vCon did not get to the end of its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// The worker drains, and the vCon would keep it waiting.
    Interrupted,
    /// It cannot be done.
    Failed(Fault),
    /// It may be done later: these have failed in all attempts, in ways that pass.
    Away(Away),
}

/// What has failed in all attempts, in ways that pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Away {
    /// In which way: never permanent.
    pub kind: FailureKind,
    /// What failed, and how.
    pub fault: Fault,
}

/// What cannot be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Where: `link <name>` or `storage <name>`.
    pub stage: String,
    /// The links and storages that this means.
    pub stages: Vec<Stage>,
    /// Why.
    pub error: String,
    /// Tries made.
    pub attempts: u32,
}

impl Fault {
    /// What has failed in the queue, once.
    pub fn of_queue(stage: &str, error: String) -> Self {
        Self {
            stage: stage.to_owned(),
            stages: Vec::new(),
            error,
            attempts: 1,
        }
    }

    /// What has failed at a stage, in so many attempts.
    pub fn at(stage: &Stage, failure: &Failure, attempts: u32) -> Self {
        Self {
            stage: stage.to_string(),
            stages: vec![stage.clone()],
            error: failure.message.clone(),
            attempts,
        }
    }
}

/// What has failed at these storages.
pub(super) fn storage_fault(faults: &[(String, Failure)], attempts: u32) -> Fault {
    let names: Vec<&str> = faults.iter().map(|(name, _)| name.as_str()).collect();
    let errors: Vec<String> = faults
        .iter()
        .map(|(name, failure)| format!("{name}: {failure}"))
        .collect();
    Fault {
        stage: format!("storage {}", names.join(", ")),
        stages: faults
            .iter()
            .map(|(name, _)| Stage::Storage(name.clone()))
            .collect(),
        error: errors.join("; "),
        attempts,
    }
}
