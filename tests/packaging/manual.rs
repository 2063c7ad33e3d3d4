//! README and the pages of packaging/manual: their form, their links, their examples, and their tables
//! against the code. Each failure says what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use conserver::config::{self, Config};
use conserver::exit::Exit;
use conserver::{link, storage};
use pulldown_cmark::{CodeBlockKind, Event, Tag, TagEnd};
use saphyr::{LoadableYamlNode, Yaml};

use crate::generate;
use crate::generate::manual::{folder, sources};
use crate::generate::markdown::{Edition, parse, title};
use crate::generate::tables::{between, generated};

const README: &str = include_str!("../../README.md");

/// A page of the manual.
pub fn page(name: &str) -> String {
    let path = folder().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every text that people read, by its path below the repository.
fn books() -> BTreeMap<PathBuf, String> {
    let mut books: BTreeMap<PathBuf, String> = sources()
        .expect("the pages can be read")
        .into_iter()
        .map(|(name, text)| (Path::new("packaging/manual").join(name), text))
        .collect();
    for name in ["README.md", "CHANGELOG.md"] {
        let text = fs::read_to_string(root().join(name)).expect(name);
        books.insert(PathBuf::from(name), text);
    }
    books
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text between two marks of a page.
fn marked(name: &str, mark: &str) -> String {
    let text = page(name);
    let inner = between(&text, mark);
    let inner = inner.unwrap_or_else(|| {
        panic!("packaging/manual/{name}: put <!-- {mark} --> and <!-- /{mark} --> on lines around its table")
    });
    inner.to_owned()
}

/// The cells of each row of the first table in a text, without its head.
fn rows(text: &str) -> Vec<Vec<String>> {
    let lines = text.lines().skip_while(|line| !line.starts_with('|'));
    let lines = lines.take_while(|line| line.starts_with('|')).skip(2);
    let cells = |line: &str| {
        let line = line.trim_matches('|').replace("\\|", "\u{0}");
        let cells = line
            .split('|')
            .map(|cell| cell.trim().replace('\u{0}', "|"));
        cells.collect()
    };
    lines.map(cells).collect()
}

/// What stands in backticks.
pub fn codes(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn readme_takes_minutes_to_read() {
    let lines = README.lines().count();
    assert!(
        lines <= 200,
        "README.md has {lines} lines, 200 are allowed: move what is too much into packaging/manual"
    );
}

#[test]
fn each_page_has_a_title_and_ends_with_others_to_read() {
    for (name, text) in sources().expect("the pages can be read") {
        let head = text.lines().next().and_then(|line| line.strip_prefix("# "));
        let (page, section, _) = head.and_then(title).unwrap_or_else(|| {
            panic!("packaging/manual/{name}: begin it with `# name(section) - what it is about`")
        });
        assert_eq!(
            format!("{page}.{section}.md"),
            name,
            "packaging/manual/{name}: give it the name that is in its title"
        );
        let last = text.lines().rfind(|line| line.starts_with("## "));
        assert_eq!(
            last,
            Some("## See also"),
            "packaging/manual/{name}: end it with the section `## See also`"
        );
    }
}

#[test]
fn tables_of_the_manual_are_those_of_the_code() {
    for table in generated() {
        assert!(
            marked(table.page, table.mark) == table.table,
            "packaging/manual/{}: what stands at <!-- {} --> is not what the code says: run \
             `cargo run --example generate -- --update-manual`",
            table.page,
            table.mark
        );
    }
}

#[test]
fn each_mark_stands_once_in_the_manual() {
    let mut seen = BTreeMap::new();
    for (name, text) in sources().expect("the pages can be read") {
        for line in text.lines() {
            if let Some(mark) = line
                .strip_prefix("<!-- ")
                .and_then(|it| it.strip_suffix(" -->"))
                && !mark.starts_with('/')
                && let Some(other) = seen.insert(mark.to_owned(), name.clone())
            {
                panic!(
                    "packaging/manual/{name}: <!-- {mark} --> stands in {other} too: keep one table"
                );
            }
        }
    }
}

#[test]
fn the_manual_has_each_exit_code() {
    let codes: BTreeSet<i32> = rows(&marked("conserver.1.md", "exit-codes"))
        .iter()
        .map(|row| row[0].parse().expect("a number"))
        .collect();
    let told = [
        Exit::Ok,
        Exit::Usage,
        Exit::Data,
        Exit::Unavailable,
        Exit::Internal,
        Exit::NoPermission,
        Exit::Config,
    ];
    assert_eq!(
        codes,
        told.map(Exit::code).into(),
        "packaging/manual/conserver.1.md: add a row to the table of exit codes for each, or remove one"
    );
}

#[test]
fn the_manual_has_each_alert() {
    let rules = include_str!("../../packaging/prometheus/alerts.yml");
    let alerts: Vec<(&str, &str)> = rules
        .split("- alert: ")
        .skip(1)
        .map(|rule| {
            let (_, rest) = rule.split_once("severity: ").expect("a severity");
            let end = rest.find('}').expect("an end");
            (rule.lines().next().unwrap_or_default(), &rest[..end])
        })
        .collect();
    let page = page("conserver-operations.7.md");
    let (_, table) = page
        .split_once("\n| alert |")
        .expect("packaging/manual/conserver-operations.7.md: a table of alerts");
    let rows = rows(&format!("| alert |{table}"));
    let told: Vec<(&str, &str)> = rows
        .iter()
        .map(|row| (row[0].trim_matches('`'), &*row[1]))
        .collect();
    assert_eq!(
        told, alerts,
        "packaging/manual/conserver-operations.7.md: have a row for each alert of alerts.yml, in its order"
    );
}

/// What a module knows only to say what to do instead.
const REFUSED: &[(&str, &str)] = &[("links.diet", "s3_bucket")];

/// The names that the warning of an unknown option lists, without those of files of secrets.
fn known_options(config: &str, unknown: &str) -> Option<BTreeSet<String>> {
    let told = match Config::parse(config, Path::new("config.yml")) {
        Ok(config) => config.warnings.lines().collect::<Vec<_>>().join("\n"),
        // An option is missing that it needs.
        Err(errors) => errors.to_string(),
    };
    let line = told
        .lines()
        .find(|line| line.contains(&format!("unknown option `{unknown}`")))?;
    let (_, known) = line.split_once("(known: ").expect("the known ones");
    let known = known.split(')').next().unwrap_or_default().split(", ");
    let known = known.filter(|name| !name.ends_with("_file"));
    Some(known.map(str::to_owned).collect())
}

/// The options that the schema of config.yml has for a module, without those of files of secrets and those that
/// do nothing.
fn of_schema(section: &str, module: &str) -> BTreeSet<String> {
    let schema = config::json_schema();
    let options = &schema["definitions"][format!("{section}/{module}")]["properties"];
    let options = options.as_object().expect("options");
    let known = options
        .iter()
        .filter(|(name, form)| !name.ends_with("_file") && form["description"] != "Does nothing");
    known.map(|(name, _)| name.clone()).collect()
}

/// Tells what a table of options lacks, and what it has too much.
fn compare(place: &str, known: &BTreeSet<String>, listed: &BTreeSet<String>) -> Vec<String> {
    let lacks = known
        .difference(listed)
        .map(|name| format!("{place}: add a row for `{name}` to its table of options"));
    let more = listed
        .difference(known)
        .map(|name| format!("{place}: `{name}` is no option of the code: remove its row"));
    lacks.chain(more).collect()
}

/// The options that the table of a section lists: the first cell of each row.
fn listed_options(section: &str) -> BTreeSet<String> {
    let rows = rows(section);
    let cells = rows.iter().flat_map(|row| codes(&row[0]));
    cells.map(str::to_owned).collect()
}

/// The text under a heading, up to the next of its level or above.
pub fn section<'a>(text: &'a str, heading: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("\n{heading}\n"))?;
    let level = heading.split(' ').next().unwrap_or_default();
    let ends = (1..=level.len()).filter_map(|depth| {
        let mark = format!("\n{} ", "#".repeat(depth));
        rest.find(&mark)
    });
    Some(&rest[..ends.min().unwrap_or(rest.len())])
}

#[test]
fn the_manual_has_each_module_with_its_options_and_an_example() {
    let text = page("conserver.yml.5.md");
    let place = "packaging/manual/conserver.yml.5.md";
    let contents = text.split("\n## ").next().unwrap_or_default();
    let mut faults = Vec::new();
    let links = link::MODULES.iter().map(|row| ("links", row.name));
    let storages = storage::MODULES.iter().map(|row| ("storages", row.name));
    let modules: Vec<(&str, &str)> = links.chain(storages).collect();
    for (kind, module) in &modules {
        let Some(section) = section(&text, &format!("### {module}")) else {
            faults.push(format!(
                "{place}: add a section `### {module}`: what it does, a table `| option | type | default | \
                 meaning |` of its options, and an example in a ```yaml block"
            ));
            continue;
        };
        let anchor = module.replace('.', "");
        if !contents.contains(&format!("[{module}](#{anchor})")) {
            faults.push(format!(
                "{place}: add [{module}](#{anchor}) to the contents at the top"
            ));
        }
        if !section.contains("\n```yaml\n") {
            faults.push(format!(
                "{place}: add an example in a ```yaml block to {module}"
            ));
        }
        let config =
            format!("{kind}: {{it: {{module: {module}, options: {{no_such: 1}}}}}}\nchains: {{}}");
        let mut listed = listed_options(section);
        listed.retain(|option| !REFUSED.contains(&(module, option)));
        match known_options(&config, "no_such") {
            Some(mut known) => {
                // The warning names the first ones only of a long list; the schema has them all.
                if known.iter().any(|option| option.ends_with(" more")) {
                    known = of_schema(kind, module);
                }
                known.retain(|option| !REFUSED.contains(&(module, option)));
                faults.extend(compare(&format!("{place}: {module}"), &known, &listed));
            }
            // It hands on what it does not know.
            None => assert_eq!(*module, "links.python"),
        }
    }
    for heading in text.lines().filter_map(|line| line.strip_prefix("### ")) {
        let is_module = heading.starts_with("links.") || heading.starts_with("storage.");
        if is_module && !modules.iter().any(|(_, name)| *name == heading) {
            faults.push(format!(
                "{place}: {heading} is no module: remove its section"
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_manual_has_each_option_of_a_follower() {
    let config = "followers: {it: {no_such: 1}}\nchains: {}";
    let known = known_options(config, "no_such").expect("a warning");
    let listed = listed_options(&marked("conserver.yml.5.md", "follower-options"));
    let faults = compare(
        "packaging/manual/conserver.yml.5.md: follower-options",
        &known,
        &listed,
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_manual_has_each_answer_to_an_outage() {
    let config = "storages: {it: {module: storage.file, on_outage: no_such}}\nchains: {}";
    let errors = Config::parse(config, Path::new("config.yml"));
    let told = errors.err().map(|errors| errors.to_string());
    let told = told.expect("an error");
    let (_, known) = told.split_once("is not ").expect("the known ones");
    let known = known.lines().next().unwrap_or_default().split(" or ");
    let known: BTreeSet<String> = known.map(str::to_owned).collect();
    let listed = listed_options(&marked("conserver.yml.5.md", "on-outage"));
    let faults = compare(
        "packaging/manual/conserver.yml.5.md: on-outage",
        &known,
        &listed,
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_manual_has_each_key_of_a_plan() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_conserver"))
        .args(["migrate", "--offline", "--json"])
        .current_dir(folder.path())
        .env_clear()
        .output()
        .expect("the program");
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let known: BTreeSet<&str> = plan
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    let rows = rows(&marked("conserver-migration.7.md", "plan"));
    let listed: BTreeSet<&str> = rows
        .iter()
        .filter_map(|row| codes(&row[0]).next())
        .collect();
    assert_eq!(
        listed, known,
        "packaging/manual/conserver-migration.7.md: add a row for each key of `migrate --json`, or remove one"
    );
}

/// What begins as keys do and is none: names of connections, and of the trial of `check`.
const NO_KEYS: &[&str] = &[
    "actions",
    "audit",
    "budgets",
    "check",
    "complete",
    "delete",
    "demo",
    "documents",
    "lengths",
    "migrate",
    "preflight",
    "probe",
    "replay",
    "storage",
    "submit",
    "waker",
    "where",
];

/// The words after `conserver:` in a text.
fn key_words(text: &str) -> BTreeSet<&str> {
    let parts = text.split("conserver:").skip(1);
    let words = parts.map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-');
        &rest[..end.unwrap_or(rest.len())]
    });
    words.filter(|word| !word.is_empty()).collect()
}

/// Every file below a folder whose name ends so.
pub fn files_below(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.to_string_lossy();
        if path.is_dir() {
            files_below(&path, endings, found);
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
}

#[test]
fn the_manual_has_each_key_of_redis() {
    let table = marked("conserver-internals.7.md", "keys");
    let listed = key_words(&table);
    let mut files = Vec::new();
    files_below(&root().join("src"), &[".rs", ".lua"], &mut files);
    assert!(files.len() > 50);
    for file in files {
        let text = fs::read_to_string(&file).expect("a file");
        // What only tests call so is not looked at.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in key_words(code) {
            assert!(
                listed.contains(word) || NO_KEYS.contains(&word),
                "{} names the key conserver:{word}: add a row to the table of keys in \
                 packaging/manual/conserver-internals.7.md (a name of a connection: NO_KEYS in {})",
                file.display(),
                file!()
            );
        }
    }
}

/// A link or image of a page, and where it leads.
fn targets(text: &str) -> Vec<String> {
    let events = parse(text).filter_map(|event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some(dest_url.into_string())
        }
        _ => None,
    });
    events.collect()
}

/// The anchors that a forge gives the headings of a page.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors = Vec::new();
    let mut heading: Option<String> = None;
    for event in parse(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let text = heading.take().unwrap_or_default().to_lowercase();
                let text = text.trim().replace(' ', "-");
                let stays = |c: &char| c.is_alphanumeric() || ['-', '_'].contains(c);
                anchors.push(text.chars().filter(stays).collect());
            }
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            _ => {}
        }
    }
    anchors
}

/// `a/../b` as `b`.
fn resolved(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

#[test]
fn links_between_the_texts_lead_somewhere() {
    let books = books();
    let mut faults = Vec::new();
    for (name, text) in &books {
        let here = name.parent().unwrap_or(Path::new(""));
        for target in targets(text) {
            if target.starts_with("https://") || target.starts_with("http://") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = if path.is_empty() {
                name.clone()
            } else {
                resolved(&here.join(path))
            };
            if !root().join(&path).exists() {
                faults.push(format!(
                    "{}: mend the link {target}: no such file",
                    name.display()
                ));
                continue;
            }
            let known = books
                .get(&path)
                .map(|text| anchors(text))
                .unwrap_or_default();
            if !anchor.is_empty() && !known.iter().any(|it| it == anchor) {
                faults.push(format!(
                    "{}: mend the link {target}: no such heading in {}",
                    name.display(),
                    path.display()
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn headings_of_a_page_differ() {
    for (name, text) in sources().expect("the pages can be read") {
        let mut seen = BTreeSet::new();
        for anchor in anchors(&text) {
            assert!(
                seen.insert(anchor.clone()),
                "packaging/manual/{name}: two headings are #{anchor}: name one of them otherwise"
            );
        }
    }
}

/// The pages that a text names, as in `conserver-settings(7)`.
fn named_pages(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || ['-', '.', '(', ')'].contains(&c);
    let words = text.split(|c: char| !is_name(c));
    let words = words.filter(|word| word.starts_with("conserver"));
    let names = words.filter_map(|word| {
        let (name, rest) = word.split_once('(')?;
        let section = rest.split_once(')')?.0;
        let is_section = section.len() == 1 && section.starts_with(|c: char| c.is_ascii_digit());
        is_section.then(|| format!("man/{name}.{section}"))
    });
    names.collect()
}

#[test]
fn man_pages_that_are_named_are_there() {
    let files = generate::files().expect("the manual can be made");
    let made: BTreeSet<String> = files.into_iter().map(|(name, _)| name).collect();
    let mut texts = books();
    let mut sources = Vec::new();
    for folder in ["src", "packaging"] {
        files_below(
            &root().join(folder),
            &[".rs", ".yml", ".yaml", ".service", "config.yml"],
            &mut sources,
        );
    }
    for path in sources {
        let text = fs::read_to_string(&path).expect("a file");
        texts.insert(path, text);
    }
    for (name, text) in texts {
        for page in named_pages(&text) {
            assert!(
                made.contains(&page),
                "{} names {page}, which is no page of the manual: name another one",
                name.display()
            );
        }
    }
}

/// The blocks of code of a language, each with its line.
fn blocks(text: &str, language: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (event, range) in parse(text).into_offset_iter() {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(it))) if &*it == language => {
                let line = text[..range.start].matches('\n').count() + 1;
                block = Some((line, String::new()));
            }
            Event::Text(part) => {
                if let Some((_, code)) = &mut block {
                    code.push_str(&part);
                }
            }
            Event::End(TagEnd::CodeBlock) => blocks.extend(block.take()),
            _ => {}
        }
    }
    blocks
}

/// The keys of a mapping in a configuration.
fn names(config: &Yaml<'_>, key: &str) -> Vec<String> {
    let mapping = config.as_mapping_get(key).and_then(|it| it.as_mapping());
    let keys = mapping
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.as_str());
    keys.map(str::to_owned).collect()
}

/// An example with a chain of all that it has, where it has none.
fn completed(example: &str) -> String {
    let documents = Yaml::load_from_str(example).unwrap_or_default();
    let Some(config) = documents.first() else {
        return example.to_owned();
    };
    if config.as_mapping_get("chains").is_some() {
        return example.to_owned();
    }
    let mut lists = vec!["default".to_owned()];
    let followers = config.as_mapping_get("followers");
    for name in names(config, "followers") {
        let follower = followers.and_then(|it| it.as_mapping_get(&name));
        let list = follower.and_then(|it| it.as_mapping_get("follower_ingress_list")?.as_str());
        lists.extend(list.map(str::to_owned));
    }
    lists.sort();
    lists.dedup();
    format!(
        "{example}\nchains: {{main: {{ingress_lists: {lists:?}, links: {:?}, storages: {:?}}}}}\n",
        names(config, "links"),
        names(config, "storages")
    )
}

/// The variables and the files that an example takes values from.
fn taken(example: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut variables, mut files) = (Vec::new(), Vec::new());
    for rest in example.split("${").skip(1) {
        let name = rest.split('}').next().unwrap_or_default();
        match name.strip_prefix("file:") {
            Some(file) => files.push(file),
            None => variables.push(name),
        }
    }
    for rest in example.split("_file: ").skip(1) {
        let end = rest.find([',', '}', '\n', ' ']).unwrap_or(rest.len());
        files.push(rest[..end].trim_matches(['"', '\'']));
    }
    (variables, files)
}

#[test]
fn each_example_of_a_configuration_is_valid() {
    let value = |name: &str| match name.to_lowercase() {
        name if name.ends_with("url") => "redis://localhost",
        _ => "made-up",
    };
    let schema = conserver::config::json_schema();
    let mut count = 0;
    for (name, text) in books() {
        for (line, example) in blocks(&text, "yaml") {
            count += 1;
            let folder = tempfile::tempdir().expect("a folder");
            let config = completed(&example);
            fs::write(folder.path().join("config.yml"), &config).expect("a file");
            assert_eq!(
                super::schema::faults_of(&schema, &config),
                [""; 0],
                "{}:{line}: mend this example or the schema",
                name.display()
            );
            let (variables, files) = taken(&example);
            for file in files {
                fs::write(folder.path().join(file), value(file)).unwrap_or_else(|error| {
                    panic!(
                        "{}:{line}: name the file {file:?} without folders: {error}",
                        name.display()
                    )
                });
            }
            let output = Command::new(env!("CARGO_BIN_EXE_conserver"))
                .args([
                    "check",
                    "--offline",
                    "--deny-warnings",
                    "--config",
                    "config.yml",
                ])
                .current_dir(folder.path())
                .env_clear()
                .env("PATH", env::var_os("PATH").unwrap_or_default())
                .envs(variables.into_iter().map(|name| (name, value(name))))
                .output()
                .expect("the program");
            assert!(
                output.status.success(),
                "{}:{line}: mend this example, `conserver check --offline --deny-warnings` refuses it:\n\
                 {config}\n{}{}",
                name.display(),
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&output.stdout)
            );
        }
    }
    assert!(count > 0, "there are examples");
}

#[test]
fn other_yaml_in_the_manual_can_be_read() {
    for (name, text) in books() {
        for (line, example) in blocks(&text, "yml") {
            let read = Yaml::load_from_str(&example);
            assert!(
                read.is_ok(),
                "{}:{line}: mend this YAML: {read:?}",
                name.display()
            );
        }
    }
}

/// Runs a program that looks at a man page, if it is installed; gives all that it says.
fn looked_at_by(program: &str, arguments: &[&str], page: &Path) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .arg(page)
        .env("MANWIDTH", "80")
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => panic!("could not run {program}: {error}"),
    };
    let told = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&told).into_owned())
}

