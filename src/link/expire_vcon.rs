//! `links.expire_vcon`: lets Redis forget the vCon some time after its work is done.
//!
//! Reads the option `seconds` (86400); writes [`Context::expire`], not the vCon.

use super::{Context, Link, LinkError, Next};
use crate::options::Options;
use crate::vcon::Vcon;

/// A thousand years: Redis refuses times to live whose end it cannot count.
const LONGEST: i64 = 1000 * 366 * 86_400;

struct ExpireVcon {
    seconds: u64,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let seconds = options.integer_or("seconds", 86_400, 1..=LONGEST);
    Box::new(ExpireVcon {
        seconds: seconds.unsigned_abs(),
    })
}

impl Link for ExpireVcon {
    fn run(&mut self, _vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        context.expire = Some(self.seconds);
        Ok(Next::Continue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::testing::{opened, run};

    #[test]
    fn it_leaves_the_time_to_live_and_the_vcon_as_it_is() {
        for (options, expire) in [("{}", 86_400), ("{seconds: 60}", 60)] {
            let ran = run(&mut *opened(open, options), "{}");
            assert_eq!(ran.next, Ok(Next::Continue));
            assert_eq!(ran.expire, Some(expire));
            assert!(!ran.vcon.is_changed());
        }
    }
}
