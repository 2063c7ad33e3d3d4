//! `conserver check` and the start with configurations of deployments: what of them runs, and what is told of
//! the rest.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::{bare, conserver};
use crate::harness::{Conserver, Deployment, Finished, PATIENCE, Redis, chain, run, said};

/// What is expected of a configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// It runs, and nothing is said against it.
    Accepted,
    /// It runs, and these words are said.
    Warned,
    /// It does not run, and these words are said.
    Refused,
}

use Verdict::{Accepted, Refused, Warned};

/// Modules of a small deployment, without any library: file and text.
const MODULES: [(&str, &str); 16] = [
    ("links/__init__.py", ""),
    ("links/scitt/__init__.py", RUN),
    ("links/transcribe/__init__.py", RUN),
    ("links/tag/__init__.py", RUN),
    ("storage/__init__.py", ""),
    (
        "storage/papers/__init__.py",
        "default_options = {}\ndef save(uuid, options): pass\n",
    ),
    (
        "storage/whole/__init__.py",
        "def save(uuid, options): pass\ndef get(uuid, options): pass\ndef delete(uuid, options): pass\n",
    ),
    ("tracers/audit.py", "def run(*arguments): pass\n"),
    ("office/__init__.py", ""),
    ("office/mask.py", RUN),
    ("office/helper.py", "import office\n"),
    ("rating.py", RUN),
    (
        "late.py",
        "import nothing_of_this_name\ndef run(a, b, c): return a\n",
    ),
    ("faulty.py", "def run(:\n"),
    ("idle.py", "value = 1\n"),
    (
        "loud.py",
        "print('LOUD')\nimport sys; print('LOUD', file=sys.stderr)\ndef run(a, b, c): return a\n",
    ),
];

const RUN: &str = "def run(vcon_uuid, link_name, opts): return vcon_uuid\n";

