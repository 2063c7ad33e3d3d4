//! The drain: of one child that is no longer wanted, and of the whole daemon when it stops.
//!
//! A child is asked to end by SIGTERM, has until its deadline to finish what it has in hand, and is
//! killed then. Its claims are returned by its successor, or by a recovery process.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Supervisor;
use super::child_slot::{ProcessPhase, Role, SlotState};
use super::notify::Notification;
use crate::exit::Exit;
use crate::monitor::followers::LONGEST_FAREWELL;
use crate::queue::Suspects;
use crate::scoreboard::DaemonPhase;
use crate::sys;

/// How long the monitor may take to give the instance's name up.
const FAREWELL_TIME: Duration = Duration::from_secs(3);

/// The daemon stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StopRequest {
    /// Whether to kill the workers instead of waiting for the vCons in hand.
    pub now: bool,
    /// The exit code.
    pub exit: Exit,
}

impl StopRequest {
    /// The request that results if one was made before: at least as urgent, and with the first exit
    /// code that tells of a fault.
    fn after(before: Option<Self>, now: bool, exit: Exit) -> Self {
        let (hurry, code) = before.map_or((false, Exit::Ok), |stop| (stop.now, stop.exit));
        Self {
            now: now || hurry,
            exit: if code == Exit::Ok { exit } else { code },
        }
    }
}

impl Supervisor {
    /// Begins to stop the daemon, or makes haste if it stops already.
    pub(super) fn stop(&mut self, now: bool, exit: Exit) {
        if self.stop.is_none() {
            self.notify.send(Notification::Stopping);
            self.set_phase(DaemonPhase::Stopping);
            self.drop_candidate();
        }
        self.stop = Some(StopRequest::after(self.stop, now, exit));
    }

    /// Whether this daemon stops because another one has its name, or Redis is not fit for it: then it
    /// has no claims that it could return.
    pub(super) fn is_displaced(&self) -> bool {
        let monitor = self.children.get(&Role::Monitor);
        self.stop.is_some_and(|stop| stop.exit == Exit::Unavailable)
            || monitor.is_some_and(|child| child.state == SlotState::Refused)
    }

    pub(super) fn drain_unwanted(&mut self) {
        let unwanted: Vec<Role> = self
            .children
            .keys()
            .copied()
            .filter(|role| !self.is_wanted(*role) && *role != Role::Recovery)
            .collect();
        for role in unwanted {
            self.drain(role);
        }
    }

    /// Asks a process to end, once.
    pub(super) fn drain(&mut self, role: Role) {
        let time = match role {
            // What a follower has fetched must be kept first.
            Role::Monitor if !self.active_config.parsed.followers.is_empty() => {
                FAREWELL_TIME + LONGEST_FAREWELL
            }
            Role::Monitor => FAREWELL_TIME,
            Role::Worker(_) | Role::Recovery => self.drain_timeout,
        };
        let until = Instant::now() + time;
        if let Some(child) = self.children.get_mut(&role)
            && let Some(pid) = child.pid()
            && !child.is_ending()
        {
            child.set_phase(ProcessPhase::Draining { until });
            log::debug!("{} is asked to drain", child.name());
            // Shown first: the monitor obeys the supervisor alone, and checks there who asks.
            self.show(role);
            self.send(pid, Signal::SIGTERM);
        }
    }

    /// Kills what has not drained in time; if the daemon is to stop now, every worker that drains.
    pub(super) fn enforce_deadlines(&mut self) {
        let now = Instant::now();
        let at_once = self.stop.is_some_and(|stop| stop.now);
        let mut late = Vec::new();
        for child in self.children.values_mut() {
            let (Some(pid), Some(ProcessPhase::Draining { until })) = (child.pid(), child.phase())
            else {
                continue;
            };
            // The monitor and a recovery process keep their own deadlines.
            let at_once = at_once && child.role.worker().is_some();
            if until <= now || at_once {
                if !at_once {
                    let name = child.name();
                    log::error!("{name} has not ended in time and is killed");
                }
                child.set_phase(ProcessPhase::Killed);
                child.blame(Suspects::NOBODY, "it had to end");
                late.push(pid);
            }
        }
        for pid in late {
            self.send(pid, Signal::SIGKILL);
        }
    }

    /// Returns the exit code when the last child and the forkserver have ended.
    pub(super) fn is_over(&mut self) -> Option<Exit> {
        let stop = self.stop?;
        if !self.children.is_empty() || !self.orphaned.is_empty() {
            return None;
        }
        self.starter.close();
        let since = *self.closing.get_or_insert_with(Instant::now);
        if let Some(pid) = self.starter.forkserver() {
            if since.elapsed() >= FAREWELL_TIME {
                log::error!("The forkserver (PID {pid}) does not end and is killed");
                sys::kill(pid, Signal::SIGKILL);
            }
            return None;
        }
        log::info!("All workers stopped");
        Some(stop.exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_further_stop_neither_slows_down_nor_forgets_the_fault() {
        let stop = |steps: &[(bool, Exit)]| {
            let stop = steps.iter().fold(None, |before, (now, exit)| {
                Some(StopRequest::after(before, *now, *exit))
            });
            stop.map(|stop| (stop.now, stop.exit))
        };
        let (drain, now, config) = ((false, Exit::Ok), (true, Exit::Ok), (false, Exit::Config));
        assert_eq!(stop(&[drain]), Some(drain));
        assert_eq!(stop(&[drain, now]), Some(now));
        assert_eq!(stop(&[now, drain]), Some(now));
        assert_eq!(stop(&[config, now]), Some((true, Exit::Config)));
        assert_eq!(stop(&[drain, config]), Some(config));
    }
}
