//! A filter in the language of jq: compiled once, asked for its first output.
//!
//! The library works by recursion, at the compiling and at the work, and the end of a stack is the
//! end of the process. So each call has a stack of its own that is large enough for the longest
//! filter and the deepest document that are let in. What a filter makes up by itself is its own
//! matter: `def f: 1 + f; f` ends the worker, as any fault of a worker's memory does.

use jaq_core::load::{Arena, File, Loader};
use jaq_core::native::{Fun, bome, run, v};
use jaq_core::{Compiler, Ctx, Error, Exn, Native, ValR, Vars, compile, data, load};
use jaq_json::{Val, read};

use crate::vcon::nests_deeper_than;

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
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
