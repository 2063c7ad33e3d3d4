//! Options whose values do not stand in the file itself.

use super::Options;
use super::environment::Environment;
use super::yaml::{Kind, Node, joined};

/// What is left to say of the values of one option.
#[derive(Default)]
struct Gaps {
    /// Those that could not be looked up: their lines, their keys, and why.
    missing: Vec<(usize, String, String)>,
    /// Those with a `${` that names nothing: their lines and keys.
    strays: Vec<(usize, String)>,
}

impl Options {
    /// Puts values in the places of their names.
    pub(crate) fn fill_in(&mut self, key: &str) {
        let Some(environment) = self.environment.clone() else {
            return;
        };
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let written = match &entry.value.kind {
            Kind::Scalar(text) => Some(text.clone()),
            _ => None,
        };
        let mut gaps = Gaps::default();
        expand(&environment, key, &mut entry.value, &mut gaps);
        if let (Some(written), Kind::Scalar(text)) = (written, &entry.value.kind)
            && written != *text
        {
            self.written.insert(key.to_owned(), written);
        }
        for (line, key, why) in gaps.missing {
            self.fault_at(line, &key, why);
        }
        for (line, key) in gaps.strays {
            let message = "`${` stays text, as it is for the existing worker: it is not followed by \
                           the name of a variable and `}`; write `$${` for the text `${`";
            self.warn_at(line, &key, message);
        }
    }

    /// Puts the text of the file that `<key>_file` names in the place of the option itself.
    pub(crate) fn read_file_of(&mut self, key: &str, is_given: bool) -> Option<String> {
        let file_key = format!("{key}_file");
        let name = self.string(&file_key)?;
        if is_given {
            self.fault(
                &file_key,
                format!("stands beside `{key}`; remove one of them"),
            );
            return None;
        }
        let environment = self.environment.clone()?;
        match environment.file(&name) {
            Ok(text) => {
                let mut entry = self.entries.shift_remove(&file_key)?;
                entry.value.kind = Kind::Scalar(text.clone());
                self.entries.insert(key.to_owned(), entry);
                Some(text)
            }
            Err(why) => {
                self.fault(&file_key, why);
                None
            }
        }
    }
}

