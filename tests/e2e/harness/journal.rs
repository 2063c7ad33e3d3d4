//! What a Redis has changed, as its journal on disk has it.

use std::fs;
use std::path::PathBuf;

use super::Redis;

impl Redis {
    /// A server whose journal keeps every command; it does not wait for the disk.
    pub fn with_journal(self) -> Self {
        let arguments = ["--appendonly", "yes", "--appendfsync", "no"];
        self.with(&arguments).recorded()
    }

    /// Every command that has changed something, with its arguments and in its order; those of
    /// scripts are among them, one by one.
    pub fn journal(&self) -> Vec<Vec<String>> {
        let folder = self.folder().join("appendonlydir");
        let paths = folder.read_dir().expect("a journal").flatten();
        let paths = paths.map(|entry| entry.path());
        let paths: Vec<PathBuf> = paths
            .filter(|path| path.to_string_lossy().ends_with(".incr.aof"))
            .collect();
        assert_eq!(paths.len(), 1, "{paths:?}");
        let text = fs::read(&paths[0]).expect("a journal");
        let mut rest = &text[..];
        let mut commands = Vec::new();
        while !rest.is_empty() {
            // Lines that begin in another way tell the time.
            if let Some(count) = number(line(&mut rest), b'*') {
                commands.push((0..count).map(|_| argument(&mut rest)).collect());
            }
        }
        commands
    }
}

fn argument(rest: &mut &[u8]) -> String {
    let length = number(line(rest), b'$').expect("a length");
    let text = String::from_utf8_lossy(&rest[..length]).into_owned();
    *rest = &rest[length + 2..];
    text
}

fn line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let end = rest.iter().position(|byte| *byte == b'\n');
    let (line, after) = rest.split_at(end.expect("a line") + 1);
    *rest = after;
    line.trim_ascii_end()
}

fn number(line: &[u8], kind: u8) -> Option<usize> {
    let digits = line.strip_prefix(&[kind])?;
    Some(
        std::str::from_utf8(digits)
            .expect("digits")
            .parse()
            .expect("a number"),
    )
}
