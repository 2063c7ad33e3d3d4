//! What the modules of a deployment are to be called with, and a ledger that holds the calls against it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Call, Sample, same};

/// One call as it is to be: function, arguments by position and by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    call: String,
    arguments: Vec<Value>,
    named: Value,
}

impl Expected {
    pub fn new(call: &str, arguments: &[Value], named: Value) -> Self {
        Self {
            call: call.to_owned(),
            arguments: arguments.to_vec(),
            named,
        }
    }

    fn is(&self, call: &Call) -> bool {
        self.call == call.call
            && same(&json!(self.arguments), &json!(call.arguments))
            && same(&self.named, &call.named)
    }
}

/// Calls that come at one point, in any order.
#[derive(Debug, Clone, Default)]
struct Step {
    /// Each is made, and each of its forms is right.
    calls: Vec<Vec<Expected>>,
    /// Whether it is no part of the work: a tracer, or a hook.
    looks_on: bool,
}

/// What a vCon goes through.
#[derive(Debug, Clone, Default)]
pub struct Course {
    steps: Vec<Step>,
}

/// How often something came that is not in a run without kills.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Excess {
    /// Calls after the first of their kind.
    pub repeated: usize,
    /// Calls of hooks and tracers that were left out.
    pub left_out: usize,
}

impl Course {
    /// Adds calls of links and storages, in any order.
    pub fn works(&mut self, calls: Vec<Expected>) {
        let calls = calls.into_iter().map(|call| vec![call]).collect();
        self.steps.push(Step {
            calls,
            looks_on: false,
        });
    }

    /// Adds a call of a hook or tracer, in one of its forms.
    pub fn looks(&mut self, forms: Vec<Expected>) {
        self.steps.push(Step {
            calls: vec![forms],
            looks_on: true,
        });
    }

    /// Fails unless the vCon went through this: no call comes before all that come before it were made, none
    /// has other arguments, and the last is reached. Whatever was interrupted may begin anew or go on.
    pub fn follows(&self, sample: &Sample, calls: &[Call]) -> Excess {
        let mut made: Vec<Vec<usize>> = self
            .steps
            .iter()
            .map(|it| vec![0; it.calls.len()])
            .collect();
        let mut excess = Excess::default();
        let show = || {
            let lines = calls.iter().map(|it| format!("  {} {}", it.pid, line(it)));
            lines.collect::<Vec<_>>().join("\n")
        };
        for call in calls {
            let Some((at, which)) = self.place_of(call) else {
                panic!(
                    "{} ({}): not to be called like this: {}\nto be called: {:#?}\nall calls:\n{}",
                    sample.id,
                    sample.document["subject"],
                    line(call),
                    self.forms_of(&call.call),
                    show()
                );
            };
            for (step, made) in self.steps.iter().zip(&mut made).take(at) {
                for made in made.iter_mut().filter(|made| **made == 0) {
                    assert!(
                        step.looks_on,
                        "{}: {} comes before {step:?}\nall calls:\n{}",
                        sample.id,
                        line(call),
                        show()
                    );
                    *made = 1;
                    excess.left_out += 1;
                }
            }
            let made = &mut made[at][which];
            excess.repeated += usize::from(*made > 0);
            *made += 1;
        }
        for (step, made) in self.steps.iter().zip(&made) {
            let missing = made.iter().filter(|made| **made == 0).count();
            assert!(
                missing == 0 || step.looks_on,
                "{} ({}): not called: {step:?}\nall calls:\n{}",
                sample.id,
                sample.document["subject"],
                show()
            );
            excess.left_out += missing;
        }
        excess
    }

    /// The step of a call, and which of its calls it is.
    fn place_of(&self, call: &Call) -> Option<(usize, usize)> {
        let steps = self.steps.iter().enumerate();
        let mut places = steps.filter_map(|(at, step)| {
            let is_it = |forms: &Vec<Expected>| forms.iter().any(|form| form.is(call));
            step.calls.iter().position(is_it).map(|which| (at, which))
        });
        places.next()
    }

    fn forms_of(&self, name: &str) -> Vec<String> {
        let steps = self.steps.iter().flat_map(|step| &step.calls).flatten();
        let forms = steps.filter(|form| form.call == name);
        forms
            .map(|form| format!("{} {}", json!(form.arguments), form.named))
            .collect()
    }
}

fn line(call: &Call) -> String {
    format!("{} {} {}", call.call, json!(call.arguments), call.named)
}

/// The calls about each of the vCons, in their order; those about a copy that a link has made belong to its
/// original.
pub fn by_original(
    calls: Vec<Call>,
    copies: &BTreeMap<String, String>,
) -> BTreeMap<String, Vec<Call>> {
    let mut all: BTreeMap<String, Vec<Call>> = BTreeMap::new();
    for call in calls {
        if call.call.ends_with(".import") {
            continue;
        }
        let id = copies
            .get(call.id())
            .map_or_else(|| call.id(), String::as_str);
        all.entry(id.to_owned()).or_default().push(call.clone());
    }
    all
}

/// Fails unless each process has loaded the imports before all else, and once.
pub fn begin_with_imports(calls: &[Call]) {
    let mut begun: BTreeMap<i32, usize> = BTreeMap::new();
    for call in calls {
        let is_import = call.call == "practice.opening.import";
        let before = begun.entry(call.pid).or_default();
        assert_eq!(*before == 0, is_import, "{}", line(call));
        if is_import {
            assert_eq!(
                call.arguments,
                Vec::<Value>::new(),
                "loaded before the imports"
            );
        }
        *before += 1;
    }
}

/// Fails unless the link that counts has counted each process's calls from 1.
pub fn count_from_one(calls: &[Call]) {
    let mut counts: BTreeMap<i32, u64> = BTreeMap::new();
    for call in calls.iter().filter(|call| call.call == "links.counts.run") {
        let count = counts.entry(call.pid).or_default();
        *count += 1;
        assert_eq!(call.count, Some(*count), "{}", line(call));
    }
    assert!(!counts.is_empty(), "nothing was counted");
}
