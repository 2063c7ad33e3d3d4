//! Markdown as man(7): headings, paragraphs, lists, tables, and code.
//!
//! A page is Markdown of a few kinds, so that it reads the same on a forge and in a terminal. What is
//! not among them is an error that names it. Knows nothing of what the pages are about.

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use roff::{Inline, Roff, bold, italic, line_break, roman};

/// Languages that a code block may name.
pub const LANGUAGES: &[&str] = &[
    "sh", "text", "json", "ini", "python", "promql", "yml", "yaml",
];

/// How long a term may be, in characters, to stand before its meaning and not above it.
const LONGEST_TERM: usize = 56;

/// The events of a page.
pub fn parse(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

/// What all pages say of themselves.
#[derive(Clone, Copy)]
pub struct Edition<'a> {
    /// The day of the release.
    pub date: &'a str,
    /// The program and its version.
    pub source: &'a str,
    /// The manual that the page is part of.
    pub manual: &'a str,
}

/// A page whose first heading is `name(section) - description`.
///
/// # Errors
/// Names what the page holds that has no form in man(7).
pub fn page(text: &str, edition: Edition<'_>) -> Result<Roff, String> {
    let mut writer = Writer {
        page: Roff::new(),
        edition,
        line: Vec::new(),
        head: Head::Missing,
        strong: 0,
        emphasis: 0,
        link: None,
        is_image: false,
        lists: Vec::new(),
        begun: true,
        code: None,
        table: Table::default(),
    };
    for event in parse(text) {
        writer.take(event)?;
    }
    if matches!(writer.head, Head::Missing) {
        return Err("has no heading `# name(section) - description`".to_owned());
    }
    Ok(writer.page)
}

struct Writer<'a> {
    page: Roff,
    edition: Edition<'a>,
    /// The paragraph, heading or cell that is being read.
    line: Vec<Inline>,
    head: Head,
    strong: usize,
    emphasis: usize,
    /// Where the link leads whose text is being read.
    link: Option<String>,
    is_image: bool,
    /// The lists around, the innermost last: the number of the next item, of a numbered one.
    lists: Vec<Option<u64>>,
    /// Whether the macro is written that the next text belongs to: a heading's or an item's.
    begun: bool,
    code: Option<String>,
    table: Table,
}

/// How far the head of the page is written.
enum Head {
    Missing,
    /// Text that follows is the page's DESCRIPTION.
    Named,
    Done,
}

#[derive(Default)]
struct Table {
    heads: Vec<String>,
    cells: Vec<Vec<Inline>>,
    is_head: bool,
}

