//! README's Markdown as man(7): paragraphs, lists, tables of few columns, and code.

use roff::{Inline, Roff, bold, roman};

/// Appends Markdown to a page.
pub fn render(text: &str, page: &mut Roff) {
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("```") {
            let code: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            render_code(&code.join("\n"), page);
        } else if line.starts_with("|---") || line.is_empty() {
            continue;
        } else if line.starts_with('|') {
            // The head of a table.
            if !lines.peek().is_some_and(|next| next.starts_with("|---")) {
                render_row(&super::readme::cells(line), page);
            }
        } else {
            let is_rest = |line: &&str| {
                let begins = ["- ", "|", "```", "1. ", "2. ", "3. "];
                !line.is_empty()
                    && !begins
                        .iter()
                        .any(|begin| line.trim_start().starts_with(begin))
            };
            let mut paragraph = line.trim_start().to_owned();
            while let Some(more) = lines.next_if(is_rest) {
                paragraph += " ";
                paragraph += more.trim();
            }
            render_paragraph(&paragraph, page);
        }
    }
}

fn render_paragraph(text: &str, page: &mut Roff) {
    match text.strip_prefix("- ") {
        Some(item) => {
            page.control("IP", ["\u{2022}", "2"]);
            page.text(inlines(item));
        }
        None => {
            page.control("PP", []);
            page.text(inlines(text));
        }
    }
}

/// As it stands, without filling.
pub fn render_code(code: &str, page: &mut Roff) {
    page.control("PP", []);
    page.control("RS", ["4"]);
    page.control("nf", []);
    for line in code.lines() {
        page.text([roman(line)]);
    }
    page.control("fi", []);
    page.control("RE", []);
}

/// The first cell as a term, the others as what it means.
pub fn render_row(cells: &[String], page: &mut Roff) {
    let Some((term, meaning)) = cells.split_first() else {
        return;
    };
    page.control("TP", []);
    page.text([bold(plain(term))]);
    let meaning: Vec<&str> = meaning.iter().map(String::as_str).collect();
    let meaning: Vec<&str> = meaning.into_iter().filter(|it| !it.is_empty()).collect();
    page.text(inlines(&meaning.join(". ")));
}

/// Text with what is code in bold.
pub fn inlines(text: &str) -> Vec<Inline> {
    let text = without_links(text).replace("**", "");
    let parts = text.split('`').enumerate();
    parts
        .filter(|(_, part)| !part.is_empty())
        .map(|(index, part)| {
            if index % 2 == 1 {
                bold(part)
            } else {
                roman(part)
            }
        })
        .collect()
}

/// Text without any marks.
fn plain(text: &str) -> String {
    without_links(text).replace(['`', '*'], "")
}

/// `[text](target)` as `text`.
fn without_links(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, link, after)) = first_link(rest) {
        out += before;
        out += link;
        rest = after;
    }
    out + rest
}

fn first_link(text: &str) -> Option<(&str, &str, &str)> {
    let middle = text.find("](")?;
    let start = text[..middle].rfind('[')?;
    let end = middle + text[middle..].find(')')?;
    Some((&text[..start], &text[start + 1..middle], &text[end + 1..]))
}
