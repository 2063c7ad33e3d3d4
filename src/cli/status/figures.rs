//! What chains, links and storages have done, for people.

use comfy_table::{CellAlignment, Table};

use super::table::new_table;
use crate::view::{Figures, Quantile, View, fixed};

/// A table of everything that has had something to do since the daemon started; nothing where
/// nothing has.
pub(super) fn table(view: &View) -> Option<Table> {
    let mut table = new_table(&[
        "",
        "Name",
        "Done",
        "Per second",
        "Failed",
        "Dead letters",
        "p50",
        "p99",
    ]);
    for (kind, all) in [
        ("chain", &view.chains),
        ("link", &view.links),
        ("storage", &view.storages),
    ] {
        for figures in all.iter().filter(|figures| figures.received > 0) {
            table.add_row(row(kind, figures, view.uptime_seconds));
        }
    }
    for column in 2..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    (!table.is_empty()).then_some(table)
}

fn row(kind: &str, figures: &Figures, uptime: f64) -> [String; 8] {
    let quantile = |q| figures.seconds.quantile(q);
    let shown = |quantile: Option<Quantile>| quantile.map_or(String::new(), |q| q.to_string());
    let former = if figures.in_force { "" } else { " (former)" };
    [
        kind.to_owned(),
        format!("{}{former}", figures.name),
        figures.through().to_string(),
        rate(figures.through() as f64 / uptime.max(0.001)),
        figures.failed.to_string(),
        figures.dead_lettered.to_string(),
        shown(quantile(0.5)),
        shown(quantile(0.99)),
    ]
}

/// With two digits where it is small: `0`, `0.02`, `2.5`, `25`.
pub(in crate::cli) fn rate(per_second: f64) -> String {
    let digits = match per_second {
        n if n == 0.0 || n >= 9.95 => 0,
        n if n >= 0.995 => 1,
        _ => 2,
    };
    fixed(per_second, digits)
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn rates_have_two_digits_where_they_are_small() {
        let shown = [0.0, 0.02, 0.999, 2.54, 9.96, 1234.5].map(rate);
        assert_eq!(shown, ["0", "0.02", "1.0", "2.5", "10", "1235"]);
    }
}
