//! Budgets as a worker uses them: tokens in hand, and who may claim for a stage that is over budget.
//!
//! ```text
//! request ──► token in hand? ─yes─► goes on
//!                │ no
//!                ▼
//!            ask Redis ──some──► in hand ──► goes on
//!                │ none, one is due later
//!                ▼
//!            the vCon is released, its chain waits (circuit_breaker: over budget)
//!                ▼
//!            one idle lane wakes when a token is due, asks, and claims with what it gets; it wakes as many
//!            others as there are more tokens ── nothing to claim, or tokens to spare ──► the chain goes on
//! ```
//!
//! A token goes with the claim ([`BudgetPermit`]), so no more lanes claim than may ask the server. If the vCon
//! has another step before it, the token is in hand again. One lane at a time asks Redis. Where nothing has a
//! `limit`, nothing of this is called. A token that must be used within milliseconds is handed out before it is due:
//! the lane waits for that moment, and claims just before. What is not used in time goes back to Redis; a slot
//! that its request does not need goes back at once, as it keeps others from theirs.
//!
//! What is to be told to Redis, such as a lease that has ended, waits in its [`Pool`]: one lane at a time tells it,
//! and none waits for another to do so. What Redis has not answered is told again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::circuit_breaker::{BreakerState, backlog_list, is_deferring};
use super::lane::retain_claimable;
use super::modules::{LaneModules, Stage};
use super::retry::LaneClock;
use super::shared::SharedState;
use crate::config::{Account, Budget, Config, ListName};
use crate::lock::locked;
use crate::queue::{
    BudgetClient, BudgetRequest, Granted, LaneWaker, QueueError, Server, Token, most_in_hand,
};

/// The shortest time between two requests for tokens of one budget that has none.
const SHORTEST_WAIT: Duration = Duration::from_millis(4);

/// The longest time to wait where tokens gather meanwhile.
const LONGEST_PATIENCE: Duration = Duration::from_millis(50);

/// The longest pause before another look for a slot that another worker may have ended. Not longer than what a lane waits
/// by itself.
const LONGEST_SLOT_PAUSE: Duration = Duration::from_millis(100);

/// How long after Redis has not answered it is left alone, where nobody needs a token.
const FAILED_PAUSE: Duration = Duration::from_millis(500);

/// How long before its token is due a lane claims.
const CLAIM_TIME: Duration = Duration::from_millis(10);

/// What the scoreboard shows of a stage that is over budget.
pub(super) const OVER_BUDGET: &str = "its budget is used up";

/// What the lanes of a worker have of their budgets.
pub(super) struct Budgets {
    client: Mutex<BudgetClient>,
    waker: Mutex<LaneWaker>,
    pools: Mutex<HashMap<Account, Pool>>,
    /// When Redis has last not answered, if it has not done so since.
    failed: Mutex<Option<Instant>>,
    /// The number of the last watch, and until when it lasts, if it does.
    watch: Mutex<(u64, Option<Instant>)>,
    /// Says that a slot is free again.
    freed: (Sender<()>, Receiver<()>),
}

/// What this worker has of one budget.
struct Pool {
    budget: Budget,
    in_hand: Vec<Token>,
    /// No token is to be had before.
    due: Option<Instant>,
    /// No slot is looked for before.
    slot_due: Option<Instant>,
    /// The last pause before another look for a slot.
    slot_pause: Duration,
    /// How many requests of this worker are under way.
    under_way: u32,
    /// How many tokens it asks for at a time.
    batch: u32,
    /// How many of the last batch went unused.
    wasted: u32,
    /// How many Redis had left after the last one.
    left: u32,
    /// What Redis is to be told.
    untold: BudgetRequest,
}

/// Why there is no token.
#[derive(Debug)]
pub(super) enum NoToken {
    /// The budget is used up; there is one then.
    Due(Instant),
    /// Redis does not tell.
    Redis(QueueError),
}

