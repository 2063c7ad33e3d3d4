//! The sessions of one storage, shared by the lanes of a worker, so that a lane holds one only while it
//! saves.
//!
//! ```text
//! take ─┬─ one is idle ──────────────────────► work ─► put back ─► idle ──unused for a while──► closed
//!       ├─ one more may be opened ─► connect ──┘
//!       │            ▲                  │ too many: no more than are open, until the next try
//!       └─ wait ◄────┴──────────────────┘
//! ```
//!
//! The session used last is used next, so that sessions that are not needed stay idle. They are closed
//! after [`IDLE`], and much sooner while the server refuses a session to any process of this daemon, as
//! only closing helps the others. The worker passes the time of the latest refusal to the other
//! processes of the daemon, and theirs to this one ([`share_latest_refusal`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::session::Session;
use crate::backoff::Backoff;
use crate::sys;

/// A session unused for this long is closed.
const IDLE: Duration = Duration::from_secs(10);

/// The same while another process is refused a session: longer than a busy lane leaves one unused.
const IDLE_IF_WANTED: Duration = Duration::from_millis(300);

/// How often the pool looks for idle sessions to close.
const LOOK: Duration = Duration::from_millis(200);

/// After a refusal, the pause before one more is tried; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause before one more is tried.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The sessions of one storage in this process.
#[derive(Default)]
pub(super) struct Pool {
    state: Mutex<PoolState>,
    changed: Condvar,
}

#[derive(Default)]
struct PoolState {
    /// In the order of their last use.
    idle: Vec<IdleSession>,
    /// The number of all sessions: idle, in use, and being opened.
    open: usize,
    /// The number above which the server refused one; `None` if it has refused none, or could not be
    /// asked since.
    most: Option<usize>,
    /// When a lane may try to open one more than that.
    next_try: Option<Instant>,
    /// Refusals in a row.
    refusals: u32,
    /// What the server said at the last one.
    why: String,
    is_swept: bool,
}

struct IdleSession {
    session: Session,
    since: Instant,
}

/// What a lane gets when it asks for a session.
pub(super) enum Checkout {
    /// One that was idle.
    Session(Box<Session>),
    /// It may open a session.
    MayOpen(Permit),
    /// Neither in time; with the server's latest reason to refuse a session.
    NoRoom(String),
}

/// The permit to open one session, given back when it is dropped with the session.
pub(super) struct Permit {
    pool: Weak<Pool>,
    /// Whether the server accepted the session, or refused it for lack of room.
    is_answered: bool,
}

