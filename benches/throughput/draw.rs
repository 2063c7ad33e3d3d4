//! The curves of the last run, as images for the manual, which follow the light or dark theme of the reader.

use std::ops::Range;
use std::path::{Path, PathBuf};

use plotters::coord::combinators::BindKeyPoints;
use plotters::prelude::*;
use serde_json::Value;

use super::report::last;

/// Of a figure, and of the part of it that the curves have; the legend has the rest.
const SIZE: (u32, u32) = (900, 400);
const CURVES: u32 = 580;

/// Colours for light and for dark paper. The image has a background of its own, so it can be read on any page; a reader
/// that prefers dark pages gets the dark one.
const PAPER: Colour = Colour(RGBColor(255, 255, 255), RGBColor(22, 27, 34));
const INK: Colour = Colour(RGBColor(31, 35, 40), RGBColor(230, 237, 243));
const FAINT_INK: Colour = Colour(RGBColor(89, 99, 110), RGBColor(155, 165, 176));
const GRID: Colour = Colour(RGBColor(225, 228, 232), RGBColor(48, 54, 61));
/// Those of the lines, told apart by people who see fewer colours too.
const LINES: [Colour; 6] = [
    Colour(RGBColor(0, 98, 178), RGBColor(88, 166, 255)),
    Colour(RGBColor(204, 85, 0), RGBColor(255, 158, 73)),
    Colour(RGBColor(0, 128, 96), RGBColor(63, 200, 160)),
    Colour(RGBColor(176, 40, 120), RGBColor(255, 135, 196)),
    Colour(RGBColor(112, 87, 0), RGBColor(226, 196, 64)),
    Colour(RGBColor(96, 70, 190), RGBColor(178, 160, 255)),
];

/// A colour on light paper, and the one that stands for it on dark paper.
#[derive(Clone, Copy)]
struct Colour(RGBColor, RGBColor);

/// One line: its name, what limits it at its last point, and its points.
struct Line {
    name: String,
    limit: String,
    points: Vec<(f64, f64)>,
}

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
    let line = |name: &str, section: &str| line(name, "number", "ours", &rows(section));
    let one_lane = |value: &str| -> Vec<Line> {
        let mut rows = rows("throughput");
        // Of the chains without a storage, the one with a link is enough.
        rows.retain(|row| row["lanes"] == 1 && row["storages"] != "none, no link");
        by_storages(&rows, "workers", value)
    };
    let all = [
        Figure {
            name: "ratio",
            title: "Part of the single floor, one lane in each worker",
            x: "workers",
            y: "ours / floor",
            lines: one_lane("ratio"),
        },
        Figure {
            name: "documents",
            title: "Part of the single floor by the size of the document, one lane",
            x: "bytes",
            y: "ours / floor",
            lines: by_storages(&rows("growth_documents"), "number", "ratio"),
        },
        Figure {
            name: "workers",
            title: "By the number of workers, against one",
            x: "workers",
            y: "rate / rate of one worker",
            lines: of_first(vec![
                line("none", "growth_workers"),
                line("postgres", "growth_workers_postgres"),
            ]),
        },
        Figure {
            name: "instances",
            title: "By the number of instances on one Redis, against one",
            x: "instances of one worker with one lane",
            y: "rate / rate of one instance",
            lines: of_first(vec![line("none", "growth_instances")]),
        },
        Figure {
            name: "lists",
            title: "By the number of ingress lists, against one",
            x: "ingress lists, all work in the last",
            y: "rate / rate with one list",
            lines: of_first(vec![line("none, no link", "growth_lists")]),
        },
        Figure {
            name: "waiting",
            title: "By the number of waiting vCons, against 10",
            x: "waiting vCons",
            y: "rate / rate with 10",
            lines: of_first(vec![line("none, no link", "growth_waiting")]),
        },
    ];
    for figure in all {
        if figure.lines.iter().all(|line| line.points.is_empty()) {
            println!("{}: not measured", figure.name);
            continue;
        }
        let path = folder().join(format!("{}.svg", figure.name));
        let text = figure.draw().expect("a figure");
        std::fs::create_dir_all(folder()).expect("a folder");
        std::fs::write(&path, in_both_themes(&text)).expect("a file");
        println!("{}", path.display());
    }
}

fn line(name: &str, x: &str, y: &str, rows: &[Value]) -> Line {
    let limit = rows.last().and_then(|row| row["limit"].as_str());
    let points = rows.iter().map(|row| (number(&row[x]), number(&row[y])));
    Line {
        name: name.to_owned(),
        limit: limit.unwrap_or_default().to_owned(),
        points: points.collect(),
    }
}

