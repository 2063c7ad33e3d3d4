//! What supervisor and forkserver say to each other: JSON, one message a line.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use crate::child::{Assignment, LONGEST_ASSIGNMENT};
use crate::sys::End;

/// A line longer than this is no message of ours.
const LONGEST: usize = LONGEST_ASSIGNMENT + (1 << 10);

/// To the forkserver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Start a child.
    Start(Box<Assignment>),
    /// The end of this child is known: nobody sends it a signal any more, and its PID may go to
    /// another process.
    Release { pid: i32 },
}

/// From the forkserver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// The child of this generation has this PID.
    Started { generation: u64, pid: i32 },
    /// The child of this generation could not be started.
    Failed { generation: u64, error: String },
    /// A child has ended, and waits to be released.
    Ended { pid: i32, end: End },
}

/// Makes a line of a message.
pub(super) fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// The lines that come in over a socket that does not block.
#[derive(Default)]
pub(super) struct Lines {
    pending: Vec<u8>,
    /// How many of these bytes were looked at, and have no end of a line.
    searched: usize,
}

impl Lines {
    /// Reads what has come, and answers the whole messages, and whether the other side is still
    /// there. A line that is no message is left out.
    pub fn read<T: for<'de> Deserialize<'de>>(
        &mut self,
        socket: &mut UnixStream,
    ) -> (Vec<T>, bool) {
        let mut bytes = [0; 65_536];
        let alive = loop {
            match socket.read(&mut bytes) {
                Ok(0) => break false,
                Ok(count) => self.pending.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error.kind() == io::ErrorKind::WouldBlock,
            }
            if self.pending.len() > LONGEST {
                break false;
            }
        };
        let unseen = &self.pending[self.searched..];
        let end = unseen.iter().rposition(|byte| *byte == b'\n');
        let whole = end.map_or(0, |at| self.searched + at + 1);
        let lines: Vec<u8> = self.pending.drain(..whole).collect();
        self.searched = self.pending.len();
        let messages = lines
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok());
        (messages.collect(), alive)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::child::{Leftover, Task};
    use crate::queue::Blame;

    /// An assignment as the supervisor writes it.
    fn assignment() -> Request {
        let assignment = Assignment {
            task: Task::Work {
                predecessor: Leftover {
                    worker: 3,
                    blame: Blame::These(vec![uuid::Uuid::from_u128(5)]),
                    end: "killed by SIGKILL".to_owned(),
                },
                sweep_above: Some(4),
            },
            ..crate::child::recover(0, 0)
        };
        Request::Start(Box::new(assignment))
    }

    proptest! {
        #[test]
        fn no_damage_to_messages_makes_a_reader_fail(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3usize), 0..8),
            part in 1..600usize,
        ) {
            let mut bytes = line(&assignment()).unwrap();
            bytes.extend(line(&assignment()).unwrap());
            for (index, byte, kind) in &edits {
                let at = index.index(bytes.len());
                match kind {
                    0 => bytes[at] = *byte,
                    1 => bytes.insert(at, *byte),
                    _ => drop(bytes.remove(at)),
                }
            }
            let (mut here, mut there) = UnixStream::pair().unwrap();
            here.set_nonblocking(true).unwrap();
            let mut lines = Lines::default();
            let mut all: Vec<Request> = Vec::new();
            for part in bytes.chunks(part) {
                there.write_all(part).unwrap();
                let (requests, alive) = lines.read(&mut here);
                prop_assert!(alive);
                all.extend(requests);
            }
            prop_assert!(all.len() <= 2 + edits.len());
            if edits.is_empty() {
                prop_assert_eq!(all, [assignment(), assignment()]);
            }
            for text in bytes.split(|byte| *byte == b'\n') {
                let _ = serde_json::from_slice::<Report>(text);
            }
        }
    }

    #[test]
    fn a_line_without_end_is_not_kept_for_ever() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let mut lines = Lines::default();
        let mut alive = true;
        let part = vec![b'['; 65_536];
        for _ in 0..2 * LONGEST / part.len() {
            there.write_all(&part).unwrap();
            (_, alive) = lines.read::<Report>(&mut here);
            if !alive {
                break;
            }
        }
        assert!(!alive && lines.pending.len() <= LONGEST + 65_536);
    }

    #[test]
    fn an_assignment_with_ten_thousand_vcons_comes_whole() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        // Far beyond the megabyte that was the limit once.
        let request = Request::Start(Box::new(crate::child::recover(10, 10_000)));
        let bytes = line(&request).unwrap();
        assert!(bytes.len() > 3 << 20);
        let writer = std::thread::spawn(move || there.write_all(&bytes).map(|()| there));
        let mut lines = Lines::default();
        let mut all: Vec<Request> = Vec::new();
        while all.is_empty() {
            let (requests, alive) = lines.read(&mut here);
            assert!(alive);
            all.extend(requests);
        }
        assert!(all == [request]);
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn messages_come_whole_however_they_were_cut() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let report = |pid| Report::Ended {
            pid,
            end: End::Exited(9),
        };
        let bytes = [report(1), report(2)]
            .map(|report| line(&report).unwrap())
            .concat();
        let mut lines = Lines::default();
        let mut all: Vec<Report> = Vec::new();
        for part in bytes.chunks(7) {
            there.write_all(part).unwrap();
            let (reports, alive) = lines.read(&mut here);
            all.extend(reports);
            assert!(alive);
        }
        there.write_all(b"rubbish\n").unwrap();
        drop(there);
        assert_eq!(lines.read::<Report>(&mut here), (Vec::new(), false));
        assert_eq!(all, [report(1), report(2)]);
    }
}