impl Writer<'_> {
    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Start(tag) => self.start(tag)?,
            Event::End(tag) => self.end(tag)?,
            Event::Text(text) => match &mut self.code {
                Some(code) => code.push_str(&text),
                None => self.words(&text),
            },
            Event::Code(code) => self.line.push(bold(&*code)),
            Event::SoftBreak => self.words(" "),
            Event::HardBreak => self.line.push(line_break()),
            // The marks around tables that the code writes.
            Event::Html(html) if html.trim().starts_with("<!--") => {}
            other => return Err(format!("has no form in man(7): {other:?}")),
        }
        Ok(())
    }

    fn words(&mut self, text: &str) {
        if self.is_image {
            return;
        }
        if self.link.is_some()
            && is_page(text)
            && let Some((name, section)) = text.split_once('(')
        {
            self.line.extend([bold(name), roman(format!("({section}"))]);
            return;
        }
        self.line.push(match (self.strong, self.emphasis) {
            (0, 0) => roman(text),
            (0, _) => italic(text),
            _ => bold(text),
        });
    }

    fn start(&mut self, tag: Tag<'_>) -> Result<(), String> {
        match tag {
            Tag::Heading { .. } | Tag::HtmlBlock | Tag::TableRow => {}
            Tag::Paragraph => self.begin(),
            Tag::List(number) => {
                if !self.lists.is_empty() {
                    self.flush();
                    self.page.control("RS", [self.indent()]);
                }
                self.lists.push(number);
            }
            Tag::Item => self.item()?,
            Tag::CodeBlock(CodeBlockKind::Fenced(language)) => {
                if !LANGUAGES.contains(&&*language) {
                    return Err(format!(
                        "names {language:?} as the language of a code block; known: {LANGUAGES:?}"
                    ));
                }
                self.flush();
                self.code = Some(String::new());
            }
            Tag::Table(_) if self.lists.is_empty() => self.table = Table::default(),
            Tag::TableHead => self.table.is_head = true,
            Tag::TableCell => self.line.clear(),
            Tag::Strong => self.strong += 1,
            Tag::Emphasis => self.emphasis += 1,
            Tag::Link { dest_url, .. } => self.link = Some(dest_url.into_string()),
            Tag::Image { .. } => self.is_image = true,
            other => return Err(format!("has no form in man(7): {other:?}")),
        }
        Ok(())
    }

    fn end(&mut self, tag: TagEnd) -> Result<(), String> {
        match tag {
            TagEnd::Heading(level) => self.heading(level)?,
            TagEnd::Paragraph => self.flush(),
            TagEnd::List(_) => {
                self.lists.pop();
                if !self.lists.is_empty() {
                    self.page.control("RE", []);
                }
            }
            TagEnd::Item => {
                self.flush();
                self.begun = false;
            }
            TagEnd::CodeBlock => {
                let code = self.code.take().unwrap_or_default();
                self.write_code(&code);
            }
            TagEnd::TableHead => self.table.is_head = false,
            TagEnd::TableRow => self.row(),
            TagEnd::TableCell if self.table.is_head => {
                let head = std::mem::take(&mut self.line);
                self.table.heads.push(plain(&head));
            }
            TagEnd::TableCell => self.table.cells.push(std::mem::take(&mut self.line)),
            TagEnd::Strong => self.strong -= 1,
            TagEnd::Emphasis => self.emphasis -= 1,
            TagEnd::Link => {
                let target = self.link.take().unwrap_or_default();
                let is_told =
                    matches!(self.line.last(), Some(Inline::Roman(text)) if *text == target);
                if target.starts_with("http") && !is_told {
                    self.line.push(roman(format!(" <{target}>")));
                }
            }
            TagEnd::Image => self.is_image = false,
            _ => {}
        }
        Ok(())
    }

    /// Of `# name(section) - description` the title and the section NAME; of the others their own.
    fn heading(&mut self, level: HeadingLevel) -> Result<(), String> {
        let text = plain(&std::mem::take(&mut self.line));
        match level {
            HeadingLevel::H1 if matches!(self.head, Head::Missing) => {
                let (name, section, about) = title(&text)
                    .ok_or_else(|| format!("begins with {text:?}, not name(section) - about"))?;
                let Edition {
                    date,
                    source,
                    manual,
                } = self.edition;
                let upper = name.to_uppercase();
                self.page
                    .control("TH", [upper.as_str(), section, date, source, manual]);
                // Names of settings and keys are not to be broken, nor words to be spread.
                self.page.control("nh", []);
                self.page.control("ad", ["l"]);
                self.page.control("SH", ["NAME"]);
                self.page.text([roman(format!("{name} - {about}"))]);
                self.head = Head::Named;
                self.begun = false;
                return Ok(());
            }
            HeadingLevel::H2 => self.page.control("SH", [text.to_uppercase().as_str()]),
            HeadingLevel::H3 => self.page.control("SS", [text.as_str()]),
            _ => return Err(format!("has a heading of the level {level}: {text:?}")),
        };
        self.head = Head::Done;
        self.begun = true;
        Ok(())
    }

    /// Begins a paragraph.
    fn begin(&mut self) {
        if matches!(self.head, Head::Named) {
            self.page.control("SH", ["DESCRIPTION"]);
            self.head = Head::Done;
        } else if !self.begun {
            match self.lists.last() {
                Some(_) => self.page.control("IP", ["\"\"", self.indent()]),
                None => self.page.control("PP", []),
            };
        }
        self.begun = true;
    }

    fn item(&mut self) -> Result<(), String> {
        let indent = self.indent();
        match self.lists.last_mut() {
            Some(Some(number)) => {
                let mark = format!("{number}.");
                *number += 1;
                self.page.control("IP", [mark.as_str(), indent]);
            }
            Some(None) => {
                self.page.control("IP", ["\\(bu", indent]);
            }
            None => return Err("has an item without a list".to_owned()),
        }
        self.begun = true;
        Ok(())
    }

    /// How far the text of the innermost list stands to the right.
    fn indent(&self) -> &'static str {
        match self.lists.last() {
            Some(Some(_)) => "4",
            _ => "2",
        }
    }

    /// Writes the text that was read.
    fn flush(&mut self) {
        let line = std::mem::take(&mut self.line);
        if !plain(&line).trim().is_empty() {
            self.page.text(line);
            self.begun = false;
        }
    }

    /// As it stands, without filling.
    fn write_code(&mut self, code: &str) {
        if !self.begun {
            self.page.control("sp", []);
        }
        self.page.control("RS", ["4"]);
        self.page.control("nf", []);
        for line in code.lines() {
            self.page.text([roman(line)]);
        }
        self.page.control("fi", []);
        self.page.control("RE", []);
        self.begun = false;
    }

    /// The first cell as a term, then what it means, then the other cells with their heads.
    fn row(&mut self) {
        let mut cells = std::mem::take(&mut self.table.cells).into_iter();
        let heads = &self.table.heads;
        let term = plain(&cells.next().unwrap_or_default());
        let others = heads.iter().skip(1).zip(cells);
        let others: Vec<_> = others.filter(|(_, cell)| !plain(cell).is_empty()).collect();
        let is_text = |head: &str| {
            heads.len() == 2 || head.is_empty() || ["meaning", "content"].contains(&head)
        };
        let (texts, named): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|(head, _)| is_text(head));
        let mut lines = Vec::new();
        for (head, cell) in texts.into_iter().chain(named) {
            let mut line = Vec::new();
            if !is_text(head) {
                line.push(roman(format!("{}: ", capital(head))));
            }
            line.extend(cell);
            if !plain(&line).ends_with(['.', '!', '?', ':']) {
                line.push(roman("."));
            }
            lines.push(line);
        }
        let mut text = lines.join(&line_break());
        if text.is_empty() {
            text.push(roman("\u{a0}"));
        }
        // The term of .TP stands in one line.
        if term.chars().count() > LONGEST_TERM {
            self.page.control("PP", []);
            self.page.text([bold(term)]);
            self.page.control("RS", []);
            self.page.text(text);
            self.page.control("RE", []);
        } else {
            self.page.control("TP", []);
            self.page.text([bold(term)]);
            self.page.text(text);
        }
        self.begun = false;
    }
}

