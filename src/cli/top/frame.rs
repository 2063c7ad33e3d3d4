//! The frame of `top`: a heading, then tables of workers, lists and figures, each with its share of
//! the rows. Columns and rows without room are left out, the least telling first.
//!
//! Names come from elsewhere and must not steer the terminal: all text is escaped when a cell or a
//! line is made, before its width counts.

use std::iter;

use chrono::Local;
use indexmap::IndexMap;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Text};
use ratatui::widgets;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::ViewHistory;
use crate::cli::output::{duration, megabytes, rate};
use crate::cli::status::{
    Trouble, on_hold, outage, paused, redis_unavailable, storage_rows, waits, worker_state,
};
use crate::logging::no_color;
use crate::view::{Figures, Queues, View, WorkerStatus, short_time};
use crate::visible::printable;

/// The most holds that have a line each.
const MOST_HOLDS: usize = 3;

/// The columns between two columns of a table.
const GAP: u16 = 2;

/// Draws the latest view. `error` is why there is no newer one.
pub(super) fn draw(frame: &mut Frame<'_>, history: &ViewHistory, error: Option<&str>) {
    let Some(view) = history.now() else {
        return;
    };
    let area = frame.area();
    let heading = heading(history, view, error, area.width.into());
    let queues = view.queues.as_ref();
    let tables = [
        workers(history, view),
        lists(history, queues),
        figures(history, view),
    ];
    // Above the rows of each table: an empty line and the header.
    let room = usize::from(area.height).saturating_sub(heading.len() + 2 * tables.len());
    let rooms = share_rows(tables.each_ref().map(|table| table.rows.len()), room);
    let mut bottom = area.top();
    let mut next = |lines: usize| {
        let left = area.bottom() - bottom;
        let height = u16::try_from(lines).unwrap_or(left).min(left);
        let top = bottom;
        bottom += height;
        Rect {
            y: top,
            height,
            ..area
        }
    };
    frame.render_widget(
        Text::from_iter(heading.iter().cloned()),
        next(heading.len()),
    );
    for (table, room) in tables.into_iter().zip(rooms) {
        if !table.rows.is_empty() {
            next(1);
            let area = next(1 + room);
            table.draw(frame, area, room);
        }
    }
}

/// Draws what each key does over the middle of the screen.
pub(super) fn draw_help(frame: &mut Frame<'_>, keys: &[(&str, &str)]) {
    let longest = keys.iter().map(|(key, _)| key.width()).max();
    let longest = longest.unwrap_or_default();
    let line = |(key, does): &(&str, &str)| Line::raw(format!("{key:longest$}   {does}"));
    let text = Text::from_iter(keys.iter().map(line));
    let area = frame.area();
    // A border and a blank on each side.
    let width = u16::try_from(text.width() + 4).unwrap_or(area.width);
    let height = u16::try_from(text.height() + 2).unwrap_or(area.height);
    let (width, height) = (width.min(area.width), height.min(area.height));
    let middle = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    let frame_of_help = widgets::Block::bordered()
        .title(" Keys ")
        .padding(widgets::Padding::horizontal(1));
    frame.render_widget(widgets::Clear, middle);
    frame.render_widget(widgets::Paragraph::new(text).block(frame_of_help), middle);
}

/// What concerns the daemon as a whole.
fn heading(
    history: &ViewHistory,
    view: &View,
    error: Option<&str>,
    width: usize,
) -> Vec<Line<'static>> {
    let mut lines = vec![title(view, width), totals(history, view)];
    if let Some(error) = error {
        let why = error.lines().next().unwrap_or(error);
        lines.push(alarm(&format!("Nothing new, trying again: {why}")));
    }
    lines.extend(troubles(view));
    let queues = view.queues.as_ref();
    if let Some(error) = queues.and_then(|queues| queues.error.as_ref()) {
        lines.push(alarm(&format!("The lists are not known: {error}")));
    }
    for line in &mut lines {
        // What does not fit ends in an ellipsis.
        if line.width() > width {
            let style = line.style;
            *line = Line::styled(truncated_to(&line.to_string(), width), style);
        }
    }
    lines
}

