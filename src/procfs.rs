//! What `/proc` says of a process; nothing on systems that have no such place.

use std::fs;

/// The memory a process has for itself, with its share of what it has in common with others
/// (proportional set size), in bytes. Others than the owner and root are not told.
pub fn proportional_set_size(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    kilobytes(line)
}

/// The memory of this process that is in use (resident set size), in bytes.
pub fn own_resident_set_size() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    kilobytes(line)
}

fn kilobytes(line: &str) -> Option<u64> {
    let number: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(number * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_some_memory() {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        assert!(proportional_set_size(own) > Some(100_000));
        assert!(own_resident_set_size() > Some(100_000));
        assert_eq!(proportional_set_size(-1), None);
    }
}
