//! A private nginx before a server of a test: logins, TLS, limits.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;

use tempfile::TempDir;

use super::certificates::Certificates;
use super::guard::{Guard, Launch};
use super::{free_port, private_folder, program, wait_for_server};

/// A running nginx, on 127.0.0.1.
pub struct Nginx {
    folder: TempDir,
    port: u16,
    certificates: Option<Certificates>,
    _server: Guard,
}

/// What it asks of clients.
#[derive(Default)]
pub struct Terms<'a> {
    /// Basic auth with this user and password.
    pub login: Option<(&'a str, &'a str)>,
    /// This `Authorization` header.
    pub authorization: Option<&'a str>,
    /// TLS.
    pub tls: bool,
    /// Bodies no longer than this, as in `1k`.
    pub largest_body: Option<&'a str>,
}

impl Nginx {
    /// Starts one before the server on this port.
    pub fn before(server: u16, terms: &Terms<'_>) -> Self {
        let folder = private_folder();
        let port = free_port();
        let certificates = terms.tls.then(|| Certificates::make(folder.path()));
        let config = folder.path().join("nginx.conf");
        let log = folder.path().join("log");
        fs::write(&config, config_text(&folder, port, server, terms)).expect("a file");
        let nginx = program("nginx", &["/usr/sbin".into()]);
        let arguments = ["-p", "-c", "-e"].map(str::to_owned);
        let paths = [folder.path(), &config, &log].map(|path| path.display().to_string());
        let mut command = vec![nginx.display().to_string()];
        command.extend(arguments.into_iter().zip(paths).flat_map(|(a, b)| [a, b]));
        let server = Guard::launch(Launch {
            command,
            log: &log,
            signal: "TERM",
            owner: None,
            cleanup: None,
        });
        wait_for_server("nginx", &log, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self {
            folder,
            port,
            certificates,
            _server: server,
        }
    }

    /// The address of what is behind it.
    pub fn url(&self) -> String {
        let scheme = if self.certificates.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The authority that signed its certificate.
    pub fn authority(&self) -> PathBuf {
        self.certificates.as_ref().expect("TLS").authority()
    }

    /// Answers everything with 429 from now on, or no longer.
    pub fn be_busy(&self, busy: bool) {
        let sign = self.folder.path().join("busy");
        if busy {
            fs::write(sign, "").expect("a file");
        } else {
            fs::remove_file(sign).expect("a file");
        }
    }
}

/// One process in the foreground, all its files in the folder.
fn config_text(folder: &TempDir, port: u16, server: u16, terms: &Terms<'_>) -> String {
    let path = folder.path().display();
    let mut asks = String::new();
    if let Some((user, password)) = terms.login {
        let users = folder.path().join("users");
        fs::write(users, format!("{user}:{{PLAIN}}{password}\n")).expect("a file");
        asks = format!("auth_basic es; auth_basic_user_file {path}/users;");
    }
    if terms.authorization.is_some() {
        asks += "if ($known = 0) { return 401 '{\"error\":{\"type\":\"security_exception\"}}'; }";
    }
    let expected = terms.authorization.unwrap_or("none");
    let (tls, certificate) = if terms.tls {
        let files =
            format!("ssl_certificate {path}/server.pem; ssl_certificate_key {path}/server.key;");
        (" ssl", files)
    } else {
        ("", String::new())
    };
    let largest = terms.largest_body.unwrap_or("0");
    let busy = r#"{"error":{"type":"es_rejected_execution_exception","reason":"queue full"}}"#;
    format!(
        "daemon off; master_process off; pid {path}/pid; events {{}}
        http {{
            access_log off; default_type application/json; client_max_body_size {largest};
            client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;
            fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;
            map $http_authorization $known {{ default 0; \"{expected}\" 1; }}
            server {{
                listen 127.0.0.1:{port}{tls}; {certificate}
                location / {{
                    if (-f {path}/busy) {{ return 429 '{busy}'; }}
                    {asks}
                    proxy_pass http://127.0.0.1:{server};
                    proxy_http_version 1.1; proxy_set_header Connection '';
                }}
            }}
        }}"
    )
}
