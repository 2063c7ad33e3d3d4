//! Exit codes, after BSD's `sysexits.h`.

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Ok,
    /// The command line is wrong.
    Usage,
    /// Some of the given vCons cannot be used or do not exist, lost ones were found, or a deployment cannot be
    /// switched over.
    Data,
    /// A server cannot be reached.
    Unavailable,
    /// The system refused something, or this program is at fault.
    Internal,
    /// Another daemon has the instance's name, or Redis does not let the daemon in. From the monitor to the
    /// supervisor only.
    Barred,
    /// A worker has drained, and may have left claims behind. To the supervisor only.
    ClaimsLeft,
    /// This user may not do that.
    NoPermission,
    /// A setting or the configuration file is wrong.
    Config,
}

impl Exit {
    /// The number the shell sees.
    pub fn code(self) -> i32 {
        match self {
            Self::Ok => 0,
            Self::Usage => 64,
            Self::Data => 65,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::Barred => 75,
            Self::ClaimsLeft => 74,
            Self::NoPermission => 77,
            Self::Config => 78,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        // Every code above is below 256.
        Self::from(exit.code() as u8)
    }
}
