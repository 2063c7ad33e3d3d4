//! README as the source of what the manual repeats: its tables and sections.

/// The text of README.
pub const README: &str = include_str!("../../README.md");

/// The cells of the table with this head, row by row.
///
/// # Errors
/// Where README has no such table: it was renamed there.
pub fn table(head: &str) -> Result<Vec<Vec<String>>, String> {
    let start = README
        .lines()
        .position(|line| line.starts_with(head))
        .ok_or_else(|| format!("README has no table that begins with {head:?}"))?;
    let rows = README.lines().skip(start + 2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    Ok(rows.map(cells).collect())
}

/// The cells of one row.
pub fn cells(row: &str) -> Vec<String> {
    let row = row.trim_matches('|').replace("\\|", "\u{0}");
    let cells = row.split(" | ").map(str::trim);
    cells.map(|cell| cell.replace('\u{0}', "|")).collect()
}

/// The text under a heading, up to the next of any level.
///
/// # Errors
/// Where README has no such heading.
pub fn section(heading: &str) -> Result<&'static str, String> {
    let (_, rest) = README
        .split_once(&format!("\n{heading}\n"))
        .ok_or_else(|| format!("README has no heading {heading:?}"))?;
    let is_heading = |line: &str| line.starts_with("## ") || line.starts_with("### ");
    let mut end = 0;
    let mut in_code = false;
    for line in rest.split_inclusive('\n') {
        in_code ^= line.starts_with("```");
        if !in_code && is_heading(line) {
            break;
        }
        end += line.len();
    }
    Ok(rest[..end].trim_matches('\n'))
}
