//! The vCons: one document of a given size, under as many ids as are wanted.

use conserver::vcon::{Vcon, VconId, Version};
use serde_json::json;

/// The size of the vCons where nothing is said of it.
pub const USUAL: usize = 4500;

/// A document with a gap for the id.
pub struct Document {
    plain: [String; 2],
    tagged: [String; 2],
}

impl Document {
    /// A document of about `size` bytes.
    pub fn of_size(size: usize) -> Self {
        let id = VconId::random();
        let part = |spoken: usize| {
            json!({
                "vcon": "0.4.0", "uuid": id.as_str(), "created_at": "2024-03-16T16:09:20Z",
                "subject": "A call about an order",
                "parties": [{"name": "Zoë", "tel": "+15550100"}, {"name": "Yves", "tel": "+15550101", "role": "agent"}],
                "dialog": [{
                    "type": "text", "start": "2024-03-16T16:09:20Z", "parties": [0, 1], "duration": 61.5,
                    "mediatype": "text/plain", "encoding": "none", "body": speech(spoken),
                }],
                "analysis": [{
                    "type": "summary", "dialog": 0, "vendor": "somebody", "mediatype": "text/plain",
                    "encoding": "none", "body": speech(spoken / 4),
                }],
                "attachments": [],
            })
        };
        let rest = part(0).to_string().len();
        let text = part(size.saturating_sub(rest) * 4 / 5).to_string();
        let mut vcon = Vcon::parse(id.clone(), text.clone()).expect("a vCon");
        vcon.add_tags(&["checked".to_owned()]).expect("a tag");
        Self {
            plain: gap(&text, &id),
            tagged: gap(&vcon.outgoing(Version::Current).json, &id),
        }
    }

    /// As a producer hands it in.
    pub fn plain(&self, id: &str) -> String {
        self.plain.join(id)
    }

    /// As the chain leaves it.
    pub fn left(&self, id: &str, tagged: bool) -> String {
        if tagged {
            self.tagged.join(id)
        } else {
            self.plain(id)
        }
    }
}

fn gap(text: &str, id: &VconId) -> [String; 2] {
    let (before, after) = text.split_once(id.as_str()).expect("its id");
    [before.to_owned(), after.to_owned()]
}

/// Words enough for so many bytes, always the same.
fn speech(size: usize) -> String {
    let mut random = fastrand::Rng::with_seed(7);
    let mut text = String::with_capacity(size + 12);
    while text.len() < size {
        for _ in 0..random.usize(2..10) {
            text.push(random.lowercase());
        }
        text.push(' ');
    }
    text.truncate(size);
    text
}

/// So many new ids.
pub fn ids(count: usize) -> Vec<String> {
    (0..count)
        .map(|_| uuid::Uuid::new_v4().to_string())
        .collect()
}
