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
//! the lane waits for that moment, and claims just before. What is not used in time goes back to Redis.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::circuit_breaker::{BreakerState, backlog_list, is_deferring};
use super::lane::retain_claimable;
use super::modules::{LaneModules, Stage};
use super::shared::SharedState;
use crate::config::{Account, Budget, Config, ListName};
use crate::queue::{
    BudgetClient, BudgetRequest, Granted, LaneWaker, QueueError, Server, Token, most_in_hand,
};

/// The shortest time between two requests for tokens of one budget that has none.
const SHORTEST_WAIT: Duration = Duration::from_millis(4);

/// The longest time to wait where tokens gather meanwhile, or where a slot may be free again before its lease
/// runs out.
const LONGEST_PATIENCE: Duration = Duration::from_millis(50);

/// How long before its token is due a lane claims.
const CLAIM_TIME: Duration = Duration::from_millis(10);

/// What the scoreboard shows of a stage that is over budget.
pub(super) const OVER_BUDGET: &str = "its budget is used up";

/// What the lanes of a worker have of their budgets.
pub(super) struct Budgets {
    client: Mutex<BudgetClient>,
    waker: Mutex<LaneWaker>,
    pools: Mutex<HashMap<Account, Pool>>,
    /// Whether an idle lane waits until a token is due.
    is_watched: AtomicBool,
}

/// What this worker has of one budget.
#[derive(Default)]
struct Pool {
    in_hand: Vec<Token>,
    /// Nothing is to be had before.
    due: Option<Instant>,
    /// How many tokens it asks for at a time.
    batch: u32,
    /// How many of the last batch went unused.
    wasted: u32,
    /// How many Redis had left after the last one.
    left: u32,
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
    fn is_fresh(&self) -> bool {
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
        self
    }
}

