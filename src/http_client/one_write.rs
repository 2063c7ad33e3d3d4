//! The head of a request goes out together with its body.
//!
//! The client library writes them one after the other, and a server that is woken by the head
//! alone has to wait once more for the body. Here the head is held back until the first part of
//! the body comes, or the answer is waited for.

use std::mem;

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// A longer head is sent at once.
const LONGEST: usize = 16 << 10;

/// Wraps the connections of the connectors before it.
#[derive(Debug, Default)]
pub struct OneWrite;

impl<T: Transport> Connector<T> for OneWrite {
    type Out = Joined<T>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<T>,
    ) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| Joined {
            inner,
            head: Vec::new(),
            is_begun: false,
        }))
    }
}

/// A connection that holds heads back.
#[derive(Debug)]
pub struct Joined<T> {
    inner: T,
    /// What has not been sent yet.
    head: Vec<u8>,
    /// The head of a request has come. The client asks whether the connection is open before each.
    is_begun: bool,
}

impl<T: Transport> Joined<T> {
    /// Sends what was held back, before the first `amount` bytes of the output.
    fn send(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let head = mem::take(&mut self.head);
        let output = self.inner.buffers().output();
        let room = output.len().saturating_sub(head.len());
        // What the head pushes over the end follows by itself.
        let rest = output.get(room..amount).unwrap_or_default().to_vec();
        let first = amount - rest.len();
        output.copy_within(..first, head.len());
        output[..head.len()].copy_from_slice(&head);
        self.inner.transmit_output(head.len() + first, timeout)?;
        if rest.is_empty() {
            return Ok(());
        }
        self.inner.buffers().output()[..rest.len()].copy_from_slice(&rest);
        self.inner.transmit_output(rest.len(), timeout)
    }
}

impl<T: Transport> Transport for Joined<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = self.inner.buffers().output();
        // Half of the output, so that a head never needs more than one part of the body to fit in.
        let is_head = !mem::replace(&mut self.is_begun, true);
        if is_head && amount <= LONGEST.min(output.len() / 2) {
            self.head.extend_from_slice(&output[..amount]);
            Ok(())
        } else if self.head.is_empty() {
            self.inner.transmit_output(amount, timeout)
        } else {
            self.send(amount, timeout)
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        if !self.head.is_empty() {
            self.send(0, timeout)?;
        }
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.is_begun = false;
        // What was held back for one request must not go out with the next.
        self.head.is_empty() && self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use ureq::unversioned::transport::LazyBuffers;

    use super::*;

    /// Remembers what it was to send.
    #[derive(Debug)]
    struct Recorder {
        buffers: LazyBuffers,
        sent: Arc<Mutex<Vec<String>>>,
    }

    impl Transport for Recorder {
        fn buffers(&mut self) -> &mut dyn Buffers {
            &mut self.buffers
        }
        fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
            let text = self.buffers.output()[..amount].to_vec();
            self.sent
                .lock()
                .unwrap()
                .push(String::from_utf8(text).unwrap());
            Ok(())
        }
        fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
            self.sent.lock().unwrap().push("?".to_owned());
            Ok(true)
        }
        fn is_open(&mut self) -> bool {
            true
        }
    }

    /// What is sent of requests in these parts, with 20 bytes of room; `?` waits for an answer, `-`
    /// ends a request. The connection is used as the client does it.
    fn sent(parts: &[&str]) -> Vec<String> {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let mut joined: Box<dyn Transport> = Box::new(Joined {
            inner: Recorder {
                buffers: LazyBuffers::new(20, 20),
                sent: Arc::clone(&sent),
            },
            head: Vec::new(),
            is_begun: false,
        });
        for part in parts {
            match *part {
                "?" => assert!(joined.maybe_await_input(NextTimeout::default()).unwrap()),
                "-" => assert!(joined.is_open()),
                _ => {
                    joined.buffers().output()[..part.len()].copy_from_slice(part.as_bytes());
                    joined
                        .transmit_output(part.len(), NextTimeout::default())
                        .unwrap();
                }
            }
        }
        let sent = sent.lock().unwrap();
        sent.clone()
    }

    #[test]
    fn the_head_goes_with_the_first_part_of_the_body_in_each_request() {
        assert_eq!(
            sent(&[
                "PUT a.", "body", "more", "?", "?", "-", "PUT b.", "body", "?"
            ]),
            ["PUT a.body", "more", "?", "?", "PUT b.body", "?"]
        );
    }

    #[test]
    fn without_a_body_it_goes_when_the_answer_is_waited_for() {
        assert_eq!(
            sent(&["GET a.", "?", "-", "GET b.", "?"]),
            ["GET a.", "?", "GET b.", "?"]
        );
    }

    #[test]
    fn a_body_that_was_waited_with_is_not_held_back() {
        assert_eq!(sent(&["PUT a.", "?", "body"]), ["PUT a.", "?", "body"]);
    }

    #[test]
    fn a_connection_with_something_unsent_is_not_used_again() {
        let mut joined = Joined {
            inner: Recorder {
                buffers: LazyBuffers::new(20, 20),
                sent: Arc::default(),
            },
            head: b"PUT a.".to_vec(),
            is_begun: true,
        };
        assert!(!joined.is_open());
    }

    #[test]
    fn nothing_is_lost_or_reordered_where_there_is_no_room() {
        let full = "0123456789abcdefghij";
        assert_eq!(
            sent(&["PUT a.", full, "?"]),
            ["PUT a.0123456789abcd", "efghij", "?"]
        );
        assert_eq!(
            sent(&["a head of 17 bytes", "body", "?"]),
            ["a head of 17 bytes", "body", "?"]
        );
    }
}
