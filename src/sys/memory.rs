//! Memory: a file mapped and shared between processes, large blocks in huge pages, and free memory returned to
//! the system.

use std::alloc::{GlobalAlloc, Layout, System};

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The first words of a file, shared with every process that has mapped it.
pub struct SharedWords {
    start: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the memory is reached through atomics only, and stays mapped as long as the value lives.
unsafe impl Send for SharedWords {}
// SAFETY: as above; atomics may be used from several threads at once.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `count` words of `file`, which must be open for reading and writing.
    ///
    /// # Errors
    /// If the file is shorter than that: touching what is not there would kill the process.
    pub fn map(file: &File, count: usize) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(count.saturating_mul(size_of::<AtomicU64>()))
            .ok_or_else(|| io::Error::other("there is nothing to map"))?;
        if file.metadata()?.len() < bytes.get() as u64 {
            return Err(io::Error::other("the file has been cut short"));
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the system's choice harms no memory in use.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self {
            start: start.cast(),
            count,
        })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: a mapping begins on a page, so it is aligned; it has this many words, any bits
        // are a valid atomic, and it lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made above, with its length, and nothing borrows it now.
        // It fails only for a mapping that is none.
        let _ = unsafe { munmap(self.start.cast(), self.count * size_of::<AtomicU64>()) };
    }
}

/// The system's allocator, which asks for huge pages where a block is large.
///
/// A large document is a new block at each step, and in pages of 4 KB the system is interrupted 256 times for each
/// MB of it. With huge pages, a document of 10 MB takes half the time of the processor (14 instead of 28 ms). From 4
/// MB on, a block is a mapping of its own ([`give_back_large_blocks`]), of which at most one huge page of 2 MB is not
/// filled.
pub struct LargeBlockAllocator;

impl LargeBlockAllocator {
    /// A block of fewer bytes stays in small pages. From this size on it is a mapping of its own.
    const LEAST: usize = 4 << 20;

    #[cfg(target_os = "linux")]
    fn advise(block: *mut u8, size: usize) {
        const PAGE: usize = 4096;
        if size < Self::LEAST || block.is_null() {
            return;
        }
        // The whole mapping: one with two kinds of pages could not be moved when it grows.
        let start = block.map_addr(|address| address & !(PAGE - 1));
        let length = (block.addr() - start.addr() + size).next_multiple_of(PAGE);
        // SAFETY: advice changes no content, whatever else is in the pages. Where the system does not take it,
        // nothing changes.
        unsafe {
            nix::libc::madvise(start.cast(), length, nix::libc::MADV_HUGEPAGE);
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn advise(_: *mut u8, _: usize) {}
}

// SAFETY: every block comes from the system's allocator and goes back to it, as it was asked for.
unsafe impl GlobalAlloc for LargeBlockAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what the system's allocator asks for; so below.
        let block = unsafe { System.alloc(layout) };
        Self::advise(block, layout.size());
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        let block = unsafe { System.alloc_zeroed(layout) };
        Self::advise(block, layout.size());
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: see above.
        let block = unsafe { System.realloc(block, layout, size) };
        Self::advise(block, size);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: see above.
        unsafe { System.dealloc(block, layout) }
    }
}

/// A block of more bytes is a mapping of its own.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: i32 = 1 << 20;

/// Makes the allocator return every large block to the system as soon as it is free.
///
/// glibc raises its limit for that with each large block that is freed, up to 32 MB, and keeps
/// smaller ones for the next request: after some large documents a worker would hold several times
/// their size for ever. Other allocators return them unasked.
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

/// Returns all free memory to the system, of blocks of any size.
///
/// The many small blocks of a large document would otherwise stay with the process: the limits above
/// concern large blocks, and the end of the main thread's memory alone. Takes some milliseconds for
/// each 100 MB. Other allocators do this by themselves.
pub fn give_back_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: it takes a number, and works under the allocator's own locks.
        unsafe {
            nix::libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]

    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_one_mapping_writes_another_reads() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(64).expect("room");
        let one = SharedWords::map(&file, 8).expect("a mapping");
        let other = SharedWords::map(&file, 8).expect("a mapping");
        one.words()[7].store(42, Ordering::Relaxed);
        assert_eq!(other.words()[7].load(Ordering::Relaxed), 42);
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(56).expect("room");
        assert!(SharedWords::map(&file, 8).is_err());
        assert!(SharedWords::map(&file, 0).is_err());
    }
}
