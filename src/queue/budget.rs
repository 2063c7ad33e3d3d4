//! Budgets: how often, and how often at a time, a server may be asked, by all instances on this Redis together.
//!
//! ```text
//! budget.lua ──tokens──► worker ──one for each request──► server, which counts
//!   fills by the rate       └─ unused after HOLD: gone, or given back
//! ```
//!
//! The promise is about what the server sees: in any window of at least a second, no more than the rate times the
//! window plus the burst. What Redis hands out arrives there up to the *reserve* later, so the bucket holds less
//! than the burst by what the rate brings in that time. A budget without a burst to speak of lives on a rate that
//! is a little below the configured one ([`FILL`]): what it lacks in a second is its reserve. As its bucket has no
//! room either for what nobody takes in time, its tokens are handed out a little before they are due ([`AHEAD`]).
//! Where Redis is so far away that its tokens would be over before they are here, they last longer, and the rate is
//! as much lower ([`Bucket::of`]).
//!
//! A slot is leased for as long as the request may take by its own limits. Whoever makes it ends the lease; if
//! that is killed, the request may go on at the server, and the lease runs out.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use redis::Value;

use super::requests::Script;
use super::{QueueError, RedisConnection, Server, keys};
use crate::config::{Account, Budget};

/// The part of the rate by which the bucket fills.
const FILL: f64 = 0.97;

/// The longest time between the moment when Redis hands out a token and its request's arrival.
const LONGEST_RESERVE: f64 = 0.25;

/// The part of the reserve in which a request must begin. The rest is for its way to the server.
const HOLD: f64 = 0.6;

/// The part of the slack that the reserve may take. The rest is for whoever comes late for a token that was due.
const RESERVE: f64 = 0.6;

/// A token is good for at least so many round trips to Redis: one until it is here, the others to claim with it.
const HELD_TRIPS: f64 = 4.5;

/// A longer round trip is none that a rate is lowered for.
const LONGEST_TRIP: Duration = Duration::from_millis(33);

/// The log says so if less of a rate can be used.
const MUCH_USED: f64 = 0.95;

/// A token that must be used sooner than that after it is due is handed out before ([`AHEAD`]).
const BRIEF: Duration = Duration::from_millis(60);

/// How long before it is due a brief token is handed out.
const AHEAD: Duration = Duration::from_millis(40);

/// How long a token without a rate waits for its request: it keeps others from a slot.
const SLOT_HOLD: Duration = Duration::from_millis(250);

/// A lease outlives the longest call by this.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// How long a budget that nobody uses stays in Redis, in seconds.
const EXPIRY: u64 = 604_800;

/// How long connecting, or one reply, may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The bucket that keeps the promise of a budget.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bucket {
    /// How many tokens come in a second.
    fill: f64,
    /// How many it holds.
    room: f64,
    /// How long before it is due a token may be handed out.
    ahead: Duration,
    /// How long after it is due a token may be used.
    hold: Duration,
    /// How long after it is due its request may arrive.
    reserve: Duration,
}

impl Bucket {
    /// The bucket of a worker whose round trips to Redis take this long.
    fn of(budget: &Budget, trip: Duration) -> Self {
        let Some(rate) = budget.rate else {
            return Self {
                fill: 0.0,
                room: 0.0,
                ahead: Duration::ZERO,
                hold: SLOT_HOLD,
                reserve: SLOT_HOLD,
            };
        };
        // By how much later than at the rate a request may come in any window without breaking the promise: what the
        // burst allows, and what the bucket lacks to the rate in a second, or until the next token.
        let of_burst = f64::from(budget.burst - 1) / rate;
        let least = HELD_TRIPS * trip.min(LONGEST_TRIP).as_secs_f64() / (HOLD * RESERVE);
        let lacks = (least - of_burst) / (1.0 / rate).max(1.0);
        let fill = FILL.min(1.0 - lacks);
        let slack = of_burst + (1.0 - fill) * (1.0 / rate).max(1.0);
        let reserve = LONGEST_RESERVE.min(RESERVE * slack);
        let hold = Duration::from_secs_f64(reserve * HOLD);
        Self {
            fill: rate * fill,
            room: 1.0 + rate * (slack - reserve),
            ahead: if hold < BRIEF { AHEAD } else { Duration::ZERO },
            hold,
            reserve: Duration::from_secs_f64(reserve),
        }
    }

    /// In which time it fills from one token on.
    fn patience(&self) -> Duration {
        if self.fill == 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64((self.room - 1.0) / self.fill).unwrap_or_default()
    }
}

