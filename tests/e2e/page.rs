//! The monitor's page, in a browser.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Blocked, Browser, Conserver, Daemon, Files, Ledger, Monitor, PATIENCE, Redis, Screen, Webhook,
    cached_if_there, chain, fresh, preload, submit, wait_until,
};

const DESKTOP: Screen = Screen {
    width: 1280,
    height: 900,
    is_dark: false,
};
const AT_NIGHT: Screen = Screen {
    is_dark: true,
    ..DESKTOP
};
const PHONE: Screen = Screen {
    width: 390,
    height: 844,
    is_dark: false,
};
const PHONE_AT_NIGHT: Screen = Screen {
    is_dark: true,
    ..PHONE
};

/// A name that would do something if it were taken for markup.
const NASTY: &str = "<script>document.title='taken'</script>";

/// The program as the spawned Worker-2 sees it, once there is a file `crash`: it aborts before its
/// first line.
const CRASH: &str = r#"
    #include <fcntl.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>
    __attribute__((constructor)) static void crash(void) {
        static char line[8192];
        static const char second[] = "Worker-2";
        int file = open("/proc/self/cmdline", O_RDONLY);
        long count = read(file, line, sizeof line - 1);
        close(file);
        for (long i = 0; i < count; i++)
            if (strncmp(line + i, second, sizeof second - 1) == 0 && access("crash", F_OK) == 0)
                abort();
    }"#;

/// The page of one daemon.
struct Page {
    browser: Browser,
    url: String,
}

impl Page {
    fn of(monitor: &Monitor) -> Self {
        let page = Self {
            browser: Browser::start(),
            url: format!("http://{}/", monitor.setting()),
        };
        page.browser.show_on(DESKTOP);
        page.browser.open(&page.url);
        page
    }

    fn run(&self, script: &str) -> Value {
        self.browser.run(script)
    }

    /// What stands at an element, nothing where that is hidden.
    fn text(&self, id: &str) -> String {
        let script = format!(
            "const it = document.getElementById('{id}');
             return it.checkVisibility() ? it.innerText : ''"
        );
        self.run(&script).as_str().unwrap_or_default().to_owned()
    }

    /// A number that stands there.
    fn number(&self, id: &str) -> Option<u64> {
        self.text(id).replace(',', "").parse().ok()
    }

    /// A row of a table, by its header: its cells.
    fn row(&self, table: &str, header: &str) -> Vec<String> {
        let script = format!(
            "return [...document.querySelectorAll('#{table} tbody tr')]
                 .map((row) => [...row.children].map((cell) => cell.textContent))
                 .find(([name]) => name === {})",
            json!(header)
        );
        serde_json::from_value(self.run(&script)).unwrap_or_default()
    }

    fn wait_until(&self, what: &str, holds: impl FnMut() -> bool) {
        wait_until(&format!("the page says {what}"), PATIENCE, holds);
    }

    /// Keeps a picture, where that is wanted.
    fn keep_picture(&self, name: &str, screen: Screen) {
        if let Some(folder) = std::env::var_os("CONSERVER_TEST_SCREENSHOTS") {
            let show = |display: &str| {
                self.run(&format!(
                    "for (const id of ['workers', 'queues', 'figures'])
                         document.querySelector(`[aria-labelledby=h-${{id}}]`).style.display = '{display}'"
                ));
            };
            self.browser.show_on(screen);
            // What the other picture of the manual shows.
            show(if name.contains("actions") { "none" } else { "" });
            let path = PathBuf::from(folder).join(format!("{name}.png"));
            fs::write(path, self.browser.screenshot()).expect("a file");
            show("");
            self.browser.show_on(DESKTOP);
        }
    }
}

