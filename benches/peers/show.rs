//! The table for people, and the same figures for programs.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::measure::Killed;
use super::peer::Peer;
use super::report::{self, percentile};
use super::{Row, SLOTS};

/// Prints the table, and writes the figures to a file.
pub fn table(rows: &[Row], peers: &[Peer], rounds: usize, patience: Duration) {
    let [few, many] = SLOTS.map(|slots| format!("{slots} slots, vCons/s"));
    let mut table = report::table(&[
        "storage",
        "who",
        &few,
        &many,
        "by conserver",
        "CPU, µs",
        "CPU of Redis, µs",
        "MB for each slot",
        "p50, ms",
        "p99, ms",
        "start, s",
        "kill -9: missing",
        "twice",
        "seconds",
    ]);
    let last = SLOTS.len() - 1;
    let mut figures = Vec::new();
    for row in rows {
        let ours = rows
            .iter()
            .find(|ours| ours.peer == Peer::Conserver && ours.job.name == row.job.name);
        let best = |row: &Row| row.rate(0).max(row.rate(last));
        let part = best(row) / ours.map_or(f64::NAN, best);
        let [half, most] = [0.5, 0.99].map(|part| percentile(&row.latencies, part));
        let mut cells = vec![
            row.job.name.to_owned(),
            row.peer.name().to_owned(),
            format!("{:.0}", row.rate(0)),
            format!("{:.0}", row.rate(last)),
            format!("{part:.2}"),
            format!("{:.0}", row.middle(last, |round| round.cpu) * 1e6),
            format!("{:.0}", row.middle(last, |round| round.redis) * 1e6),
            format!("{:.1}", row.middle(last, |round| round.memory) / 1e6),
            format!("{half:.1}"),
            format!("{most:.1}"),
            format!("{:.2}", row.middle(last, |round| round.start)),
        ];
        cells.extend(of_killed(row.killed.as_ref(), patience));
        table.add_row(cells);
        figures.push(in_json(row, (half, most)));
    }
    let mut remark = format!(
        "medians of {rounds} rounds in which all take turns; slots: vCons in work at once, 4 processes with 1 and with \
         8; by conserver: the better rate of the two, by conserver's better one; what follows is with {} slots; \
         kill -9: of one worker in the middle of two seconds' jobs, then at most {} s",
        SLOTS[last],
        patience.as_secs(),
    );
    for peer in peers {
        remark += &format!("\n- {}: {}", peer.name(), peer.remark());
    }
    report::print("Beside what else could do the work", &table, &remark);
    save(&json!({"rounds": rounds, "rows": figures}));
}

fn of_killed(killed: Option<&Killed>, patience: Duration) -> [String; 3] {
    let Some(killed) = killed else {
        return [(); 3].map(|()| "-".to_owned());
    };
    let seconds = match killed.seconds {
        Some(seconds) => format!("{seconds:.1}"),
        None if killed.lost => "never".to_owned(),
        None => format!("not within {}", patience.as_secs()),
    };
    let again = match killed.to_come {
        0 => killed.again.to_string(),
        to_come => format!("{}, {to_come} to come", killed.again),
    };
    [
        format!("{} of {}", killed.missing, killed.jobs),
        again,
        seconds,
    ]
}

fn in_json(row: &Row, (half, most): (f64, f64)) -> Value {
    let rounds = SLOTS.iter().zip(&row.rounds).flat_map(|(slots, rounds)| {
        rounds.iter().map(move |round| {
            json!({"slots": slots, "start": round.start, "rate": round.rate, "cpu": round.cpu, "redis": round.redis,
                "memory": round.memory})
        })
    });
    let killed = row.killed.as_ref().map(|killed| {
        json!({"jobs": killed.jobs, "missing": killed.missing, "again": killed.again, "seconds": killed.seconds,
            "to_come": killed.to_come, "lost": killed.lost})
    });
    json!({
        "peer": row.peer.name(), "storage": row.job.name, "rounds": rounds.collect::<Vec<_>>(),
        "p50": half, "p99": most, "killed": killed,
    })
}

fn save(figures: &Value) {
    // The program that is measured lies in target/release.
    let program = PathBuf::from(env!("CARGO_BIN_EXE_conserver"));
    let target = program.ancestors().nth(2).expect("a target folder");
    let file = target.join("bench/peers.json");
    fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    let text = serde_json::to_string_pretty(figures).expect("JSON");
    fs::write(&file, text).expect("a file");
}