/// How many tokens one worker may have in hand at a time, so that others get theirs.
pub fn most_in_hand(budget: &Budget) -> u32 {
    // Each keeps others from its slot.
    if budget.concurrency.is_some() {
        return 1;
    }
    let bucket = Bucket::of(budget, Duration::ZERO);
    // The cast saturates.
    ((bucket.fill * bucket.hold.as_secs_f64() / 2.0) as u32).max(1)
}

/// What is asked of a budget.
#[derive(Debug, Clone, Default)]
pub struct BudgetRequest {
    /// How many tokens are wanted.
    pub wanted: u32,
    /// The longest that a request takes for which they are.
    pub longest: Duration,
    /// Until when the server wants to be left alone, if it has said so.
    pub left_alone: Option<Instant>,
    /// How many tokens come back unused, and when these were handed out.
    pub unused: Option<(u32, u64)>,
    /// Leases of requests that have ended.
    pub ended: Vec<String>,
}

impl BudgetRequest {
    /// Whether there is nothing to say or to ask.
    pub fn is_empty(&self) -> bool {
        self.wanted == 0
            && self.left_alone.is_none()
            && self.unused.is_none()
            && self.ended.is_empty()
    }
}

/// The right to make one request that begins soon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// It may not begin before.
    pub from: Instant,
    /// It must have begun by then.
    pub use_by: Instant,
    /// By when the token may come back unused.
    pub back_by: Instant,
    /// When it was handed out, by the clock of Redis.
    pub at: u64,
    /// The lease of its slot; empty if its budget has no slots.
    pub lease: String,
}

/// What Redis hands out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// When there is another token, if there is none left.
    pub due: Option<Instant>,
    /// When the first lease of a slot runs out, if there was none free. It may be free sooner.
    pub slot_due: Option<Instant>,
    /// How long whoever finds none may wait for the next without a loss: the bucket has room for what comes.
    pub patience: Duration,
    /// How many are left.
    pub left: u32,
}

/// A worker's access to budgets: a connection of its own.
pub struct BudgetClient {
    server: Server,
    script: Script,
    connected: Option<RedisConnection>,
    /// What the names of its leases begin with.
    name: String,
    /// How many requests for tokens it has made.
    requests: u64,
    /// How long connecting, or one reply, may take.
    limit: Duration,
    /// How long a round trip takes, by the last ones.
    trip: Duration,
    /// The budgets for which that is too long, as the log has said.
    slow: HashSet<Account>,
}

impl BudgetClient {
    /// A client that connects when first used. No other uses this name and number.
    pub fn new(server: Server, instance: &str, worker: usize, number: u64) -> Self {
        Self {
            server,
            script: Script::new(include_str!("scripts/budget.lua")),
            connected: None,
            name: format!("{instance}:{worker}:{number:x}"),
            requests: 0,
            limit: LIMIT,
            trip: Duration::ZERO,
            slow: HashSet::new(),
        }
    }