/// One request that its budget allows. The slot is free again when this is dropped.
pub(super) struct Granting {
    budgets: Arc<Budgets>,
    budget: Arc<Budget>,
    token: Token,
    is_used: bool,
}

impl Granting {
    /// Whether the request may still begin.
    pub fn is_fresh(&self) -> bool {
        is_fresh(&self.token)
    }

    /// Whether it is of this budget.
    pub fn is_of(&self, budget: &Budget) -> bool {
        self.budget.account == budget.account
    }

    /// The request begins now: a token that is not due yet is so in a few milliseconds.
    fn begin(mut self) -> Self {
        wait_until(self.token.from);
        self.is_used = true;
        self.budgets.pool(&self.budget, |pool| pool.under_way += 1);
        self
    }

    /// The request is not made after all.
    pub fn forgo(mut self) {
        self.is_used = false;
        self.budgets.pool(&self.budget, Pool::note_end);
    }
}

impl Drop for Granting {
    fn drop(&mut self) {
        let token = self.token.clone();
        if self.is_used {
            self.budgets.end(&self.budget, token);
        } else {
            self.budgets.put_back(&self.budget, token);
        }
    }
}

fn is_fresh(token: &Token) -> bool {
    Instant::now() < token.use_by
}

fn wait_until(time: Instant) {
    let wait = time.saturating_duration_since(Instant::now());
    if !wait.is_zero() {
        thread::sleep(wait);
    }
}

impl Pool {
    fn new(budget: Budget) -> Self {
        Self {
            budget,
            in_hand: Vec::new(),
            due: None,
            slot_due: None,
            slot_pause: Duration::ZERO,
            under_way: 0,
            batch: 0,
            wasted: 0,
            left: 0,
            untold: BudgetRequest::default(),
        }
    }

    /// Takes a token that is still good. Returns those that are not with it.
    fn take(&mut self) -> (Option<Token>, Vec<Token>) {
        let now = Instant::now();
        let (fresh, stale) = mem::take(&mut self.in_hand)
            .into_iter()
            .partition(|token: &Token| now < token.use_by);
        self.in_hand = fresh;
        self.wasted += u32::try_from(Vec::len(&stale)).unwrap_or(u32::MAX);
        let tokens = self.in_hand.iter().enumerate();
        let first = tokens.min_by_key(|(_, token)| token.use_by);
        let first = first.map(|(position, _)| position);
        (first.map(|first| self.in_hand.swap_remove(first)), stale)
    }

    /// How many tokens to ask for: as many as were used while they were good.
    fn next_batch(&mut self, most: u32) -> u32 {
        self.batch = match mem::take(&mut self.wasted) {
            0 => self.batch.saturating_mul(2),
            wasted => self.batch.saturating_sub(wasted),
        };
        self.batch = self.batch.clamp(1, most);
        self.batch
    }

    fn note(&mut self, granted: Granted) {
        let now = Instant::now();
        // Workers do not all ask at the same moment.
        let jitter = 0.5 + fastrand::f64() / 2.0;
        self.in_hand.extend(granted.tokens);
        self.left = granted.left;
        self.due = granted.due.map(|due| {
            // Nor each for every single token.
            let patience = (granted.patience / 4).clamp(SHORTEST_WAIT, LONGEST_PATIENCE);
            due.max(now + patience.mul_f64(jitter))
        });
        self.slot_pause = match granted.slot_due {
            Some(_) => (self.slot_pause * 2).clamp(SHORTEST_WAIT, LONGEST_SLOT_PAUSE),
            None => Duration::ZERO,
        };
        let pause = self.slot_pause.mul_f64(jitter);
        self.slot_due = granted.slot_due.map(|due| due.min(now + pause));
    }