/// What a configuration is, beside its chains.
const ROWS: &[(&str, bool, Verdict, &[&str])] = &[
    // Without a path, the error says how to set it; with one, the module is found.
    (
        "links: {a: {module: links.scitt, options: {prompt: p}}}",
        true,
        Accepted,
        &[],
    ),
    (
        "links: {a: {module: links.scitt}}",
        false,
        Refused,
        &["links.scitt", "CONSERVER_PYTHON_PATH"],
    ),
    ("links: {a: {module: office.mask}}", true, Accepted, &[]),
    (
        "links: {a: {module: rating, pip_name: 'rating-link==1.4.0'}}",
        true,
        Accepted,
        &[],
    ),
    (
        "links: {a: {module: rating, ingress-lists: [], egress-lists: []}}",
        true,
        Accepted,
        &[],
    ),
    (
        "links: {a: {module: rating, ingress-lists: [x]}}",
        true,
        Warned,
        &["ingress-lists"],
    ),
    (
        "links: {a: {module: rating, timeout: 30}}",
        true,
        Accepted,
        &[],
    ),
    (
        "links: {a: {module: rating, timeout: '1.5'}}",
        true,
        Accepted,
        &[],
    ),
    (
        "links: {a: {module: rating, timeout: 0}}",
        true,
        Refused,
        &["links.a.timeout"],
    ),
    (
        "links: {a: {module: rating, timeout: soon}}",
        true,
        Refused,
        &["links.a.timeout", "soon"],
    ),
    (
        "links: {a: {module: rating, options: text}}",
        true,
        Refused,
        &["links.a.options"],
    ),
    (
        "links: {a: {module: rating, options: [1]}}",
        true,
        Refused,
        &["links.a.options"],
    ),
    (
        "links: {a: {module: rating, native: false}}",
        true,
        Accepted,
        &[],
    ),
    (
        "links: {a: {module: links.tag, options: {tags: [x]}, native: false}}",
        true,
        Accepted,
        &[],
    ),
    (
        "links: {a: {module: links.tag, options: {no_such_option: x}, native: false}}",
        true,
        Accepted,
        &[],
    ),
    (
        "links: {a: {module: links.tag, options: {tags: [x]}, native: 'no'}}",
        true,
        Accepted,
        &[],
    ),
    (
        "links: {a: {module: links.tag, options: {tags: [x]}, native: perhaps}}",
        true,
        Refused,
        &["links.a.native"],
    ),
    (
        "links: {a: {module: links.tag, options: {tags: [x]}, native: false}}",
        false,
        Refused,
        &["links.a.native", "CONSERVER_PYTHON_PATH"],
    ),
    (
        "links: {a: {module: links.jq_link, options: {filter: .}, native: false}}",
        true,
        Refused,
        &[
            "links.a.module",
            "links.jq_link",
            "No module named 'links.jq_link'",
        ],
    ),
    // Not there, or of no use.
    (
        "links: {a: {module: nowhere}}",
        true,
        Refused,
        &[
            "config.yml:2: links.a.module",
            "nowhere",
            "No module named 'nowhere'",
        ],
    ),
    (
        "links: {a: {module: links.analyse}}",
        true,
        Refused,
        &["links.a.module", "No module named 'links.analyse'"],
    ),
    (
        "links: {a: {module: late}}",
        true,
        Refused,
        &[
            "config.yml:2: links.a.module",
            "late",
            "No module named 'nothing_of_this_name'",
        ],
    ),
    (
        "links: {a: {module: faulty}}",
        true,
        Refused,
        &["links.a.module", "SyntaxError"],
    ),
    (
        "links: {a: {module: idle}}",
        true,
        Refused,
        &["links.a.module", "idle has no function `run`"],
    ),
    (
        "links: {a: {module: rating, nonsense: 1}}",
        true,
        Warned,
        &["links.a", "nonsense"],
    ),
    (
        "links: {a: {module: 'links/scitt'}}",
        true,
        Refused,
        &["links.a.module", "links/scitt"],
    ),
    ("links: {a: {module: loud}}", true, Accepted, &[]),
    (
        "storages: {a: {module: idle}}",
        true,
        Refused,
        &["storages.a.module", "idle has no function `save`"],
    ),
    (
        "tracers: {a: {module: idle}}",
        true,
        Refused,
        &["tracers.a.module", "idle has no function `run`"],
    ),
    // Packages are not installed: the line to do so is told.
    (
        "links: {a: {module: far.away, pip_name: 'far-away==2.0'}}",
        true,
        Refused,
        &["far.away", "pip install", "far-away==2.0"],
    ),
    (
        "links: {a: {module: far, pip_name: 'git+https://git.example.org/far.git'}}\n\
      tracers: {b: {module: farther, pip_name: 'farther>=1'}}\nimports: {c: {module: farthest, pip_name: farthest}}",
        true,
        Refused,
        &[
            "git+https://git.example.org/far.git",
            "farther>=1",
            "farthest",
            "pip install",
        ],
    ),
    // Older names of transcription links.
    (
        "links: {a: {module: links.deepgram_link, native: false, options: {DEEPGRAM_KEY: placeholder}}}",
        true,
        Accepted,
        &[],
    ),
    (
        "links: {a: {module: links.openai_transcribe, native: false}}",
        true,
        Accepted,
        &[],
    ),
    (
        "links: {a: {module: links.groq_whisper, native: false}, b: {module: links.hugging_face_whisper, native: false}}",
        true,
        Accepted,
        &[],
    ),
    (
        "links: {a: {module: links.deepgram_link, native: false}}",
        false,
        Refused,
        &["native", "CONSERVER_PYTHON_PATH"],
    ),
    // Storages.
    (
        "storages: {a: {module: storage.papers, options: {url: 'mongodb://db'}}}",
        true,
        Accepted,
        &[],
    ),
    (
        "storages: {a: {module: storage.whole, on_outage: defer}}",
        true,
        Accepted,
        &[],
    ),
    (
        "storages: {a: {module: storage.papers}}",
        false,
        Refused,
        &["storage.papers", "CONSERVER_PYTHON_PATH"],
    ),
    // Tracers, imports.
    (
        "tracers: {a: {module: tracers.audit, options: {dlq_vcon_on_error: true}}}",
        true,
        Accepted,
        &[],
    ),
    (
        "tracers: {a: {module: tracers.audit}}",
        false,
        Refused,
        &["tracers.audit", "CONSERVER_PYTHON_PATH"],
    ),
    (
        "imports: {a: {module: office.helper, pip_name: office-helper}, b: rating}",
        true,
        Accepted,
        &[],
    ),
    (
        "imports: {a: office.helper}",
        false,
        Refused,
        &["office.helper", "CONSERVER_PYTHON_PATH"],
    ),
    (
        "imports: {a: {module: late}}",
        true,
        Refused,
        &["imports.a", "nothing_of_this_name"],
    ),
    (
        "imports: {a: late}",
        true,
        Refused,
        &["imports.a", "nothing_of_this_name"],
    ),
    ("tracers:\nimports:\nlinks:\nstorages:", true, Accepted, &[]),
];