/// Three workers of two lanes, of which the second cannot be replaced, and a storage that takes its
/// time.
fn troubled(redis: &Redis, monitor: &Monitor, hook: &Webhook) -> Daemon {
    let slow = json!({"module": "storage.webhook", "options": {"webhook-urls": [hook.url()]}});
    let files = json!({"module": "storage.file", "options": {"path": "files"}});
    let mut config = chain(&[], &[("slow", slow), ("files", files)]);
    let main = config["chains"]["main"].take();
    config["chains"] = json!({NASTY: main});
    let conserver = Conserver::with(redis)
        .config(&config)
        .method("spawn")
        .workers(3)
        .lanes(2)
        .env("TICK_INTERVAL", "500")
        .env("CONSERVER_HTTP", monitor.setting());
    let library = preload(conserver.folder(), CRASH);
    let daemon = conserver.env("LD_PRELOAD", library).start();
    let second = daemon.wait_for_workers(3)[&2];
    fs::write(daemon.conserver().folder().join("crash"), "").expect("a file");
    kill(Pid::from_raw(second), Signal::SIGKILL).expect("it runs");
    // How long it waits is chance, within a doubling.
    let waits_long = |line: &str| {
        let wait = line.split("restarting in ").nth(1);
        let wait = wait.and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
        wait.is_some_and(|seconds| seconds >= 1.0)
    };
    wait_until("a worker waits for its start", PATIENCE, || {
        daemon.log().lines().any(waits_long)
    });
    daemon
}

/// A server that takes 60 ms and more for each vCon.
fn slow_server() -> Webhook {
    Webhook::deciding(|_| {
        thread::sleep(Duration::from_millis(60));
        200
    })
}

fn state_of(status: &Value, worker: usize) -> Value {
    status["workers"][worker - 1]["state"].clone()
}

#[test]
fn the_page_shows_what_the_status_says_and_moves() {
    let (redis, monitor, hook) = (Redis::plain(), Monitor::at_a_port(), slow_server());
    let daemon = troubled(&redis, &monitor, &hook);
    let page = Page::of(&monitor);
    page.wait_until("that a worker is waited for", || {
        page.row("workers", "2")
            .get(1)
            .is_some_and(|state| state.starts_with("restarting in "))
    });
    let samples = fresh(400);
    submit(&redis, "default", &samples);
    let mut last = 0;
    for _ in 0..3 {
        page.wait_until("that more is done", || {
            let now = page.number("done").unwrap_or_default();
            let is_more = now > last;
            last = now;
            is_more
        });
    }
    page.wait_until("how long the slow storage takes", || {
        page.row("figures", "slow")
            .get(2)
            .is_some_and(|p50| p50.ends_with(" ms"))
    });
    assert!(page.row("workers", "1")[1].starts_with("busy "));
    for (name, screen) in [("light", DESKTOP), ("phone", PHONE)] {
        page.keep_picture(name, screen);
    }
    fits_a_phone(&page);
    is_readable_by_day_and_night(&page);
    Ledger::of(&redis, &samples).settles();
    same_figures(&page, &monitor, samples.len());
    same_estimates(&page, &daemon);

    assert_eq!(page.browser.complaints(), Vec::<String>::new());
    let fetched = page.browser.fetched();
    assert!(fetched.iter().any(|url| url.ends_with("/status")));
    for url in fetched {
        assert!(
            url.starts_with(&page.url) || url.starts_with("data:"),
            "{url}"
        );
    }
    may_ask_nobody_else(&page);
    daemon.kill_family();
}

/// The page's policy keeps it from other servers, and from making markup of text.
fn may_ask_nobody_else(page: &Page) {
    let asked = "return fetch('http://localhost:9/').then(() => 'allowed', (error) => error.name)";
    assert_eq!(page.run(asked), "TypeError");
    let mut complaints = Vec::new();
    wait_until("the browser complains", PATIENCE, || {
        complaints.extend(page.browser.complaints());
        !complaints.is_empty()
    });
    assert!(
        complaints[0].contains("Content Security Policy"),
        "{complaints:?}"
    );
    let made = "try { document.body.innerHTML = '<b>'; return 'allowed' } catch (error) { return error.name }";
    assert_eq!(page.run(made), "TypeError");
}

/// Nothing of it is beyond the edge of the screen.
fn fits_a_phone(page: &Page) {
    page.browser.show_on(PHONE);
    let beyond = "return [...document.querySelectorAll('main *')]
        .filter((it) => it.getBoundingClientRect().right > innerWidth + 0.5 && it.clientWidth > 1)
        .map((it) => `${it.tagName} ${it.textContent}`)";
    assert_eq!(page.run(beyond), json!([]));
    let width = "return document.documentElement.scrollWidth";
    assert_eq!(page.run(width), PHONE.width);
    page.browser.show_on(DESKTOP);
}

