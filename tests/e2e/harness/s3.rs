//! A private S3 server that keeps its objects as files: s3s-fs.

use std::net::TcpStream;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::guard::{Guard, Launch};
use super::{cached, free_port, private_folder, wait_for_server};

/// The secret key, which the server checks.
const SECRET: &str = "GeheimerSchluessel";

/// An S3 server with one bucket.
pub struct S3 {
    folder: TempDir,
    port: u16,
    _server: Guard,
}

impl S3 {
    pub fn start() -> Self {
        let (folder, port) = (private_folder(), free_port());
        let objects = folder.path().join("objects");
        std::fs::create_dir_all(objects.join("calls")).expect("a folder");
        let log = folder.path().join("log");
        let port_text = port.to_string();
        let arguments = ["--host", "127.0.0.1", "--port", &port_text];
        let mut command = vec![cached("bin/s3s-fs").display().to_string()];
        command.extend(arguments.map(str::to_owned));
        command.extend(["--access-key", "keeper", "--secret-key", SECRET].map(str::to_owned));
        command.push(objects.display().to_string());
        let launch = Launch {
            command,
            log: &log,
            signal: "KILL",
            owner: None,
            cleanup: None,
        };
        let server = Guard::launch(launch);
        wait_for_server("s3s-fs", &log, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self {
            folder,
            port,
            _server: server,
        }
    }

    /// The storage as it stands in `config.yml`.
    pub fn storage(&self) -> Value {
        json!({"module": "storage.s3", "options": {
            "aws_access_key_id": "keeper", "aws_secret_access_key": SECRET,
            "aws_bucket": "calls", "aws_region": "us-east-1",
            "endpoint_url": format!("http://127.0.0.1:{}", self.port), "s3_path": "archive",
        }})
    }

    /// Where an object is kept as a file.
    pub fn object(&self, key: &str) -> PathBuf {
        self.folder.path().join("objects/calls").join(key)
    }
}