/// A folder with these modules.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (file, text) in MODULES {
        write(folder.path(), file, text);
    }
    folder
}

fn write(folder: &Path, file: &str, text: &str) {
    let path = folder.join(file);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, text).expect("a file");
}

/// The configuration with a chain that has all its links and storages.
fn whole(part: &str) -> String {
    let names = |section: &str| -> Vec<&str> {
        let line = part.lines().find_map(|line| line.strip_prefix(section));
        let names = ["a", "b"].into_iter();
        names
            .filter(|name| line.is_some_and(|line| line.contains(&format!("{name}: {{module"))))
            .collect()
    };
    let (links, storages) = (names("links: ").join(", "), names("storages: ").join(", "));
    format!(
        "# A deployment.\n{part}\nchains:\n  main: {{links: [{links}], storages: [{storages}], \
         ingress_lists: [default], egress_lists: [done]}}\n"
    )
}

fn check(text: &str, path: Option<&Path>) -> Finished {
    let mut conserver = Conserver::without_redis().config_text(text);
    if let Some(path) = path {
        conserver = conserver.env("CONSERVER_PYTHON_PATH", path);
    }
    conserver.run(&["check", "--offline"])
}

#[test]
fn each_configuration_is_accepted_or_refused_with_its_reason() {
    let folder = folder();
    for (part, with_path, verdict, words) in ROWS {
        let path = with_path.then(|| folder.path());
        let finished = check(&whole(part), path);
        let output = finished.output();
        let code = if *verdict == Refused { 78 } else { 0 };
        assert_eq!(finished.code, code, "{part}\n{output}");
        assert_eq!(
            output.contains("warning: "),
            *verdict == Warned,
            "{part}\n{output}"
        );
        for word in *words {
            assert!(output.contains(word), "{word}: {part}\n{output}");
        }
        assert!(!output.contains("panicked"), "{output}");
        // Where it looked is told with what it has not found.
        if *with_path && words.iter().any(|word| word.contains("No module named")) {
            let path = folder.path().display().to_string();
            assert!(output.contains(&path), "{path}: {part}\n{output}");
        }
    }
}