/// Every colour of text stands out from what is behind it as the WCAG want it (level AA).
fn is_readable_by_day_and_night(page: &Page) {
    let contrasts = "
        const style = getComputedStyle(document.documentElement), probe = document.body.appendChild(
            document.createElement('p'));
        const light = (name) => {
            probe.style.color = style.getPropertyValue(name);
            const parts = getComputedStyle(probe).color.match(/[0-9]+/g).slice(0, 3).map((n) => n / 255);
            const [r, g, b] = parts.map((n) => n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
        };
        const pairs = ['--back', '--card'].flatMap((back) => ['--text', '--soft', '--good', '--warn', '--bad']
            .map((text) => [back, text])).concat([['--alarm', '--text']]);
        const found = pairs.map(([back, text]) => [back, text,
            Math.max(light(back), light(text)) / Math.min(light(back), light(text))]);
        probe.remove();
        return found";
    let back = "return getComputedStyle(document.body).backgroundColor";
    let mut backs = Vec::new();
    for screen in [DESKTOP, AT_NIGHT] {
        page.browser.show_on(screen);
        backs.push(page.run(back));
        let found = page.run(contrasts);
        let found = found.as_array().expect("contrasts");
        assert_eq!(found.len(), 11);
        for pair in found {
            assert!(pair[2].as_f64() >= Some(4.5), "{pair}");
        }
    }
    assert_ne!(backs[0], backs[1]);
    page.browser.show_on(DESKTOP);
}

/// Holds every figure of a page at rest against the status.
fn same_figures(page: &Page, monitor: &Monitor, count: usize) {
    let mut status = Value::Null;
    page.wait_until("that all is done", || {
        status = monitor.get("/status").json();
        page.number("done") == Some(count as u64) && page.text("in-work") == "0 of 6"
    });
    page.wait_until("the lengths of the lists", || {
        page.row("queues", "done").get(2) == Some(&count.to_string())
    });
    for kind in ["ingress", "egress", "dead_letters"] {
        let lists = &status["queues"][kind];
        for (name, length) in lists.as_object().expect("lists") {
            assert_eq!(page.row("queues", name)[2], length.to_string(), "{kind}");
        }
    }
    for number in [1, 3] {
        let (row, worker) = (
            page.row("workers", &number.to_string()),
            &status["workers"][number - 1],
        );
        assert_eq!(json!(row[1]), state_of(&status, number));
        let figures = [&worker["done"], &worker["failed"], &worker["restarts"]];
        assert_eq!(row[4..7], figures.map(Value::to_string));
        assert_eq!(row[9], worker["pid"].to_string());
    }
    assert_eq!(state_of(&status, 2), "restarting");
    assert!(page.row("workers", "2")[1].starts_with("restarting"));
    for (kind, name) in [
        ("chains", NASTY),
        ("links", "tagger"),
        ("storages", "slow"),
        ("storages", "files"),
    ] {
        let all = status[kind].as_array().expect("figures");
        let figures = all.iter().find(|it| it["name"] == name).expect("figures");
        let row = page.row("figures", name);
        assert_eq!(row[5], figures["done"].to_string(), "{name}");
        assert_eq!(figures["done"], count, "{name}");
        assert_eq!(row[7], figures["failed"].to_string(), "{name}");
    }
    assert_eq!(page.run("return document.title"), "⚠ here: running");
    let markup = "return document.querySelectorAll('main script, main img').length";
    assert_eq!(page.run(markup), 0);
}

/// The page estimates quantiles as `conserver status` does.
fn same_estimates(page: &Page, daemon: &Daemon) {
    let table = daemon.conserver().run(&["status"]).stdout;
    for name in ["tagger", "slow", "files"] {
        let line = table
            .lines()
            .find(|line| line.contains(name))
            .expect("a line");
        let cells: Vec<&str> = line.split(['│', '┆']).map(str::trim).collect();
        let script = format!(
            "return fetch('status').then((answer) => answer.json()).then(({{ links, storages }}) => {{
                const figures = [...links, ...storages].find((it) => it.name === '{name}');
                const {{ mean, buckets }} = figures.seconds;
                return [mean, ...[0.5, 0.99].map((q) => quantile(q, buckets).seconds)].map(brief);
            }})"
        );
        assert_eq!(
            page.run(&script),
            json!([cells[7], cells[8], cells[9]]),
            "{line}"
        );
    }
}

