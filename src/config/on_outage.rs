//! What happens to vCons while a storage is unavailable.

use super::options::Options;

/// The key in an entry of `storages`.
const KEY: &str = "on_outage";

/// What happens to vCons while a storage is unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnOutage {
    /// The chains that need it are put on hold.
    #[default]
    Hold,
    /// The chains go on. What the storage misses waits in its backlog and is saved later.
    Defer,
}

impl OnOutage {
    /// The word in `config.yml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Defer => "defer",
        }
    }

    /// Reads it from the keys of a storage.
    pub(super) fn read(keys: &mut Options) -> Self {
        let Some(text) = keys.string(KEY) else {
            return Self::default();
        };
        let known = [Self::Hold, Self::Defer];
        let meant = known.into_iter().find(|it| it.as_str() == text);
        meant.unwrap_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            keys.fault(KEY, format!("{shown:?} is not hold or defer"));
            Self::default()
        })
    }
}