#[test]
fn every_missing_module_is_told_in_one_go() {
    let folder = folder();
    let text = "\
links:
  one: {module: first.missing}
  two: {module: links.scitt}
  three: {module: late, pip_name: late-package}
storages:
  four: {module: storage.missing, pip_name: 'storage-missing[all]'}
tracers:
  five: {module: tracers.missing}
imports:
  six: {module: seventh.missing, pip_name: seventh}
  seven: idle
chains:
  main: {links: [one, two, three], storages: [four], ingress_lists: [default]}
";
    let finished = check(text, Some(folder.path()));
    let output = finished.output();
    assert_eq!(finished.code, 78, "{output}");
    for (line, key, module) in [
        (2, "links.one", "first.missing"),
        (4, "links.three", "late"),
        (6, "storages.four", "storage.missing"),
        (8, "tracers.five", "tracers.missing"),
        (10, "imports.six", "seventh.missing"),
    ] {
        let start = format!("config.yml:{line}: {key}");
        let told = output
            .lines()
            .filter(|it| it.contains(&start) && it.contains(module));
        assert_eq!(told.count(), 1, "{start}: {output}");
    }
    assert!(!output.contains("links.two"), "{output}");
    let installs: Vec<&str> = output
        .lines()
        .filter(|line| line.contains("pip install"))
        .collect();
    assert_eq!(installs.len(), 1, "{output}");
    for package in ["storage-missing[all]", "seventh"] {
        assert!(installs[0].contains(package), "{installs:?}");
    }
}

#[test]
fn a_module_may_be_in_any_folder_of_the_path() {
    let (one, two) = (folder(), tempfile::tempdir().expect("a folder"));
    write(two.path(), "hours/check.py", RUN);
    let text = whole("links: {a: {module: rating}, b: {module: hours.check}}");
    assert_eq!(check(&text, Some(one.path())).code, 78);
    let path = std::env::join_paths([one.path(), two.path()]).expect("a path");
    let finished = check(&text, Some(Path::new(&path)));
    assert_eq!(finished.code, 0, "{}", finished.output());
}

#[test]
fn a_folder_or_an_interpreter_that_is_not_there_is_told() {
    let folder = folder();
    let text = whole("links: {a: {module: rating}}");
    let nowhere = folder.path().join("nowhere");
    let path = std::env::join_paths([folder.path(), &nowhere]).expect("a path");
    let output = check(&text, Some(Path::new(&path))).output();
    assert!(output.contains(&nowhere.display().to_string()), "{output}");
    let conserver = Conserver::without_redis()
        .config_text(&text)
        .env("CONSERVER_PYTHON_PATH", folder.path())
        .env("CONSERVER_PYTHON", "/nowhere/python3");
    let finished = run(&conserver, &["check", "--offline"], 78);
    said(&finished, &["/nowhere/python3"]);
    let mut daemon = conserver.launch();
    assert_eq!(daemon.wait_exit(PATIENCE), 78);
    assert!(
        daemon.log().contains("/nowhere/python3"),
        "{}",
        daemon.log()
    );
}

#[test]
fn what_a_module_prints_at_its_import_is_no_part_of_the_answer() {
    let folder = folder();
    let text = whole("links: {a: {module: loud}}");
    let finished = check(&text, Some(folder.path()));
    assert_eq!(finished.code, 0, "{}", finished.output());
    assert!(!finished.stdout.contains("LOUD"), "{}", finished.stdout);
}

#[test]
fn a_start_with_a_missing_module_ends_with_the_same_words() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let config = chain(
        &[(
            "rates",
            json!({"module": "rating", "pip_name": "rating-link==1.4.0"}),
        )],
        &[],
    );
    let conserver = conserver(&redis, &deployment, &config);
    let checked = run(&conserver, &["check"], 78);
    let words = [
        "links.rates.module",
        "No module named 'rating'",
        "pip install",
        "rating-link==1.4.0",
    ];
    said(&checked, &words);
    let mut daemon = conserver.launch();
    assert_eq!(daemon.wait_exit(PATIENCE), 78, "{}", daemon.log());
    for word in words {
        assert_eq!(daemon.count_in_log(word), 1, "{word}: {}", daemon.log());
    }
}

#[test]
fn a_check_leaves_nothing_behind() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let config = chain(
        &[("counts", bare("links.counts"))],
        &[("drawer", bare("storage.drawer"))],
    );
    run(&conserver(&redis, &deployment, &config), &["check"], 0);
    assert_eq!(redis.keys("*"), Vec::<String>::new());
    let folder = deployment.folder().display().to_string();
    assert_eq!(
        crate::harness::processes_mentioning(&folder),
        Vec::<i32>::new()
    );
}