fn plain(text: &str) -> Line<'static> {
    Line::raw(printable(text).into_owned())
}

fn alarm(text: &str) -> Line<'static> {
    plain(text).style(alarm_style())
}

/// Bold and red. With `NO_COLOR` bold alone: `crossterm` would write a reset in the place of the colour.
fn alarm_style() -> Style {
    let bold = Style::new().bold();
    if no_color() { bold } else { bold.red() }
}

fn title(view: &View, width: usize) -> Line<'static> {
    let (ready, wanted) = (view.workers_ready, view.workers_wanted);
    let is_calm = view.holds.is_empty() && view.redis_away_seconds.is_none();
    let is_good = view.state == "running" && ready as u64 == wanted && is_calm;
    let (instance, state, up) = (&view.instance, &view.state, duration(view.uptime_seconds));
    let left = printable(&format!(
        "{instance}: {state}, {ready} of {wanted} workers ready, up {up}"
    ))
    .into_owned();
    // As much of it as fits.
    let time = format!("{}  ?: help  q: end", Local::now().format("%H:%M:%S"));
    let hints = [&*time, "?: help  q: end", "?: help", "?"];
    let space = |hint: &str| width.saturating_sub(left.width() + hint.width());
    let hint = hints.into_iter().find(|hint| space(hint) > 1);
    let text = match hint {
        Some(hint) => format!("{left}{}{hint}", " ".repeat(space(hint))),
        None => left,
    };
    let style = if is_good {
        Style::new().bold()
    } else {
        alarm_style()
    };
    Line::styled(text, style)
}

fn totals(history: &ViewHistory, view: &View) -> Line<'static> {
    let in_work: usize = view.workers.iter().map(|worker| worker.lanes.len()).sum();
    let lanes = (view.lanes_per_worker as u64).saturating_mul(view.workers_wanted);
    let known = view.queues.as_ref().filter(|queues| queues.error.is_none());
    let total =
        |lengths: fn(&Queues) -> u64| known.map_or("?".to_owned(), |q| lengths(q).to_string());
    plain(&format!(
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

/// What is unavailable, each with the reason in a line of its own.
fn troubles(view: &View) -> Vec<Line<'static>> {
    let queues = view.queues.as_ref();
    let mut lines = Vec::new();
    lines.extend(redis_unavailable(view).into_iter().flat_map(both_lines));
    let holds = view.holds.iter().take(MOST_HOLDS);
    lines.extend(holds.map(on_hold).flat_map(both_lines));
    if view.holds.len() > MOST_HOLDS {
        let more = view.holds.len() - MOST_HOLDS;
        lines.push(alarm(&format!("… and {more} more are unavailable")));
    }
    let outages = view.outages.iter().take(MOST_HOLDS);
    lines.extend(outages.map(|it| outage(it, queues)).flat_map(both_lines));
    // Nothing is wrong with those.
    let waiting = view.waits.iter().take(MOST_HOLDS);
    lines.extend(waiting.map(|it| plain(&waits(it))));
    // Somebody meant it: no alarm.
    let unknown = view.paused_error.iter();
    lines.extend(unknown.map(|error| alarm(&format!("Paused: not known: {error}"))));
    let known = view.paused.iter().take(MOST_HOLDS);
    lines.extend(known.map(|it| plain(&paused(it)).bold()));
    if view.paused.len() > MOST_HOLDS {
        let more = view.paused.len() - MOST_HOLDS;
        lines.push(plain(&format!("… and {more} more are paused")).bold());
    }
    lines
}

fn both_lines(trouble: Trouble) -> impl Iterator<Item = Line<'static>> {
    let why = trouble.why.map(|why| alarm(&format!("  {why}")));
    iter::once(alarm(&trouble.what)).chain(why)
}