impl Pool {
    /// Returns an idle session or a permit to open one, waiting for at most this time.
    pub(super) fn take(self: &Arc<Self>, timeout: Duration) -> Checkout {
        let until = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(idle) = state.idle.pop() {
                return Checkout::Session(Box::new(idle.session));
            }
            let now = Instant::now();
            if state.may_open(now) {
                state.open += 1;
                return Checkout::MayOpen(Permit {
                    pool: Arc::downgrade(self),
                    is_answered: false,
                });
            }
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                return Checkout::NoRoom(state.why.clone());
            }
            let next = state.next_try.map_or(left, |next| next - now);
            state = self
                .changed
                .wait_timeout(state, left.min(next))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Takes back a session that can be used again.
    pub(super) fn put_back(self: &Arc<Self>, session: Session) {
        let mut state = self.lock();
        let since = Instant::now();
        state.idle.push(IdleSession { session, since });
        if !state.is_swept {
            let pool = Arc::downgrade(self);
            let name = "pg-idle".to_owned();
            let sweep = move || sweep(&pool);
            // If no thread can be started, the next session that comes back tries again.
            state.is_swept = thread::Builder::new().name(name).spawn(sweep).is_ok();
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Closes the idle sessions: one was found dead, and the others are as old.
    pub(super) fn forget_idle(&self) {
        let idle = std::mem::take(&mut self.lock().idle);
        drop(idle);
    }

    /// Takes out the sessions that were idle for too long; `None` if there is no session at all.
    fn spare(&self) -> Option<Vec<IdleSession>> {
        let mut state = self.lock();
        if state.open == 0 {
            state.is_swept = false;
            return None;
        }
        let longest = if is_crowded() { IDLE_IF_WANTED } else { IDLE };
        let spare = state
            .idle
            .partition_point(|idle| idle.since.elapsed() >= longest);
        Some(state.idle.drain(..spare).collect())
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes sessions that are not used any more, as long as there are any.
fn sweep(pool: &Weak<Pool>) {
    loop {
        thread::sleep(LOOK);
        let Some(spare) = pool.upgrade().and_then(|pool| pool.spare()) else {
            return;
        };
        // Without the lock: to close one, the server is told.
        drop(spare);
    }
}

impl PoolState {
    /// Whether a lane may open one more now. Above the number that the server accepts, one lane at a
    /// time may try.
    fn may_open(&mut self, now: Instant) -> bool {
        if self.most.is_none_or(|most| self.open < most) {
            return true;
        }
        if self.next_try.is_some_and(|next| next > now) {
            return false;
        }
        self.next_try = Some(now + LONGEST_PAUSE);
        true
    }

    fn note_refused(&mut self, why: &str) {
        why.clone_into(&mut self.why);
        self.most = Some(self.open.saturating_sub(1));
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE).after(self.refusals);
        self.next_try = Some(Instant::now() + backoff.next_wait());
        self.refusals = backoff.failures();
    }

    fn note_opened(&mut self) {
        self.refusals = 0;
        if let Some(most) = &mut self.most
            && self.open > *most
        {
            *most = self.open;
            self.next_try = None;
        }
    }
}

impl Permit {
    /// The session is there.
    pub(super) fn note_opened(&mut self) {
        self.is_answered = true;
        if let Some(pool) = self.pool.upgrade() {
            pool.lock().note_opened();
            pool.changed.notify_all();
        }
    }

    /// The server has no room for it.
    pub(super) fn refuse(mut self, why: &str) {
        self.is_answered = true;
        note_refused();
        if let Some(pool) = self.pool.upgrade() {
            pool.lock().note_refused(why);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            let mut state = pool.lock();
            state.open -= 1;
            if self.is_answered {
                pool.changed.notify_one();
            } else {
                // The server's earlier refusal may no longer hold: each lane finds out for itself.
                state.most = None;
                state.next_try = None;
                pool.changed.notify_all();
            }
        }
    }
}

/// How long a refusal counts: a process that is refused tries again sooner.
const CROWDED: Duration = Duration::from_secs(4);

/// When a process of this daemon was last refused, as far as this one knows, in monotonic milliseconds; 0: never.
static LATEST_REFUSAL: AtomicU64 = AtomicU64::new(0);

/// Notes that the server refused this process a connection because there are too many.
pub(super) fn note_refused() {
    share_latest_refusal(sys::monotonic_ms());
}

/// Takes over when another process was last refused, and returns the latest time that is known.
pub fn share_latest_refusal(known_elsewhere: u64) -> u64 {
    LATEST_REFUSAL
        .fetch_max(known_elsewhere, Ordering::Relaxed)
        .max(known_elsewhere)
}

/// Whether another process wants the sessions that this one has to spare.
fn is_crowded() -> bool {
    is_fresh(LATEST_REFUSAL.load(Ordering::Relaxed), sys::monotonic_ms())
}

fn is_fresh(last: u64, now: u64) -> bool {
    last > 0 && Duration::from_millis(now.saturating_sub(last)) < CROWDED
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    const LONG: Duration = Duration::from_secs(60);

    fn permit(pool: &Arc<Pool>, timeout: Duration) -> Option<Permit> {
        match pool.take(timeout) {
            Checkout::MayOpen(permit) => Some(permit),
            Checkout::NoRoom(_) => None,
            Checkout::Session(_) => panic!("there is none"),
        }
    }

    /// A pool of which the server has let two be opened and refused the third.
    fn full() -> (Arc<Pool>, Vec<Permit>) {
        let pool = Arc::new(Pool::default());
        let mut permits: Vec<Permit> = [(); 3]
            .iter()
            .filter_map(|()| permit(&pool, SOON))
            .collect();
        assert_eq!(permits.len(), 3);
        permits[..2].iter_mut().for_each(Permit::note_opened);
        if let Some(third) = permits.pop() {
            third.refuse("too many");
        }
        (pool, permits)
    }

    #[test]
    fn after_a_refusal_as_many_as_are_open_may_be_and_one_more_is_tried_now_and_then() {
        let (pool, mut permits) = full();
        assert!(is_crowded());
        pool.lock().next_try = Some(Instant::now() + LONG);
        match pool.take(Duration::ZERO) {
            Checkout::NoRoom(why) => assert_eq!(why, "too many"),
            _ => panic!("the server has no more"),
        }
        // One that ends leaves its place to another.
        permits.pop();
        let again = permit(&pool, LONG);
        assert!(again.is_some());
        // One at a time may try for more.
        pool.lock().next_try = Some(Instant::now());
        let mut more = permit(&pool, Duration::ZERO);
        assert!(more.is_some());
        assert!(permit(&pool, Duration::ZERO).is_none());
        // Where that is let in, the next may follow at once.
        more.iter_mut().for_each(Permit::note_opened);
        assert!(permit(&pool, Duration::ZERO).is_some());
    }

    #[test]
    fn a_server_that_goes_away_is_not_one_that_has_no_room() {
        let pool = Arc::new(Pool::default());
        if let Some(first) = permit(&pool, Duration::ZERO) {
            first.refuse("too many");
        }
        assert_eq!(pool.lock().most, Some(0));
        pool.lock().next_try = Some(Instant::now());
        let next = permit(&pool, Duration::ZERO);
        assert!(next.is_some());
        pool.lock().next_try = Some(Instant::now() + LONG);
        assert!(permit(&pool, Duration::ZERO).is_none());
        thread::scope(|scope| {
            let begun = Instant::now();
            let wait = || scope.spawn(|| permit(&pool, LONG));
            let waiting = [wait(), wait()];
            // It could not connect at all: all others see that for themselves, at the same time.
            drop(next);
            let permits = waiting.map(|it| it.join().ok().flatten());
            assert!(permits.iter().all(Option::is_some));
            assert!(begun.elapsed() < LONG / 2);
        });
        // Now nobody was refused since: whoever asks may try.
        assert!(permit(&pool, Duration::ZERO).is_some());
    }

    #[test]
    fn who_waits_gets_the_place_of_one_that_ends_at_once() {
        let (pool, mut permits) = full();
        pool.lock().next_try = Some(Instant::now() + LONG);
        let begun = Instant::now();
        thread::scope(|scope| {
            let waits = scope.spawn(|| permit(&pool, LONG).is_some());
            permits.pop();
            assert!(waits.join().unwrap_or(false));
        });
        assert!(begun.elapsed() < LONG / 2);
    }

    #[test]
    fn the_pauses_between_tries_grow() {
        let mut state = PoolState::default();
        for most in [100, 200, 400, 800, 1600, 2000, 2000] {
            state.open = 1;
            state.note_refused("too many");
            assert_eq!(state.most, Some(0));
            let pause = state.next_try.map(|next| next - Instant::now());
            let pause = pause.unwrap_or_default();
            let most = Duration::from_millis(most);
            assert!(pause <= most && pause >= most / 2 - SOON, "{pause:?}");
            assert!(!state.may_open(Instant::now()));
        }
        state.note_opened();
        assert_eq!(state.refusals, 0);
    }

    #[test]
    fn a_refusal_is_known_for_some_seconds() {
        let fresh = u64::try_from(CROWDED.as_millis()).unwrap_or_default();
        for (last, now, expected) in [
            (0, 0, false),
            (0, 1, false),
            (10_000, 10_000, true),
            (10_000, 9_990, true),
            (10_000, 10_000 + fresh - 1, true),
            (10_000, 10_000 + fresh, false),
        ] {
            assert_eq!(is_fresh(last, now), expected, "{last} {now}");
        }
    }

    #[test]
    fn the_latest_time_of_all_processes_counts() {
        let known = share_latest_refusal(1);
        assert!(known >= 1);
        note_refused();
        let ours = share_latest_refusal(0);
        assert!(ours > known || ours >= 1);
        assert_eq!(share_latest_refusal(ours + 5), ours + 5);
        assert_eq!(share_latest_refusal(ours), ours + 5);
    }
}
