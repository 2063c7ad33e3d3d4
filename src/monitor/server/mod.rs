//! The monitor's HTTP: whether the daemon is healthy and ready, and what it does.
//!
//! ```text
//! connections ──► http (one thread: listens, reads requests, sends answers; waits for nobody)
//!                   │ ▲ orders, readings
//!                   ▼ │
//!                 readings (one thread: scoreboard, /proc, one connection to Redis)
//! ```
//!
//! Nothing here touches a worker. Connections, their bytes, their time and their number in a second
//! are limited, so that the memory and the time of the monitor are, whoever asks and however.
//! There is GET and HEAD only, a connection is for one request, and nothing may be kept.

mod allowance;
mod cache;
mod connection;
mod health;
mod listener;
pub mod metrics;
pub(super) mod request;
mod response;
mod routes;
mod serve;
mod waker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use self::cache::Reader;
use self::listener::Listener;
use self::request::Hosts;
use self::serve::{Server, Serving};
use self::waker::Waker;
use super::followers::StatsByFollower;
use crate::queue;
use crate::scoreboard::Slot;
use crate::settings::{HttpAddress, Settings};

/// How long is left to a former monitor to let go of the address, before it is told.
const QUIETLY: Duration = Duration::from_secs(1);

/// The pauses between attempts to listen double, from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long the end of the thread is waited for.
const FAREWELL: Duration = Duration::from_millis(500);

/// The threads at work; they end with this.
pub(super) struct Http {
    hold: Sender<()>,
    waker: Waker,
    /// Disconnected when the thread has ended, and the socket's file is removed.
    gone: Receiver<()>,
}

/// Starts the threads, where there is to be HTTP. `shows_itself` says whether this instance could,
/// the last time, show in Redis that it is alive.
pub(super) fn start(
    slot: &Slot,
    settings: &Settings,
    server: &queue::Server,
    shows_itself: Arc<AtomicBool>,
    stats: StatsByFollower,
) -> io::Result<Option<Http>> {
    if settings.http == HttpAddress::Off {
        return Ok(None);
    }
    let (waker, sleeper) = waker::pair()?;
    let (hold, ended) = bounded(0);
    let (holds, gone) = bounded(0);
    let serving = Serving {
        hosts: Hosts::of(settings),
        board: slot.board_path().to_owned(),
        beat: settings.beat(),
        desk: Reader::new(slot.board_path(), server, shows_itself, stats).start(waker.clone())?,
        sleeper,
        ended,
    };
    let address = settings.http.clone();
    let work = move || {
        let _holds: Sender<()> = holds;
        if let Some(listener) = open(&address, &serving.ended)
            && let Err(error) = Server::new(serving, listener).run()
        {
            log::error!("the monitor does not answer by HTTP any more: {error}");
        }
    };
    thread::Builder::new().name("http".to_owned()).spawn(work)?;
    Ok(Some(Http { hold, waker, gone }))
}

impl Http {
    /// Ends the service.
    pub fn close(self) {
        drop(self.hold);
        self.waker.wake();
        // The end of the process ends whatever is left.
        let _ = self.gone.recv_timeout(FAREWELL);
    }
}

/// Listens as soon as that can be done; `None` where the end comes first.
fn open(address: &HttpAddress, ended: &Receiver<()>) -> Option<Listener> {
    let (start, mut pause, mut is_told) = (Instant::now(), FIRST_PAUSE, false);
    loop {
        match Listener::open(address) {
            Ok(None) => return None,
            Ok(Some(listener)) => {
                log::info!("The monitor answers at {listener}");
                return Some(listener);
            }
            Err(error) if !is_told && start.elapsed() >= QUIETLY => {
                is_told = true;
                log::error!(
                    "the monitor does not answer by HTTP: {error}; it tries again. \
                     CONSERVER_HTTP can be another address, or off"
                );
            }
            Err(_) => {}
        }
        if ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            return None;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Tries whether the monitor could listen where it is to, for `conserver check`: what there is to
/// say of that.
///
/// # Errors
/// A sentence on why it could not.
pub fn check(address: &HttpAddress) -> Result<String, String> {
    match Listener::open(address) {
        Ok(None) => Ok("off".to_owned()),
        Ok(Some(_)) => Ok(address.to_string()),
        // By a daemon that runs, more likely than not.
        Err(error) if error.is_in_use() => Ok(format!("{address}, in use at present")),
        Err(error) => Err(error.to_string()),
    }
}
