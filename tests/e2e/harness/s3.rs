//! A private S3 server: s3s-fs, which keeps its objects as files and checks signatures, or moto,
//! which knows of missing buckets and speaks TLS.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::Signal;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::certificates::Certificates;
use super::guard::{Guard, Launch};
use super::{cached, free_port, private_folder, program, wait_for_server};

/// The secret key, which s3s-fs checks.
pub const SECRET: &str = "GeheimerSchluessel";

/// An S3 server; s3s-fs has one bucket, moto none.
pub struct S3 {
    folder: TempDir,
    port: u16,
    kind: Kind,
    certificates: Option<Certificates>,
    server: Mutex<Option<Guard>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Files,
    Moto,
}

impl S3 {
    /// A server that checks signatures, with the bucket `calls`.
    pub fn start() -> Self {
        let server = Self::new(Kind::Files, false);
        std::fs::create_dir_all(server.object("")).expect("a folder");
        server.start_again();
        server
    }

    /// A server without a bucket.
    pub fn without_bucket() -> Self {
        let server = Self::new(Kind::Moto, false);
        server.start_again();
        server
    }

    /// A server without a bucket that is reached over TLS.
    pub fn with_tls() -> Self {
        let server = Self::new(Kind::Moto, true);
        server.start_again();
        server
    }

    fn new(kind: Kind, tls: bool) -> Self {
        let folder = private_folder();
        Self {
            port: free_port(),
            kind,
            certificates: tls.then(|| Certificates::make(folder.path())),
            server: Mutex::new(None),
            folder,
        }
    }

    /// Starts the server and waits until it can be reached.
    pub fn start_again(&self) {
        let log = self.folder.path().join("log");
        let launch = Launch {
            command: self.command(),
            log: &log,
            signal: "KILL",
            owner: None,
            cleanup: None,
        };
        let server = Guard::launch(launch);
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        wait_for_server("the S3 server", &log, || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    fn command(&self) -> Vec<String> {
        let shown = |path: &Path| path.display().to_string();
        let port = self.port.to_string();
        let mut command;
        if self.kind == Kind::Files {
            command = vec![shown(&cached("bin/s3s-fs"))];
            command.extend(["--host", "127.0.0.1", "--port", &port].map(str::to_owned));
            command.extend(["--access-key", "keeper", "--secret-key", SECRET].map(str::to_owned));
            command.push(shown(&self.folder.path().join("objects")));
        } else {
            let path = format!("PYTHONPATH={}", cached("moto").display());
            command = vec!["env".to_owned(), path, shown(&program("python3", &[]))];
            command
                .extend(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port].map(str::to_owned));
            if let Some(certificates) = &self.certificates {
                command.extend(["-c".to_owned(), shown(&certificates.certificate())]);
                command.extend(["-k".to_owned(), shown(&certificates.key())]);
            }
        }
        command
    }

    /// Kills the server without a warning.
    pub fn kill9(&self) {
        let server = self
            .server
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        server.expect("it runs").end(Signal::SIGKILL);
    }

    /// For measurements: its process.
    #[allow(dead_code)]
    pub fn pid(&self) -> i32 {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.as_ref().expect("it runs").pid()
    }

    /// The port it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority that signed its certificate.
    pub fn authority(&self) -> PathBuf {
        self.certificates.as_ref().expect("TLS").authority()
    }

    /// Makes the bucket of [`S3::storage`] on moto, which asks for no signature.
    pub fn make_bucket(&self) {
        self.curl(&["--request", "PUT"], "/calls");
    }

    /// Writes an object on moto.
    pub fn put(&self, key: &str, text: &str) {
        let path = format!("/calls/{}", utf8_percent_encode(key, NON_ALPHANUMERIC));
        let kind = "Content-Type: binary/octet-stream";
        self.curl(
            &["--request", "PUT", "--header", kind, "--data-binary", text],
            &path,
        );
    }

    /// The keys of all objects on moto, sorted.
    pub fn keys(&self) -> Vec<String> {
        let list = self.curl(&[], "/calls?list-type=2&encoding-type=url");
        let keys = list.split("<Key>").skip(1).map(|rest| {
            let key = rest
                .split("</Key>")
                .next()
                .expect("an end")
                .replace('+', " ");
            percent_decode_str(&key)
                .decode_utf8()
                .expect("UTF-8")
                .into_owned()
        });
        let mut keys: Vec<String> = keys.collect();
        keys.sort();
        keys
    }

    fn curl(&self, arguments: &[&str], path: &str) -> String {
        let mut curl = std::process::Command::new(program("curl", &[]));
        curl.args(["--silent", "--show-error", "--fail", "--path-as-is"]);
        curl.args(arguments).arg(format!("{}{path}", self.url()));
        if let Some(certificates) = &self.certificates {
            curl.arg("--cacert").arg(certificates.authority());
        }
        let output = curl.output().expect("curl");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "curl: {said}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn url(&self) -> String {
        let scheme = if self.certificates.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The storage as it stands in `config.yml`.
    pub fn storage(&self) -> Value {
        json!({"module": "storage.s3", "options": {
            "aws_access_key_id": "keeper", "aws_secret_access_key": SECRET,
            "aws_bucket": "calls", "aws_region": "us-east-1",
            "endpoint_url": self.url(), "s3_path": "archive",
        }})
    }

    /// The storage with some options set or replaced.
    pub fn storage_with(&self, options: Value) -> Value {
        let mut storage = self.storage();
        for (key, value) in options.as_object().expect("a mapping") {
            storage["options"][key] = value.clone();
        }
        storage
    }

    /// Where s3s-fs keeps an object as a file.
    pub fn object(&self, key: &str) -> PathBuf {
        self.folder.path().join("objects/calls").join(key)
    }
}
