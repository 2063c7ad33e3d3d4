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

use super::dead_letters::is_wrong_type;
use super::keep::Scanned;
use super::{Document, Queue, QueueError, Replaced, keys};
use crate::vcon::{self, Vcon, VconError, VconId};

/// A link that has not ended its write after this many seconds has died with its worker.
const FOREIGN_EXPIRY: u64 = 86_400;

/// Fields of a hash looked at in one step on the server.
const STEP: usize = 1000;

impl Queue {
    /// Notes that a link is about to write a vCon by itself, without a look at what others write. To
    /// be followed by [`Queue::end_foreign_write`] with what this returns.
    pub fn begin_foreign_write(&mut self, id: &VconId) -> Result<u64, QueueError> {
        self.with(|connection, scripts, seat, _| {
            let mut call = scripts.foreign_begin.key(keys::FOREIGN);
            call.key(keys::overwritten_key(id)).arg(id.as_str());
            call.arg(seat.claims_key()).arg(seat.lane);
            call.arg(FOREIGN_EXPIRY);
            Ok(call.invoke(connection)?)
        })
    }

    /// The texts that others have written since the begin, and over which the link may have written. If
    /// there are any, to be followed by [`Queue::forget_overwritten`].
    pub fn end_foreign_write(
        &mut self,
        id: &VconId,
        begin: u64,
    ) -> Result<Vec<Vec<u8>>, QueueError> {
        let kept: Vec<Vec<u8>> = self.with(|connection, scripts, seat, _| {
            let mut call = scripts.foreign_end.key(keys::FOREIGN);
            call.key(keys::overwritten_key(id)).arg(id.as_str());
            call.arg(seat.claims_key()).arg(seat.lane).arg(begin);
            Ok(call.invoke(connection)?)
        })?;
        Ok(last_texts(&kept).into_iter().map(<[u8]>::to_vec).collect())
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
    /// under what they have left. Returns the vCons that such links were at work on.
    ///
    /// If the worker may be alive, its links still count as at work on these vCons.
    pub(super) fn lay_back(
        &mut self,
        instance: &str,
        worker: u32,
        may_be_alive: bool,
    ) -> Result<Vec<VconId>, QueueError> {
        let claims = keys::claims_key(instance, worker);
        let left: Vec<(String, usize)> = self.with(|connection, scripts, _, _| {
            let mut call = scripts.foreign_left.key(keys::FOREIGN);
            Ok(call.arg(&claims).invoke(connection)?)
        })?;
        let left = left.into_iter();
        let left: Vec<(VconId, usize)> = left
            .filter_map(|(id, begin)| Some((id.parse().ok()?, begin)))
            .collect();
        for (id, begin) in &left {
            let laid = self.lay_back_one(id, *begin)?;
            if may_be_alive {
                self.with(|connection, scripts, _, _| {
                    let mut call = scripts.foreign_laid.key(keys::FOREIGN);
                    call.arg(id.as_str()).arg(&claims).arg(laid);
                    Ok(call.invoke::<()>(connection)?)
                })?;
            }
        }
        Ok(left.into_iter().map(|(id, _)| id).collect())
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

    /// Lays back what was kept of a vCon from `begin` on. Returns how much of all that is kept has been
    /// seen to.
    fn lay_back_one(&mut self, id: &VconId, begin: usize) -> Result<usize, QueueError> {
        loop {
            let kept = self.overwritten(id)?;
            let texts = last_texts(kept.get(begin..).unwrap_or_default());
            let Some(base) = base(&kept).filter(|_| !texts.is_empty()) else {
                return Ok(kept.len());
            };
            let Document::Found(kind, bytes) = self.load(id)? else {
                return Ok(kept.len());
            };
            let laid = String::from_utf8(bytes)
                .map_err(|error| format!("the document is not UTF-8: {error}"))
                .and_then(|now| match lay_under(id, base, &now, &texts) {
                    Ok(laid) => Ok(laid.map(|laid| (now, laid))),
                    Err(error) => Err(format!("the document {error}")),
                });
            let (now, Laid { text, conflicts }) = match laid {
                Ok(Some(laid)) => laid,
                Ok(None) => return Ok(kept.len()),
                Err(why) => {
                    tell_lost(id, &why);
                    return Ok(kept.len());
                }
            };
            let ingress = self.lists_with_progress(id)?;
            let own = std::mem::replace(&mut self.ingress, ingress);
            let replaced = self.replace(id, kind, &now, &text);
            self.ingress = own;
            match replaced {
                Ok(Replaced::Done) => {
                    tell_laid(id, &conflicts);
                    // That text is kept as well.
                    return Ok(kept.len() + 1);
                }
                Ok(Replaced::Changed) => {}
                Ok(Replaced::Deleted) => return Ok(kept.len()),
                Err(QueueError::Document(why)) => {
                    tell_lost(id, &why);
                    return Ok(kept.len());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn overwritten(&mut self, id: &VconId) -> Result<Vec<Vec<u8>>, QueueError> {
        self.with(|connection, _, _, _| {
            let mut range = redis::cmd("LRANGE");
            range.arg(keys::overwritten_key(id)).arg(0).arg(-1);
            match range.query(connection) {
                Err(error) if is_wrong_type(&error) => Ok(Vec::new()),
                kept => Ok(kept?),
            }
        })
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

/// What a document becomes.
struct Laid {
    text: String,
    conflicts: Vec<String>,
}

/// Lays texts that were made of `base` under what stands in Redis now; `None` if that has all of it.
///
/// # Errors
/// What stands there is not a vCon.
fn lay_under(
    id: &VconId,
    base: &[u8],
    now: &str,
    texts: &[&[u8]],
) -> Result<Option<Laid>, VconError> {
    let mut vcon = Vcon::read(id.clone(), now)?;
    let base = String::from_utf8_lossy(base);
    let mut conflicts = Vec::new();
    for text in texts {
        let text = String::from_utf8_lossy(text).into_owned();
        match vcon::merge(&base, &vcon, text) {
            Ok(merged) => {
                vcon = merged.vcon;
                conflicts.extend(merged.conflicts);
            }
            Err(error) => tell_lost(id, &format!("the text {error}")),
        }
    }
    if !vcon::merge(now, &vcon, now.to_owned())?.vcon.is_changed() {
        return Ok(None);
    }
    vcon.note_changed();
    let text = vcon.to_json();
    Ok(Some(Laid { text, conflicts }))
}

/// What stood there before the first text was written.
fn base(kept: &[Vec<u8>]) -> Option<&[u8]> {
    match kept.first()?.split_first()? {
        (b'=', text) => Some(text),
        _ => None,
    }
}

/// The texts that no later one was made of: those have all of the others.
fn last_texts(kept: &[Vec<u8>]) -> Vec<&[u8]> {
    let mut texts = Vec::new();
    for kept in kept {
        let Some((how, text)) = kept.split_first() else {
            continue;
        };
        match how {
            b'+' => drop(texts.pop()),
            b'*' => {}
            _ => continue,
        }
        texts.push(text);
    }
    texts
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

fn tell_lost(id: &VconId, why: &str) {
    log::error!(
        vcon_id = id.as_str();
        "{id}: a link wrote over what others had written, and that cannot be laid back: {why}"
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn texts(kept: &[&str]) -> Vec<String> {
        let kept: Vec<Vec<u8>> = kept.iter().map(|it| it.as_bytes().to_vec()).collect();
        let texts = last_texts(&kept).into_iter();
        texts
            .map(|it| String::from_utf8(it.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn a_text_that_a_later_one_was_made_of_is_not_laid_under_again() {
        assert_eq!(texts(&[]), Vec::<String>::new());
        assert_eq!(texts(&["=a", "+b"]), ["b"]);
        assert_eq!(texts(&["=a", "+b", "+c"]), ["c"]);
        assert_eq!(texts(&["=a", "+b", "*c", "+d"]), ["b", "d"]);
        // From where a later link began.
        assert_eq!(texts(&["+c", "*d"]), ["c", "d"]);
        assert_eq!(texts(&["", "rubbish"]), Vec::<String>::new());
    }

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
            let texts: Vec<&[u8]> = texts.iter().map(|it| it.as_bytes()).collect();
            let laid = lay_under(&id, base.as_bytes(), now, &texts).unwrap();
            laid.map(|laid| {
                assert_eq!(laid.conflicts, Vec::<String>::new());
                let vcon = Vcon::parse(id.clone(), laid.text).unwrap();
                vcon.tag_names()
            })
        };
        let (first, second, other) = (tagged(&["a", "b"]), tagged(&["a", "c"]), tagged(&["a"]));
        assert_eq!(lay(&first, &[&first]), None);
        assert_eq!(lay(&first, &[&other]), None);
        let both = lay(&first, &[&second]).unwrap();
        assert_eq!(BTreeSet::from_iter(both), tags(&["a", "b", "c"]));
        let all = lay(&tagged(&["a", "d"]), &[&first, "no vCon", &second]).unwrap();
        assert_eq!(BTreeSet::from_iter(all), tags(&["a", "b", "c", "d"]));
        assert!(lay_under(&id, base.as_bytes(), "no vCon", &[]).is_err());
    }

    fn tags(tags: &[&str]) -> BTreeSet<String> {
        tags.iter().map(|tag| (*tag).to_owned()).collect()
    }
}
