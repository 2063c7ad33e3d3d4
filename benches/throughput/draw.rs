//! The curves of the last run, as images for the README.

/// Draws them.
pub fn figures() {}