    /// A request is not under way any more.
    fn note_end(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// When there may be a token, if there was none and that is not over.
    fn due(&self) -> Option<Instant> {
        self.due.max(self.slot_due)
    }

    /// When there may be a token, if that is not now.
    fn next(&self) -> Option<Instant> {
        let has_none = !self.in_hand.iter().any(is_fresh);
        self.due().filter(|_| has_none)
    }
}

impl Budgets {
    /// Nothing in hand.
    pub fn new(server: &Server, instance: &str, worker: usize) -> Self {
        let client = BudgetClient::new(server.clone(), instance, worker, fastrand::u64(..));
        Self {
            client: Mutex::new(client),
            waker: Mutex::new(LaneWaker::new(server.clone(), instance)),
            pools: Mutex::default(),
            failed: Mutex::default(),
            watch: Mutex::default(),
            freed: bounded(1),
        }
    }

    /// Takes a token, for a request that takes `longest` at most.
    pub fn take(
        self: &Arc<Self>,
        budget: &Arc<Budget>,
        longest: Duration,
    ) -> Result<Granting, NoToken> {
        if let Some(granting) = self.take_in_hand(budget)? {
            return Ok(granting);
        }
        let begun = Instant::now();
        let asked = {
            let mut client = locked(&self.client);
            // Redis has not answered the lane before: it need not keep all of them waiting, one after the other.
            if locked(&self.failed).is_some_and(|failed| failed > begun) {
                return Err(NoToken::Redis(QueueError::Closed));
            }
            // Another lane may have asked meanwhile.
            if let Some(granting) = self.take_in_hand(budget)? {
                return Ok(granting);
            }
            let wanted = self.pool(budget, |pool| pool.next_batch(most_in_hand(budget)));
            self.ask(&mut client, budget, wanted, longest)
        };
        self.tell();
        asked.map_err(NoToken::Redis)?;
        match self.take_in_hand(budget)? {
            Some(granting) => Ok(granting),
            // They are stale already: this process was stopped.
            None => Err(NoToken::Due(Instant::now() + SHORTEST_WAIT)),
        }
    }

    /// Asks for tokens, which are in hand then, and tells Redis what it is to be told of this budget.
    fn ask(
        &self,
        client: &mut BudgetClient,
        budget: &Budget,
        wanted: u32,
        longest: Duration,
    ) -> Result<(), QueueError> {
        let request = BudgetRequest {
            wanted,
            longest,
            ..self.pool(budget, |pool| mem::take(&mut pool.untold))
        };
        match client.ask(budget, &request) {
            Ok(granted) => {
                *locked(&self.failed) = None;
                if wanted > 0 {
                    self.pool(budget, |pool| pool.note(granted));
                }
                Ok(())
            }
            Err(error) => {
                *locked(&self.failed) = Some(Instant::now());
                // It may have leased slots all the same. What was unused is left out: it must not count twice.
                let mut ended = request.ended;
                ended.extend(client.last_leases(budget, wanted));
                ended.retain(|lease| !lease.is_empty());
                self.pool(budget, |pool| {
                    pool.untold.ended.extend(ended);
                    pool.untold.left_alone = pool.untold.left_alone.max(request.left_alone);
                });
                Err(error)
            }
        }
    }

