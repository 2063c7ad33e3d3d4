//! The pictures of the manual and README, of a daemon at work:
//!
//! ```sh
//! CONSERVER_TEST_SCREENSHOTS=packaging/manual cargo test --test e2e pictures -- --ignored
//! ```

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use vt100::{Cell, Color};

use crate::harness::{
    Browser, Conserver, Files, Monitor, Postgres, Redis, Screen, Terminal, Webhook, fresh, submit,
};

/// So long that every line of the page is drawn over its whole width.
const TIME: Duration = Duration::from_secs(75);
const PAGE: Screen = Screen {
    width: 1200,
    height: 900,
    is_dark: false,
};
/// Leaves out what `top` shows too, and the bar for scrolling.
const CROP: &str = "document.querySelector('[aria-labelledby=h-figures]').style.display = 'none';
    document.documentElement.style.overflow = 'hidden';";
const TERMINAL: (u16, u16) = (92, 26);

/// The size of a character, in pixels.
const WIDTH: f64 = 8.4;
const HEIGHT: f64 = 18.0;
const MARGIN: f64 = 14.0;

#[test]
#[ignore = "writes the pictures of the manual"]
fn pictures_of_a_daemon_at_work() {
    let folder = std::env::var_os("CONSERVER_TEST_SCREENSHOTS")
        .map(PathBuf::from)
        .expect("CONSERVER_TEST_SCREENSHOTS names the folder, as packaging/manual");
    let (redis, files, monitor) = (Redis::plain(), Files::new(), Monitor::at_a_port());
    let postgres = Postgres::database();
    // One in fifty documents is refused.
    let mut count = 0;
    let hook = Webhook::deciding(move |_| {
        thread::sleep(Duration::from_millis(90));
        count += 1;
        if count % 50 == 0 { 422 } else { 200 }
    });
    let webhook = json!({"module": "storage.webhook", "options": {"webhook-urls": [hook.url()]}});
    let config = json!({
        "links": {
            "tagger": {"module": "links.tag", "options": {"tags": ["received"]}},
            "no-media": {"module": "links.diet", "options": {"remove_system_prompts": true}},
        },
        "storages": {"archive": files.storage(), "pg": postgres.storage(), "crm": webhook},
        "chains": {
            "calls": {
                "links": ["tagger", "no-media"], "storages": ["archive", "pg", "crm"],
                "ingress_lists": ["calls"], "egress_lists": ["done"],
            },
            "mails": {
                "links": ["tagger"], "storages": ["archive", "pg"],
                "ingress_lists": ["mails"], "egress_lists": ["done"],
            },
        },
    });
    let daemon = Conserver::with(&redis)
        .config(&config)
        .workers(3)
        .lanes(2)
        .env("CONSERVER_INSTANCE", "west-1")
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    let browser = Browser::start();
    browser.show_on(PAGE);
    browser.open(&format!("http://{}/", monitor.setting()));
    let terminal = Terminal::run(daemon.conserver(), &["top", "--every=1"], TERMINAL);
    let start = Instant::now();
    let mut second = 0;
    while start.elapsed() < TIME {
        // More in some seconds than in others, as callers do.
        submit(&redis, "calls", &fresh([4, 9, 6, 12, 5, 8][second % 6]));
        submit(&redis, "mails", &fresh([3, 5, 12, 4][second % 4]));
        second += 1;
        thread::sleep(Duration::from_secs(1));
    }
    submit(&redis, "calls", &fresh(40));
    terminal.wait_for(&["busy 2/2"]);
    let picture = terminal.seen(|screen| drawn(screen, TERMINAL));
    fs::write(folder.join("top.svg"), picture).expect("a file");
    thread::sleep(Duration::from_secs(2));
    browser.run(CROP);
    fs::write(folder.join("status-page.png"), browser.screenshot()).expect("a file");
}

/// A terminal's screen as SVG.
fn drawn(screen: &vt100::Screen, (columns, rows): (u16, u16)) -> String {
    let used = (0..rows)
        .rev()
        .find(|row| (0..columns).any(|column| has_text(screen.cell(*row, column))));
    let rows = used.map_or(0, |row| row + 1);
    let width = f64::from(columns) * WIDTH + 2.0 * MARGIN;
    let height = f64::from(rows) * HEIGHT + 2.0 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"ui-monospace, SFMono-Regular, Menlo, \
         Consolas, 'DejaVu Sans Mono', monospace\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#0d1117\"/>\n"
    );
    for row in 0..rows {
        let mut column = 0;
        while column < columns {
            let end = run(screen, row, column, columns);
            draw(screen, row, column..end, &mut svg);
            column = end;
        }
    }
    svg + "</svg>\n"
}

fn has_text(cell: Option<&Cell>) -> bool {
    cell.is_some_and(|cell| !cell.contents().trim().is_empty() || cell.inverse())
}

/// What a cell looks like, apart from its character.
fn look(cell: &Cell) -> (Color, Color, bool, bool, bool) {
    let (fore, back) = (cell.fgcolor(), cell.bgcolor());
    (fore, back, cell.bold(), cell.dim(), cell.inverse())
}

/// Where the cells end that look like the one at this column.
fn run(screen: &vt100::Screen, row: u16, column: u16, columns: u16) -> u16 {
    let first = screen.cell(row, column).map(look);
    let same = (column + 1..columns).take_while(|at| screen.cell(row, *at).map(look) == first);
    column + 1 + same.count() as u16
}

/// Draws the cells of one look, each word at its own place: fonts differ in width.
fn draw(screen: &vt100::Screen, row: u16, cells: std::ops::Range<u16>, svg: &mut String) {
    let Some(first) = screen.cell(row, cells.start) else {
        return;
    };
    let text: String = cells
        .clone()
        .filter_map(|column| screen.cell(row, column))
        .map(|cell| {
            if cell.has_contents() {
                cell.contents()
            } else {
                " "
            }
        })
        .collect();
    let (mut fore, mut back) = (colour(first.fgcolor()), colour(first.bgcolor()));
    let top = MARGIN + f64::from(row) * HEIGHT;
    if first.inverse() {
        (fore, back) = (
            Some(back.unwrap_or("#0d1117")),
            Some(fore.unwrap_or("#c9d1d9")),
        );
    }
    if let Some(back) = back {
        let left = MARGIN + f64::from(cells.start) * WIDTH;
        let width = f64::from(cells.end - cells.start) * WIDTH;
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{HEIGHT}\" fill=\"{back}\"/>"
        );
    }
    let weight = if first.bold() {
        " font-weight=\"bold\""
    } else {
        ""
    };
    let faint = if first.dim() { " opacity=\"0.6\"" } else { "" };
    let mut at = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if length > 0 {
            let left = MARGIN + (f64::from(cells.start) + at as f64) * WIDTH;
            let _ = writeln!(
                svg,
                "<text x=\"{left:.1}\" y=\"{:.1}\" textLength=\"{:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
                 fill=\"{}\"{weight}{faint}>{}</text>",
                top + 13.5,
                length as f64 * WIDTH,
                fore.unwrap_or("#c9d1d9"),
                word.replace('&', "&amp;").replace('<', "&lt;")
            );
        }
        at += length + 1;
    }
}

fn colour(colour: Color) -> Option<&'static str> {
    const COLOURS: [&str; 16] = [
        "#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4",
        "#6e7681", "#ffa198", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#f0f6fc",
    ];
    match colour {
        Color::Idx(index) => COLOURS.get(usize::from(index)).copied(),
        _ => None,
    }
}
