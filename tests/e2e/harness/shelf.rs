//! A storage of the program, opened in the test itself.

use std::path::Path;

use conserver::config::Config;
use conserver::deadline::Deadline;
use conserver::failure::Failure;
use conserver::storage::Storage;
use conserver::vcon::{Outgoing, Vcon, VconId, Version};
use serde_json::{Value, json};

use super::{Sample, chain, fresh, same};

/// A storage, as a lane has one.
pub struct Shelf(Box<dyn Storage>);

impl Shelf {
    /// Opens a storage that stands like this in `config.yml`.
    pub fn open(storage: &Value) -> Self {
        Self(config(storage).storages["shelf"].open_storage())
    }

    /// The same for each of several lanes of a worker, whose saves may go together.
    pub fn of_lanes(storage: &Value, lanes: usize) -> Vec<Self> {
        let config = config(storage);
        let open = |_| {
            let mut storage = config.storages["shelf"].open_storage();
            storage.batch_saves();
            Self(storage)
        };
        (0..lanes).map(open).collect()
    }

    pub fn save(&mut self, sample: &Sample) -> Result<(), Failure> {
        self.0.save(&outgoing(sample), Deadline::NONE)
    }

    pub fn get(&mut self, sample: &Sample) -> Result<Option<Value>, Failure> {
        let text = self.0.get(&id(sample), Deadline::NONE)?;
        Ok(text.map(|text| serde_json::from_str(&text).expect("JSON")))
    }

    pub fn delete(&mut self, sample: &Sample) -> Result<(), Failure> {
        self.0.delete(&id(sample))
    }

    pub fn probe(&mut self) -> Result<(), Failure> {
        self.0.probe()
    }

    /// Fails unless the vCon comes back as it was saved.
    pub fn has(&mut self, sample: &Sample) {
        let found = self.get(sample).unwrap_or_else(|error| panic!("{error}"));
        let expected: Value = serde_json::from_str(&outgoing(sample).json).expect("JSON");
        let found = found.unwrap_or_else(|| panic!("{} is not there", sample.id));
        assert!(same(&found, &expected), "{found} is not {expected}");
    }

    /// Saves every sample, saves it again changed, and removes it; each time, what is there is what
    /// was saved last.
    pub fn keeps_what_it_is_given(&mut self) {
        self.probe().unwrap_or_else(|error| panic!("{error}"));
        let mut samples = fresh(21);
        for sample in &samples {
            assert_eq!(self.get(sample), Ok(None));
            assert_eq!(self.save(sample), Ok(()));
        }
        for sample in &mut samples {
            self.has(sample);
            sample.document["subject"] = json!("Später: \u{1F4DE}");
            assert_eq!(self.save(sample), Ok(()));
            self.has(sample);
        }
        for sample in &samples {
            self.has(sample);
            assert_eq!(self.delete(sample), Ok(()));
            assert_eq!(self.get(sample), Ok(None));
            assert_eq!(self.delete(sample), Ok(()));
        }
    }
}

fn config(storage: &Value) -> Config {
    let text = chain(&[], &[("shelf", storage.clone())]).to_string();
    let config = Config::parse(&text, Path::new("config.yml"));
    config.unwrap_or_else(|errors| panic!("{errors}"))
}

fn id(sample: &Sample) -> VconId {
    sample.id.parse().expect("a UUID")
}

fn outgoing(sample: &Sample) -> Outgoing {
    let mut vcon = Vcon::parse(id(sample), sample.text()).expect("a vCon");
    vcon.outgoing(Version::Current)
}
