//! Links that write a vCon in Redis by themselves: they do not look at what others write meanwhile.
//!
//! ```text
//! begin ─► the link reads … writes ─► end ─► what is kept is merged and written ─► forget
//!            └ others write: what they write is kept ┘     ▲
//!                      the worker dies anywhere here ──────┴─ by recovery
//! ```
//!
//! What is kept is a list of texts; how each came about stands before it (see `document.lua`).

use std::collections::BTreeSet;

use super::housekeeping::Scanned;
use super::recovery::Pause;
use super::{Document, Queue, QueueError, Replaced, is_wrong_type, keys};
use crate::vcon::{self, Vcon, VconError, VconId};

/// A link that has not ended its write after this many seconds has died with its worker.
const FOREIGN_EXPIRY: u64 = 86_400;

/// Fields of a hash looked at in one step on the server.
const STEP: usize = 1000;

impl Queue {
    /// Notes that a link is about to write a vCon by itself, without a look at what others write. To
    /// be followed by [`Queue::end_foreign_write`].
    pub fn begin_foreign_write(&mut self, id: &VconId) -> Result<(), QueueError> {
        self.with(|connection, scripts, seat, _| {
            let mut call = scripts.foreign_begin.key(keys::FOREIGN);
            call.key(keys::overwritten_key(id)).key(id.key());
            call.arg(id.as_str()).arg(seat.claims_key()).arg(seat.lane);
            Ok(call.arg(FOREIGN_EXPIRY).invoke::<()>(connection)?)
        })
    }

    /// What the link may have written over, if others have written since the begin. To be followed by
    /// [`Queue::forget_overwritten`] then.
    pub fn end_foreign_write(&mut self, id: &VconId) -> Result<Option<Overwritten>, QueueError> {
        self.with(|connection, scripts, seat, _| {
            let mut call = scripts.foreign_end.key(keys::FOREIGN);
            call.key(keys::overwritten_key(id)).key(id.key());
            call.arg(id.as_str()).arg(seat.claims_key()).arg(seat.lane);
            Ok(Overwritten::of(call.invoke(connection)?))
        })
    }

    /// What others wrote is in the document by now.
    pub fn forget_overwritten(&mut self, id: &VconId) -> Result<(), QueueError> {
        self.with(|connection, scripts, seat, _| {
            let mut call = scripts.foreign_forget.key(keys::FOREIGN);
            call.key(keys::overwritten_key(id)).arg(id.as_str());
            call.arg(seat.claims_key()).arg(seat.lane);
            Ok(call.invoke::<()>(connection)?)
        })
    }

    /// Lays what a worker's links have written over, and could not merge before the worker ended,
    /// under what they have left; calls `pause` before each vCon. Returns the vCons that this is done
    /// for.
    ///
    /// If the worker may be alive, its links still count as at work on these vCons. A vCon for which
    /// this cannot be done now holds up nothing: it is left to [`Queue::recover_kept`].
    pub(super) fn lay_back(
        &mut self,
        instance: &str,
        worker: u32,
        may_be_alive: bool,
        pause: &mut Pause<'_>,
    ) -> Result<Vec<VconId>, QueueError> {
        let claims = keys::claims_key(instance, worker);
        let left: Vec<(String, u64, u64)> = self.with(|connection, scripts, _, _| {
            let mut call = scripts.foreign_left.key(keys::FOREIGN);
            Ok(call.arg(&claims).invoke(connection)?)
        })?;
        let mut ids = Vec::new();
        for (id, base, start) in left {
            let Ok(id) = id.parse::<VconId>() else {
                continue;
            };
            pause(self)?;
            match self.lay_back_one(&id, base, start) {
                Ok(Some(written)) if may_be_alive => self.with(|connection, scripts, _, _| {
                    let mut call = scripts.foreign_laid.key(keys::FOREIGN);
                    call.arg(id.as_str()).arg(&claims).arg(written);
                    Ok(call.invoke::<()>(connection)?)
                })?,
                Ok(_) => {}
                Err(error) if error.is_interruption() => return Err(error),
                Err(error) => {
                    // If this fails as well, the vCon is not the reason.
                    self.keep_for_later(&id, &claims, may_be_alive)?;
                    tell_kept(&id, worker, &error);
                    continue;
                }
            }
            ids.push(id);
        }
        Ok(ids)
    }