    /// Tells Redis what it is to be told, unless another lane does that already.
    pub fn tell(&self) {
        let is_untold = |pool: &&Pool| !pool.untold.is_empty();
        loop {
            let untold = locked(&self.pools)
                .values()
                .find(is_untold)
                .map(|it| it.budget.clone());
            let Some(budget) = untold else { return };
            let has_failed = |failed: Instant| failed.elapsed() < FAILED_PAUSE;
            if locked(&self.failed).is_some_and(has_failed) {
                return;
            }
            // Whoever has it looks here after that.
            let mut client = match self.client.try_lock() {
                Ok(client) => client,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if let Err(error) = self.ask(&mut client, &budget, 0, Duration::ZERO) {
                log::debug!("could not return tokens of {}: {error}", budget.account);
                return;
            }
        }
    }

    /// Takes a token that this worker has; nothing if Redis is to be asked.
    fn take_in_hand(self: &Arc<Self>, budget: &Arc<Budget>) -> Result<Option<Granting>, NoToken> {
        let (token, stale, due) = self.pool(budget, |pool| {
            let (token, stale) = pool.take();
            (token, stale, pool.due())
        });
        self.return_unused(budget, stale);
        match (token, due) {
            (Some(token), _) => Ok(Some(Granting {
                budgets: Arc::clone(self),
                budget: Arc::clone(budget),
                token,
                is_used: false,
            })),
            (None, Some(due)) if due > Instant::now() => Err(NoToken::Due(due)),
            (None, _) => Ok(None),
        }
    }

    /// The server wants to be left alone until then: no instance gets a token before.
    pub fn leave_alone(&self, budget: &Budget, until: Instant) {
        self.pool(budget, |pool| {
            pool.untold.left_alone = pool.untold.left_alone.max(Some(until));
        });
        self.tell();
    }

    /// Whether there are tokens to spare for this many lanes, one of which has one now, so that none has to wait for
    /// one to claim.
    pub fn are_plenty(&self, budget: &Budget, lanes: u32) -> bool {
        self.pool(budget, |pool| {
            let ours = match budget.rate {
                Some(_) => 0,
                // They go to the next requests.
                None => pool.under_way.saturating_add(1),
            };
            pool.due().is_none() && pool.left.saturating_add(ours) >= lanes
        })
    }

    /// The request of this token has ended.
    fn end(&self, budget: &Budget, token: Token) {
        let has_slot = !token.lease.is_empty();
        self.pool(budget, |pool| {
            pool.note_end();
            if has_slot {
                pool.untold.ended.push(token.lease);
                pool.slot_due = None;
            }
        });
        if has_slot {
            self.tell();
            // If that is full, a lane will look anyway.
            let _ = self.freed.0.try_send(());
        }
    }

    /// This token was not used: it is in hand again, as long as it is good. Its slot is for others.
    fn put_back(&self, budget: &Budget, token: Token) {
        if is_fresh(&token) && token.lease.is_empty() {
            self.pool(budget, |pool| pool.in_hand.push(token));
        } else {
            self.pool(budget, |pool| pool.wasted += u32::from(!is_fresh(&token)));
            self.return_unused(budget, vec![token]);
            self.tell();
        }
    }

    /// Gives back what is in hand, as nobody needs it.
    pub fn give_back(&self, budget: &Budget) {
        let tokens = self.pool(budget, |pool| mem::take(&mut pool.in_hand));
        self.return_unused(budget, tokens);
        self.tell();
    }

    /// Gives back all that is in hand, and forgets what it knows of budgets: there is another configuration.
    pub fn give_back_all(&self) {
        let budgets: Vec<Budget> = (locked(&self.pools).values())
            .map(|pool| pool.budget.clone())
            .collect();
        budgets.iter().for_each(|budget| self.give_back(budget));
        locked(&self.pools).retain(|_, pool| {
            (pool.due, pool.slot_due) = (None, None);
            !pool.untold.is_empty()
        });
    }

    /// Gives back all that is in hand, as this worker ends; waits so long for Redis at most.
    pub fn close(&self, limit: Duration) {
        locked(&self.client).hurry(limit);
        self.give_back_all();
    }

    /// These tokens are not used: Redis is to take them back, as far as it does.
    fn return_unused(&self, budget: &Budget, tokens: Vec<Token>) {
        let now = Instant::now();
        let is_taken = |token: &&Token| budget.rate.is_some() && now < token.back_by;
        let unused = tokens.iter().filter(is_taken).map(|token| token.at);
        let unused: Vec<u64> = unused.collect();
        self.pool(budget, |pool| {
            let (count, oldest) = pool.untold.unused.unwrap_or((0, u64::MAX));
            let more = u32::try_from(unused.len()).unwrap_or(u32::MAX);
            if let Some(first) = unused.into_iter().min() {
                pool.untold.unused = Some((count.saturating_add(more), oldest.min(first)));
            }
            pool.untold.ended.extend(leases(tokens));
        });
    }

    /// When there may be a token of each of these budgets; now at the earliest.
    fn due_of_all<'a>(&self, budgets: impl Iterator<Item = &'a Arc<Budget>>) -> Instant {
        let due = budgets.filter_map(|budget| self.pool(budget, |pool| pool.next()));
        let failed = locked(&self.failed).map(|failed| failed + FAILED_PAUSE);
        due.chain(failed).fold(Instant::now(), Instant::max)
    }

