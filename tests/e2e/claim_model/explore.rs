//! Breadth first through all states, and back from the end.

use std::fmt::Debug;
use std::hash::Hash;

use rustc_hash::FxHashMap;

/// States, and what leads from one to the next.
pub trait Model {
    type State: Clone + Eq + Hash + Debug;
    type Action: Copy + Debug;

    /// Where it begins.
    fn start(&self) -> Self::State;

    /// Everything that can happen in a state.
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;

    /// What is after the action, or what it did that must not be.
    fn after(&mut self, state: &Self::State, action: Self::Action) -> Result<Self::State, String>;

    /// Whether it belongs to a run in which nothing goes wrong any more.
    fn is_quiet(&self, action: Self::Action) -> bool;

    /// Whether everything is done that is to be done.
    fn is_over(&self, state: &Self::State) -> bool;
}

/// The graph of states.
pub struct Graph<M: Model> {
    states: Vec<M::State>,
    numbers: FxHashMap<M::State, usize>,
    /// How each state was first reached.
    from: Vec<Option<(usize, M::Action)>>,
    /// Where each state leads without a mishap, and how.
    quiet: Vec<(usize, usize, M::Action)>,
    transitions: usize,
}

/// Goes through every state that can be reached, or answers what is wrong and how it comes to it.
pub fn explore<M: Model>(model: &mut M, most: usize) -> Result<Graph<M>, String> {
    let start = model.start();
    let mut graph = Graph {
        states: vec![start.clone()],
        numbers: FxHashMap::from_iter([(start, 0)]),
        from: vec![None],
        quiet: Vec::new(),
        transitions: 0,
    };
    let mut number = 0;
    while let Some(state) = graph.states.get(number).cloned() {
        for action in model.actions(&state) {
            let next = model
                .after(&state, action)
                .map_err(|wrong| format!("{wrong}\n{}", graph.way_to(number, Some(action))))?;
            graph.add(number, action, next, model.is_quiet(action));
        }
        if graph.states.len() > most {
            return Err(format!("there are more than {most} states"));
        }
        number += 1;
    }
    Ok(graph)
}

impl<M: Model> Graph<M> {
    /// How many states there are.
    pub fn states(&self) -> usize {
        self.states.len()
    }

    /// How many transitions there are between them.
    pub fn transitions(&self) -> usize {
        self.transitions
    }

    fn add(&mut self, from: usize, action: M::Action, state: M::State, is_quiet: bool) {
        self.transitions += 1;
        let number = match self.numbers.get(&state) {
            Some(number) => *number,
            None => {
                let number = self.states.len();
                self.states.push(state.clone());
                self.numbers.insert(state, number);
                self.from.push(Some((from, action)));
                number
            }
        };
        if is_quiet && number != from {
            self.quiet.push((from, number, action));
        }
    }

    /// Fails unless from each state the end can be reached without a mishap, by what `is_possible`;
    /// `without` names what is missing.
    pub fn comes_to_an_end(
        &self,
        model: &M,
        without: &str,
        is_possible: impl Fn(&M::State, M::Action) -> bool,
    ) -> Result<(), String> {
        let mut before = vec![Vec::new(); self.states.len()];
        for (from, to, action) in &self.quiet {
            if is_possible(&self.states[*from], *action) {
                before[*to].push(*from);
            }
        }
        let mut ends: Vec<bool> = self.states.iter().map(|it| model.is_over(it)).collect();
        let mut pending: Vec<usize> = (0..ends.len()).filter(|number| ends[*number]).collect();
        while let Some(number) = pending.pop() {
            for from in &before[number] {
                if !ends[*from] {
                    ends[*from] = true;
                    pending.push(*from);
                }
            }
        }
        match (0..ends.len()).find(|number| !ends[*number]) {
            Some(number) => Err(format!(
                "the work cannot be brought to an end without {without}\n{}",
                self.way_to(number, None)
            )),
            None => Ok(()),
        }
    }

    /// The shortest way to a state and on.
    fn way_to(&self, number: usize, last: Option<M::Action>) -> String {
        let mut steps: Vec<String> = last.iter().map(|action| format!("{action:?}")).collect();
        steps.push(format!("{:?}", self.states[number]));
        let mut number = number;
        while let Some((from, action)) = self.from[number] {
            steps.push(format!("{action:?}"));
            number = from;
        }
        steps.reverse();
        steps.join("\n")
    }
}