    /// Asks for tokens, and says what has become of others.
    pub fn ask(&mut self, budget: &Budget, request: &BudgetRequest) -> Result<Granted, QueueError> {
        self.requests += 1;
        let prefix = self.prefix();
        let bucket = Bucket::of(budget, self.trip);
        let lease = request.longest + bucket.ahead + bucket.reserve + LEASE_MARGIN;
        let back = bucket.ahead + bucket.reserve;
        let (unused, handed_out) = request.unused.unwrap_or_default();
        let mut call = self.script.key(keys::budget_key(&budget.account));
        call.key(keys::budget_leases_key(&budget.account));
        call.arg(bucket.fill).arg(bucket.room);
        call.arg(budget.concurrency.unwrap_or(0));
        call.arg(request.wanted).arg(millis(lease)).arg(&prefix);
        call.arg(EXPIRY.max(lease.as_secs()));
        call.arg(request.left_alone.map_or(0, |time| {
            millis(time.saturating_duration_since(Instant::now()))
        }));
        call.arg(unused).arg(handed_out).arg(millis(back));
        call.arg(micros(bucket.ahead));
        call.arg(&request.ended);
        let mut connected = match self.connected.take() {
            Some(connected) => connected,
            None => (self.server).connect_for("conserver:budgets", self.limit)?,
        };
        // The server hands them out later than that.
        let asked = Instant::now();
        let reply = call
            .invoke::<Value>(&mut *connected)
            .map_err(QueueError::from);
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                if !error.breaks_connection() {
                    self.connected = Some(connected);
                }
                return Err(error);
            }
        };
        self.connected = Some(connected);
        let (waits, due, left, at, slot_due): (Vec<u64>, u64, u32, u64, u64) =
            redis::from_redis_value(reply)
                .map_err(|_| QueueError::UnexpectedReply("a request for tokens"))?;
        // Here, no token is due before it is there.
        let answered = Instant::now();
        self.note_trip(answered - asked, budget);
        let then = |wait| (wait > 0).then(|| answered + Duration::from_micros(wait));
        let token = |(lease, wait): (String, u64)| {
            let wait = Duration::from_micros(wait);
            Token {
                from: answered + wait,
                use_by: asked + wait + bucket.hold,
                back_by: asked + back,
                at,
                lease,
            }
        };
        let leases = self.last_leases(budget, u32::try_from(waits.len()).unwrap_or(u32::MAX));
        Ok(Granted {
            tokens: leases.into_iter().zip(waits).map(token).collect(),
            due: then(due),
            slot_due: then(slot_due),
            patience: bucket.patience(),
            left,
        })
    }

    /// A round trip has taken this long, for this budget.
    fn note_trip(&mut self, took: Duration, budget: &Budget) {
        self.trip = self.trip.mul_f64(0.75) + took.mul_f64(0.25);
        let Some(rate) = budget.rate else { return };
        let used = Bucket::of(budget, self.trip).fill / rate;
        if used < MUCH_USED && self.slow.insert(budget.account.clone()) {
            log::warn!(
                "a round trip to Redis takes {:.0} ms, so only {:.0} % of the rate of {} can be used; a larger `burst` \
                 helps",
                self.trip.as_secs_f64() * 1000.0,
                used * 100.0,
                budget.account
            );
        }
    }

    /// The leases of the tokens for which it has asked last, if its budget has slots: Redis may have handed
    /// them out although its reply was lost.
    pub fn last_leases(&self, budget: &Budget, wanted: u32) -> Vec<String> {
        let lease = |number| match budget.concurrency {
            Some(_) => format!("{}{number}", self.prefix()),
            None => String::new(),
        };
        (1..=wanted).map(lease).collect()
    }

    fn prefix(&self) -> String {
        format!("{}:{}:", self.name, self.requests)
    }

    /// Waits no longer than this for Redis from now on.
    pub fn hurry(&mut self, limit: Duration) {
        self.limit = limit;
        // One that cannot be set is as good as lost.
        (self.connected).take_if(|connected| connected.limit(limit).is_err());
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn budget(limit: &str) -> Budget {
        let text = format!(
            "links: {{it: {{module: links.tag, limit: {limit}, options: {{tags: [x]}}}}}}\nchains: {{}}\n"
        );
        let config = Config::parse(&text, Path::new("config.yml")).unwrap();
        Budget::clone(config.links["it"].limit.as_ref().unwrap())
    }

    #[test]
    fn whatever_comes_late_a_server_sees_no_more_than_the_rate_and_the_burst_allow() {
        for limit in [
            "{rate: 50/s, burst: 100}",
            "{rate: 50/s, burst: 1}",
            "{rate: 50/s}",
            "{rate: 1000/s, burst: 10}",
            "{rate: 30/min}",
            "{rate: 10/h}",
            "{rate: 10/h, burst: 5}",
            "{rate: 0.5, burst: 2}",
        ] {
            let budget = budget(limit);
            for trip in [0, 1, 26, 80, 5000] {
                let trip = Duration::from_millis(trip);
                let (rate, bucket) = (budget.rate.unwrap(), Bucket::of(&budget, trip));
                assert!(
                    bucket.hold.as_secs_f64() >= 1.4 * trip.min(LONGEST_TRIP).as_secs_f64(),
                    "{limit} {trip:?}"
                );
                assert!(
                    bucket.room >= 1.0 && bucket.hold < bucket.reserve,
                    "{limit}"
                );
                // A full bucket, what is under way, and what comes in the window, against the promise; in windows
                // that begin at a second, or when the second request comes.
                for seconds in [1.0, 2.0, 10.0, 60.0, 3600.0] {
                    let window = f64::max(seconds, 1.0 / rate);
                    let seen = bucket.room + bucket.fill * (window + bucket.reserve.as_secs_f64());
                    let allowed = rate * window + f64::from(budget.burst);
                    assert!(
                        seen <= allowed + 1e-9,
                        "{limit} {window}: {seen} > {allowed}"
                    );
                    // And nearly all of it can be used, or more than half where Redis is far.
                    let least = if trip < Duration::from_millis(5) {
                        0.95
                    } else {
                        0.55
                    };
                    assert!(bucket.fill >= least * rate, "{limit} {trip:?}");
                }
            }
        }
    }

    #[test]
    fn one_worker_has_few_tokens_in_hand() {
        for (limit, expected) in [
            ("{rate: 50/s, burst: 1}", 1),
            ("{rate: 50/s}", 3),
            ("{rate: 1000/s}", 72),
            ("{rate: 1000/s, concurrency: 9}", 1),
            ("{concurrency: 9}", 1),
        ] {
            assert_eq!(most_in_hand(&budget(limit)), expected, "{limit}");
        }
    }
}
