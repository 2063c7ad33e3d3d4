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

mod filter;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use super::{Context, Link, LinkError, Next};
use crate::config::Options;
use crate::failure::Failure;
use crate::vcon::Vcon;
use filter::Filter;

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::vcon::{VconId, Version};

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