fn workers(history: &ViewHistory, view: &View) -> TopTable {
    let row = |worker: &WorkerStatus| TopRow {
        cells: vec![
            worker.worker.to_string(),
            worker_state(worker, view.lanes_per_worker),
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
            "restarting" | "refused" | "overdue" | "stuck" => RowWeight::Trouble,
            _ if !worker.lanes.is_empty() => RowWeight::Active,
            _ => RowWeight::Quiet,
        },
    };
    TopTable {
        columns: vec![
            TopColumn::right("Worker", 9),
            TopColumn::left("State", 8),
            TopColumn::flexible("vCon", 1, 8),
            TopColumn::right("For", 5),
            TopColumn::right("Done", 7),
            TopColumn::right("Failed", 6),
            TopColumn::right("Restarts", 4),
            TopColumn::right("Memory", 3),
            TopColumn::right("CPU", 2),
            TopColumn::right("PID", 0),
        ],
        rows: view.workers.iter().map(row).collect(),
    }
}

/// The name of a list, its kind and its length.
type ListLength = (String, &'static str, Option<u64>);

fn lengths(queues: &Queues) -> Vec<ListLength> {
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

fn lists(history: &ViewHistory, queues: Option<&Queues>) -> TopTable {
    let then = history.queues_before().map(lengths).unwrap_or_default();
    let row = |(name, kind, length): ListLength| {
        let same = |it: &&ListLength| (&it.0, it.1) == (&name, kind);
        let before = then.iter().find(same).and_then(|(.., length)| *length);
        TopRow {
            weight: match length {
                Some(1..) if kind == "dead letters" => RowWeight::Trouble,
                Some(1..) => RowWeight::Active,
                _ => RowWeight::Quiet,
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
    TopTable {
        columns: vec![
            TopColumn::flexible("List", 9, 12),
            TopColumn::left("Kind", 2),
            TopColumn::right("Length", 8),
            TopColumn::right("Last minute", 3),
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

fn figures(history: &ViewHistory, view: &View) -> TopTable {
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
            rows.push(TopRow {
                cells: vec![
                    kind.to_owned(),
                    figures.name.clone(),
                    optional_rate(recent.rate),
                    recent.seconds.mean().map_or(String::new(), short_time),
                    time(0.5),
                    time(0.95),
                    time(0.99),
                    figures.through().to_string(),
                    figures.failed.to_string(),
                    figures.retried.to_string(),
                    figures.dead_lettered.to_string(),
                ],
                weight: if recent.seconds.count() > 0 {
                    RowWeight::Active
                } else {
                    RowWeight::Quiet
                },
            });
        }
    }
    TopTable {
        columns: vec![
            TopColumn::left("", 5),
            TopColumn::flexible("Name", 9, 12),
            TopColumn::right("Per s", 8),
            TopColumn::right("Mean", 4),
            TopColumn::right("p50", 7),
            TopColumn::right("p95", 1),
            TopColumn::right("p99", 6),
            TopColumn::right("Done", 3),
            TopColumn::right("Failed", 6),
            TopColumn::right("Retried", 0),
            TopColumn::right("Dead letters", 2),
        ],
        rows,
    }
}

fn optional_rate(per_second: Option<f64>) -> String {
    per_second.map_or("?".to_owned(), rate)
}

/// A table that is drawn as it fits.
struct TopTable {
    columns: Vec<TopColumn>,
    rows: Vec<TopRow>,
}

struct TopColumn {
    name: &'static str,
    alignment: Alignment,
    /// Columns with the smallest number are left out first.
    worth: u8,
    /// The width to which it may shrink before any column is left out.
    narrowest: Option<usize>,
}

/// A cell for each column.
struct TopRow {
    cells: Vec<String>,
    weight: RowWeight,
}

/// The order in which rows are shown if there is no room for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum RowWeight {
    Trouble,
    Active,
    Quiet,
}

impl TopColumn {
    fn left(name: &'static str, worth: u8) -> Self {
        Self {
            name,
            alignment: Alignment::Left,
            worth,
            narrowest: None,
        }
    }

    fn right(name: &'static str, worth: u8) -> Self {
        Self {
            alignment: Alignment::Right,
            ..Self::left(name, worth)
        }
    }

    /// A column whose cells may be truncated.
    fn flexible(name: &'static str, worth: u8, narrowest: usize) -> Self {
        Self {
            narrowest: Some(narrowest),
            ..Self::left(name, worth)
        }
    }
}

impl TopTable {
    /// Draws the header and at most `room` rows.
    fn draw(mut self, frame: &mut Frame<'_>, area: Rect, room: usize) {
        let mut left_out = 0;
        if self.rows.len() > room {
            self.rows.sort_by_key(|row| row.weight);
            let shown = room.saturating_sub(1);
            left_out = self.rows.len() - shown;
            self.rows.truncate(shown);
        }
        for cell in self.rows.iter_mut().flat_map(|row| &mut row.cells) {
            *cell = printable(cell).into_owned();
        }
        let columns = self.fitting_columns(area.width.into());
        let cells = |texts: &[&str]| -> widgets::Row<'static> {
            let cell = |(index, width): &(usize, usize)| {
                let text = truncated_to(texts.get(*index).unwrap_or(&""), *width);
                Text::raw(text).alignment(self.columns[*index].alignment)
            };
            widgets::Row::new(columns.iter().map(cell))
        };
        let names: Vec<&str> = self.columns.iter().map(|column| column.name).collect();
        let rows = self.rows.iter().map(|row| {
            let texts: Vec<&str> = row.cells.iter().map(String::as_str).collect();
            match row.weight {
                RowWeight::Trouble => cells(&texts).style(alarm_style()),
                RowWeight::Active | RowWeight::Quiet => cells(&texts),
            }
        });
        let width = |(_, width): &(usize, usize)| {
            Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX))
        };
        let table = widgets::Table::new(rows, columns.iter().map(width))
            .header(cells(&names).dim())
            .column_spacing(GAP);
        frame.render_widget(table, area);
        if left_out > 0 && room > 0 {
            let text = truncated_to(&format!("… and {left_out} more"), area.width.into());
            let below = 1 + u16::try_from(self.rows.len()).unwrap_or(u16::MAX);
            if let Some(line) = area.rows().nth(below.into()) {
                frame.render_widget(Line::raw(text).dim(), line);
            }
        }
    }

    /// The columns that fit, each with its width.
    fn fitting_columns(&self, width: usize) -> Vec<(usize, usize)> {
        let widest = |(index, column): (usize, &TopColumn)| {
            let cells = self.rows.iter().filter_map(|row| row.cells.get(index));
            let widths = cells.map(|cell| cell.width());
            let widest = widths.max().unwrap_or(0).max(column.name.width());
            (index, widest)
        };
        let mut shown: Vec<(usize, usize)> = self.columns.iter().enumerate().map(widest).collect();
        loop {
            let gaps = usize::from(GAP) * shown.len().saturating_sub(1);
            let taken: usize = gaps + shown.iter().map(|(_, width)| width).sum::<usize>();
            let mut over = taken.saturating_sub(width);
            let mut fitting = shown.clone();
            for (index, width) in &mut fitting {
                let narrowest = match shown.len() {
                    1 => 0,
                    _ => self.columns[*index].narrowest.unwrap_or(*width),
                };
                let less = over.min(width.saturating_sub(narrowest));
                *width -= less;
                over -= less;
            }
            if over == 0 {
                return fitting;
            }
            let least = shown
                .iter()
                .min_by_key(|(index, _)| self.columns[*index].worth);
            let least = least.map(|(index, _)| *index);
            shown.retain(|(index, _)| Some(*index) != least);
        }
    }
}

/// As much of the text as fits; an ellipsis stands for the rest.
fn truncated_to(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut left = width.saturating_sub(1);
    let mut short = String::new();
    for c in text.chars() {
        let Some(rest) = left.checked_sub(c.width().unwrap_or(0)) else {
            break;
        };
        left = rest;
        short.push(c);
    }
    if width > 0 {
        short.push('…');
    }
    short
}

/// How many of `room` rows each table gets that wants this many: what one does not need, others get.
fn share_rows<const N: usize>(wanted: [usize; N], room: usize) -> [usize; N] {
    let mut given = [0; N];
    for _ in 0..room {
        let hungry = given.iter_mut().zip(wanted);
        let hungry = hungry.filter(|(given, wanted)| **given < *wanted);
        match hungry.min_by_key(|(given, _)| **given) {
            Some((given, _)) => *given += 1,
            None => break,
        }
    }
    given
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn table(rows: &[(&str, RowWeight)]) -> TopTable {
        let row = |(name, weight): &(&str, RowWeight)| TopRow {
            cells: vec![(*name).to_owned(), "1234".to_owned(), "xyz".to_owned()],
            weight: *weight,
        };
        TopTable {
            columns: vec![
                TopColumn::flexible("Name", 9, 4),
                TopColumn::left("Much", 1),
                TopColumn::left("Less", 2),
            ],
            rows: rows.iter().map(row).collect(),
        }
    }

    /// The lines of the table in a terminal of this width.
    fn shown(table: TopTable, width: u16, room: usize) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, 10)).unwrap();
        let mut table = Some(table);
        terminal
            .draw(|frame| table.take().unwrap().draw(frame, frame.area(), room))
            .unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content.chunks(width.max(1).into());
        let lines = lines.map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>());
        lines
            .map(|line| line.trim_end().to_owned())
            .filter(|line| !line.is_empty())
            .collect()
    }

    #[test]
    fn columns_shrink_and_then_go_the_least_telling_first() {
        for (width, expected) in [
            (21, "workbench  1234  xyz"),
            (18, "workb…  1234  xyz"),
            (14, "workben…  xyz"),
            (11, "work…  xyz"),
            (9, "workbench"),
            (4, "wor…"),
        ] {
            let lines = shown(table(&[("workbench", RowWeight::Quiet)]), width, 5);
            assert_eq!(lines[1], expected, "{width}");
        }
        assert_eq!(
            shown(table(&[("workbench", RowWeight::Quiet)]), 0, 5),
            Vec::<String>::new()
        );
    }

    #[test]
    fn rows_without_room_are_counted_and_trouble_stays() {
        let rows = [
            ("quiet", RowWeight::Quiet),
            ("busy", RowWeight::Active),
            ("broken", RowWeight::Trouble),
        ];
        let names = |room| -> Vec<String> {
            let lines = shown(table(&rows), 80, room).into_iter().skip(1);
            lines
                .map(|line| line.split("  ").next().unwrap_or("").to_owned())
                .collect()
        };
        assert_eq!(names(3), ["quiet", "busy", "broken"]);
        assert_eq!(names(2), ["broken", "… and 2 more"]);
        assert_eq!(names(1), ["… and 3 more"]);
        assert_eq!(names(0), Vec::<String>::new());
    }

    #[test]
    fn no_name_steers_the_terminal_or_breaks_its_line() {
        let lines = shown(table(&[("a\x1b[2J\n\u{202e}b", RowWeight::Trouble)]), 80, 5);
        assert_eq!(lines[1], r"a\u{1b}[2J\n\u{202e}b  1234  xyz");
    }

    #[test]
    fn an_ellipsis_stands_for_the_rest_and_wide_letters_count_twice() {
        let texts = [
            ("abc", 3),
            ("abcd", 3),
            ("日本語", 5),
            ("日本語", 4),
            ("a", 0),
        ];
        let shown = texts.map(|(text, width)| truncated_to(text, width));
        assert_eq!(shown, ["abc", "ab…", "日本…", "日…", ""]);
    }

    #[test]
    fn rows_are_shared_and_what_one_table_does_not_need_others_get() {
        assert_eq!(share_rows([2, 9, 3], 20), [2, 9, 3]);
        assert_eq!(share_rows([2, 90, 30], 12), [2, 5, 5]);
        assert_eq!(share_rows([2, 90, 4], 12), [2, 6, 4]);
        assert_eq!(share_rows([5, 5], 0), [0, 0]);
    }
}
