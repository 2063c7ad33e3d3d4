//! What stands on the screen.

use chrono::Local;
use indexmap::IndexMap;

use super::history::History;
use super::screen::{Line, Look, Size};
use super::section::{Column, Row, Section, Side, Weight, cut, share};
use crate::cli::status::{
    deferring, duration, megabytes, on_hold, rate, redis_away, state, storage_rows,
};
use crate::view::{Figures, Queues, View, WorkerStatus};

/// The most holds that are told one by one.
const HOLDS: usize = 3;

/// A frame of this size: the daemon as a whole, then workers, queues and figures, each with its
/// share of the rows. `fault` is why there is nothing new.
pub(super) fn lines(history: &History, fault: Option<&str>, (width, height): Size) -> Vec<Line> {
    let Some(view) = history.now() else {
        return Vec::new();
    };
    let mut lines = vec![title(view, width), totals(history, view)];
    if let Some(fault) = fault {
        let why = fault.lines().next().unwrap_or(fault);
        lines.push(alarm(format!("Nothing new, trying again: {why}")));
    }
    lines.extend(troubles(view));
    let queues = view.queues.as_ref();
    if let Some(error) = queues.and_then(|queues| queues.error.as_ref()) {
        lines.push(alarm(format!("The lists are not known: {error}")));
    }
    let sections = [
        workers(history, view),
        lists(history, queues),
        figures(history, view),
    ];
    // Above each of them, an empty line and the names of its columns.
    let room = height.saturating_sub(lines.len() + 2 * sections.len());
    let rooms = share(sections.each_ref().map(|section| section.rows.len()), room);
    for (section, room) in sections.iter().zip(rooms) {
        if !section.rows.is_empty() {
            lines.push(plain(String::new()));
            lines.extend(section.lines(width, room));
        }
    }
    lines.truncate(height);
    for line in &mut lines {
        line.text = cut(&line.text, width);
    }
    lines
}

fn plain(text: String) -> Line {
    let look = Look::Plain;
    Line { text, look }
}

fn alarm(text: String) -> Line {
    let look = Look::Alarm;
    Line { text, look }
}

fn title(view: &View, width: usize) -> Line {
    let (ready, wanted) = (view.workers_ready, view.workers_wanted);
    let is_calm = view.holds.is_empty() && view.redis_away_seconds.is_none();
    let is_good = view.state == "running" && ready as u64 == wanted && is_calm;
    let (instance, state, up) = (&view.instance, &view.state, duration(view.uptime_seconds));
    let left = format!("{instance}: {state}, {ready} of {wanted} workers ready, up {up}");
    let right = format!("{}  q: end", Local::now().format("%H:%M:%S"));
    let space = width.saturating_sub(left.chars().count() + right.chars().count());
    let text = if space > 1 {
        format!("{left}{}{right}", " ".repeat(space))
    } else {
        left
    };
    let look = if is_good { Look::Strong } else { Look::Alarm };
    Line { text, look }
}

fn totals(history: &History, view: &View) -> Line {
    let in_work: usize = view.workers.iter().map(|worker| worker.lanes.len()).sum();
    let lanes = (view.lanes_per_worker as u64).saturating_mul(view.workers_wanted);
    let known = view.queues.as_ref().filter(|queues| queues.error.is_none());
    let total =
        |lengths: fn(&Queues) -> u64| known.map_or("?".to_owned(), |q| lengths(q).to_string());
    plain(format!(
        "done {}/s   failed {}/s   in work {in_work} of {lanes}   waiting {}   dead letters {}",
        optional_rate(history.done()),
        optional_rate(history.failed()),
        total(|queues| queues.ingress.values().flatten().sum()),
        total(dead_letters),
    ))
}

/// The dead letters of all ingress lists and storages.
fn dead_letters(queues: &Queues) -> u64 {
    let of_lists: u64 = queues.dead_letters.values().flatten().sum();
    let storages = queues.storages.values().flatten();
    of_lists + storages.map(|queue| queue.dead_letters).sum::<u64>()
}

fn troubles(view: &View) -> Vec<Line> {
    let away = view.redis_away_seconds.map(redis_away);
    let holds = view.holds.iter().take(HOLDS).map(on_hold);
    let mut lines: Vec<Line> = away.into_iter().chain(holds).map(alarm).collect();
    if view.holds.len() > HOLDS {
        let more = view.holds.len() - HOLDS;
        lines.push(alarm(format!("… and {more} more are away")));
    }
    let outages = view.outages.iter().take(HOLDS);
    let queues = view.queues.as_ref();
    lines.extend(outages.map(|outage| alarm(deferring(outage, queues))));
    lines
}

fn column(name: &'static str, side: Side, worth: u8) -> Column {
    Column {
        name,
        side,
        worth,
        narrowest: None,
    }
}

/// A column whose cells may be cut.
fn flexible(name: &'static str, worth: u8, narrowest: usize) -> Column {
    Column {
        narrowest: Some(narrowest),
        ..column(name, Side::Left, worth)
    }
}

