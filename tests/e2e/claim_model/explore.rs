//! Breadth first through all states, and back from the end.

use std::collections::HashMap;

use super::server::Server;
use super::store::Index;
use super::world::{Action, World};

/// What was gone through.
pub struct Explored {
    pub states: usize,
    pub transitions: usize,
}

/// The graph of states.
struct Graph {
    worlds: Vec<World>,
    numbers: HashMap<World, usize>,
    /// How each state was first reached.
    from: Vec<Option<(usize, Action)>>,
    /// Where each state leads without a mishap, and how.
    quiet: Vec<(usize, usize, Action)>,
    transitions: usize,
}

/// Goes through every state that can be reached, or answers what is wrong and how it comes to it.
pub fn explore(server: &mut Server, most: usize) -> Result<Explored, String> {
    let mut graph = Graph {
        worlds: vec![World::START],
        numbers: HashMap::from([(World::START, 0)]),
        from: vec![None],
        quiet: Vec::new(),
        transitions: 0,
    };
    let mut number = 0;
    while let Some(world) = graph.worlds.get(number).copied() {
        for action in world.actions(server.names()) {
            let next = world
                .after(action, server)
                .map_err(|wrong| format!("{wrong}\n{}", graph.way_to(number, Some(action))))?;
            graph.add(number, action, next.canonical(server.names()));
        }
        if graph.worlds.len() > most {
            return Err(format!("there are more than {most} states"));
        }
        number += 1;
    }
    // Without a mishap no lease runs out whose daemon is there to renew it.
    graph.comes_to_an_end(None)?;
    for gone in 0..2 {
        graph.comes_to_an_end(Some(gone))?;
    }
    Ok(Explored {
        states: graph.worlds.len(),
        transitions: graph.transitions,
    })
}

impl Graph {
    fn add(&mut self, from: usize, action: Action, world: World) {
        self.transitions += 1;
        let number = *self.numbers.entry(world).or_insert_with(|| {
            self.worlds.push(world);
            self.from.push(Some((from, action)));
            self.worlds.len() - 1
        });
        if action.is_quiet() && number != from {
            self.quiet.push((from, number, action));
        }
    }

    /// Fails unless from each state the end can be reached without a mishap, and without the
    /// daemon that is gone.
    fn comes_to_an_end(&self, gone: Option<Index>) -> Result<(), String> {
        let mut before = vec![Vec::new(); self.worlds.len()];
        for (from, to, action) in &self.quiet {
            let world = &self.worlds[*from];
            let possible = match world.loser_of_lease(*action) {
                Some(loser) => gone == Some(loser) || !world.daemons[loser].is_up,
                None => gone.is_none() || action.actor() != gone,
            };
            if possible {
                before[*to].push(*from);
            }
        }
        let mut ends: Vec<bool> = self.worlds.iter().map(World::is_over).collect();
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
                "the work cannot be brought to an end without daemon {gone:?}\n{}",
                self.way_to(number, None)
            )),
            None => Ok(()),
        }
    }

    /// The shortest way to a state and on; workers and vCons may change their names under way.
    fn way_to(&self, number: usize, last: Option<Action>) -> String {
        let mut steps: Vec<String> = last.iter().map(|action| format!("{action:?}")).collect();
        steps.push(format!("{:?}", self.worlds[number]));
        let mut number = number;
        while let Some((from, action)) = self.from[number] {
            steps.push(format!("{action:?}"));
            number = from;
        }
        steps.reverse();
        steps.join("\n")
    }
}
