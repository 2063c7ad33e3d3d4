//! Certificates made on the spot: an authority, and a server's certificate that it signed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::program;

/// Files in PEM form, in one folder.
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    pub fn make(folder: &Path) -> Self {
        let made = Self {
            folder: folder.to_owned(),
        };
        let extensions = folder.join("extensions");
        let names = "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n";
        fs::write(&extensions, names).expect("a file");
        let openssl = |arguments: &str| {
            let output = Command::new(program("openssl", &[]))
                .args(arguments.split_whitespace())
                .current_dir(folder)
                .output()
                .expect("openssl");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "openssl {arguments}: {said}");
        };
        openssl("ecparam -genkey -name prime256v1 -noout -out ca.key");
        openssl("ecparam -genkey -name prime256v1 -noout -out server.key");
        openssl("req -x509 -new -key ca.key -subj /CN=Test-Authority -days 2 -out ca.pem");
        openssl("req -new -key server.key -subj /CN=localhost -out server.csr");
        openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile extensions -out server.pem",
        );
        made
    }

    pub fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    pub fn certificate(&self) -> PathBuf {
        self.folder.join("server.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.folder.join("server.key")
    }
}