    /// How many good tokens of these accounts are in hand.
    fn fresh_in_hand<'a>(&self, accounts: impl Iterator<Item = &'a Account>) -> usize {
        let pools = locked(&self.pools);
        let tokens = accounts.filter_map(|account| pools.get(account));
        tokens
            .flat_map(|pool| &pool.in_hand)
            .filter(|it| is_fresh(it))
            .count()
    }

    /// Waits until a slot is free again, the worker drains, or the time is over.
    pub fn wait(&self, time: Duration, drain: &Receiver<()>) {
        select! {
            recv(self.freed.1) -> _ => {}
            recv(drain) -> _ => {}
            default(time) => {}
        }
    }

    fn pool<T>(&self, budget: &Budget, work: impl FnOnce(&mut Pool) -> T) -> T {
        let mut pools = locked(&self.pools);
        if let Some(pool) = pools.get_mut(&budget.account) {
            return work(pool);
        }
        let pool = pools.entry(budget.account.clone());
        work(pool.or_insert_with(|| Pool::new(budget.clone())))
    }
}

fn leases(tokens: Vec<Token>) -> Vec<String> {
    let leases = tokens.into_iter().map(|token| token.lease);
    leases.filter(|lease| !lease.is_empty()).collect()
}

/// What the lane holds tokens in while it works on a vCon: those that it has claimed with. Its clock stands still
/// while it asks for others.
pub(super) struct Hand<'a> {
    tokens: RefCell<Vec<Granting>>,
    clock: &'a LaneClock<'a>,
}

impl<'a> Hand<'a> {
    /// With these tokens.
    pub fn new(tokens: Vec<Granting>, clock: &'a LaneClock<'a>) -> Self {
        Self {
            tokens: RefCell::new(tokens),
            clock,
        }
    }

    /// The tokens with which the vCon was claimed and that are not used yet.
    pub fn tokens(&mut self) -> &mut Vec<Granting> {
        self.tokens.get_mut()
    }
}

/// Takes the token with which the vCon was claimed, or another one. The request begins now.
pub(super) fn begin_request(
    shared: &SharedState,
    hand: &Hand<'_>,
    budget: &Arc<Budget>,
    longest: Duration,
) -> Result<Granting, NoToken> {
    hand.clock.pause();
    let mut tokens = hand.tokens.borrow_mut();
    let ours = tokens.iter().position(|it| it.is_of(budget));
    let ours = ours.map(|ours| tokens.swap_remove(ours));
    let begun = match ours.filter(Granting::is_fresh) {
        Some(granting) => Ok(granting),
        None => shared.budgets.take(budget, longest),
    };
    let begun = begun.map(Granting::begin);
    hand.clock.resume();
    begun
}

/// The permit to claim for chains that wait for a token, with a token for each stage that they wait for.
pub(super) struct BudgetPermit {
    /// The tokens.
    pub hand: Vec<Granting>,
    /// Where there may be a vCon that needs them.
    pub lists: Vec<ListName>,
    /// Whether these are queues of storages.
    pub is_backlog: bool,
    stages: Vec<Stage>,
}

