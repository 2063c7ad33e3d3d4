//! One module's options.

/// One module's options, read by accessors that record every fault.
pub struct Options;
