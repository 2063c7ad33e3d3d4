//! `config.yml`.

mod options;

pub use options::Options;
