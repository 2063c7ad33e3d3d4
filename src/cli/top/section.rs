//! A table as it fits: columns and rows that there is no room for are left out, the least telling
//! first.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::screen::{Line, Look};

/// What is between two columns.
const GAP: &str = "  ";

/// One column.
pub(super) struct Column {
    pub name: &'static str,
    pub side: Side,
    /// Of several that do not fit, the one goes first that has the smallest number here.
    pub worth: u8,
    /// How narrow it may become before any goes.
    pub narrowest: Option<usize>,
}

/// Where what is shorter than its column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// One row: a cell for each column.
pub(super) struct Row {
    pub cells: Vec<String>,
    pub weight: Weight,
}

/// Which rows come first where there is no room for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Weight {
    Trouble,
    Active,
    Quiet,
}

/// A table.
pub(super) struct Section {
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

impl Section {
    /// The names of its columns, then as many rows as there is room for.
    pub fn lines(&self, width: usize, room: usize) -> Vec<Line> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        let mut left_out = 0;
        if rows.len() > room {
            rows.sort_by_key(|row| row.weight);
            let shown = room.saturating_sub(1);
            left_out = rows.len() - shown;
            rows.truncate(shown);
        }
        let widths = self.widths(width, &rows);
        let names = self.columns.iter().map(|column| column.name);
        let mut lines = vec![self.line(names, &widths, Look::Faint)];
        for row in rows {
            let look = match row.weight {
                Weight::Trouble => Look::Alarm,
                Weight::Active | Weight::Quiet => Look::Plain,
            };
            let cells = row.cells.iter().map(String::as_str);
            lines.push(self.line(cells, &widths, look));
        }
        if left_out > 0 && room > 0 {
            let text = cut(&format!("… and {left_out} more"), width);
            let look = Look::Faint;
            lines.push(Line { text, look });
        }
        lines
    }

    /// The width of each column, `None` where it is left out.
    fn widths(&self, width: usize, rows: &[&Row]) -> Vec<Option<usize>> {
        let widest = |(index, column): (usize, &Column)| {
            let cells = rows.iter().filter_map(|row| row.cells.get(index));
            let widths = cells.map(|cell| cell.width());
            widths.max().unwrap_or(0).max(column.name.width())
        };
        let widest: Vec<usize> = self.columns.iter().enumerate().map(widest).collect();
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        loop {
            let taken: usize = shown.iter().map(|index| widest[*index] + GAP.len()).sum();
            let mut over = taken.saturating_sub(GAP.len() + width);
            let mut widths = vec![None; self.columns.len()];
            for index in &shown {
                let narrowest = match shown.len() {
                    1 => 0,
                    _ => self.columns[*index].narrowest.unwrap_or(widest[*index]),
                };
                let less = over.min(widest[*index].saturating_sub(narrowest));
                widths[*index] = Some(widest[*index] - less);
                over -= less;
            }
            if over == 0 {
                return widths;
            }
            let least = shown.iter().min_by_key(|index| self.columns[**index].worth);
            let least = least.copied();
            shown.retain(|index| Some(*index) != least);
        }
    }

    fn line<'a>(
        &self,
        cells: impl Iterator<Item = &'a str>,
        widths: &[Option<usize>],
        look: Look,
    ) -> Line {
        let mut text = String::new();
        for ((cell, column), width) in cells.zip(&self.columns).zip(widths) {
            let Some(width) = *width else {
                continue;
            };
            if !text.is_empty() {
                text.push_str(GAP);
            }
            let cell = cut(cell, width);
            let space = " ".repeat(width.saturating_sub(cell.width()));
            match column.side {
                Side::Left => text.extend([cell.as_str(), &space]),
                Side::Right => text.extend([space.as_str(), &cell]),
            }
        }
        let text = text.trim_end().to_owned();
        Line { text, look }
    }
}

/// As much of a text as fits, with a sign where something is missing.
pub(super) fn cut(text: &str, width: usize) -> String {
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

/// How many of `room` rows each gets that wants so many: what one does not need, others get.
pub(super) fn share<const N: usize>(wanted: [usize; N], room: usize) -> [usize; N] {
    let mut given = [0; N];
    let mut left = room;
    while left > 0 && given != wanted {
        let hungry = given.iter_mut().zip(wanted);
        let least = hungry.filter(|(given, wanted)| **given < *wanted);
        match least.min_by_key(|(given, _)| **given) {
            Some((given, _)) => *given += 1,
            None => break,
        }
        left -= 1;
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &'static str, worth: u8, narrowest: Option<usize>) -> Column {
        let side = Side::Left;
        Column {
            name,
            side,
            worth,
            narrowest,
        }
    }

    fn section(rows: &[(&str, Weight)]) -> Section {
        let row = |(name, weight): &(&str, Weight)| Row {
            cells: vec![(*name).to_owned(), "1234".to_owned(), "xyz".to_owned()],
            weight: *weight,
        };
        Section {
            columns: vec![
                column("Name", 9, Some(4)),
                column("Much", 1, None),
                column("Less", 2, None),
            ],
            rows: rows.iter().map(row).collect(),
        }
    }

    fn shown(section: &Section, width: usize, room: usize) -> Vec<String> {
        let lines = section.lines(width, room).into_iter();
        lines.map(|line| line.text).collect()
    }

    #[test]
    fn columns_become_narrow_and_then_go_the_least_telling_first() {
        let section = section(&[("workbench", Weight::Quiet)]);
        for (width, expected) in [
            (21, "workbench  1234  xyz"),
            (18, "workb…  1234  xyz"),
            (14, "workben…  xyz"),
            (11, "work…  xyz"),
            (9, "workbench"),
            (4, "wor…"),
            (0, ""),
        ] {
            let lines = shown(&section, width, 5);
            assert!(lines.iter().all(|line| line.width() <= width), "{lines:?}");
            assert_eq!(lines[1], expected, "{width}");
        }
    }

    #[test]
    fn rows_without_room_are_counted_and_trouble_stays() {
        let rows = [
            ("quiet", Weight::Quiet),
            ("busy", Weight::Active),
            ("broken", Weight::Trouble),
        ];
        let section = section(&rows);
        let names = |room| -> Vec<String> {
            let lines = shown(&section, 80, room).into_iter().skip(1);
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
    fn what_is_cut_says_so_and_wide_letters_count_twice() {
        let cuts = [
            ("abc", 3),
            ("abcd", 3),
            ("日本語", 5),
            ("日本語", 4),
            ("a", 0),
        ];
        let shown = cuts.map(|(text, width)| cut(text, width));
        assert_eq!(shown, ["abc", "ab…", "日本…", "日…", ""]);
    }

    #[test]
    fn room_is_shared_and_what_one_does_not_need_others_get() {
        assert_eq!(share([2, 9, 3], 20), [2, 9, 3]);
        assert_eq!(share([2, 90, 30], 12), [2, 5, 5]);
        assert_eq!(share([2, 90, 4], 12), [2, 6, 4]);
        assert_eq!(share([5, 5], 0), [0, 0]);
    }
}
