//! What is in Redis, as far as it makes a difference.

/// One of the two vCons, daemons, names or workers.
pub type Index = usize;

/// A run of a daemon, to which a lease or a claim belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Run {
    /// The one that is now, or was last.
    Last(Index),
    /// One before that.
    Former(Index),
}

impl Run {
    /// What it is to the next run of `daemon`.
    fn after_start_of(self, daemon: Index) -> Self {
        if self == Self::Last(daemon) {
            Self::Former(daemon)
        } else {
            self
        }
    }
}

/// The keys that the protocol uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Store {
    /// The ingress list, from its head.
    pub list: [Option<Index>; 2],
    /// How often each vCon stands in the egress list.
    pub finished: [u8; 2],
    /// How often each vCon stands in the dead letter queue.
    pub buried: [u8; 2],
    /// The claims of each name's workers.
    pub claims: [[Option<(Index, Run)>; 2]; 2],
    /// How many workers died on each vCon.
    pub deaths: [u8; 2],
    /// How often the lease ran out of a daemon that worked on each vCon.
    pub lapses: [u8; 2],
    /// The lease on each name.
    pub leases: [Option<Run>; 2],
    /// The names that may have workers with claims.
    pub instances: [bool; 2],
    /// The workers of each name that may have claims.
    pub workers: [[bool; 2]; 2],
}

impl Store {
    pub const EMPTY: Self = Self {
        list: [None; 2],
        finished: [0; 2],
        buried: [0; 2],
        claims: [[None; 2]; 2],
        deaths: [0; 2],
        lapses: [0; 2],
        leases: [None; 2],
        instances: [false; 2],
        workers: [[false; 2]; 2],
    };

    /// In how many places the vCon is.
    pub fn places(&self, vcon: Index) -> usize {
        let listed = self.list.iter().filter(|entry| **entry == Some(vcon));
        let claims = self.claims.iter().flatten().flatten();
        let claimed = claims.filter(|(claimed, _)| *claimed == vcon);
        let done = usize::from(self.finished[vcon]) + usize::from(self.buried[vcon]);
        listed.count() + claimed.count() + done
    }

    /// Takes over from `other` what belongs to this name.
    pub fn set_name(&mut self, name: Index, other: &Self) {
        self.claims[name] = other.claims[name];
        self.leases[name] = other.leases[name];
        self.instances[name] = other.instances[name];
        self.workers[name] = other.workers[name];
    }

    /// Takes over from `other` where the vCons are, and who may have claims.
    pub fn set_work(&mut self, other: &Self) {
        self.list = other.list;
        self.finished = other.finished;
        self.buried = other.buried;
        self.deaths = other.deaths;
        self.lapses = other.lapses;
        self.claims = other.claims;
        self.workers = other.workers;
    }

    /// A producer hands a vCon in.
    pub fn submit(&mut self, vcon: Index) {
        if let Some(end) = self.list.iter_mut().find(|entry| entry.is_none()) {
            *end = Some(vcon);
        }
    }

    /// A daemon is started anew.
    pub fn start(&mut self, daemon: Index) {
        let claims = self.claims.iter_mut().flatten().flatten();
        let runs = claims.map(|(_, run)| run);
        for run in runs.chain(self.leases.iter_mut().flatten()) {
            *run = run.after_start_of(daemon);
        }
    }

    pub fn swap_vcons(&mut self) {
        let claims = self.claims.iter_mut().flatten().flatten();
        let claimed = claims.map(|(vcon, _)| vcon);
        for vcon in claimed.chain(self.list.iter_mut().flatten()) {
            *vcon = 1 - *vcon;
        }
        self.finished.swap(0, 1);
        self.buried.swap(0, 1);
        self.deaths.swap(0, 1);
        self.lapses.swap(0, 1);
    }

    pub fn swap_workers(&mut self, name: Index) {
        self.claims[name].swap(0, 1);
        self.workers[name].swap(0, 1);
    }
}
