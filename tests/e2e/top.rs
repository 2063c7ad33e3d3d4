//! `conserver top`, in a terminal.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use unicode_width::UnicodeWidthStr;

use crate::harness::{
    Conserver, Daemon, Files, Ledger, PATIENCE, Redis, Terminal, Webhook, chain, fresh, submit,
    wait_until,
};

/// The size of a terminal of old.
const USUAL: (u16, u16) = (80, 24);

const EVERY_SECOND: [&str; 2] = ["top", "--every=1"];

/// Two workers of two lanes, and a storage that takes its time.
fn daemon(redis: &Redis, hook: &Webhook) -> Daemon {
    let slow = json!({"module": "storage.webhook", "options": {"webhook-urls": [hook.url()]}});
    Conserver::with(redis)
        .config(&chain(&[], &[("slow", slow)]))
        .workers(2)
        .lanes(2)
        .env("TICK_INTERVAL", "200")
        .start()
}

fn slow_server() -> Webhook {
    Webhook::deciding(|_| {
        thread::sleep(Duration::from_millis(60));
        200
    })
}

/// The cells of a line.
fn cells(line: &str) -> Vec<&str> {
    line.split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect()
}

fn fits(terminal: &Terminal, (columns, rows): (u16, u16)) -> bool {
    let lines = terminal.lines();
    lines.len() <= rows.into() && lines.iter().all(|line| line.width() <= columns.into())
}

#[test]
fn top_shows_what_the_daemon_does_and_moves() {
    let (redis, hook) = (Redis::plain(), slow_server());
    let daemon = daemon(&redis, &hook);
    daemon.wait_for_workers(2);
    let terminal = Terminal::run(daemon.conserver(), &EVERY_SECOND, USUAL);
    terminal.wait_for(&["here: running, 2 of 2 workers ready", "q: end"]);
    let samples = fresh(150);
    submit(&redis, "default", &samples);
    terminal.wait_for(&["busy 2/2"]);
    let done = || -> Option<u64> {
        let lines = terminal.lines();
        let chain = lines.iter().find(|line| line.starts_with("chain"))?;
        cells(chain).get(6)?.parse().ok()
    };
    let mut last = 0;
    for _ in 0..3 {
        wait_until("more is done", PATIENCE, || {
            let now = done().unwrap_or_default();
            let is_more = now > last;
            last = now;
            is_more
        });
        assert!(fits(&terminal, USUAL), "{:#?}", terminal.lines());
    }
    let slow = terminal.wait_for(&["storage", "slow", " ms"]);
    assert!(cells(&slow)[3].ends_with(" ms"), "{slow}");
    if let Some(folder) = std::env::var_os("CONSERVER_TEST_SCREENSHOTS") {
        let path = std::path::Path::new(&folder).join("top.txt");
        fs::write(path, terminal.lines().join("\n")).expect("a file");
    }
    Ledger::of(&redis, &samples).settles();
    terminal.wait_for(&["done ", "in work 0 of 4", "waiting 0", "dead letters 0"]);
    wait_until("all is done", PATIENCE, || done() == Some(150));
    let list = terminal.wait_for(&["done", "egress", "150"]);
    assert_eq!(cells(&list)[..3], ["done", "egress", "150"]);
    let status = daemon.status().expect("a daemon");
    let workers = status["workers"].as_array().expect("workers");
    assert_eq!(workers.len(), 2, "{status}");
    for worker in workers {
        let number = worker["worker"].to_string();
        let lines = terminal.lines();
        let line = lines.iter().map(|line| cells(line));
        let mut line = line.filter(|cells| cells.first() == Some(&number.as_str()));
        let figures = [&worker["done"], &worker["failed"], &worker["restarts"]];
        let [done, failed, restarts] = figures.map(ToString::to_string);
        let expected = [&number, "idle", &done, &failed, &restarts];
        assert_eq!(line.next().expect("a line")[..5], expected);
    }
    daemon.stop();
}