#[test]
fn the_page_says_what_is_away_and_when_nobody_answers() {
    let (redis, monitor, blocked) = (Redis::plain(), Monitor::at_a_port(), Blocked::new());
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[blocked.storage()]))
        .env("CONSERVER_HTTP", monitor.setting())
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .start();
    monitor.wait_for("/readyz", 200);
    let page = Page::of(&monitor);
    page.wait_until("that all is well", || {
        page.text("state") == "running, 1 of 1 workers ready"
    });
    assert_eq!(page.text("troubles"), "");

    let samples = fresh(1);
    submit(&redis, "default", &samples);
    page.wait_until("what is on hold", || {
        let held = page.text("troubles");
        held.contains("storage files is unavailable (worker 1); waiting: chain main")
            && held.contains("Last error ")
            && held.contains(" ago: could not ")
            && page.text("state").ends_with(", 1 on hold")
    });
    blocked.free();
    page.wait_until("no hold any more", || page.text("troubles").is_empty());

    redis.kill9();
    page.wait_until("that the lists are not known", || {
        page.text("no-queues")
            .starts_with("The lengths are not known: ")
    });
    page.wait_until("that Redis is away", || {
        page.text("troubles")
            .contains("Redis has been unavailable for ")
    });
    assert_eq!(page.text("waiting"), "–");
    assert_eq!(page.row("workers", "1")[1], "idle");
    redis.start();
    page.wait_until("the lists again", || page.number("waiting").is_some());
    assert_eq!(page.browser.complaints(), Vec::<String>::new());

    daemon.kill_family();
    page.wait_until("that nobody answers", || {
        page.text("gone").starts_with("No answer since ")
    });
    assert_eq!(page.run("return document.title"), "⚠ no answer: here");
    let again = daemon.conserver().launch_again();
    page.wait_until("that somebody answers", || page.text("gone").is_empty());
    assert_eq!(page.number("done"), Some(0));
    begins_anew_with_each_daemon(&page);
    again.stop();
}

/// Readings of another daemon are not held against those of the former, even where it has the same
/// PID and is older by now than the former was.
fn begins_anew_with_each_daemon(page: &Page) {
    let known = "
        const reading = (pid, uptime_seconds, done, failed) => remember({
            pid, uptime_seconds, chains: [{ name: 'main', done, failed }], links: [], storages: [], workers: [],
        });
        const before = samples, known = (...last) => {
            samples = [];
            reading(1, 10, 5, 5);
            reading(...last);
            return samples.length;
        };
        const found = [
            known(1, 12, 6, 5), known(1, 10, 5, 5), known(2, 12, 6, 5), known(1, 9, 6, 5),
            known(1, 12, 4, 5), known(1, 12, 6, 0),
        ];
        samples = before;
        return found";
    assert_eq!(page.run(known), json!([2, 1, 1, 1, 1, 1]));
}

#[test]
fn what_storages_miss_is_shown_as_dead_letters_and_as_backlog() {
    let (redis, monitor, files) = (Redis::plain(), Monitor::at_a_port(), Files::new());
    let mut later = files.storage();
    later["on_outage"] = json!("defer");
    // Somebody else replays it: no lane works it off.
    redis.ask::<()>(&["SET", "DLQ:storage:later:replay-lock", "test"]);
    redis.ask::<i64>(&["RPUSH", "DLQ:storage:later", "a", "b", "c"]);
    redis.ask::<i64>(&["HSET", "conserver:dlq:storage:later", "b", "{}"]);
    redis.ask::<i64>(&["RPUSH", "DLQ:storage:files", "a"]);
    redis.ask::<()>(&["SET", "DLQ:storage:odd", "text"]);
    let storages = [
        ("later", later),
        ("files", files.storage()),
        ("odd", files.storage()),
        ("all", files.storage()),
    ];
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &storages))
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    monitor.wait_for("/readyz", 200);
    let page = Page::of(&monitor);
    page.wait_until("how many dead letters there are", || {
        page.number("dead-letters") == Some(2)
    });
    let rows = page.run(
        "return [...document.querySelectorAll('#queues tbody tr')]
             .map((row) => [...row.children].slice(0, 3).map((cell) => cell.textContent))
             .filter(([name]) => name.startsWith('DLQ:storage:'))",
    );
    assert_eq!(
        rows,
        json!([
            ["DLQ:storage:files", "dead letters", "1"],
            ["DLQ:storage:later", "dead letters", "1"],
            ["DLQ:storage:later", "backlog", "2"],
            ["DLQ:storage:odd", "dead letters", "not a list"],
        ])
    );
    assert_eq!(page.browser.complaints(), Vec::<String>::new());
    daemon.stop();
}

