//! `links.jq_link`: lets vCons pass by a jq filter.
//!
//! Reads the vCon as it leaves, in its present version, and two options; writes nothing.
//!
//! | option | default | |
//! |---|---|---|
//! | `filter` | `.` | in the language of jq, as [jaq](https://github.com/01mf02/jaq) understands it |
//! | `forward_matches` | `true` | whether those that match go on, or the others |
//!
//! A vCon matches where the filter's first output is something: not `false`, `null`, `0`, or an
//! empty string, array or object; no output at all is no match, and a second one is not asked for.
//! A member that the filter names, and that should be a list and is something else, is an error: the
//! filter would find nothing in it. Those that do not go on end their chain here. An error in the filter, or a document nested too
//! deeply for it, makes a dead letter. Bodies are as they are kept: a value is a value, and
//! `fromjson` opens those that are JSON text.
//!
//! The library counts no steps, so a filter that never comes to an output (`def f: f; f`) is for
//! the chain's `timeout`, which takes the worker along; without one, it has its lane for good.

use jaq_core::load::{self, Arena, File, Loader};
use jaq_core::native::{Fun, bome, run, v};
use jaq_core::{Compiler, Ctx, Error, Exn, Native, ValR, Vars, compile, data};
use jaq_json::{Val, read};

use super::{Context, Link, LinkError, Next};
use crate::failure::Failure;
use crate::options::Options;
use crate::vcon::{Vcon, nests_deeper_than};

struct JqLink {
    code: String,
    filter: Option<Filter>,
    forward_matches: bool,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let code = options.string_or("filter", ".");
    let forward_matches = options.bool_or("forward_matches", true);
    let filter = Filter::compile(&code)
        .map_err(|why| options.fault("filter", format!("is not a jq filter: {why}")))
        .ok();
    Box::new(JqLink {
        code,
        filter,
        forward_matches,
    })
}

impl Link for JqLink {
    fn run(&mut self, vcon: &mut Vcon, _context: &mut Context<'_>) -> Result<Next, LinkError> {
        let matches = self.matches(vcon).map_err(|why| {
            let id = vcon.id();
            Failure::permanent(format!("could not apply the filter to vCon {id}: {why}"))
        })?;
        Ok(if matches == self.forward_matches {
            Next::Continue
        } else {
            Next::Halt
        })
    }
}

impl JqLink {
    fn matches(&self, vcon: &mut Vcon) -> Result<bool, String> {
        let Some(filter) = &self.filter else {
            return Err("there is none".to_owned());
        };
        vcon.check_lists(|member| self.code.contains(member))
            .map_err(|error| error.to_string())?;
        filter.matches(&vcon.with_values())
    }
}

type Data = data::JustLut<Val>;

/// Bytes of a stack, of which only what is used takes memory.
const STACK: usize = 128 << 20;

/// The longest filter, in bytes. Each of them may be a level: `----1`.
const LONGEST: usize = 4096;

/// The deepest nesting of what is read as JSON.
const DEEPEST: usize = 500;

/// The most of an error that is repeated, in characters: it may quote the document.
const LONGEST_ERROR: usize = 200;

/// What would end the process, write to its standard error or log, or show its environment.
const WITHHELD: &[&str] = &[
    "halt",
    "halt_error",
    "debug",
    "debug_empty",
    "stderr",
    "stderr_empty",
    "env",
];

/// Definitions of jq that the library lacks.
const MORE: &str = r#"
def IN(s): any(s == .; .);
def IN(src; s): any(src == s; .);
def INDEX(stream; f): reduce stream as $row ({}; .[$row | f | tostring] |= $row);
def INDEX(f): INDEX(.[]; f);
def leaf_paths: paths(scalars);
def ascii: [.] | implode;
def toarray: if type == "array" then . else [.] end;
def trimstr($x): ltrimstr($x) | rtrimstr($x);
"#;

/// A compiled filter.
pub(super) struct Filter(compile::Filter<Native<Data>>);