impl Drop for Granting {
    fn drop(&mut self) {
        let now = Instant::now();
        let none = Token {
            from: now,
            use_by: now,
            back_by: now,
            at: 0,
            lease: String::new(),
        };
        let token = mem::replace(&mut self.token, none);
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

    fn note(&mut self, granted: Granted, budget: &Budget) {
        self.in_hand.extend(granted.tokens);
        self.left = granted.left;
        self.due = granted.due.map(|due| {
            let wait = due.saturating_duration_since(Instant::now());
            let wait = match budget.concurrency {
                Some(_) => wait.min(LONGEST_PATIENCE),
                None => wait,
            };
            // Workers do not all ask at the same moment, nor each for every single token.
            let patience = (granted.patience / 4).clamp(SHORTEST_WAIT, LONGEST_PATIENCE);
            Instant::now() + wait.max(patience.mul_f64(0.5 + fastrand::f64() / 2.0))
        });
    }

    /// When there may be a token, if that is not now.
    fn next(&self) -> Option<Instant> {
        self.due.filter(|_| self.in_hand.is_empty())
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
            is_watched: AtomicBool::new(false),
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
        let mut client = locked(&self.client);
        // Another lane may have asked meanwhile.
        if let Some(granting) = self.take_in_hand(budget)? {
            return Ok(granting);
        }
        let wanted = self.pool(budget, |pool| pool.next_batch(most_in_hand(budget)));
        let request = BudgetRequest {
            wanted,
            longest,
            ..BudgetRequest::default()
        };
        let granted = client.ask(budget, &request).map_err(NoToken::Redis)?;
        drop(client);
        self.pool(budget, |pool| pool.note(granted, budget));
        match self.take_in_hand(budget)? {
            Some(granting) => Ok(granting),
            // They are stale already: this process was stopped.
            None => Err(NoToken::Due(Instant::now() + SHORTEST_WAIT)),
        }
    }

    /// Takes a token that this worker has; nothing if Redis is to be asked.
    fn take_in_hand(self: &Arc<Self>, budget: &Arc<Budget>) -> Result<Option<Granting>, NoToken> {
        let (token, stale, due) = self.pool(budget, |pool| {
            let (token, stale) = pool.take();
            (token, stale, pool.due)
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
        let request = BudgetRequest {
            left_alone: Some(until.saturating_duration_since(Instant::now())),
            ..BudgetRequest::default()
        };
        self.tell(budget, &request);
    }

    /// Whether there are tokens to spare for this many lanes, so that none has to wait for one to claim.
    pub fn are_plenty(&self, budget: &Budget, lanes: u32) -> bool {
        self.pool(budget, |pool| pool.due.is_none() && pool.left >= lanes)
    }

    /// The request of this token has ended.
    fn end(&self, budget: &Budget, token: Token) {
        self.end_leases(budget, vec![token]);
    }

    /// This token was not used: it is in hand again, as long as it is good.
    fn put_back(&self, budget: &Budget, token: Token) {
        if is_fresh(&token) {
            self.pool(budget, |pool| pool.in_hand.push(token));
        } else {
            self.pool(budget, |pool| pool.wasted += 1);
            self.return_unused(budget, vec![token]);
        }
    }

    /// Gives back what is in hand, as nobody needs it.
    pub fn give_back(&self, budget: &Budget) {
        let tokens = self.pool(budget, |pool| mem::take(&mut pool.in_hand));
        self.return_unused(budget, tokens);
    }

    /// Gives tokens back that were not used, as far as Redis takes them.
    fn return_unused(&self, budget: &Budget, tokens: Vec<Token>) {
        let now = Instant::now();
        let is_taken = |token: &&Token| budget.rate.is_some() && now < token.back_by;
        let unused: Vec<u64> = (tokens.iter())
            .filter(is_taken)
            .map(|token| token.at)
            .collect();
        let count = u32::try_from(unused.len()).unwrap_or(u32::MAX);
        let unused = unused.into_iter().min().map(|oldest| (count, oldest));
        let ended = leases(tokens);
        if unused.is_some() || !ended.is_empty() {
            let request = BudgetRequest {
                unused,
                ended,
                ..BudgetRequest::default()
            };
            self.tell(budget, &request);
        }
    }

    fn end_leases(&self, budget: &Budget, tokens: Vec<Token>) {
        let ended = leases(tokens);
        if !ended.is_empty() {
            let request = BudgetRequest {
                ended,
                ..BudgetRequest::default()
            };
            self.tell(budget, &request);
        }
    }

    /// Tells Redis. If it does not listen, leases run out by themselves.
    fn tell(&self, budget: &Budget, request: &BudgetRequest) {
        if let Err(error) = locked(&self.client).ask(budget, request) {
            log::debug!("could not return tokens of {}: {error}", budget.account);
        }
    }

    /// When the next token of these budgets is due; `None` if there are none of them.
    fn next_due<'a>(&self, budgets: impl Iterator<Item = &'a Arc<Budget>>) -> Option<Instant> {
        let now = Instant::now();
        let due = |budget: &Arc<Budget>| self.pool(budget, |pool| pool.next().unwrap_or(now));
        budgets.map(due).min()
    }

    fn pool<T>(&self, budget: &Budget, work: impl FnOnce(&mut Pool) -> T) -> T {
        let mut pools = locked(&self.pools);
        if let Some(pool) = pools.get_mut(&budget.account) {
            return work(pool);
        }
        work(pools.entry(budget.account.clone()).or_default())
    }
}

fn leases(tokens: Vec<Token>) -> Vec<String> {
    let leases = tokens.into_iter().map(|token| token.lease);
    leases.filter(|lease| !lease.is_empty()).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the lane holds tokens in while it works on a vCon: those that it has claimed with.
pub(super) type Hand = RefCell<Vec<Granting>>;

/// Takes the token with which the vCon was claimed, or another one. The request begins now.
pub(super) fn begin_request(
    shared: &SharedState,
    hand: &Hand,
    budget: &Arc<Budget>,
    longest: Duration,
) -> Result<Granting, NoToken> {
    let mut hand = hand.borrow_mut();
    let ours = hand.iter().position(|it| it.is_of(budget));
    if let Some(granting) = ours.map(|ours| hand.swap_remove(ours))
        && granting.is_fresh()
    {
        return Ok(granting.begin());
    }
    shared.budgets.take(budget, longest).map(Granting::begin)
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
        let budgets: Vec<Arc<Budget>> = self.hand.iter().map(|it| Arc::clone(&it.budget)).collect();
        drop(self.hand);
        budgets.iter().for_each(|it| shared.budgets.give_back(it));
    }
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

/// When a token is due for which a chain waits; `None` if none waits.
pub(super) fn next_token(shared: &SharedState, config: &Arc<Config>) -> Option<Instant> {
    if !shared.breakers.any_over_budget() {
        return None;
    }
    let open = shared.breakers.lock();
    let over = open
        .iter()
        .filter(|it| it.state == BreakerState::OverBudget && Arc::ptr_eq(&it.config, config));
    let budgets: Vec<&Arc<Budget>> = over.filter_map(|it| it.stage.budget(config)).collect();
    drop(open);
    shared.budgets.next_due(budgets.into_iter())
}

/// The wait of the one idle lane that looks after tokens that are due.
pub(super) struct TokenWatch<'a>(&'a Budgets);

impl<'a> TokenWatch<'a> {
    /// Begins it, unless another lane does that already.
    pub fn begin(budgets: &'a Budgets) -> Option<Self> {
        let was_watched = budgets.is_watched.swap(true, Ordering::AcqRel);
        (!was_watched).then_some(Self(budgets))
    }
}

impl Drop for TokenWatch<'_> {
    fn drop(&mut self) {
        self.0.is_watched.store(false, Ordering::Release);
    }
}

/// This lane has work now. Wakes others for the tokens that are left, and one to look after those to come.
pub(super) fn hand_over(shared: &SharedState) {
    if !shared.breakers.any_over_budget() {
        return;
    }
    let budgets = &shared.budgets;
    let in_hand: usize = locked(&budgets.pools)
        .values()
        .map(|pool| pool.in_hand.len())
        .sum();
    let watcher = usize::from(!budgets.is_watched.load(Ordering::Acquire));
    let wanted = in_hand + watcher;
    if wanted > 0 {
        shared.wakeup.wake_some(&mut locked(&budgets.waker), wanted);
    }
}
