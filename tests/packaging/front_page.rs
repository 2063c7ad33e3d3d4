//! The front page of the code's documentation, src/lib.rs, held against the files it names.

use std::fs;
use std::path::Path;

use crate::manual::{codes, files_below, root};

/// The text of the page.
fn page() -> String {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn each_file_that_the_front_page_names_is_there() {
    let page = page();
    let is_path = |code: &&str| {
        let folders = ["src/", "tests/", "packaging/", "benches/"];
        folders.iter().any(|folder| code.starts_with(folder)) && !code.contains("NAME")
    };
    let paths: Vec<&str> = codes(&page).filter(is_path).collect();
    assert!(paths.len() > 30, "{paths:?}");
    for path in paths {
        // Without the arguments of a command.
        let file = path.split(' ').next().unwrap_or_default();
        assert!(
            root().join(file).exists(),
            "src/lib.rs names `{file}`, which is not there: name the file that does its work now"
        );
    }
}

/// The code of a file, without comments and the tests at its end.
fn code(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let begins_tests = |at: usize| {
        let mut rest = lines[at..].iter().skip_while(|line| line.starts_with("#["));
        let is_module = rest
            .next()
            .is_some_and(|line| line.contains("mod ") && line.ends_with('{'));
        lines[at] == "#[cfg(test)]" && is_module
    };
    let end = (0..lines.len()).find(|at| begins_tests(*at));
    let lines = &lines[..end.unwrap_or(lines.len())];
    let is_comment = |line: &str| line.trim_start().starts_with("//");
    lines
        .iter()
        .filter(|line| !is_comment(line))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The modules of the crate that a file uses.
fn used(text: &str) -> Vec<String> {
    let words = text.split("crate::").skip(1);
    let word = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
        rest[..end.unwrap_or(rest.len())].to_owned()
    };
    words.map(word).collect()
}

#[test]
fn each_module_uses_only_those_that_stand_after_it_on_the_front_page() {
    let page = page();
    let (_, list) = page.split_once("# The modules\n").expect("a section");
    let (list, _) = list.split_once("\n # ").expect("another one after it");
    let links = list.split("[`").skip(1);
    let order: Vec<&str> = links.filter_map(|rest| rest.split('`').next()).collect();
    for (place, module) in order.iter().enumerate() {
        let mut files = Vec::new();
        let folder = root().join("src").join(module);
        if folder.is_dir() {
            files_below(&folder, &[".rs"], &mut files);
        }
        let file = Path::new("src").join(format!("{module}.rs"));
        files.extend(file.exists().then_some(file));
        assert!(
            !files.is_empty(),
            "src/lib.rs lists `{module}`, which is no module: remove it"
        );
        for file in files {
            let is_test = ["tests.rs", "properties.rs"]
                .iter()
                .any(|name| file.ends_with(name));
            let text = fs::read_to_string(&file).expect("a file");
            for other in used(&code(&text)).iter().filter(|_| !is_test) {
                let before = order[..place].contains(&other.as_str());
                assert!(
                    !before,
                    "{} uses `{other}`, and {other} stands before {module} in src/lib.rs: hand over what it \
                     needs, or move one of the two in the list if there is no circle",
                    file.display()
                );
            }
        }
    }
    let modules = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let modules = modules
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod "));
    for module in modules.map(|it| it.trim_end_matches(';')) {
        assert!(
            order.contains(&module) || module == "fuzzing",
            "src/lib.rs: add `{module}` to the list of modules, before those that it uses"
        );
    }
}