impl Filter {
    /// Compiles a filter, or says what is wrong with it and where.
    pub fn compile(code: &str) -> Result<Self, String> {
        if code.len() > LONGEST {
            return Err(format!("it is longer than {LONGEST} bytes"));
        }
        // The empty program of jq gives what it is given.
        let code = if code.trim().is_empty() { "." } else { code };
        stacker::grow(STACK, || compiled(code)).map(Self)
    }

    /// Whether the first output for this JSON is something. The others are not asked for.
    pub fn matches(&self, json: &str) -> Result<bool, String> {
        if nests_deeper_than(json, DEEPEST) {
            return Err(format!("it is nested more than {DEEPEST} levels deep"));
        }
        stacker::grow(STACK, || self.first_is_something(json))
    }

    fn first_is_something(&self, json: &str) -> Result<bool, String> {
        let input = read::parse_single(json.as_bytes()).map_err(|error| error.to_string())?;
        let context = Ctx::<Data>::new(&self.0.lut, Vars::new([]));
        let first = self.0.id.run((context, input)).next();
        match first.map(|output| output.map_err(Exn::get_err)) {
            None => Ok(false),
            Some(Ok(value)) => Ok(is_something(&value)),
            Some(Err(Ok(error))) => Err(error.to_string().chars().take(LONGEST_ERROR).collect()),
            Some(Err(Err(_))) => Err("it ended without an output or an error".to_owned()),
        }
    }
}

/// What the existing daemon takes for true.
fn is_something(value: &Val) -> bool {
    match value {
        Val::Null => false,
        Val::Bool(is) => *is,
        Val::Num(_) => value.to_string().parse::<f64>() != Ok(0.0),
        Val::BStr(text) | Val::TStr(text) => !text.is_empty(),
        Val::Arr(items) => !items.is_empty(),
        Val::Obj(members) => !members.is_empty(),
    }
}

fn compiled(code: &str) -> Result<compile::Filter<Native<Data>>, String> {
    let defs = jaq_core::defs()
        .chain(jaq_std::defs())
        .chain(jaq_json::defs())
        .chain(load::parse(MORE, |parser| parser.defs()).unwrap_or_default())
        .filter(|def| !WITHHELD.contains(&def.name));
    let funs = jaq_core::funs()
        .chain(jaq_std::funs())
        .chain(jaq_json::funs())
        .filter(|(name, ..)| !WITHHELD.contains(name) && *name != FROM_JSON)
        .chain([from_json()]);
    let arena = Arena::default();
    let modules = Loader::new(defs)
        .load(&arena, File { code, path: () })
        .map_err(|errors| described(errors, |error| load_fault(code, error)))?;
    Compiler::default()
        .with_funs(funs)
        .compile(modules)
        .map_err(|errors| {
            described(errors, |undefined| {
                let names: Vec<String> = undefined
                    .into_iter()
                    .map(|(name, what)| {
                        let what = what.as_str();
                        format!("undefined {what} {name}{}", at(code, name))
                    })
                    .collect();
                names.join(", ")
            })
        })
}

const FROM_JSON: &str = "fromjson";

/// The library's own one reads text of any depth.
fn from_json() -> Fun<Data> {
    fn parsed(value: &Val) -> ValR<Val> {
        let (Val::TStr(text) | Val::BStr(text)) = value else {
            return Err(Error::typ(value.clone(), "string"));
        };
        if nests_deeper_than(&String::from_utf8_lossy(text), DEEPEST) {
            let error = format!("cannot parse JSON nested more than {DEEPEST} levels deep");
            return Err(Error::str(error));
        }
        read::parse_single(text)
            .map_err(|error| Error::str(format!("cannot parse a text as JSON: {error}")))
    }
    run((FROM_JSON, v(0), |cv| bome(parsed(&cv.1))))
}

fn described<E>(errors: load::Errors<&str, (), E>, describe: impl Fn(E) -> String) -> String {
    let texts: Vec<String> = errors
        .into_iter()
        .map(|(_, error)| describe(error))
        .collect();
    texts.join("; ")
}