const TOKEN: &str = "0f9a-correct-horse-battery";

/// A daemon with dead letters of a list and of a storage, a chain on hold, and a page that may act.
struct Acting {
    redis: Redis,
    monitor: Monitor,
    daemon: Daemon,
    page: Page,
    /// What the storage `crm` answers.
    crm: Arc<AtomicU16>,
    _hook: Webhook,
    _files: Files,
    _blocked: Blocked,
}

impl Acting {
    fn start() -> Self {
        let (redis, monitor, files) = (Redis::plain(), Monitor::at_a_port(), Files::new());
        let (blocked, crm) = (Blocked::new(), Arc::new(AtomicU16::new(422)));
        let answer = Arc::clone(&crm);
        let hook = Webhook::deciding(move |_| answer.load(Ordering::Relaxed));
        let webhook =
            json!({"module": "storage.webhook", "options": {"webhook-urls": [hook.url()]}});
        let mut config = chain(&[], &[("archive", files.storage()), ("crm", webhook)]);
        let (name, storage) = blocked.storage();
        config["storages"][name] = storage;
        config["chains"]["mails"] =
            json!({"storages": [name], "ingress_lists": ["mails"], "egress_lists": ["done"]});
        let conserver = Conserver::with(&redis)
            .config(&config)
            .env("TICK_INTERVAL", "200")
            .env("CONSERVER_RETRY_ATTEMPTS", "1")
            .env("CONSERVER_HTTP", monitor.setting());
        let folder = conserver.folder().to_owned();
        let token = folder.join("token");
        fs::write(&token, TOKEN).expect("a file");
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("a file");
        // The daemon alone is told which configuration there is, and a `.env` of later is for its next start.
        fs::rename(folder.join("config.yml"), folder.join("other.yml")).expect("a file");
        let script = folder.join("with-config");
        let built = env!("CARGO_BIN_EXE_conserver");
        let text = format!("#!/bin/sh\nexec '{built}' --config other.yml \"$@\"\n");
        fs::write(&script, text).expect("a file");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a file");
        let conserver = conserver
            .without("CONSERVER_CONFIG_FILE")
            .program(script)
            .env("CONSERVER_HTTP_TOKEN_FILE", &token);
        let daemon = conserver.start();
        fs::write(folder.join(".env"), "no name=x\n").expect("a file");
        monitor.wait_for("/readyz", 200);
        // Its charts are to begin before anybody looks.
        let early = monitor.get("/history").json();
        assert_eq!(early["done"][0], 0, "{early}");
        submit(&redis, "mails", &fresh(1));
        // A third would be taken for a fault of the storage.
        submit(&redis, "default", &fresh(2));
        for missing in ["not-a-uuid", "00000000-0000-4000-8000-000000000000"] {
            redis.ask::<i64>(&["RPUSH", "default", missing]);
        }
        wait_until("there are dead letters", PATIENCE, || {
            redis.length("DLQ:storage:crm") == 2 && redis.length("DLQ:default") == 2
        });
        monitor.wait_for("/readyz", 503);
        let page = Page::of(&monitor);
        Self {
            redis,
            monitor,
            daemon,
            page,
            crm,
            _hook: hook,
            _files: files,
            _blocked: blocked,
        }
    }

    /// Presses the button of this name.
    fn press(&self, name: &str) {
        let xpath =
            format!("//button[@aria-label='{name}' or (not(@aria-label) and text()='{name}')]");
        self.page.browser.click(&xpath);
    }

    /// Waits for the outcome of an action.
    fn says(&self, words: &str) {
        self.page
            .wait_until(words, || self.page.text("outcome").contains(words));
    }
}