/// One line for each value of `storages`, in the order of the rows.
fn by_storages(rows: &[Value], x: &str, y: &str) -> Vec<Line> {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        let name = row["storages"].as_str().unwrap_or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let of = |name: &str| -> Vec<Value> {
        let rows = rows.iter().filter(|row| row["storages"] == name);
        rows.cloned().collect()
    };
    let lines = names.iter().map(|name| line(name, x, y, &of(name)));
    lines.collect()
}

/// The same lines, the first point of each at 1.
fn of_first(mut lines: Vec<Line>) -> Vec<Line> {
    for line in &mut lines {
        let first = line.points.first().map_or(1.0, |(_, y)| *y);
        for (_, y) in &mut line.points {
            *y /= first;
        }
    }
    lines
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/figures")
}

/// Adds a style by which each colour gives way to its dark one. Styles go before attributes.
fn in_both_themes(svg: &str) -> String {
    let mut rules = String::new();
    for Colour(light, dark) in [PAPER, INK, FAINT_INK, GRID].iter().chain(&LINES) {
        for part in ["fill", "stroke"] {
            rules += &format!("[{part}=\"{}\"]{{{part}:{}}}", hex(*light), hex(*dark));
        }
    }
    let style = format!("<style>@media (prefers-color-scheme: dark){{{rules}}}</style>");
    let (head, rest) = svg.split_once(">\n").expect("an element");
    format!("{head}>\n{style}\n{rest}")
}

/// As `plotters` writes a colour.
fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

impl Figure<'_> {
    fn draw(&self) -> Result<String, Box<dyn std::error::Error>> {
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&PAPER.0)?;
        let (curves, legend) = area.split_horizontally(CURVES);
        let ink = |size: u32, colour: Colour| ("sans-serif", size).into_font().color(&colour.0);
        let (x, y) = self.ranges();
        let mut chart = ChartBuilder::on(&curves)
            .caption(self.title, ink(17, INK))
            .margin(12)
            .margin_right(24)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(x.log_scale().with_key_points(self.marks()), y)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .axis_desc_style(ink(14, INK))
            .label_style(ink(12, FAINT_INK))
            .axis_style(FAINT_INK.0)
            .max_light_lines(0)
            .bold_line_style(GRID.0)
            .x_label_formatter(&|x| short(*x))
            .draw()?;
        let above = "storages, and what limits the rate at the last point";
        legend.draw(&Text::new(above, (0, 18), ink(12, FAINT_INK)))?;
        for (at, line) in self.lines.iter().enumerate() {
            let colour = LINES[at % LINES.len()].0;
            let series = LineSeries::new(line.points.iter().copied(), colour.stroke_width(2));
            chart.draw_series(series.point_size(3))?;
            let top = 60 + 44 * i32::try_from(at)?;
            let stroke = PathElement::new([(0, top), (22, top)], colour.stroke_width(3));
            legend.draw(&stroke)?;
            let name = Text::new(line.name.clone(), (30, top - 8), ink(14, INK));
            legend.draw(&name)?;
            let limit = Text::new(line.limit.clone(), (30, top + 10), ink(12, FAINT_INK));
            legend.draw(&limit)?;
        }
        area.present()?;
        drop((chart, curves, legend, area));
        Ok(text)
    }

    /// The numbers below the axis: those that were measured.
    fn marks(&self) -> Vec<f64> {
        let points = self.lines.iter().flat_map(|line| &line.points);
        let mut marks: Vec<f64> = points.map(|(x, _)| *x).collect();
        marks.sort_by(f64::total_cmp);
        marks.dedup();
        marks
    }

    /// What the points lie in; upwards from 0.
    fn ranges(&self) -> (Range<f64>, Range<f64>) {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let least = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
        let most = points().map(|(x, _)| *x).fold(least, f64::max);
        let highest = points().map(|(_, y)| *y).fold(1.0, f64::max);
        (least..most.max(least * 2.0), 0.0..highest * 1.1)
    }
}

/// A number with at most one letter of its size.
fn short(number: f64) -> String {
    let (number, letter) = match number {
        n if n >= 1e6 => (n / 1e6, " M"),
        n if n >= 1e3 => (n / 1e3, " k"),
        n => (n, ""),
    };
    let number = format!("{number:.1}");
    format!("{}{letter}", number.trim_end_matches(".0"))
}
