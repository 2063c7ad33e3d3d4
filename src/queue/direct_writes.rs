//! Direct writes: links (Python ones) that write their vCon to Redis by themselves, without a look at what
//! others write meanwhile. This module keeps the texts of those others, to merge them in again.
//!
//! ```text
//! begin ─► the link reads … writes ─► end ─► the recorded texts are merged and written ─► forget
//!           └ others write: texts recorded ┘       ▲
//!                 the worker dies anywhere here ───┴─ by recovery
//! ```
//!
//! The texts are a list in Redis; a sign before each says what it was made of (see
//! `compare_and_write.lua`).

use std::collections::BTreeSet;

use super::recovery::Pause;
use super::{Document, Queue, QueueError, Replaced, is_wrong_type, keys};
use crate::vcon::{self, Vcon, VconError, VconId};

/// A link that has not ended its write after this many seconds has died with its worker.
const DIRECT_WRITE_EXPIRY: u64 = 86_400;

/// How many fields of a hash one step on the server looks at.
const STEP: usize = 1000;

/// The reply to an `HSCAN`: the next cursor, and fields with their values.
type HashPage = (u64, Vec<(Vec<u8>, Vec<u8>)>);

impl Queue {
    /// Records that a link is about to write a vCon directly. [`Queue::end_direct_write`] follows.
    pub fn begin_direct_write(&mut self, id: &VconId) -> Result<(), QueueError> {
        self.with(|connection, scripts, lane_id, _| {
            let mut call = scripts.direct_write_begin.key(keys::DIRECT_WRITES);
            call.key(keys::overwritten_key(id)).key(id.key());
            call.arg(id.as_str())
                .arg(lane_id.claims_key())
                .arg(lane_id.lane);
            Ok(call.arg(DIRECT_WRITE_EXPIRY).invoke::<()>(connection)?)
        })
    }

    /// Returns the texts that the link may have overwritten, if others have written since it began. If so,
    /// [`Queue::forget_overwritten`] follows once they are merged.
    pub fn end_direct_write(&mut self, id: &VconId) -> Result<Option<Overwritten>, QueueError> {
        self.with(|connection, scripts, lane_id, _| {
            let mut call = scripts.direct_write_end.key(keys::DIRECT_WRITES);
            call.key(keys::overwritten_key(id)).key(id.key());
            call.arg(id.as_str())
                .arg(lane_id.claims_key())
                .arg(lane_id.lane);
            Ok(Overwritten::of(call.invoke(connection)?))
        })
    }

    /// Forgets the texts of others, which have been merged into the document.
    pub fn forget_overwritten(&mut self, id: &VconId) -> Result<(), QueueError> {
        self.with(|connection, scripts, lane_id, _| {
            let mut call = scripts.direct_write_forget.key(keys::DIRECT_WRITES);
            call.key(keys::overwritten_key(id)).arg(id.as_str());
            call.arg(lane_id.claims_key()).arg(lane_id.lane);
            Ok(call.invoke::<()>(connection)?)
        })
    }

    /// Restores what a worker's links overwrote and could not merge before the worker ended. Calls `pause`
    /// before each vCon. Returns the vCons for which this is done.
    ///
    /// If the worker may be alive, its links still count as writers of these vCons. If a vCon cannot be
    /// restored now, [`Queue::recover_unreturned`] does it later.
    pub(super) fn restore_overwritten(
        &mut self,
        instance: &str,
        worker: u32,
        may_be_alive: bool,
        pause: &mut Pause<'_>,
    ) -> Result<Vec<VconId>, QueueError> {
        let claims = keys::claims_key(instance, worker);
        let orphans: Vec<(String, u64, u64)> = self.with(|connection, scripts, _, _| {
            let mut call = scripts.direct_write_orphans.key(keys::DIRECT_WRITES);
            Ok(call.arg(&claims).invoke(connection)?)
        })?;
        let mut ids = Vec::new();
        for (id, base, start) in orphans {
            let Ok(id) = id.parse::<VconId>() else {
                continue;
            };
            pause(self)?;
            match self.restore_one(&id, base, start) {
                Ok(Some(written)) if may_be_alive => self.with(|connection, scripts, _, _| {
                    let mut call = scripts.direct_write_restored.key(keys::DIRECT_WRITES);
                    call.arg(id.as_str()).arg(&claims).arg(written);
                    Ok(call.invoke::<()>(connection)?)
                })?,
                Ok(_) => {}
                Err(error) if error.is_interruption() => return Err(error),
                Err(error) => {
                    // If this fails as well, the vCon is not the reason.
                    self.restore_later(&id, &claims, may_be_alive)?;
                    log_postponed(&id, worker, &error);
                    continue;
                }
            }
            ids.push(id);
        }
        Ok(ids)
    }

