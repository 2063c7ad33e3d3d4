//! Random numbers that no other process has.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::thread;

use super::monotonic;

/// Seeds this thread's generator of random numbers anew. A forked process has that of its parent,
/// and so had all its siblings the same numbers; threads seed theirs by the time of their first
/// number, which siblings may share too.
pub fn seed_random() {
    fastrand::seed(entropy().unwrap_or_else(guess));
}

/// What the system has drawn; nothing where it draws none.
fn entropy() -> Option<u64> {
    let mut bytes = [0; size_of::<u64>()];
    let (start, length) = (bytes.as_mut_ptr().cast(), bytes.len());
    #[cfg(target_os = "linux")]
    // SAFETY: the call writes at most `length` bytes, and as many are ours from `start` on.
    let drawn = usize::try_from(unsafe { nix::libc::getrandom(start, length, 0) }) == Ok(length);
    #[cfg(not(target_os = "linux"))]
    // SAFETY: the call writes `length` bytes, and as many are ours from `start` on.
    let drawn = unsafe { nix::libc::getentropy(start, length) } == 0;
    drawn.then(|| u64::from_ne_bytes(bytes))
}

/// Without entropy: what no other thread on this machine has at this moment.
fn guess() -> u64 {
    let mut hasher = DefaultHasher::new();
    (std::process::id(), thread::current().id(), monotonic()).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_had_the_numbers_of_another_has_its_own() {
        let drawn = |seeds_anew: bool| {
            // As after a fork: the state is a copy.
            fastrand::seed(7);
            if seeds_anew {
                seed_random();
            }
            [(); 4].map(|()| fastrand::u64(..))
        };
        assert_eq!(drawn(false), drawn(false));
        assert_ne!(drawn(true), drawn(false));
        assert_ne!(drawn(true), drawn(true));
        assert_ne!(entropy(), entropy());
        assert_ne!(guess(), guess());
    }
}
