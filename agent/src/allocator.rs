//! The C library's allocator, told to keep little.
//!
//! It keeps a pool for each of the first threads that allocate at the same time, eight for each
//! core, and gives nothing of the middle of a pool back to the kernel by itself. An agent works in
//! bursts, when many pods are to start, and is idle for days: what it needed for a moment would
//! stay with it. Where another allocator is used, or another C library, nothing of this happens.

#![cfg_attr(
    target_env = "gnu",
    expect(
        unsafe_code,
        reason = "the allocator is told by calls of the C library"
    )
)]

/// Pools for all threads: two let a thread allocate while another one does.
#[cfg(target_env = "gnu")]
const POOLS: libc::c_int = 2;

/// Has the allocator keep little memory for many threads. For the beginning of the `main` of a
/// program that runs an agent, before it has threads; libraries leave it alone.
pub fn keep_little_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers and sets a limit of the allocator under the allocator's lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, POOLS);
    }
}

/// Gives memory that is not used any more back to the kernel. Takes some milliseconds, while
/// others that allocate may have to wait.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and touches the allocator's free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
