//! When a process that does not show itself is taken for one that hangs.

use std::time::Duration;

/// After this many beats left out, a process counts as one that does not answer,
const BEATS_LEFT_OUT: u32 = 6;

/// but not before this time: with a short beat a busy machine or a server that hangs would do.
const SHORTEST_SILENCE: Duration = Duration::from_secs(30);

/// Whether a process that has not shown itself for so long is taken for one that hangs.
pub fn is_silent(silent: Duration, beat: Duration) -> bool {
    silent > (beat * BEATS_LEFT_OUT).max(SHORTEST_SILENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_beat_does_not_make_the_patience_short() {
        for (beat, seconds) in [(100, 30), (5_000, 30), (10_000, 60)] {
            let beat = Duration::from_millis(beat);
            let limit = Duration::from_secs(seconds);
            assert!(!is_silent(limit, beat));
            assert!(is_silent(limit + Duration::from_millis(1), beat));
        }
    }
}