#[test]
fn dead_letters_are_retried_and_dropped_by_clicking_and_the_charts_have_the_time_before() {
    let acting = Acting::start();
    let page = &acting.page;
    page.wait_until("how many dead letters there are", || {
        page.number("dead-letters") == Some(4)
    });
    page.wait_until("what is on hold", || {
        page.text("troubles")
            .contains("storage files is unavailable")
    });
    // The charts begin with the daemon, not with the page.
    let begin = "return samples.length > 1 && samples[0].isRecalled && samples[0].done === 0
        && document.querySelector('#c-rate .line.done').getAttribute('d').startsWith('M')";
    page.wait_until("what was before", || page.run(begin) == true);
    assert!(
        page.text("letters").contains("storage:crm: 2"),
        "{}",
        page.text("letters")
    );

    // Without the token, it is asked for; a wrong one is refused and forgotten.
    acting.press("Retry all dead letters of storage:crm");
    assert_eq!(page.run("return document.activeElement.id"), "token");
    page.browser.type_text("something that is wrong");
    page.browser.press("Enter", 13);
    acting.says("not done: this is not the token");
    assert_eq!(
        page.run("return sessionStorage.length + localStorage.length"),
        0
    );
    acting.crm.store(200, Ordering::Relaxed);
    acting.press("Retry all dead letters of storage:crm");
    page.browser.type_text(TOKEN);
    page.browser.press("Enter", 13);
    acting.says("2 saved to storage crm");
    assert_eq!(acting.redis.length("DLQ:storage:crm"), 0);
    // The token is known from now on, and in this tab alone. Those of a group are retried by themselves.
    page.wait_until("the groups", || {
        page.text("letters").contains("failed in 2 ways")
    });
    let one = page.run("return document.querySelector('#letters td.actions button').ariaLabel");
    acting.press(one.as_str().expect("a name"));
    acting.says("1 put back on list default");
    wait_until("it fails again", PATIENCE, || {
        acting.redis.length("DLQ:default") == 2
    });
    acting.press("Retry all dead letters of default");
    acting.says("2 put back on list default");
    wait_until("they fail again", PATIENCE, || {
        acting.redis.length("DLQ:default") == 2
    });

    // A list is paused for all instances, and works again.
    acting.press("Pause list default");
    acting.says("list default is paused");
    page.wait_until("what is paused", || {
        page.text("troubles").contains("Paused: list default")
    });
    assert_eq!(
        acting
            .redis
            .ask::<i64>(&["HEXISTS", "conserver:paused", "list default"]),
        1
    );
    page.browser.click("//section[@id='troubles']//button");
    acting.says("list default is resumed");
    page.wait_until("that nothing is paused", || {
        !page.text("troubles").contains("Paused")
    });

    // What cannot be undone is confirmed, and Escape and Enter do nothing of it.
    for key in [("Escape", 27), ("Enter", 13)] {
        page.wait_until("the dead letters", || {
            page.text("letters").contains("default: 2")
        });
        acting.press("Drop all dead letters of default");
        assert_eq!(
            page.run("return document.getElementById('question').open"),
            true
        );
        page.browser.press(key.0, key.1);
        page.wait_until("no question", || {
            page.run("return document.getElementById('question').open") == false
        });
        assert_eq!(acting.redis.length("DLQ:default"), 2);
    }
    for (name, screen) in [
        ("status-page-actions-light", DESKTOP),
        ("status-page-actions", AT_NIGHT),
        ("status-page-actions-phone", PHONE),
        ("status-page-actions-phone-dark", PHONE_AT_NIGHT),
    ] {
        page.keep_picture(name, screen);
    }
    fits_a_phone(page);
    is_reached_by_the_keyboard(page);
    every_text_stands_out(page);
    has_no_known_barriers(page);
    page.browser.press("Escape", 27);
    acting.press("Drop all dead letters of default");
    acting.press("Drop");
    acting.says("2 dropped from DLQ:default");
    assert_eq!(acting.redis.length("DLQ:default"), 0);

    // After a load, the charts go back as far as before, and the token is still there.
    page.browser.open(&page.url);
    page.wait_until("what was before", || page.run(begin) == true);
    assert_eq!(page.run("return sessionStorage.length"), 1);
    acting.press("Forget the token");
    assert_eq!(page.run("return sessionStorage.length"), 0);
    let refused = "401 (Unauthorized)";
    let complaints = page.browser.complaints();
    assert!(
        complaints.iter().all(|it| it.contains(refused)),
        "{complaints:?}"
    );
    for done in [
        "/actions/dlq/retry: 2 saved to storage crm",
        "/actions/dlq/retry: 1 put back on list default",
        "/actions/dlq/retry: 2 put back on list default",
        "/actions/pause: list default is paused",
        "/actions/resume: list default is resumed",
        "/actions/dlq/drop: 2 dropped from DLQ:default",
    ] {
        assert_eq!(
            acting
                .daemon
                .count_in_log(&format!("127.0.0.1 asked for {done}")),
            1
        );
    }
    assert!(!acting.daemon.log().contains(TOKEN));
    assert_eq!(acting.monitor.get("/healthz").status, 200);
    acting.daemon.kill_family();
}

