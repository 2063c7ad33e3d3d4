//! The vCons: documents of a given size, each under as many ids as are wanted.

use conserver::vcon::{Vcon, VconId, Version};
use serde_json::json;

use super::harness::{Sample, fresh};

/// The size of the vCons where nothing is said of it.
pub const USUAL: usize = 4500;

/// The bytes of a UUID.
const ID: usize = 36;

/// How many samples the project has.
const SAMPLES: usize = 10;

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
        Self::of_text(&id, &text)
    }

    /// The sample vCons of the project, their dialog repeated until they have about `size` bytes.
    pub fn samples(size: usize) -> Vec<Self> {
        let enlarged = |mut sample: Sample| {
            let dialog = sample.document["dialog"].as_array().cloned();
            let mut again = dialog.into_iter().flatten().cycle();
            // A sample without a dialog stays as it is.
            while let Some(part) = again.next().filter(|_| sample.text().len() < size) {
                let dialog = sample.document["dialog"].as_array_mut();
                dialog.expect("it was there before").push(part);
            }
            let id = sample.id.parse().expect("a UUID");
            Self::of_text(&id, &sample.text())
        };
        fresh(SAMPLES).into_iter().map(enlarged).collect()
    }

    fn of_text(id: &VconId, text: &str) -> Self {
        let mut vcon = Vcon::parse(id.clone(), text.to_owned()).expect("a vCon");
        // As `links.tag` writes it.
        vcon.add_tags(&["checked:checked".to_owned()])
            .expect("a tag");
        Self {
            plain: gap(text, id),
            tagged: gap(&vcon.outgoing(Version::Current).json, id),
        }
    }

    /// Its size in bytes, as a producer hands it in.
    pub fn size(&self) -> usize {
        self.plain.iter().map(String::len).sum::<usize>() + ID
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
