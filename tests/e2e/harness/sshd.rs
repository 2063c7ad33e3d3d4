//! A private server of SSH for files (SFTP): OpenSSH's.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, chown};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::guard::{Guard, Launch};
use super::postgres::unprivileged;
use super::{
    Files, family_of, free_port, private_folder, program, wait_for_server, wait_until_gone,
};

/// The server, with one user, who comes with a key.
pub struct Sshd {
    folder: TempDir,
    port: u16,
    owner: Option<(u32, u32)>,
    user: String,
    server: Mutex<Option<Guard>>,
}

impl Sshd {
    pub fn start() -> Self {
        let folder = private_folder();
        // As root it wants a folder of the system's; anybody else lets in only themselves.
        let is_ours = folder.path().metadata().expect("a folder").uid() == 0;
        let owner = is_ours.then(unprivileged);
        let id = owner.map_or_else(nix::unistd::geteuid, |(user, _)| Uid::from_raw(user));
        let user = User::from_uid(id).expect("users").expect("a user").name;
        let server = Self {
            folder,
            port: free_port(),
            owner,
            user,
            server: Mutex::new(None),
        };
        server.prepare();
        server.start_again();
        server
    }

    /// Makes keys, a folder for files, and the configuration.
    fn prepare(&self) {
        let path = self.folder.path();
        let keygen = program("ssh-keygen", &[]);
        for name in ["host", "client"] {
            let made = Command::new(&keygen)
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(path.join(name))
                .status();
            assert!(made.expect("ssh-keygen").success());
        }
        let key = fs::read_to_string(path.join("host.pub")).expect("a file");
        let known = format!("[127.0.0.1]:{} {key}", self.port);
        fs::write(path.join("known_hosts"), known).expect("a file");
        fs::create_dir(path.join("files")).expect("a folder");
        let shown = path.display();
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {shown}/host\nPidFile none\nStrictModes no\n\
             UsePAM no\nAuthorizedKeysFile {shown}/client.pub\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\nMaxStartups 100\n",
            self.port
        );
        fs::write(path.join("sshd_config"), config).expect("a file");
        if let Some((user, group)) = self.owner {
            let hand_over = |path: &Path| {
                chown(path, Some(user.into()), Some(group.into())).expect("chown");
            };
            hand_over(path);
            for entry in path.read_dir().expect("a folder").flatten() {
                hand_over(&entry.path());
            }
        }
    }

    /// Starts the server and waits until it can be reached.
    pub fn start_again(&self) {
        let log = self.folder.path().join("log");
        let sshd = program("sshd", &["/usr/sbin".into()]);
        let config = self.folder.path().join("sshd_config");
        // It starts itself anew for each connection, by its whole name.
        let command = [
            sshd.as_path(),
            Path::new("-D"),
            Path::new("-e"),
            Path::new("-f"),
            &config,
        ];
        let server = Guard::launch(Launch {
            command: command.map(|part| part.display().to_string()).to_vec(),
            log: &log,
            signal: "KILL",
            owner: self.owner,
            cleanup: None,
        });
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        wait_for_server("sshd", &log, || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    /// Kills the server and all its sessions.
    pub fn kill9(&self) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let server = server.take().expect("it runs");
        let mut family = family_of(server.pid());
        let sessions = family.split_off(1);
        server.end(Signal::SIGKILL);
        for pid in &sessions {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        wait_until_gone(&sessions);
    }

    /// Options of the deployment's storage `storage.sftp`.
    pub fn options(&self) -> Value {
        let path = |name: &str| self.folder.path().join(name);
        json!({"host": "127.0.0.1", "port": self.port, "user": self.user, "key": path("client"),
            "known_hosts": path("known_hosts"), "folder": path("files")})
    }

    /// What has been put there.
    pub fn files(&self) -> Files {
        Files::in_folder(&self.folder.path().join("files"))
    }
}
