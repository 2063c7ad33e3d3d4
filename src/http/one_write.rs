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
    /// A request has begun whose answer has not been asked for.
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

    fn end_request(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        self.is_begun = false;
        if self.head.is_empty() {
            return Ok(());
        }
        self.send(0, timeout)
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

    fn maybe_await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        // Also where something has come already that was not asked for.
        self.end_request(timeout)?;
        self.inner.maybe_await_input(timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.end_request(timeout)?;
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ureq::unversioned::transport::LazyBuffers;

    use super::*;

    /// Remembers what it was to send.
    #[derive(Debug)]
    struct Recorder {
        buffers: LazyBuffers,
        sent: Vec<String>,
    }

    impl Transport for Recorder {
        fn buffers(&mut self) -> &mut dyn Buffers {
            &mut self.buffers
        }
        fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
            let text = self.buffers.output()[..amount].to_vec();
            self.sent.push(String::from_utf8(text).unwrap());
            Ok(())
        }
        fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
            self.sent.push("?".to_owned());
            Ok(true)
        }
        fn is_open(&mut self) -> bool {
            true
        }
    }

    /// What is sent of requests in these parts, with 20 bytes of room; `?` waits for the answer.
    fn sent(parts: &[&str]) -> Vec<String> {
        let mut joined = Joined {
            inner: Recorder {
                buffers: LazyBuffers::new(20, 20),
                sent: Vec::new(),
            },
            head: Vec::new(),
            is_begun: false,
        };
        for part in parts {
            if *part == "?" {
                joined.maybe_await_input(NextTimeout::default()).unwrap();
                continue;
            }
            joined.buffers().output()[..part.len()].copy_from_slice(part.as_bytes());
            let part = part.len();
            joined
                .transmit_output(part, NextTimeout::default())
                .unwrap();
        }
        joined.inner.sent
    }

    #[test]
    fn the_head_goes_with_the_first_part_of_the_body_in_each_request() {
        assert_eq!(
            sent(&["PUT a.", "body", "more", "?", "?", "PUT b.", "body", "?"]),
            ["PUT a.body", "more", "?", "?", "PUT b.body", "?"]
        );
    }

    #[test]
    fn without_a_body_it_goes_when_the_answer_is_waited_for() {
        assert_eq!(
            sent(&["GET a.", "?", "GET b.", "?"]),
            ["GET a.", "?", "GET b.", "?"]
        );
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
