//! A worker's title: `conserver: worker 3 [busy]` as long as one of its lanes works.

use std::sync::{Mutex, PoisonError};

use crate::sys::Title;

/// The title of a worker and the number of lanes at work.
pub struct BusyTitle {
    state: Mutex<(usize, Title)>,
    worker: u32,
}

impl BusyTitle {
    /// The title of this worker, all of whose lanes are idle.
    pub fn new(title: Title, worker: u32) -> Self {
        let state = Mutex::new((0, title));
        let this = Self { state, worker };
        this.change(0);
        this
    }

    /// One lane more works.
    pub fn busy(&self) {
        self.change(1);
    }

    /// One lane less works.
    pub fn idle(&self) {
        self.change(-1);
    }

    fn change(&self, by: isize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.0;
        state.0 = before.saturating_add_signed(by);
        if by == 0 || (before == 0) != (state.0 == 0) {
            let word = if state.0 == 0 { "idle" } else { "busy" };
            let text = format!("conserver: worker {} [{word}]", self.worker);
            state.1.set(&text);
        }
    }
}