impl BudgetPermit {
    /// Waits until its tokens are nearly due, if they are not; another lane looks after those to come meanwhile.
    pub fn wait(&self, shared: &SharedState) {
        let due = self.hand.iter().map(|it| it.token.from).max();
        let claim = due.and_then(|due| due.checked_sub(CLAIM_TIME));
        if let Some(claim) = claim.filter(|claim| *claim > Instant::now()) {
            hand_over(shared);
            wait_until(claim);
        }
    }

    /// Nothing waits there: whoever comes next asks for a token when it needs one.
    pub fn note_nothing(self, shared: &SharedState, config: &Arc<Config>) {
        if shared.breakers.note_in_budget(&self.stages, config) {
            shared.wakeup.wake_all();
        }
        give_back(shared, self.hand);
    }
}

/// Nobody needs these tokens.
fn give_back(shared: &SharedState, hand: Vec<Granting>) {
    let budgets: Vec<Arc<Budget>> = hand.iter().map(|it| Arc::clone(&it.budget)).collect();
    drop(hand);
    budgets.iter().for_each(|it| shared.budgets.give_back(it));
}

/// The permit to claim for chains that are over budget, if there are tokens for all that one of them waits for.
pub(super) fn begin_budgeted(
    shared: &Arc<SharedState>,
    modules: &LaneModules,
) -> Result<Option<BudgetPermit>, QueueError> {
    if !shared.breakers.any_over_budget() {
        return Ok(None);
    }
    let config = modules.config();
    let mut waiting = waiting_stages(shared, config);
    if waiting.is_empty() {
        return Ok(None);
    }
    // Another one first each time.
    let first = fastrand::usize(..waiting.len());
    waiting.rotate_left(first);
    let mut idle = Vec::new();
    for WaitingChains {
        stages,
        lists,
        is_backlog,
    } in waiting
    {
        if lists.is_empty() {
            idle.extend(stages);
            continue;
        }
        // Whatever it may have is for others as long as it cannot have all.
        if due_of_stages(shared, &stages, config) > Instant::now() {
            continue;
        }
        let mut hand = Vec::new();
        let mut has_all = true;
        for stage in &stages {
            // Without a limit in this configuration, nothing is to be waited for.
            let Some((budget, longest)) = modules.budget_of(stage) else {
                continue;
            };
            match shared.budgets.take(&budget, longest) {
                Ok(granting) => {
                    let lanes = shared.settings.concurrency;
                    if shared.budgets.are_plenty(&budget, lanes)
                        && (shared.breakers).note_in_budget(std::slice::from_ref(stage), config)
                    {
                        shared.wakeup.wake_all();
                    }
                    hand.push(granting);
                }
                Err(NoToken::Due(due)) => {
                    shared
                        .breakers
                        .note_over_budget(stage, config, OVER_BUDGET, due);
                    has_all = false;
                    break;
                }
                Err(NoToken::Redis(error)) => return Err(error),
            }
        }
        if has_all {
            return Ok(Some(BudgetPermit {
                hand,
                lists,
                is_backlog,
                stages,
            }));
        }
        give_back(shared, hand);
    }
    // Their chains are on hold for something else, or paused.
    if !idle.is_empty() {
        shared.breakers.note_in_budget(&idle, config);
    }
    Ok(None)
}

/// Chains that wait for tokens of the same stages.
struct WaitingChains {
    stages: Vec<Stage>,
    lists: Vec<ListName>,
    is_backlog: bool,
}