fn workers(history: &History, view: &View) -> Section {
    let row = |worker: &WorkerStatus| Row {
        cells: vec![
            worker.worker.to_string(),
            state(worker, view.lanes_per_worker),
            worker.vcon.clone().unwrap_or_default(),
            worker
                .seconds
                .map_or(String::new(), |s| format!("{s:.1} s")),
            worker.done.to_string(),
            worker.failed.to_string(),
            worker.restarts.to_string(),
            worker.memory_bytes.map_or(String::new(), megabytes),
            history
                .cpu(worker)
                .map_or(String::new(), |share| format!("{:.0} %", share * 100.0)),
            worker.pid.map_or(String::new(), |pid| pid.to_string()),
        ],
        weight: match &worker.state[..] {
            "restarting" | "refused" | "overdue" | "stuck" => Weight::Trouble,
            _ if !worker.lanes.is_empty() => Weight::Active,
            _ => Weight::Quiet,
        },
    };
    Section {
        columns: vec![
            column("Worker", Side::Right, 9),
            column("State", Side::Left, 8),
            flexible("vCon", 1, 8),
            column("For", Side::Right, 5),
            column("Done", Side::Right, 7),
            column("Failed", Side::Right, 6),
            column("Restarts", Side::Right, 4),
            column("Memory", Side::Right, 3),
            column("CPU", Side::Right, 2),
            column("PID", Side::Right, 0),
        ],
        rows: view.workers.iter().map(row).collect(),
    }
}

/// The name of a list, its kind and its length.
type Length = (String, &'static str, Option<u64>);

fn lengths(queues: &Queues) -> Vec<Length> {
    let kinds = [
        ("ingress", &queues.ingress),
        ("egress", &queues.egress),
        ("dead letters", &queues.dead_letters),
    ];
    let of_kind = |(kind, lists): (&'static str, &IndexMap<String, Option<u64>>)| {
        let lists = lists.iter();
        let named = lists.map(|(name, length)| (name.clone(), kind, *length));
        named.collect::<Vec<_>>()
    };
    let lists = kinds.into_iter().flat_map(of_kind);
    lists.chain(storage_rows(queues)).collect()
}

fn lists(history: &History, queues: Option<&Queues>) -> Section {
    let then = history.queues_before().map(lengths).unwrap_or_default();
    let row = |(name, kind, length): Length| {
        let same = |it: &&Length| (&it.0, it.1) == (&name, kind);
        let before = then.iter().find(same).and_then(|(.., length)| *length);
        Row {
            weight: match length {
                Some(1..) if kind == "dead letters" => Weight::Trouble,
                Some(1..) => Weight::Active,
                _ => Weight::Quiet,
            },
            cells: vec![
                name,
                kind.to_owned(),
                length.map_or("not a list".to_owned(), |length| length.to_string()),
                change(before, length),
            ],
        }
    };
    let now = queues.map(lengths).unwrap_or_default();
    Section {
        columns: vec![
            flexible("List", 9, 12),
            column("Kind", Side::Left, 2),
            column("Length", Side::Right, 8),
            column("Last minute", Side::Right, 3),
        ],
        rows: now.into_iter().map(row).collect(),
    }
}

fn change(before: Option<u64>, now: Option<u64>) -> String {
    match before.zip(now) {
        None => String::new(),
        Some((before, now)) if now > before => format!("+{}", now - before),
        Some((before, now)) if now < before => format!("-{}", before - now),
        Some(_) => "±0".to_owned(),
    }
}

fn figures(history: &History, view: &View) -> Section {
    type All = fn(&View) -> &[Figures];
    let kinds: [(&str, All); 3] = [
        ("chain", |view| &view.chains),
        ("link", |view| &view.links),
        ("storage", |view| &view.storages),
    ];
    let mut rows = Vec::new();
    for (kind, all) in kinds {
        let shown = all(view).iter().filter(|it| it.in_force || it.received > 0);
        for figures in shown {
            let recent = history.recent(figures, all);
            let time = |q| {
                recent
                    .seconds
                    .quantile(q)
                    .map_or(String::new(), |q| q.to_string())
            };
            rows.push(Row {
                cells: vec![
                    kind.to_owned(),
                    figures.name.clone(),
                    optional_rate(recent.rate),
                    time(0.5),
                    time(0.95),
                    time(0.99),
                    figures.through().to_string(),
                    figures.failed.to_string(),
                    figures.retried.to_string(),
                    figures.dead_lettered.to_string(),
                ],
                weight: if recent.seconds.count() > 0 {
                    Weight::Active
                } else {
                    Weight::Quiet
                },
            });
        }
    }
    Section {
        columns: vec![
            column("", Side::Left, 5),
            flexible("Name", 9, 12),
            column("Per s", Side::Right, 8),
            column("p50", Side::Right, 7),
            column("p95", Side::Right, 4),
            column("p99", Side::Right, 6),
            column("Done", Side::Right, 3),
            column("Failed", Side::Right, 6),
            column("Retried", Side::Right, 0),
            column("Dead letters", Side::Right, 2),
        ],
        rows,
    }
}

fn optional_rate(per_second: Option<f64>) -> String {
    per_second.map_or("?".to_owned(), rate)
}
