//! Notifications to the service manager (sd_notify(3)).
//!
//! They never block the supervisor: if the socket is full, the message is lost.

use std::env;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::sys;

/// The service manager's socket; without one, nothing is sent.
pub(super) struct Notify {
    to: Option<(UnixDatagram, Address)>,
    watchdog: Option<Duration>,
}

type Address = std::os::unix::net::SocketAddr;

/// What the service manager is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notification<'a> {
    /// Every worker is ready; also after a reload.
    Ready,
    /// The start, the reload or the stop needs this much more time.
    Extend(Duration),
    /// The configuration is being read again.
    Reloading,
    /// The daemon stops.
    Stopping,
    /// A line for `systemctl status`.
    Status(&'a str),
    /// For the watchdog: the daemon is alive.
    Alive,
}

impl Notify {
    /// Reads `NOTIFY_SOCKET` and the watchdog's variables.
    pub fn from_env() -> Self {
        let to = env::var("NOTIFY_SOCKET").ok().and_then(|socket| {
            let address = address(&socket)?;
            let from = UnixDatagram::unbound().ok()?;
            from.set_nonblocking(true).ok()?;
            Some((from, address))
        });
        let number = |name| env::var(name).ok()?.parse::<u64>().ok();
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|_| for_us);
        Self {
            to,
            watchdog: watchdog.map(Duration::from_micros),
        }
    }

    /// How often the watchdog is notified: twice in the time that it waits.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|time| time / 2)
    }

    /// Sends a notification; for the watchdog, only if there is one.
    pub fn send(&self, what: Notification<'_>) {
        if what == Notification::Alive && self.watchdog.is_none() {
            return;
        }
        if let Some((from, to)) = &self.to
            && let Err(error) = from.send_to_addr(message(what).as_bytes(), to)
        {
            log::debug!("could not notify the service manager of {what:?}: {error}");
        }
    }
}

/// Tells the service manager, before there is a supervisor, that the start takes up to this much time.
pub fn ask_for_time(time: Duration) {
    Notify::from_env().send(Notification::Extend(time));
}

fn message(what: Notification<'_>) -> String {
    match what {
        Notification::Ready => "READY=1".to_owned(),
        Notification::Extend(time) => format!("EXTEND_TIMEOUT_USEC={}", time.as_micros()),
        Notification::Reloading => {
            let now = sys::monotonic().as_micros();
            format!("RELOADING=1\nMONOTONIC_USEC={now}")
        }
        Notification::Stopping => "STOPPING=1".to_owned(),
        Notification::Status(text) => format!("STATUS={text}"),
        Notification::Alive => "WATCHDOG=1".to_owned(),
    }
}

/// A path, or a name in the abstract namespace after `@`.
fn address(socket: &str) -> Option<Address> {
    match socket.strip_prefix('@') {
        None => Address::from_pathname(socket).ok(),
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            Address::from_abstract_name(name).ok()
        }
        #[cfg(not(target_os = "linux"))]
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_carries_its_time() {
        let message = message(Notification::Reloading);
        let time = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(time.is_some_and(|time| time.parse::<u64>().is_ok()));
    }
}