/// What waits for tokens. A stage whose chains are all held up by something else has no lists.
fn waiting_stages(shared: &SharedState, config: &Arc<Config>) -> Vec<WaitingChains> {
    let open = shared.breakers.lock();
    let is_over = |state| state == BreakerState::OverBudget;
    let over: Vec<Stage> = (open.iter())
        .filter(|it| is_over(it.state) && Arc::ptr_eq(&it.config, config))
        .map(|it| it.stage.clone())
        .collect();
    let mut waiting: Vec<WaitingChains> = Vec::new();
    for chain in config.chains.iter().filter(|chain| chain.enabled) {
        let mut holding = open.iter().filter(|it| it.holds(chain, config));
        if holding.any(|it| !is_over(it.state)) {
            continue;
        }
        let needs = |stage: &&Stage| stage.is_in(chain, config) && !is_deferring(stage, config);
        let stages: Vec<Stage> = over.iter().filter(needs).cloned().collect();
        if stages.is_empty() {
            continue;
        }
        let lists = chain.ingress_lists.iter().cloned();
        match waiting.iter_mut().find(|it| it.stages == stages) {
            Some(group) => group.lists.extend(lists),
            None => waiting.push(WaitingChains {
                stages,
                lists: lists.collect(),
                is_backlog: false,
            }),
        }
    }
    for stage in over {
        if let Stage::Storage(name) = &stage
            && is_deferring(&stage, config)
        {
            waiting.push(WaitingChains {
                lists: backlog_list(name).into_iter().collect(),
                stages: vec![stage],
                is_backlog: true,
            });
        } else if !waiting.iter().any(|it| it.stages.contains(&stage)) {
            waiting.push(WaitingChains {
                stages: vec![stage],
                lists: Vec::new(),
                is_backlog: false,
            });
        }
    }
    drop(open);
    let pauses = shared.pauses.get().1;
    for group in &mut waiting {
        retain_claimable(&mut group.lists, pauses.as_deref(), config);
    }
    waiting
}

/// When all tokens are due for which a chain waits; `None` if none waits.
pub(super) fn next_token(shared: &SharedState, config: &Arc<Config>) -> Option<Instant> {
    if !shared.breakers.any_over_budget() {
        return None;
    }
    let waiting = waiting_stages(shared, config);
    let due = |group: &WaitingChains| match group.lists.is_empty() {
        // It waits for something else: the next claim sees to that.
        true => Instant::now(),
        false => due_of_stages(shared, &group.stages, config),
    };
    waiting.iter().map(due).min()
}

fn due_of_stages(shared: &SharedState, stages: &[Stage], config: &Config) -> Instant {
    let budgets = stages.iter().filter_map(|stage| stage.budget(config));
    shared.budgets.due_of_all(budgets)
}

/// The wait of the one idle lane that looks after tokens that are due.
pub(super) struct TokenWatch<'a> {
    budgets: &'a Budgets,
    number: u64,
}

impl<'a> TokenWatch<'a> {
    /// Begins it, unless another lane looks after a token that is due as early.
    pub fn begin(budgets: &'a Budgets, due: Instant) -> Option<Self> {
        let mut watch = locked(&budgets.watch);
        if watch.1.is_some_and(|until| until <= due + SHORTEST_WAIT) {
            return None;
        }
        let number = watch.0 + 1;
        *watch = (number, Some(due));
        Some(Self { budgets, number })
    }
}

impl Drop for TokenWatch<'_> {
    fn drop(&mut self) {
        let mut watch = locked(&self.budgets.watch);
        if watch.0 == self.number {
            watch.1 = None;
        }
    }
}

/// This lane has work now. Wakes others for the tokens that are left, and one to look after those to come.
pub(super) fn hand_over(shared: &SharedState) {
    if !shared.breakers.any_over_budget() {
        return;
    }
    let budgets = &shared.budgets;
    let open = shared.breakers.lock();
    let over = open
        .iter()
        .filter(|it| it.state == BreakerState::OverBudget);
    let mut accounts: Vec<&Account> = over
        .filter_map(|it| Some(&it.stage.budget(&it.config)?.account))
        .collect();
    accounts.sort_unstable();
    accounts.dedup();
    let in_hand = budgets.fresh_in_hand(accounts.into_iter());
    drop(open);
    let watcher = usize::from(locked(&budgets.watch).1.is_none());
    let wanted = in_hand + watcher;
    if wanted > 0 {
        shared.wakeup.wake_some(&mut locked(&budgets.waker), wanted);
    }
}
