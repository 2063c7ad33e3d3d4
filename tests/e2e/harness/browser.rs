//! A private browser without a window: Chromium, driven by WebDriver.

use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::Agent;

use super::guard::{Guard, Launch};
use super::{free_port, private_folder, program, wait_for_server};

/// As root there is no sandbox, and nobody else's pages are looked at. The rest keeps it from
/// asking for anything by itself.
const ARGUMENTS: [&str; 8] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
];

/// A browser with one page open.
pub struct Browser {
    agent: Agent,
    /// The address of its session at the driver.
    session: String,
    _server: Guard,
    _folder: TempDir,
}

/// What a page is looked at with.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    pub width: u32,
    pub height: u32,
    pub is_dark: bool,
}

impl Browser {
    /// Starts one. The driver and everything it starts are in a namespace of their own, so that
    /// the end of its first process is the end of all.
    pub fn start() -> Self {
        let (folder, port) = (private_folder(), free_port());
        let log = folder.path().join("log");
        let private = folder.path().display();
        let command = format!(
            "unshare --user --map-root-user --pid --fork --kill-child --mount-proc \
             env HOME={private} TMPDIR={private} {} --port={port}",
            program("chromedriver", &[]).display()
        );
        let server = Guard::launch(Launch {
            command: command.split_whitespace().map(str::to_owned).collect(),
            log: &log,
            signal: "KILL",
            owner: None,
            cleanup: None,
        });
        wait_for_server("chromedriver", &log, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build();
        let mut browser = Self {
            agent: agent.new_agent(),
            session: format!("http://127.0.0.1:{port}/session"),
            _server: server,
            _folder: folder,
        };
        let opened = browser.post(
            "",
            &json!({"capabilities": {"alwaysMatch": {
                "browserName": "chrome",
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                "goog:chromeOptions": {"args": ARGUMENTS},
            }}}),
        );
        let id = opened["sessionId"].as_str().expect("a session");
        browser.session = format!("{}/{id}", browser.session);
        browser
    }

    /// Opens a page and waits until it is loaded.
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({"url": url}));
    }

    /// Runs a script on the page; gives what it returns.
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Clicks, as a person does, on what an XPath finds.
    pub fn click(&self, xpath: &str) {
        let found = self.post("/element", &json!({"using": "xpath", "value": xpath}));
        let mut found = found.as_object().into_iter().flat_map(|it| it.values());
        let id = found.next().and_then(Value::as_str).expect("an element");
        self.post(&format!("/element/{id}/click"), &json!({}));
    }

    /// Types a text where the keyboard is.
    pub fn type_text(&self, text: &str) {
        self.devtools("Input.insertText", &json!({"text": text}));
    }

    /// Presses a key and lets it go: its name and its number.
    pub fn press(&self, key: &str, code: u32) {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            self.devtools(
                "Input.dispatchKeyEvent",
                &json!({
                    "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code,
                    "text": if kind == "keyDown" { text } else { "" },
                }),
            );
        }
    }

    /// The page is shown on such a screen from now on.
    pub fn show_on(&self, screen: Screen) {
        let scheme = if screen.is_dark { "dark" } else { "light" };
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            &json!({
                "width": screen.width, "height": screen.height,
                "deviceScaleFactor": 1, "mobile": screen.width < 600,
            }),
        );
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.devtools(
            "Emulation.setEmulatedMedia",
            &json!({"features": [feature]}),
        );
    }

    /// The whole page as a PNG, what is below the screen's edge too.
    pub fn screenshot(&self) -> Vec<u8> {
        let shot = self.devtools(
            "Page.captureScreenshot",
            &json!({"captureBeyondViewport": true}),
        );
        let data = shot["data"].as_str().expect("an image");
        BASE64_STANDARD.decode(data).expect("base64")
    }

    /// What the browser has to say of the page since it was last asked: errors of scripts,
    /// answers that failed, what was against the page's policy.
    pub fn complaints(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({"type": "browser"}));
        let is_bad = |entry: &&Value| entry["level"] != "DEBUG" && entry["level"] != "INFO";
        let entries = entries.as_array().into_iter().flatten().filter(is_bad);
        entries.map(|entry| entry["message"].to_string()).collect()
    }

    /// The addresses that the page has asked for since this was last asked.
    pub fn fetched(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({"type": "performance"}));
        let url = |entry: &Value| {
            let event: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let event = &event["message"];
            let url = event["params"]["request"]["url"].as_str();
            url.filter(|_| event["method"] == "Network.requestWillBeSent")
                .map(str::to_owned)
        };
        entries
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(url)
            .collect()
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.post(
            "/goog/cdp/execute",
            &json!({"cmd": command, "params": parameters}),
        )
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.session);
        let answer = self.agent.post(&url).send(body.to_string());
        let text = answer.and_then(|mut answer| answer.body_mut().read_to_string());
        let text = text.unwrap_or_else(|error| panic!("{url}: {error}"));
        let mut answer: Value = serde_json::from_str(&text).expect("JSON");
        assert!(answer["value"]["error"].is_null(), "{path} {body}: {text}");
        answer["value"].take()
    }
}
