//! The monitor: a child process that shows other instances on the same Redis that this one lives.

mod keep;

use crossbeam_channel::RecvTimeoutError;

use crate::child::Child;
use crate::exit::Exit;
use crate::queue::{Heartbeat, Server};
use crate::settings::Settings;

/// Does the monitor's whole work: returns when it is told to end.
pub fn run(child: &Child, settings: &Settings, supervisor: i32) -> Exit {
    let server = match Server::new(&settings.redis_url) {
        Ok(server) => server,
        Err(error) => {
            log::error!("{} could not start: {error}", child.name);
            return Exit::Unavailable;
        }
    };
    if let Err(error) = keep::start(child, settings, &server) {
        log::error!("{} could not start a thread: {error}", child.name);
        return Exit::Internal;
    }
    let mut heartbeat = Heartbeat::new(server, settings, supervisor);
    child.readiness().tell();
    let mut away = false;
    loop {
        if let Some(slot) = &child.slot {
            slot.beat();
        }
        match heartbeat.beat() {
            Ok(()) => away = false,
            Err(error) if !away => {
                away = true;
                log::warn!("this instance cannot show that it is alive: {error}");
            }
            Err(_) => {}
        }
        let pause = settings.beat().min(settings.heartbeat_ttl / 3);
        if child.draining.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            heartbeat.end();
            return Exit::Ok;
        }
    }
}