    /// Leaves the texts that could not be restored now to worker 0, for which our monitor tries again.
    fn restore_later(
        &mut self,
        id: &VconId,
        claims: &str,
        may_be_alive: bool,
    ) -> Result<(), QueueError> {
        self.with(|connection, scripts, lane_id, _| {
            let mut call = scripts.direct_write_reassign.key(keys::DIRECT_WRITES);
            call.arg(id.as_str()).arg(claims);
            call.arg(keys::claims_key(&lane_id.instance, keys::UNRETURNED));
            Ok(call.arg(u8::from(may_be_alive)).invoke::<()>(connection)?)
        })
    }

    /// Forgets the direct writes of a worker that has ended to these vCons.
    pub(super) fn forget_direct_writes(
        &mut self,
        instance: &str,
        worker: u32,
        ids: &[VconId],
    ) -> Result<(), QueueError> {
        let claims = keys::claims_key(instance, worker);
        for id in ids {
            self.with(|connection, scripts, _, _| {
                let mut call = scripts.direct_write_forget.key(keys::DIRECT_WRITES);
                call.key(keys::overwritten_key(id)).arg(id.as_str());
                Ok(call.arg(&claims).invoke::<()>(connection)?)
            })?;
        }
        Ok(())
    }

    /// Merges what links may have overwritten of a vCon: the texts from index `start` on, by links that
    /// began with the text at `base`. If this writes a text, returns its index in the list.
    fn restore_one(
        &mut self,
        id: &VconId,
        base: u64,
        start: u64,
    ) -> Result<Option<u64>, QueueError> {
        let (count, texts): (u64, Vec<Vec<u8>>) = self.with(|connection, scripts, _, _| {
            let mut call = scripts
                .direct_write_overwritten
                .key(keys::overwritten_key(id));
            Ok(call.arg(base).arg(start).invoke(connection)?)
        })?;
        let Some(overwritten) = Overwritten::of(texts) else {
            return Ok(None);
        };
        // Before the load: the time between load and replacement is kept short.
        let mut ingress = self.lists_with_progress(id)?;
        loop {
            let Document::Found(kind, bytes) = self.load(id)? else {
                return Ok(None);
            };
            let restored = String::from_utf8(bytes)
                .map_err(|error| format!("the document is not UTF-8: {error}"))
                .and_then(|now| match merge_overwritten(id, &now, &overwritten) {
                    Ok(restored) => Ok(restored.map(|restored| (now, restored))),
                    Err(error) => Err(format!("the document {error}")),
                });
            let (now, Restored { text, conflicts }) = match restored {
                Ok(Some(restored)) => restored,
                Ok(None) => return Ok(None),
                Err(why) => {
                    Overwritten::log_lost(id, &why);
                    return Ok(None);
                }
            };
            std::mem::swap(&mut self.ingress, &mut ingress);
            let replaced = self.replace(id, kind, &now, &text);
            std::mem::swap(&mut self.ingress, &mut ingress);
            match replaced {
                Ok(Replaced::Done) => {
                    log_restored(id, &conflicts);
                    return Ok(Some(count));
                }
                Ok(Replaced::Changed) => {}
                Ok(Replaced::Deleted) => return Ok(None),
                Err(QueueError::Document(why)) => {
                    Overwritten::log_lost(id, &why);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The lists for which Redis holds progress of a vCon, of any configuration, a line each.
    fn lists_with_progress(&mut self, id: &VconId) -> Result<String, QueueError> {
        let end = format!("\n{id}");
        let pattern = format!("*{end}");
        self.with(|connection, _, _, _| {
            let (mut lists, mut cursor) = (BTreeSet::new(), 0);
            loop {
                let mut scan = redis::cmd("HSCAN");
                scan.arg(keys::PROGRESS).arg(cursor);
                scan.arg("MATCH").arg(&pattern).arg("COUNT").arg(STEP);
                let (next, found): HashPage = match scan.query(connection) {
                    Err(error) if is_wrong_type(&error) => break,
                    found => found?,
                };
                let fields = found.into_iter().map(|(field, _)| String::from_utf8(field));
                let fields = fields.filter_map(Result::ok);
                lists.extend(fields.filter_map(|it| it.strip_suffix(&end).map(str::to_owned)));
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
            Ok(lists.into_iter().collect::<Vec<_>>().join("\n"))
        })
    }
}

/// The texts that a direct write may have overwritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overwritten {
    /// The text that the link began with.
    pub base: String,
    /// What others have made of it, or of each other's texts, since then.
    pub texts: Vec<String>,
}

impl Overwritten {
    /// Reads what a script returned: the base, then the texts; or nothing.
    fn of(texts: Vec<Vec<u8>>) -> Option<Self> {
        // Lanes write only UTF-8.
        let mut texts = texts.into_iter().map(|text| match String::from_utf8(text) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        });
        let base = texts.next()?;
        let texts = texts.collect();
        Some(Self { base, texts })
    }

    /// Logs that what a link overwrote of this vCon could not be restored.
    pub fn log_lost(id: &VconId, why: &str) {
        log::error!(
            vcon_id = id.as_str();
            "{id}: a link overwrote the changes of others, which could not be restored: {why}"
        );
    }
}

/// A document with the overwritten changes in it again.
struct Restored {
    text: String,
    conflicts: Vec<String>,
}

/// Merges the texts that a link overwrote into the document that stands in Redis now; `None` if that has all
/// of their changes.
///
/// # Errors
/// The document in Redis is not a vCon.
fn merge_overwritten(
    id: &VconId,
    now: &str,
    overwritten: &Overwritten,
) -> Result<Option<Restored>, VconError> {
    let mut vcon = Vcon::read(id.clone(), now)?;
    let mut conflicts = Vec::new();
    for text in &overwritten.texts {
        match vcon::merge(&overwritten.base, &vcon, text.clone()) {
            Ok(merged) => {
                vcon = merged.vcon;
                conflicts.extend(merged.conflicts);
            }
            Err(error) => Overwritten::log_lost(id, &format!("the text {error}")),
        }
    }
    if !vcon::merge(now, &vcon, now.to_owned())?.vcon.is_changed() {
        return Ok(None);
    }
    vcon.note_changed();
    let text = vcon.to_json();
    Ok(Some(Restored { text, conflicts }))
}

fn log_restored(id: &VconId, conflicts: &[String]) {
    log::info!(
        vcon_id = id.as_str();
        "{id}: a link overwrote the changes of others before its worker ended, both changes are kept"
    );
    for member in conflicts {
        log::warn!(
            vcon_id = id.as_str();
            "{id}: `{member}` was changed in two ways, the value of the link stands"
        );
    }
}

fn log_postponed(id: &VconId, worker: u32, error: &QueueError) {
    // The first attempt has been logged.
    let level = if worker == keys::UNRETURNED {
        log::Level::Debug
    } else {
        log::Level::Warn
    };
    log::log!(
        level, vcon_id = id.as_str();
        "{id}: could not restore the changes of others that a link overwrote, will retry: {error}"
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A document with these tags.
    fn tagged(tags: &[&str]) -> String {
        let tags: Vec<String> = tags.iter().map(|tag| format!("{tag}:{tag}")).collect();
        let body = serde_json::to_string(&tags).unwrap();
        let tags = serde_json::json!({"purpose": "tags", "body": body, "encoding": "json"});
        serde_json::json!({"vcon": "0.3.0", "attachments": [tags]}).to_string()
    }

    #[test]
    fn what_was_overwritten_is_restored_and_nothing_else() {
        let id = VconId::random();
        let base = tagged(&["a"]);
        let restore = |now: &str, texts: &[&str]| {
            let overwritten = Overwritten {
                base: base.clone(),
                texts: texts.iter().copied().map(str::to_owned).collect(),
            };
            let restored = merge_overwritten(&id, now, &overwritten).unwrap();
            restored.map(|restored| {
                assert_eq!(restored.conflicts, Vec::<String>::new());
                let vcon = Vcon::parse(id.clone(), restored.text).unwrap();
                let tags = vcon.tags().unwrap().into_iter();
                tags.map(|(name, _)| name).collect::<Vec<_>>()
            })
        };
        let (first, second, other) = (tagged(&["a", "b"]), tagged(&["a", "c"]), tagged(&["a"]));
        assert_eq!(restore(&first, &[&first]), None);
        assert_eq!(restore(&first, &[&other]), None);
        let both = restore(&first, &[&second]).unwrap();
        assert_eq!(BTreeSet::from_iter(both), tags(&["a", "b", "c"]));
        let all = restore(&tagged(&["a", "d"]), &[&first, "no vCon", &second]).unwrap();
        assert_eq!(BTreeSet::from_iter(all), tags(&["a", "b", "c", "d"]));
        let overwritten = Overwritten {
            base: base.clone(),
            texts: Vec::new(),
        };
        assert!(merge_overwritten(&id, "no vCon", &overwritten).is_err());
    }

    fn tags(tags: &[&str]) -> BTreeSet<String> {
        tags.iter().map(|tag| (*tag).to_owned()).collect()
    }
}
