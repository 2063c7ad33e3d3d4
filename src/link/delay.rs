//! `links.delay`: lets time pass.
//!
//! Reads the option `seconds` (5); writes nothing. A draining worker does not wait for it. It asks
//! nothing of anyone, so no deadline cuts it: a chain's `timeout` must be longer than its delays.

use std::time::Duration;

use super::{Context, Link, LinkError, Next};
use crate::options::Options;
use crate::vcon::Vcon;

struct Delay {
    time: Duration,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    Box::new(Delay {
        time: options.seconds_or("seconds", 5.0),
    })
}

impl Link for Delay {
    fn run(&mut self, _vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        context.wait(self.time)?;
        Ok(Next::Continue)
    }

    fn waits(&self) -> Duration {
        self.time
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::vcon::{VconId, Version};

    #[test]
    fn it_waits_and_gives_up_when_the_worker_drains() {
        let (drain, drained) = crossbeam_channel::bounded(0);
        let mut context = Context::new(&drained, Version::Current);
        let mut vcon = Vcon::parse(VconId::random(), "{}".to_owned()).unwrap();

        let begun = Instant::now();
        let time = Duration::from_millis(50);
        assert_eq!(
            Delay { time }.run(&mut vcon, &mut context),
            Ok(Next::Continue)
        );
        assert!(begun.elapsed() >= time);

        drop(drain);
        let begun = Instant::now();
        let time = Duration::from_secs(3600);
        assert_eq!(
            Delay { time }.run(&mut vcon, &mut context),
            Err(LinkError::Interrupted)
        );
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert!(!vcon.is_changed());
    }
}