    /// Has our monitor try again, as worker 0, to lay back what could not be laid back now.
    fn keep_for_later(
        &mut self,
        id: &VconId,
        claims: &str,
        may_be_alive: bool,
    ) -> Result<(), QueueError> {
        self.with(|connection, scripts, seat, _| {
            let mut call = scripts.foreign_keep.key(keys::FOREIGN);
            call.arg(id.as_str()).arg(claims);
            call.arg(keys::claims_key(&seat.instance, keys::KEPT));
            Ok(call.arg(u8::from(may_be_alive)).invoke::<()>(connection)?)
        })
    }

    /// A worker that has ended writes these vCons no more.
    pub(super) fn forget_foreign_writes(
        &mut self,
        instance: &str,
        worker: u32,
        ids: &[VconId],
    ) -> Result<(), QueueError> {
        let claims = keys::claims_key(instance, worker);
        for id in ids {
            self.with(|connection, scripts, _, _| {
                let mut call = scripts.foreign_forget.key(keys::FOREIGN);
                call.key(keys::overwritten_key(id)).arg(id.as_str());
                Ok(call.arg(&claims).invoke::<()>(connection)?)
            })?;
        }
        Ok(())
    }

    /// Lays back what links may have written over of a vCon: the texts from `start` on; they began with
    /// the one at `base`. If this writes a text, returns from where on that one is kept.
    fn lay_back_one(
        &mut self,
        id: &VconId,
        base: u64,
        start: u64,
    ) -> Result<Option<u64>, QueueError> {
        let (count, kept): (u64, Vec<Vec<u8>>) = self.with(|connection, scripts, _, _| {
            let mut call = scripts.foreign_kept.key(keys::overwritten_key(id));
            Ok(call.arg(base).arg(start).invoke(connection)?)
        })?;
        let Some(overwritten) = Overwritten::of(kept) else {
            return Ok(None);
        };
        // Not between the load and the replacement, which others must not come between.
        let mut ingress = self.lists_with_progress(id)?;
        loop {
            let Document::Found(kind, bytes) = self.load(id)? else {
                return Ok(None);
            };
            let laid = String::from_utf8(bytes)
                .map_err(|error| format!("the document is not UTF-8: {error}"))
                .and_then(|now| match lay_under(id, &now, &overwritten) {
                    Ok(laid) => Ok(laid.map(|laid| (now, laid))),
                    Err(error) => Err(format!("the document {error}")),
                });
            let (now, Laid { text, conflicts }) = match laid {
                Ok(Some(laid)) => laid,
                Ok(None) => return Ok(None),
                Err(why) => {
                    Overwritten::tell_lost(id, &why);
                    return Ok(None);
                }
            };
            std::mem::swap(&mut self.ingress, &mut ingress);
            let replaced = self.replace(id, kind, &now, &text);
            std::mem::swap(&mut self.ingress, &mut ingress);
            match replaced {
                Ok(Replaced::Done) => {
                    tell_laid(id, &conflicts);
                    return Ok(Some(count));
                }
                Ok(Replaced::Changed) => {}
                Ok(Replaced::Deleted) => return Ok(None),
                Err(QueueError::Document(why)) => {
                    Overwritten::tell_lost(id, &why);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The lists of whatever configuration for which progress of a vCon is kept, a line each.
    fn lists_with_progress(&mut self, id: &VconId) -> Result<String, QueueError> {
        let end = format!("\n{id}");
        let pattern = format!("*{end}");
        self.with(|connection, _, _, _| {
            let (mut lists, mut cursor) = (BTreeSet::new(), 0);
            loop {
                let mut scan = redis::cmd("HSCAN");
                scan.arg(keys::PROGRESS).arg(cursor);
                scan.arg("MATCH").arg(&pattern).arg("COUNT").arg(STEP);
                let (next, found): Scanned = match scan.query(connection) {
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

/// What a link that writes a vCon by itself may have written over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overwritten {
    /// The text that the link began with.
    pub base: String,
    /// What others have made of it, or of each other's texts, since then.
    pub texts: Vec<String>,
}

impl Overwritten {
    /// As a script returns it: the base, then the texts; or nothing.
    fn of(kept: Vec<Vec<u8>>) -> Option<Self> {
        // Lanes write only UTF-8.
        let mut kept = kept.into_iter().map(|text| match String::from_utf8(text) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        });
        let base = kept.next()?;
        let texts = kept.collect();
        Some(Self { base, texts })
    }

    /// Logs that what a link has written over of this vCon cannot be laid back.
    pub fn tell_lost(id: &VconId, why: &str) {
        log::error!(
            vcon_id = id.as_str();
            "{id}: a link wrote over what others had written, and that cannot be laid back: {why}"
        );
    }
}

/// What a document becomes.
struct Laid {
    text: String,
    conflicts: Vec<String>,
}

/// Lays what a link has written over under what stands in Redis now; `None` if that has all of it.
///
/// # Errors
/// What stands there is not a vCon.
fn lay_under(id: &VconId, now: &str, overwritten: &Overwritten) -> Result<Option<Laid>, VconError> {
    let mut vcon = Vcon::read(id.clone(), now)?;
    let mut conflicts = Vec::new();
    for text in &overwritten.texts {
        match vcon::merge(&overwritten.base, &vcon, text.clone()) {
            Ok(merged) => {
                vcon = merged.vcon;
                conflicts.extend(merged.conflicts);
            }
            Err(error) => Overwritten::tell_lost(id, &format!("the text {error}")),
        }
    }
    if !vcon::merge(now, &vcon, now.to_owned())?.vcon.is_changed() {
        return Ok(None);
    }
    vcon.note_changed();
    let text = vcon.to_json();
    Ok(Some(Laid { text, conflicts }))
}

fn tell_laid(id: &VconId, conflicts: &[String]) {
    log::info!(
        vcon_id = id.as_str();
        "{id}: a link wrote over what others had written, and its worker ended: both changes are kept"
    );
    for member in conflicts {
        log::warn!(
            vcon_id = id.as_str();
            "{id}: `{member}` was changed in two ways, the value of the link stands"
        );
    }
}

fn tell_kept(id: &VconId, worker: u32, error: &QueueError) {
    // It has been told when it was kept.
    let level = if worker == keys::KEPT {
        log::Level::Debug
    } else {
        log::Level::Warn
    };
    log::log!(
        level, vcon_id = id.as_str();
        "{id}: a link wrote over what others had written, that will be laid back later: {error}"
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
    fn what_was_written_over_is_laid_back_and_nothing_else() {
        let id = VconId::random();
        let base = tagged(&["a"]);
        let lay = |now: &str, texts: &[&str]| {
            let overwritten = Overwritten {
                base: base.clone(),
                texts: texts.iter().copied().map(str::to_owned).collect(),
            };
            let laid = lay_under(&id, now, &overwritten).unwrap();
            laid.map(|laid| {
                assert_eq!(laid.conflicts, Vec::<String>::new());
                let vcon = Vcon::parse(id.clone(), laid.text).unwrap();
                vcon.tag_names().unwrap()
            })
        };
        let (first, second, other) = (tagged(&["a", "b"]), tagged(&["a", "c"]), tagged(&["a"]));
        assert_eq!(lay(&first, &[&first]), None);
        assert_eq!(lay(&first, &[&other]), None);
        let both = lay(&first, &[&second]).unwrap();
        assert_eq!(BTreeSet::from_iter(both), tags(&["a", "b", "c"]));
        let all = lay(&tagged(&["a", "d"]), &[&first, "no vCon", &second]).unwrap();
        assert_eq!(BTreeSet::from_iter(all), tags(&["a", "b", "c", "d"]));
        let overwritten = Overwritten {
            base: base.clone(),
            texts: Vec::new(),
        };
        assert!(lay_under(&id, "no vCon", &overwritten).is_err());
    }

    fn tags(tags: &[&str]) -> BTreeSet<String> {
        tags.iter().map(|tag| (*tag).to_owned()).collect()
    }
}
