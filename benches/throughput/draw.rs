//! The curves of the last run, as images for the manual.

use std::ops::Range;
use std::path::{Path, PathBuf};

use plotters::prelude::*;
use serde_json::Value;

use super::report::last;

const SIZE: (u32, u32) = (760, 420);
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(127, 127, 127),
];

/// One line: its name and its points.
type Line = (String, Vec<(f64, f64)>);

/// A figure with a logarithmic axis below.
struct Figure<'a> {
    name: &'a str,
    title: &'a str,
    x: &'a str,
    y: &'a str,
    lines: Vec<Line>,
}

/// Draws them.
pub fn figures() {
    let sections = last();
    let rows = |section: &str| -> Vec<Value> {
        let rows = sections.get(section).and_then(Value::as_array);
        rows.cloned().unwrap_or_default()
    };
    let throughput = rows("throughput");
    let one_lane = |row: &&Value| row["lanes"] == 1;
    let by_workers = |value: &str| {
        let rows: Vec<&Value> = throughput.iter().filter(one_lane).collect();
        lines(&rows, "storages", "workers", value)
    };
    let numbers = |name: &str, section: &str| {
        let rows = rows(section);
        let points = rows
            .iter()
            .map(|row| (number(&row["number"]), number(&row["ours"])));
        vec![(name.to_owned(), points.collect())]
    };
    let documents = rows("growth_documents");
    let documents: Vec<&Value> = documents.iter().collect();
    let workers = [
        numbers("none", "growth_workers"),
        numbers("postgres", "growth_workers_postgres"),
    ];
    let all = [
        Figure {
            name: "ratio",
            title: "Part of the floor, one lane in each worker",
            x: "workers",
            y: "ours / floor",
            lines: by_workers("ratio"),
        },
        Figure {
            name: "documents",
            title: "Part of the floor by the size of the document, one lane",
            x: "bytes",
            y: "ours / floor",
            lines: lines(&documents, "storages", "bytes", "ratio"),
        },
        Figure {
            name: "workers",
            title: "By the number of workers, against one",
            x: "workers",
            y: "rate / rate of one worker",
            lines: workers.into_iter().flatten().map(of_first).collect(),
        },
        Figure {
            name: "lists",
            title: "By the number of ingress lists, against one",
            x: "ingress lists",
            y: "rate / rate with one list",
            lines: numbers("no storage", "growth_lists")
                .into_iter()
                .map(of_first)
                .collect(),
        },
        Figure {
            name: "waiting",
            title: "By the number of waiting vCons, against 10",
            x: "waiting vCons",
            y: "rate / rate with 10",
            lines: numbers("no storage", "growth_waiting")
                .into_iter()
                .map(of_first)
                .collect(),
        },
    ];
    for figure in all {
        if figure.lines.iter().all(|(_, points)| points.is_empty()) {
            println!("{}: not measured", figure.name);
            continue;
        }
        let path = folder().join(format!("{}.svg", figure.name));
        figure.draw(&path).expect("a figure");
        println!("{}", path.display());
    }
}

/// One line for each value of `name`, in the order of the rows.
fn lines(rows: &[&Value], name: &str, x: &str, y: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for row in rows {
        let name = row[name].as_str().unwrap_or_default();
        let point = (number(&row[x]), number(&row[y]));
        match lines.iter_mut().find(|(other, _)| other == name) {
            Some((_, points)) => points.push(point),
            None => lines.push((name.to_owned(), vec![point])),
        }
    }
    lines
}

/// The same line with its first point at 1.
fn of_first((name, mut points): Line) -> Line {
    let first = points.first().map_or(1.0, |(_, y)| *y);
    for (_, y) in &mut points {
        *y /= first;
    }
    (name, points)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/figures")
}

impl Figure<'_> {
    fn draw(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        std::fs::create_dir_all(folder())?;
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (x, y) = self.ranges();
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 18))
            .margin(12)
            .margin_right(40)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(x.log_scale(), y)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .max_light_lines(1)
            .bold_line_style(RGBColor(230, 230, 230))
            .x_label_formatter(&|x| format!("{x:.0}"))
            .draw()?;
        for ((name, points), colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let line =
                LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3);
            chart.draw_series(line)?.label(name).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
            });
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(200, 200, 200))
            .position(SeriesLabelPosition::LowerLeft)
            .draw()?;
        area.present()?;
        Ok(())
    }

    /// What the points lie in; upwards from 0.
    fn ranges(&self) -> (Range<f64>, Range<f64>) {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let least = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
        let most = points().map(|(x, _)| *x).fold(least, f64::max);
        let highest = points().map(|(_, y)| *y).fold(1.0, f64::max);
        (least..most.max(least * 2.0), 0.0..highest * 1.1)
    }
}
