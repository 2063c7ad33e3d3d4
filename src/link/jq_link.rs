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
//! empty string, array or object; no output at all is no match. Those that do not go on end their
//! chain here. An error in the filter, or a document nested too deeply for it, makes a dead letter.
//! A filter that never ends is for the chain's `timeout`.

use jaq_core::load::{Arena, File, Loader};
use jaq_core::{Compiler, Ctx, Exn, Native, Vars, compile, data, load};
use jaq_json::{Val, read};

use super::{Context, Link, LinkError, Next};
use crate::config::Options;
use crate::failure::Failure;
use crate::vcon::{Vcon, Version};

type Filter = compile::Filter<Native<data::JustLut<Val>>>;

/// Deeper documents are not handed to the filter, which reads them by recursion.
const DEEPEST: usize = 500;

struct JqLink {
    filter: Option<Filter>,
    forward_matches: bool,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let code = options.string_or("filter", ".");
    let forward_matches = options.bool_or("forward_matches", true);
    let filter = compiled(&code)
        .map_err(|why| options.fault("filter", format!("is not a jq filter: {why}")))
        .ok();
    Box::new(JqLink {
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
        if vcon.nests_deeper_than(DEEPEST) {
            return Err(format!("it is nested more than {DEEPEST} levels deep"));
        }
        let json = vcon.outgoing(Version::Current).json;
        let input = read::parse_single(json.as_bytes()).map_err(|error| error.to_string())?;
        let context = Ctx::<data::JustLut<Val>>::new(&filter.lut, Vars::new([]));
        let first = filter.id.run((context, input)).next();
        match first.map(|output| output.map_err(Exn::get_err)) {
            None => Ok(false),
            Some(Ok(value)) => Ok(is_something(&value)),
            // The error may quote the document.
            Some(Err(Ok(error))) => Err(error.to_string().chars().take(200).collect()),
            // The library would end the process.
            Some(Err(Err(_))) => Err("it calls halt".to_owned()),
        }
    }
}

/// What the existing daemon takes for true.
fn is_something(value: &Val) -> bool {
    match value.to_string().as_str() {
        "null" | "false" | "\"\"" | "[]" | "{}" => false,
        text => text.parse::<f64>() != Ok(0.0),
    }
}

/// Compiles a filter, or says what is wrong with it and where.
fn compiled(code: &str) -> Result<Filter, String> {
    let defs = jaq_core::defs()
        .chain(jaq_std::defs())
        .chain(jaq_json::defs());
    let funs = jaq_core::funs()
        .chain(jaq_std::funs())
        .chain(jaq_json::funs());
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
                    .map(|(name, what)| format!("undefined {} {name}", what.as_str()))
                    .collect();
                names.join(", ")
            })
        })
}

fn described<E>(errors: load::Errors<&str, (), E>, describe: impl Fn(E) -> String) -> String {
    let texts: Vec<String> = errors
        .into_iter()
        .map(|(_, error)| describe(error))
        .collect();
    texts.join("; ")
}

fn load_fault(code: &str, error: load::Error<&str>) -> String {
    let at = |part: &str| code[..load::span(code, part).start].chars().count() + 1;
    match error {
        load::Error::Io(faults) => {
            let faults: Vec<String> = faults.into_iter().map(|(_, why)| why).collect();
            faults.join(", ")
        }
        load::Error::Lex(faults) => {
            let fault = |(expected, found): &(load::lex::Expect<&str>, &str)| {
                format!("expected {} at character {}", expected.as_str(), at(found))
            };
            faults.iter().map(fault).collect::<Vec<_>>().join(", ")
        }
        load::Error::Parse(faults) => {
            let fault = |(expected, found): &(load::parse::Expect<&str>, &str)| {
                format!("expected {} at character {}", expected.as_str(), at(found))
            };
            faults.iter().map(fault).collect::<Vec<_>>().join(", ")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::vcon::VconId;

    fn run(options: &str, document: &str) -> Result<Next, LinkError> {
        let mut options = Options::from_yaml(options);
        let mut link = open(&mut options);
        assert_eq!(options.faults(), [""; 0]);
        let (_drain, drained) = crossbeam_channel::bounded(0);
        let mut context = Context::new(&drained, Version::Current);
        let mut vcon = Vcon::parse(VconId::random(), document.to_owned()).unwrap();
        let next = link.run(&mut vcon, &mut context);
        assert!(!vcon.is_changed());
        next
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
        for filter in [".subject | keys", "error(\"no\")", "halt"] {
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
    fn a_filter_that_does_not_compile_is_a_fault_with_its_place() {
        for (filter, expected) in [
            (".a | ", "at character 6"),
            (".a | nope", "undefined filter nope"),
            ("(.a", "closing parenthesis at character 4"),
            (".é", "at character 2"),
            (".a == \"é", "at character"),
        ] {
            let mut options =
                Options::from_yaml(&serde_json::json!({"filter": filter}).to_string());
            open(&mut options);
            let faults = options.faults().join("\n");
            assert!(faults.contains(expected), "{filter}: {faults}");
        }
    }
}