#[test]
fn man_pages_are_without_fault() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut missing = BTreeSet::new();
    let mut faults = Vec::new();
    for (name, content) in generate::files().unwrap_or_else(|error| panic!("{error}")) {
        let Some(name) = name.strip_prefix("man/") else {
            continue;
        };
        let path = folder.path().join(name);
        fs::write(&path, content).expect("a file");
        for (program, arguments) in [
            ("mandoc", &["-T", "lint"][..]),
            ("groff", &["-Kutf8", "-man", "-Tutf8", "-ww", "-z"]),
        ] {
            match looked_at_by(program, arguments, &path) {
                None => {
                    missing.insert(program);
                }
                Some(told) if told.trim().is_empty() => {}
                Some(told) => faults.push(format!("{name}: {program} says\n{told}")),
            }
        }
    }
    for program in missing {
        // The harness keeps what a test prints by `println!`.
        let _ = writeln!(
            io::stderr(),
            "SKIPPED: there is no {program}: man pages are not checked by it; install it"
        );
    }
    assert!(
        faults.is_empty(),
        "mend packaging/manual or packaging/generate:\n{}",
        faults.join("\n")
    );
}

/// A page of this text, without what every page begins with.
fn made(text: &str) -> Result<String, String> {
    let edition = Edition {
        date: "2026-11-30",
        source: "conserver",
        manual: "conserver",
    };
    let text = format!("# it(7) - a page\n\n{text}");
    let page = generate::markdown::page(&text, edition)?.to_roff();
    let (_, rest) = page.split_once("it \\- a page\n").expect("a name");
    Ok(generate::markdown::tidy(rest))
}

