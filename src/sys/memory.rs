//! How the allocator treats large blocks.

/// A block of more bytes is a mapping of its own.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: i32 = 1 << 20;

/// Has the memory of every large block given back to the system as soon as it is free.
///
/// glibc raises its limit for that with each large block that is freed, up to 32 MB, and keeps what
/// is below for the next one: after some large documents a worker would hold several times their
/// size for ever. Other allocators do not need to be told.
pub fn give_back_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use nix::libc::{M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
        // SAFETY: it sets two numbers of the allocator, under the allocator's own lock.
        unsafe {
            mallopt(M_MMAP_THRESHOLD, LARGE);
            mallopt(M_TRIM_THRESHOLD, 2 * LARGE);
        }
    }
}

/// Gives all memory that is free back to the system, of blocks of any size.
///
/// What a document of many small parts leaves free would otherwise stay with the process: the limits above
/// are for large blocks, and for the end of the main thread's memory alone. Takes some milliseconds for each
/// 100 MB. Other allocators do that by themselves.
pub fn give_back_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: it takes a number, and works under the allocator's own locks.
        unsafe {
            nix::libc::malloc_trim(0);
        }
    }
}
