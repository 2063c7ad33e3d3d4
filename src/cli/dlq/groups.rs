//! `conserver dlq ls`: the dead letters of each queue in groups of those that failed alike.

use std::io::{self, Write};
use std::time::Duration;

use super::DlqError;
use super::list::{BACKLOG, LONGEST_ENTRY};
use crate::cli::output::{counted, duration, eprint_line, shell_word, truncated};
use crate::config::Plan;
use crate::queue::{DeadLetters, GroupLimits, GroupedQueue, Raw, may_hold_backlog};
use crate::view::{DeadLetterGroupView, StorageQueue};
use crate::visible::{printable, visible_json};

/// How much is looked at. An operator who waits for it may have more than a monitor that looks again and again.
const LIMITS: GroupLimits = GroupLimits {
    reasons: 100_000,
    bytes: 64 << 20,
    time: Duration::from_secs(30),
};

/// A queue with its groups, the largest first.
struct QueueGroups {
    name: String,
    counts: StorageQueue,
    groups: Vec<DeadLetterGroupView>,
}

/// Prints the groups of these queues, as text or with one JSON object on each line.
pub(super) fn list(
    letters: &mut DeadLetters,
    plan: Option<&Plan>,
    lists: Vec<Raw>,
    is_json: bool,
) -> Result<(), DlqError> {
    let (mut queues, mut shown) = (Vec::new(), Vec::new());
    for list in lists {
        let Some(entries) = letters.length(&list)? else {
            eprint_line(format_args!(
                "DLQ:{list} is not a list: something else has the key"
            ));
            continue;
        };
        if entries == 0 {
            continue;
        }
        let defers = may_hold_backlog(&list, plan);
        shown.push(QueueGroups {
            name: list.to_string(),
            counts: StorageQueue::of(entries, letters.reasoned(&list)?, defers),
            groups: Vec::new(),
        });
        queues.push(GroupedQueue {
            list,
            entries,
            defers,
        });
    }
    let found = letters.groups(&queues, &LIMITS)?;
    for group in &found.groups {
        let view = DeadLetterGroupView::new(group, found.now);
        if let Some(queue) = shown.iter_mut().find(|queue| queue.name == view.queue) {
            queue.groups.push(view);
        }
    }
    let mut out = io::stdout().lock();
    if is_json {
        for group in shown.iter().flat_map(|queue| &queue.groups) {
            let json = serde_json::to_string(group).map_err(io::Error::from)?;
            writeln!(out, "{}", visible_json(&json))?;
        }
    } else if shown.is_empty() {
        writeln!(out, "There are no dead letters")?;
    } else {
        for queue in &shown {
            write!(out, "{}", queue.text())?;
        }
    }
    out.flush()?;
    if !found.is_complete {
        eprint_line(
            "there are more dead letters or more kinds than were looked at: the counts are too low, and groups may be missing \
             (--all lists each of them)",
        );
    }
    Ok(())
}

impl QueueGroups {
    fn text(&self) -> String {
        let name = truncated(&self.name, LONGEST_ENTRY);
        let count = counted(self.counts.dead_letters, "dead letter");
        let mut text = format!("{name}: {count}\n");
        let width = self.groups.iter().map(|it| it.count.to_string().len());
        let width = width.max().unwrap_or(0);
        for group in &self.groups {
            let why = printable(&group.summary()).into_owned();
            text.push_str(&format!("  {:>width$}  {why}\n", group.count));
            let details = [age(group), self.commands(group)];
            let details: Vec<&str> = (details.iter().map(String::as_str))
                .filter(|part| !part.is_empty())
                .collect();
            if !details.is_empty() {
                text.push_str(&format!("  {:width$}  {}\n", "", details.join("; ")));
            }
        }
        if self.counts.backlog > 0 {
            let backlog = self.counts.backlog;
            text.push_str(&format!("  {backlog}  {BACKLOG}\n"));
        }
        text
    }

    /// The commands to go on with.
    fn commands(&self, group: &DeadLetterGroupView) -> String {
        let is_nameable = |text: &str| text.chars().count() <= LONGEST_ENTRY;
        let example = group.examples.first();
        let show = match example.filter(|example| is_nameable(example)) {
            Some(example) => format!("conserver dlq show {}", named(example)),
            None => String::new(),
        };
        let Some(stage) = group.stage.as_ref().filter(|_| is_nameable(&self.name)) else {
            return show;
        };
        let retry = format!(
            "conserver dlq retry --stage {} {}",
            shell_word(&printable(stage)),
            named(&self.name)
        );
        match show.is_empty() {
            true => retry,
            false => format!("{show}; {retry}"),
        }
    }
}

/// An entry or a queue as an argument, which an option is not mistaken for.
fn named(text: &str) -> String {
    let word = shell_word(text);
    match text.starts_with('-') {
        true => format!("-- {word}"),
        false => word,
    }
}

/// `3 min 5 s ago`, or from when on.
fn age(group: &DeadLetterGroupView) -> String {
    let (Some(newest), Some(oldest)) = (group.newest_seconds, group.oldest_seconds) else {
        return String::new();
    };
    let [newest, oldest] = [newest, oldest].map(|seconds| duration(seconds as f64));
    if newest == oldest {
        format!("{newest} ago")
    } else {
        format!("from {oldest} to {newest} ago")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_its_age_an_example_and_the_commands() {
        let group = |stage: Option<&str>, count, examples: &[&str]| DeadLetterGroupView {
            queue: "default".to_owned(),
            stage: stage.map(str::to_owned),
            error: "no\n".to_owned(),
            count,
            examples: examples.iter().map(|it| (*it).to_owned()).collect(),
            oldest_seconds: stage.map(|_| 3700),
            newest_seconds: stage.map(|_| 65),
        };
        let queue = QueueGroups {
            name: "default".to_owned(),
            counts: StorageQueue {
                dead_letters: 13,
                backlog: 2,
            },
            groups: vec![
                group(Some("link x"), 12, &["a b", "c"]),
                group(None, 1, &["-d"]),
                group(None, 1, &[]),
            ],
        };
        assert_eq!(
            queue.text(),
            "default: 13 dead letters\n  \
             12  link x: no\\n\n      \
             from 1 h 1 min to 1 min 5 s ago; conserver dlq show 'a b'; conserver dlq retry --stage 'link x' default\n   \
             1  no\\n\n      \
             conserver dlq show -- -d\n   \
             1  no\\n\n  \
             2  (backlog: waits until the storage is available)\n"
        );
    }
}