/// Puts values in the places of their names, wherever they are in `node`. What cannot be looked up
/// is left out.
fn expand(environment: &Environment, key: &str, node: &mut Node, gaps: &mut Gaps) {
    match &mut node.kind {
        Kind::Null => {}
        Kind::Scalar(text) => match environment.expand(text) {
            Ok(None) => {}
            Ok(Some(expanded)) => {
                *text = expanded.text;
                if expanded.has_stray {
                    gaps.strays.push((node.line, key.to_owned()));
                }
            }
            Err(why) => {
                gaps.missing.push((node.line, key.to_owned(), why));
                node.kind = Kind::Null;
            }
        },
        Kind::Sequence(items) => items.retain_mut(|item| {
            let before = gaps.missing.len();
            expand(environment, key, item, gaps);
            gaps.missing.len() == before
        }),
        Kind::Mapping(entries) => entries.retain(|name, entry| {
            let before = gaps.missing.len();
            expand(environment, &joined(key, name), &mut entry.value, gaps);
            gaps.missing.len() == before
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    const VARIABLES: [(&str, &str); 4] = [
        ("HOST", "db"),
        ("PORT", "5433"),
        ("WORD", "hunter2"),
        ("NESTED", "${WORD}"),
    ];

    fn secret(options: &mut Options, key: &str) -> Option<String> {
        options.secret(key).map(|secret| secret.reveal().to_owned())
    }

    #[test]
    fn every_kind_of_option_takes_variables() {
        let text = "host: ${HOST}.example\nport: ${PORT}\npassword: a${WORD}b\nplain: $${WORD}\n\
                    list: ['${HOST}', '${NESTED}']\nheaders: {x-key: 'Bearer ${WORD}'}";
        let mut options = Options::from_yaml_with(text, VARIABLES);
        assert_eq!(options.required_string("host"), "db.example");
        // A second time gives the same.
        assert_eq!(options.required_string("host"), "db.example");
        assert_eq!(options.integer_or("port", 1, 1..=65535), 5433);
        assert_eq!(
            secret(&mut options, "password").as_deref(),
            Some("ahunter2b")
        );
        for _ in 0..2 {
            assert_eq!(options.string("plain").as_deref(), Some("${WORD}"));
            assert_eq!(options.strings("list"), ["db", "${WORD}"]);
        }
        let headers = options.headers("headers");
        assert_eq!(headers[0].1.reveal(), "Bearer hunter2");
        options.finish();
        assert_eq!(options.faults(), Vec::<String>::new());
    }

    #[test]
    fn a_variable_that_is_not_set_is_one_fault_with_its_line() {
        let text =
            "host: ${NONE}\nport: ${NONE}\nlist: [a,\n  '${NONE}']\nheaders:\n  x-key: ${NONE}";
        let mut options = Options::from_yaml_with(text, VARIABLES);
        options.required_string("host");
        options.integer_or("port", 1, 1..=65535);
        assert_eq!(options.strings("list"), ["a"]);
        options.headers("headers");
        let why = "the variable NONE is not set; write `$${` for the text `${`";
        assert_eq!(
            options.faults(),
            ["host", "port", "list", "headers.x-key"].map(|key| format!("{key}: {why}"))
        );
        let lines: Vec<_> = options.faults.iter().map(|fault| fault.line).collect();
        assert_eq!(lines, [Some(1), Some(2), Some(4), Some(6)]);
    }

    #[test]
    fn what_is_no_variables_form_is_one_warning_with_its_line_and_not_shown() {
        let text = "password: w7${hunter2\nlist: ['a',\n '${WORD}${}']\nheaders:\n  x-key: ${1}";
        let mut options = Options::from_yaml_with(text, VARIABLES);
        let password = secret(&mut options, "password");
        assert_eq!(password.as_deref(), Some("w7${hunter2"));
        assert_eq!(options.strings("list"), ["a", "hunter2${}"]);
        assert_eq!(options.headers("headers")[0].1.reveal(), "${1}");
        options.finish();
        assert_eq!(options.faults(), [""; 0]);
        let lines: Vec<_> = options.warnings.iter().map(|it| it.line).collect();
        assert_eq!(lines, [Some(1), Some(3), Some(5)]);
        for (warning, key) in options
            .warnings()
            .iter()
            .zip(["password", "list", "headers.x-key"])
        {
            assert!(warning.starts_with(&format!("{key}: `${{` stays text")));
            assert!(
                warning.contains("write `$${`") && !warning.contains("hunter2"),
                "{warning}"
            );
        }
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_shown_as_it_stands_in_the_file() {
        let text = "port: x${WORD}\nwait: ${WORD}\ntls: ${WORD}";
        let mut options = Options::from_yaml_with(text, VARIABLES);
        options.integer_or("port", 1, 1..=65535);
        options.seconds_or("wait", 1.0);
        options.bool_or("tls", false);
        let faults = options.faults().join("\n");
        assert!(
            faults.contains(r#"port: "x${WORD}" is not a whole number"#),
            "{faults}"
        );
        assert!(!faults.contains("hunter2"), "{faults}");
    }

    #[test]
    fn a_secret_may_stand_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pw");
        fs::write(&path, "${WORD}\n").unwrap();
        let variables = [("FOLDER", folder.path().to_str().unwrap())];
        let mut options = Options::from_yaml_with("password_file: ${FOLDER}/pw", variables);
        for _ in 0..2 {
            // What a file holds is not looked at again.
            assert_eq!(secret(&mut options, "password").as_deref(), Some("${WORD}"));
        }
        options.finish();
        assert_eq!(options.faults(), Vec::<String>::new());
        fs::remove_file(path).unwrap();
        let entries = options.into_entries();
        let node = Node {
            line: 1,
            kind: Kind::Mapping(entries),
            plain: false,
        };
        let mut again = Options::new("options", "option", 1, &node);
        assert_eq!(secret(&mut again, "password").as_deref(), Some("${WORD}"));
    }

    #[test]
    fn a_file_that_gives_no_secret_is_a_fault() {
        for (text, fault) in [
            (
                "password_file: /none/there",
                "password_file: the file /none/there could not be read: No such file",
            ),
            (
                "password_file: /",
                "password_file: the file / could not be read: it is not",
            ),
            (
                "password_file: [a]",
                "password_file: is a list, not a string",
            ),
            (
                "{password: hunter2, password_file: /none/there}",
                "password_file: stands beside `password`; remove one of them",
            ),
        ] {
            let mut options = Options::from_yaml_with(text, VARIABLES);
            options.secret("password");
            options.finish();
            let faults = options.faults();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].starts_with(fault), "{faults:?}");
        }
    }
}