#[test]
fn each_kind_of_markdown_has_its_form_in_a_man_page() {
    for (text, expected) in [
        (
            "One\ntwo.\n\nThree.",
            ".SH DESCRIPTION\nOne two.\n.PP\nThree.\n",
        ),
        (
            "## The keys\n\nA `b` **c** *d*.\n\n### links.tag\n\n.e",
            ".SH \"THE KEYS\"\nA \\fBb\\fR \\fBc\\fR \\fId\\fR.\n.SS links.tag\n\\&.e\n",
        ),
        (
            "## A\n\n- one\n- two\n  1. three\n\nFour",
            ".SH A\n.IP \\(bu 2\none\n.IP \\(bu 2\ntwo\n.RS 2\n.IP 1. 4\nthree\n.RE\n.PP\nFour\n",
        ),
        (
            "## A\n\nB:\n\n```sh\nc -d\n\n.e\n```",
            ".SH A\nB:\n.sp\n.RS 4\n.nf\nc \\-d\n\n\\&.e\n.fi\n.RE\n",
        ),
        (
            "## A\n\n<!-- b -->\n| option | type | meaning |\n|---|---|---|\n| `c` | d\\|e | F |\n<!-- /b -->",
            ".SH A\n.TP\n\\fBc\\fR\nF.\n.br\nType: d|e.\n",
        ),
        (
            "## A\n\n[conserver(1)](conserver.1.md), [b](https://example.org/)",
            ".SH A\n\\fBconserver\\fR(1), b <https://example.org/>\n",
        ),
    ] {
        assert_eq!(made(text).as_deref(), Ok(expected), "{text}");
    }
    for text in ["> quoted", "#### Deep", "```\nno language\n```", "a<br>b"] {
        assert!(made(text).is_err(), "{text}");
    }
}