/// Whether it names a page of a manual, as in conserver(1).
fn is_page(text: &str) -> bool {
    let section = text.strip_suffix(')').and_then(|it| it.rsplit_once('('));
    section.is_some_and(|(name, section)| {
        !name.is_empty() && section.len() == 1 && section.chars().all(|c| c.is_ascii_digit())
    })
}

/// The name, section and description of `name(section) - description`.
pub fn title(text: &str) -> Option<(&str, &str, &str)> {
    let (page, about) = text.split_once(" - ")?;
    let (name, section) = page.strip_suffix(')')?.split_once('(')?;
    is_page(page).then_some((name, section, about))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters).collect()
}

fn plain(line: &[Inline]) -> String {
    let text = line.iter().map(|part| match part {
        Inline::Roman(text) | Inline::Bold(text) | Inline::Italic(text) => text.as_str(),
        Inline::LineBreak => " ",
    });
    text.collect()
}

/// A page in lines of at most 80 columns, and without empty lines outside of code, as man(7) wants it.
pub fn tidy(page: &str) -> String {
    const WIDTH: usize = 80;
    let mut out = String::new();
    let (mut is_code, mut is_term) = (false, false);
    for line in page.lines() {
        let is_whole = std::mem::replace(&mut is_term, line == ".TP");
        match line {
            ".nf" => is_code = true,
            ".fi" => is_code = false,
            _ => {}
        }
        let line = if is_code { line } else { line.trim_end() };
        if line.is_empty() && !is_code {
            out += ".sp\n";
            continue;
        }
        let mut rest = line;
        while width(rest) > WIDTH && !is_code && !is_whole && !line.starts_with('.') {
            let Some(end) = last_break(rest, WIDTH) else {
                break;
            };
            out += &rest[..end];
            out.push('\n');
            rest = &rest[end + 1..];
        }
        out += rest;
        out.push('\n');
    }
    out
}

/// How long a line is to man(1): what is not ASCII stands there as `\[uXXXX]`.
fn width(line: &str) -> usize {
    line.chars().map(|c| if c.is_ascii() { 1 } else { 8 }).sum()
}

/// The last space up to this width, or the first one after it, at which a line may end.
fn last_break(line: &str, limit: usize) -> Option<usize> {
    let may_end = |at: &usize| {
        let rest = &line[at + 1..];
        // A line that begins so would be a macro; an empty one a paragraph.
        !rest.is_empty() && !rest.starts_with(['.', '\'', ' ']) && !line[..*at].trim().is_empty()
    };
    let spaces = line.match_indices(' ').map(|(at, _)| at);
    let spaces: Vec<usize> = spaces.filter(may_end).collect();
    let fits = spaces.iter().rev().find(|at| width(&line[..**at]) <= limit);
    fits.or(spaces.first()).copied()
}