fn load_fault(code: &str, error: load::Error<&str>) -> String {
    let texts: Vec<String> = match error {
        load::Error::Io(faults) => faults.into_iter().map(|(_, why)| why).collect(),
        load::Error::Lex(faults) => faults
            .iter()
            .map(|(expected, found)| format!("expected {}{}", expected.as_str(), at(code, found)))
            .collect(),
        load::Error::Parse(faults) => faults
            .iter()
            .map(|(expected, found)| format!("expected {}{}", expected.as_str(), at(code, found)))
            .collect(),
    };
    texts.join(", ")
}

/// Where in `code` its part begins, as in ` at character 3`.
fn at(code: &str, part: &str) -> String {
    let start = (part.as_ptr() as usize).checked_sub(code.as_ptr() as usize);
    let before = start.and_then(|start| code.get(..start));
    before.map_or_else(String::new, |before| {
        format!(" at character {}", before.chars().count() + 1)
    })
}

/// What a fuzzer runs on jq filters, and on documents with filters that come to an end.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(crate) mod fuzz {
    use super::Filter;

    /// Filters that use what documents hold as much as they can, and end whatever that is.
    const FILTERS: [&str; 24] = [
        ".",
        ".parties[0].name",
        ".attachments[]? | select(.type == \"tags\") | .body",
        ".analysis[]? | .body | fromjson",
        "[paths] | length",
        "[.. | strings | test(\"a.*b\")] | any",
        "[.. | strings | @base64d]",
        "[.. | strings | @uri, @html, @sh, @json, @text]",
        "[.. | strings | try (todate) catch .]",
        "[.. | numbers | try (todate, gmtime, mktime) catch .]",
        "[.. | strings | try (fromdate, strptime(\"%Y-%m-%dT%H:%M:%SZ\")) catch .]",
        "[.. | strings | try (tonumber) catch .] | add",
        "[.. | numbers] | (add, min, max, sort, unique)",
        "[.. | arrays | try implode catch .]",
        "[.. | strings | explode | implode]",
        "[.. | objects | to_entries, keys, length]",
        "[.. | arrays | flatten, reverse, group_by(.), (.[1:-1])]",
        "[.. | numbers | floor, sqrt, (. % 7 | try . catch 0)?, -., . * 1e300]",
        "tojson | fromjson | tojson",
        ".x as $x | .y | try has($x) catch .",
        ".re as $re | [.. | strings | try test($re) catch .]",
        ".x as $x | .y | try .[$x:] catch .",
        ".fmt as $f | .x | try strftime($f) catch .",
        "[.. | strings | ltrimstr(\"a\"), rtrimstr(\"b\"), split(\"a\"), ascii_downcase]",
    ];

    thread_local! {
        static COMPILED: Vec<Filter> = FILTERS
            .iter()
            .map(|code| Filter::compile(code).unwrap_or_else(|why| panic!("{code}: {why}")))
            .collect();
    }

    /// The text of a filter: compiled or refused in words.
    pub fn jq_filter(data: &[u8]) {
        let Ok(code) = std::str::from_utf8(data) else {
            return;
        };
        if let Err(why) = Filter::compile(code) {
            assert!(!why.is_empty());
            assert!(why.len() <= 64 * 1024, "{} bytes", why.len());
        }
    }

    /// A document with a filter that its first byte chooses: what comes out is the same at each time.
    pub fn jq_document(data: &[u8]) {
        let Some((choice, json)) = data.split_first() else {
            return;
        };
        let Ok(json) = std::str::from_utf8(json) else {
            return;
        };
        COMPILED.with(|filters| {
            let filter = &filters[usize::from(*choice) % filters.len()];
            let first = filter.matches(json);
            if let Err(why) = &first {
                assert!(why.chars().count() <= 1000, "{} bytes", why.len());
            }
            assert_eq!(filter.matches(json), first);
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::link::testing;

    fn run(options: &str, document: &str) -> Result<Next, LinkError> {
        let ran = testing::run(&mut *testing::opened(open, options), document);
        assert!(!ran.vcon.is_changed());
        ran.next
    }

    #[test]
    fn those_whose_first_output_is_something_match() {
        for (filter, matches) in [
            (".", true),
            ("true, false", true),
            ("false, true", false),
            ("empty", false),
            (".subject", true),
            (".nothing", false),
            (".parties | length", true),
            (".dialog | length", false),
            ("0.0", false),
            ("0.5", true),
            ("\"\"", false),
            ("\"0\"", true),
            ("[]", false),
            ("{}", false),
            ("[0]", true),
            (".parties[] | select(.name == \"Zoë\") | .tel", true),
            ("any(.parties[]; .name == \"Bob\")", false),
        ] {
            let document = r#"{"subject":"s","parties":[{"name":"Zoë","tel":"1"}],"dialog":[]}"#;
            for forward in [true, false] {
                let options =
                    serde_json::json!({"filter": filter, "forward_matches": forward}).to_string();
                let expected = if matches == forward {
                    Next::Continue
                } else {
                    Next::Halt
                };
                assert_eq!(run(&options, document), Ok(expected), "{filter} {forward}");
            }
        }
    }

    #[test]
    fn the_filter_sees_the_names_of_today() {
        let document = r#"{"attachments":[{"type":"tags","body":"[]"}]}"#;
        let options = r#"{filter: '.attachments[0].purpose == "tags"'}"#;
        assert_eq!(run(options, document), Ok(Next::Continue));
    }

    #[test]
    fn an_error_in_the_filter_is_a_permanent_failure() {
        for filter in [".subject | keys", "error(\"no\")", ".subject | fromjson"] {
            let options = serde_json::json!({"filter": filter}).to_string();
            let Err(LinkError::Failed(failure)) = run(&options, r#"{"subject":"s"}"#) else {
                unreachable!("{filter}");
            };
            assert!(!failure.is_transient(), "{failure}");
        }
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(run("{}", &deep).is_err());
    }

    #[test]
    fn what_is_no_list_is_an_error_where_the_filter_names_it() {
        for (filter, document) in [
            (".analysis[0].body.score >= 60", r#"{"analysis":{"a":1}}"#),
            (".dialog[-1].type", r#"{"dialog":{}}"#),
            ("any(.parties[]; .tel)", r#"{"parties":{"tel":"1"}}"#),
            (".attachments | length > 1", r#"{"attachments":"text"}"#),
        ] {
            let options = serde_json::json!({"filter": filter}).to_string();
            let Err(LinkError::Failed(failure)) = run(&options, document) else {
                unreachable!("{filter}");
            };
            let found = failure.message;
            let member = filter
                .split(['.', '[', ' '])
                .find(|word| document.contains(word) && word.len() > 3);
            let named = format!("`{}` is ", member.unwrap());
            assert!(
                found.contains(&named) && found.ends_with("not an array"),
                "{found}"
            );
            let other = run("{filter: '.subject'}", document);
            assert_eq!(other, Ok(Next::Halt));
        }
        let nothing = r#"{"dialog":null,"parties":[1]}"#;
        let options = "{filter: '(.dialog | length) + (.parties | length) == 1'}";
        assert_eq!(run(options, nothing), Ok(Next::Continue));
    }

    #[test]
    fn what_people_know_from_jq_is_there() {
        for filter in [
            "",
            " \n",
            "IN(.subject; \"a\", \"s\")",
            ".subject | IN(\"a\", \"s\")",
            "INDEX(.parties[]; .name) | .[\"Zoë\"].tel == \"1\"",
            ".parties | INDEX(.name) | has(\"Zoë\")",
            "([.parties | leaf_paths] | length) == 2",
            "(65 | ascii) == \"A\"",
            "([1, [1]] | map(toarray)) == [[1], [1]]",
            "(\"xax\" | trimstr(\"x\")) == \"a\"",
        ] {
            let options = serde_json::json!({"filter": filter}).to_string();
            let document = r#"{"subject":"s","parties":[{"name":"Zoë","tel":"1"}]}"#;
            assert_eq!(run(&options, document), Ok(Next::Continue), "{filter}");
        }
    }

    #[test]
    fn a_filter_that_does_not_compile_is_a_fault_with_its_place() {
        let mut options = Options::from_yaml("{filter: '.a | nope'}");
        open(&mut options);
        let expected = "filter: is not a jq filter: undefined filter nope at character 6";
        assert_eq!(options.faults(), [expected]);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod filter_tests {
    use super::*;

    fn fault(code: &str) -> String {
        Filter::compile(code).err().unwrap_or_default()
    }

    #[test]
    fn a_fault_has_its_place() {
        for (code, expected) in [
            (".a | ", "expected term at character 6"),
            (".a | nope", "undefined filter nope at character 6"),
            ("$x", "undefined variable $x at character 1"),
            ("(.a", "expected closing parenthesis at character 4"),
            (".é", "at character 2"),
            (".a == \"é", "at character"),
            ("import \"a\" as a; .", "module loading not supported"),
        ] {
            let found = fault(code);
            assert!(found.contains(expected), "{code}: {found}");
        }
        assert_eq!(
            fault(&"1".repeat(LONGEST + 1)),
            "it is longer than 4096 bytes"
        );
    }

    #[test]
    fn what_reaches_out_of_the_filter_is_not_there() {
        for code in [
            "halt",
            "halt(1)",
            "halt_error",
            "debug",
            "debug(.)",
            "stderr",
            "env",
            "$ENV",
            "input",
        ] {
            assert!(
                fault(code).starts_with("undefined "),
                "{code}: {}",
                fault(code)
            );
        }
    }

    /// On a stack as lanes have them.
    #[test]
    fn no_filter_is_too_deep_to_be_compiled() {
        let around = |open: &str, close: &str| {
            let count = (LONGEST - 1) / (open.len() + close.len());
            format!("{}1{}", open.repeat(count), close.repeat(count))
        };
        for (open, close) in [
            ("-", ""),
            ("(", ")"),
            ("[", "]"),
            ("{a:", "}"),
            ("1|", ""),
            ("1,", ""),
            ("1+", ""),
            ("try ", ""),
            ("1 as $x|", ""),
            ("def f:", ";1"),
            ("if 1 then ", " end"),
            ("\"\\(", ")\""),
            ("reduce 1 as $x(1;", ")"),
        ] {
            assert_eq!(fault(&around(open, close)), "", "{open}");
        }
        assert_eq!(fault(&format!(".{}", "[0]".repeat(1300))), "");
        // Not closed, not opened.
        for code in ["(", "[", "{", "\"\\(", ")", "if ", ".["] {
            assert!(!fault(&code.repeat(LONGEST / code.len())).is_empty());
        }
    }

    #[test]
    fn no_document_is_too_deep_for_the_filters_there_are() {
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            format!("{{\"a\":{open}1{close},\"t\":\"{open}{close}\"}}")
        };
        for code in [
            "[..] | length",
            "tojson",
            "[paths] | length",
            ".a | flatten",
            "walk(.)",
            ". == .",
            "def f: if type == \"array\" then map(f) else . end; .a | f",
            "tojson | fromjson",
            ".t | fromjson | length",
        ] {
            let filter = Filter::compile(code).unwrap();
            assert_eq!(filter.matches(&nested(DEEPEST - 1)), Ok(true), "{code}");
            assert!(filter.matches(&nested(100_000)).is_err());
        }
        let text = format!("{{\"t\":\"{}\"}}", "[".repeat(100_000));
        let error = Filter::compile(".t | fromjson")
            .unwrap()
            .matches(&text)
            .unwrap_err();
        assert!(error.contains("more than 500 levels"), "{error}");
    }

    #[test]
    fn only_the_first_output_is_asked_for() {
        for code in [
            "repeat(1)",
            "1, error(\"no\")",
            "range(1; infinite)",
            "limit(3; repeat(1))",
        ] {
            assert_eq!(
                Filter::compile(code).unwrap().matches("{}"),
                Ok(true),
                "{code}"
            );
        }
    }

    #[test]
    fn an_error_is_told_and_cut() {
        let document = format!("{{\"a\":\"{}\"}}", "é".repeat(10_000));
        for (code, expected) in [
            ("error(\"no\")", "no"),
            (".a | keys", "cannot use"),
            (".a | fromjson", "cannot parse a text as JSON"),
            ("fromjson", "cannot use"),
            (".a.b", "cannot index"),
        ] {
            let error = Filter::compile(code)
                .unwrap()
                .matches(&document)
                .unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(error.chars().count() <= LONGEST_ERROR);
        }
    }
}