/// The tabulator stops at every control that can be seen, and each has a name and shows that it is there.
fn is_reached_by_the_keyboard(page: &Page) {
    let wanted = page.run(
        "document.activeElement.blur();
         document.getSelection().removeAllRanges();
         return [...document.querySelectorAll('button, a[href], input, summary')]
             .filter((it) => it.checkVisibility()).length",
    );
    let wanted = wanted.as_u64().expect("a number");
    assert!(wanted > 8, "{wanted}");
    let here = "
        const it = document.activeElement, style = getComputedStyle(it);
        if (it === document.body) return null;
        it.dataset.seen = 1;
        return [it.tagName, it.getAttribute('aria-label') ?? it.textContent, style.outlineStyle, style.outlineWidth]";
    for _ in 0..wanted + 10 {
        page.browser.press("Tab", 9);
        let found = page.run(here);
        // At the end it leaves the page, and comes back at its beginning.
        if found.is_null() {
            continue;
        }
        assert!(
            found[1]
                .as_str()
                .is_some_and(|name| !name.trim().is_empty()),
            "{found}"
        );
        assert_eq!(
            (&found[2], &found[3]),
            (&json!("solid"), &json!("2px")),
            "{found}"
        );
    }
    let missed = "return [...document.querySelectorAll('button, a[href], input, summary')]
        .filter((it) => it.checkVisibility() && !it.dataset.seen).map((it) => it.outerHTML)";
    assert_eq!(page.run(missed), json!([]));
}

/// Each text that is shown has at least the contrast of WCAG's level AA with what is behind it, by day and night.
fn every_text_stands_out(page: &Page) {
    let weak = "
        const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
        const rgba = (color) => {
            canvas.clearRect(0, 0, 1, 1);
            canvas.fillStyle = color;
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
        };
        const behind = (it) => {
            for (; it; it = it.parentElement) {
                const color = rgba(getComputedStyle(it).backgroundColor);
                if (color[3] === 255) return color;
            }
            return [255, 255, 255, 255];
        };
        const light = (color) => {
            const [r, g, b] = color.slice(0, 3).map((n) => n / 255)
                .map((n) => n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
        };
        const texts = [...document.querySelectorAll('body *')].filter((it) => it.checkVisibility()
            && [...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
        const found = texts.map((it) => {
            const [text, back] = [light(rgba(getComputedStyle(it).color)), light(behind(it))];
            return [it.textContent.slice(0, 40), Math.max(text, back) / Math.min(text, back)];
        });
        return [found.length, found.filter(([, contrast]) => contrast < 4.5)]";
    for screen in [DESKTOP, AT_NIGHT, PHONE, PHONE_AT_NIGHT] {
        page.browser.show_on(screen);
        let found = page.run(weak);
        assert!(found[0].as_u64() > Some(80), "{found}");
        assert_eq!(found[1], json!([]), "{screen:?}");
    }
    page.browser.show_on(DESKTOP);
}

/// What axe-core knows of barriers to people with disabilities; also with the dialog open. Left out where it is not in
/// the cache: see tests/run.sh.
fn has_no_known_barriers(page: &Page) {
    let Some(path) = cached_if_there("axe.min.js") else {
        return;
    };
    let axe = fs::read_to_string(path).expect("a script");
    page.run(&format!("{axe}; window.axe = axe"));
    let look = "return axe.run(document, { resultTypes: ['violations'] }).then(({ violations, passes }) =>
        [passes.length, violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html.slice(0, 200))])])";
    for screen in [DESKTOP, AT_NIGHT, PHONE] {
        page.browser.show_on(screen);
        let found = page.run(look);
        assert!(found[0].as_u64() > Some(15), "{found}");
        assert_eq!(found[1], json!([]), "{screen:?}");
    }
    page.browser.show_on(DESKTOP);
    page.browser.click("//button[text()='Drop all']");
    assert_eq!(page.run(look)[1], json!([]), "with the dialog");
}