#[test]
fn top_leaves_the_terminal_as_it_was_however_it_ends() {
    let (redis, hook) = (Redis::plain(), slow_server());
    let daemon = daemon(&redis, &hook);
    type End<'a> = &'a dyn Fn(&Terminal);
    let ends: [(&str, End<'_>); 6] = [
        ("q", &|terminal| terminal.type_keys(b"q")),
        ("Esc", &|terminal| terminal.type_keys(b"\x1b")),
        ("Ctrl-C", &|terminal| terminal.type_keys(b"\x03")),
        ("SIGTERM", &|terminal| terminal.signal(Signal::SIGTERM)),
        ("SIGINT", &|terminal| terminal.signal(Signal::SIGINT)),
        ("SIGHUP", &|terminal| terminal.signal(Signal::SIGHUP)),
    ];
    for (name, end) in ends {
        let mut terminal = Terminal::run(daemon.conserver(), &["top"], USUAL);
        let before = Terminal::run(daemon.conserver(), &["--version"], USUAL).modes();
        terminal.wait_for(&["here: running"]);
        assert!(terminal.seen(|screen| screen.alternate_screen() && screen.hide_cursor()));
        assert_ne!(terminal.modes().local_flags, before.local_flags);
        // A key that is none of these.
        terminal.type_keys(b"\x1b[A");
        end(&terminal);
        assert_eq!(terminal.wait_exit(), 0, "{name}");
        wait_until("the screen is as it was", PATIENCE, || {
            terminal.seen(|screen| !screen.alternate_screen() && !screen.hide_cursor())
        });
        let after = terminal.modes();
        assert_eq!(after.local_flags, before.local_flags, "{name}");
        assert_eq!(after.input_flags, before.input_flags, "{name}");
        assert_eq!(after.output_flags, before.output_flags, "{name}");
    }
    daemon.stop();
}

#[test]
fn top_ends_with_its_terminal() {
    let (redis, hook) = (Redis::plain(), slow_server());
    let daemon = daemon(&redis, &hook);
    let mut terminal = Terminal::run(daemon.conserver(), &["top"], USUAL);
    terminal.wait_for(&["here: running"]);
    terminal.hang_up();
    assert_eq!(terminal.wait_exit(), 0);
    daemon.stop();
}

#[test]
fn top_fits_whatever_size_the_terminal_gets() {
    let (redis, hook) = (Redis::plain(), slow_server());
    let daemon = daemon(&redis, &hook);
    let terminal = Terminal::run(daemon.conserver(), &EVERY_SECOND, (160, 50));
    terminal.wait_for(&["Worker", "vCon", "PID"]);
    for size in [(40, 12), (20, 5), (1, 1), (500, 100), USUAL] {
        terminal.resize(size);
        let title: String = "here: running"
            .chars()
            .take(size.0.saturating_sub(1).into())
            .collect();
        // What stood there before, and is too large, is drawn over in a moment.
        wait_until(&format!("it fits {size:?}"), PATIENCE, || {
            let lines = terminal.lines();
            let first = lines.first();
            first.is_some_and(|line| line.starts_with(&title)) && fits(&terminal, size)
        });
    }
    terminal.wait_for(&["Worker", "State"]);
    let line = terminal.wait_for(&["here: running", "?: help  q: end"]);
    assert_eq!(line.trim_end().width(), 80);
    terminal.type_keys(b"?");
    terminal.wait_for(&["?, h", "show this help; any key hides it"]);
    terminal.wait_for(&["q, Esc, Ctrl-C", "end"]);
    // Esc hides it, and does not end all.
    terminal.type_keys(b"\x1b");
    wait_until("the help is hidden", PATIENCE, || {
        let lines = terminal.lines();
        !lines.iter().any(|line| line.contains("show this help"))
    });
    terminal.wait_for(&["here: running", "q: end"]);
    daemon.stop();
}

#[test]
fn top_says_what_is_unavailable_and_goes_on() {
    let (redis, folder) = (Redis::plain(), Files::new());
    let path = folder.folder().join("missing");
    fs::write(&path, "no folder").expect("a file");
    let storage = json!({"module": "storage.file", "options": {"path": path}});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[("files\u{1b}[31m", storage)]))
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .start();
    let mut terminal = Terminal::run(daemon.conserver(), &EVERY_SECOND, (100, 24));
    let samples = fresh(1);
    submit(&redis, "default", &samples);
    // A name cannot steer the terminal.
    terminal.wait_for(&[
        "On hold: storage files\\u{1b}[31m is unavailable (since ",
        "; worker 1), chain main waits",
    ]);
    fs::remove_file(&path).expect("a file");
    wait_until("no hold is shown", PATIENCE, || {
        !terminal
            .lines()
            .iter()
            .any(|line| line.starts_with("On hold"))
    });
    redis.kill9();
    terminal.wait_for(&["The lists are not known: "]);
    terminal.wait_for(&["waiting ?"]);
    redis.start();
    terminal.wait_for(&["waiting 0"]);
    daemon.kill_family();
    terminal.wait_for(&["Nothing new, trying again: "]);
    let again = daemon.conserver().launch_again();
    wait_until("it is found again", PATIENCE, || {
        !terminal
            .lines()
            .iter()
            .any(|line| line.starts_with("Nothing new"))
    });
    terminal.type_keys(b"q");
    assert_eq!(terminal.wait_exit(), 0);
    again.stop();
}

#[test]
fn top_marks_trouble_in_bold_and_in_colour_unless_no_color_is_set() {
    let (redis, folder) = (Redis::plain(), Files::new());
    let path = folder.folder().join("missing");
    fs::write(&path, "no folder").expect("a file");
    let storage = json!({"module": "storage.file", "options": {"path": path}});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[("files", storage)]))
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .start();
    submit(&redis, "default", &fresh(1));
    for (no_color, is_coloured) in [("", true), ("1", false)] {
        let conserver = daemon.conserver().again().env("NO_COLOR", no_color);
        let terminal = Terminal::run(&conserver, &EVERY_SECOND, USUAL);
        terminal.wait_for(&["On hold: "]);
        let lines = terminal.lines();
        let row = lines.iter().position(|line| line.starts_with("On hold"));
        let row = u16::try_from(row.expect("a line")).expect("a row");
        terminal.seen(|screen| {
            let cell = screen.cell(row, 0).expect("a cell");
            let is_plain = cell.fgcolor() == vt100::Color::Default;
            assert_eq!((cell.bold(), is_plain), (true, !is_coloured), "{no_color}");
        });
    }
    daemon.stop();
}

#[test]
fn top_needs_a_terminal_and_a_daemon() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
    let piped = conserver.run(&["top"]);
    assert_eq!(piped.code, 64, "{}", piped.output());
    assert!(
        piped.stderr.contains("top needs a terminal"),
        "{}",
        piped.output()
    );
    assert_eq!(piped.stderr.lines().count(), 1);
    let mut terminal = Terminal::run(&conserver, &["top"], USUAL);
    assert_eq!(terminal.wait_exit(), 69);
    terminal.wait_for(&["no conserver with CONSERVER_INSTANCE=here runs"]);
}
