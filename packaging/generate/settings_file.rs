//! `/etc/conserver/conserver.env`: every setting, commented out, with its default.

use conserver::settings::{Setting, TABLE};

const HEAD: &str = "\
# The settings of the service, conserver(1): NAME=VALUE without `export`, with quotes where a value has spaces.
# After a change: sudo systemctl restart conserver
# The configuration file is /etc/conserver/config.yml, and what it refers to by ${NAME} can be set here too.
";

/// How wide the comments are.
const WIDTH: usize = 120;

/// The file.
pub fn text() -> String {
    let mut text = HEAD.to_owned();
    for setting in TABLE {
        text += &format!("\n{}", entry(setting));
    }
    text
}

fn entry(setting: &Setting) -> String {
    let Setting {
        name,
        default,
        values,
        doc,
    } = setting;
    let words = default
        .strip_prefix('(')
        .and_then(|it| it.strip_suffix(')'));
    let (value, unset) = match words {
        Some(words) => ("", format!(" Unset: {words}.")),
        None => (*default, String::new()),
    };
    let comment = format!("{doc}. Can be {values}.{unset}").replace('`', "");
    format!("{}#{name}={value}\n", wrapped(&comment))
}

/// As a comment, broken at spaces.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split(' ') {
        let line = lines.last().map_or(0, String::len);
        if line + 1 + word.len() > WIDTH {
            lines.push(String::from("#"));
        }
        if let Some(line) = lines.last_mut() {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}
