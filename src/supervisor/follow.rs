//! The configuration in force: read by the supervisor alone, handed to everyone.
//!
//! A file that does not check never replaces one that did. The text of the one in force is kept
//! beside the scoreboard, private to this user, for children that are not forked from here and
//! for workers that are at work already.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Config, Source, Stamp};
use crate::runtime_dir;
use crate::scoreboard::{Board, SeriesKind, Shape};

/// The configuration in force.
pub(super) struct Followed {
    file: PathBuf,
    stamp: Option<Stamp>,
    text: String,
    /// What new workers forked from here begin with.
    pub config: Arc<Config>,
    /// Its number.
    pub generation: u64,
}

impl Followed {
    /// Puts the first configuration in force.
    pub fn begin(source: Source, file: PathBuf, board: &mut Board) -> io::Result<Self> {
        keep(&board.config_path(), &source.text)?;
        make_room(&source.config, board);
        board.set_config(1);
        Ok(Self {
            file,
            stamp: source.stamp,
            text: source.text,
            config: Arc::new(source.config),
            generation: 1,
        })
    }

    /// The file it is read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Reads the file again if it has changed. The kept text is replaced where someone, like a
    /// service that clears temporary folders, has removed it.
    pub fn look(&mut self, board: &mut Board) {
        let kept = board.config_path();
        if runtime_dir::open(&kept, OpenOptions::new().read(true)).is_err()
            && let Err(error) = keep(&kept, &self.text)
        {
            log::error!("The configuration could not be passed on: {error}");
        }
        if Stamp::of(&self.file) != self.stamp {
            self.read(board);
        }
    }

    /// Reads the file again, and answers whether it is in force now.
    pub fn read(&mut self, board: &mut Board) -> bool {
        self.stamp = Stamp::of(&self.file);
        // No file may bring the supervisor down.
        let loaded = catch_unwind(AssertUnwindSafe(|| Source::load(&self.file)));
        let source = match loaded {
            Ok(Ok(source)) => source,
            Ok(Err(errors)) => {
                log::error!("The configuration is not valid, the former one stays:");
                errors.lines().for_each(|line| log::error!("{line}"));
                return false;
            }
            Err(_) => {
                log::error!("The configuration could not be read, the former one stays");
                return false;
            }
        };
        if let Err(error) = keep(&board.config_path(), &source.text) {
            log::error!("The configuration could not be passed on, the former one stays: {error}");
            return false;
        }
        self.stamp = source.stamp;
        self.text = source.text;
        self.config = Arc::new(source.config);
        self.generation += 1;
        make_room(&self.config, board);
        board.set_config(self.generation);
        let file = self.file.display();
        log::info!("Configuration {file} was read and is in force");
        for warning in self.config.warnings.lines() {
            log::warn!("{warning}");
        }
        true
    }
}

/// The sizes of a scoreboard for this configuration, and for others that come later.
pub(super) fn shape(lanes: usize, config: &Config) -> Shape {
    let (links, storages) = (config.links.len(), config.storages.len());
    Shape::of(lanes, config.chains.len(), links, storages)
}

/// Makes room on the scoreboard for the figures of everything in the configuration. Without it
/// vCons are processed all the same.
fn make_room(config: &Config, board: &mut Board) {
    let chains = config.chains.iter().map(|chain| &chain.name);
    let chains = chains.map(|name| (SeriesKind::Chain, name.as_str()));
    let links = config
        .links
        .keys()
        .map(|name| (SeriesKind::Link, name.as_str()));
    let storages = config
        .storages
        .keys()
        .map(|name| (SeriesKind::Storage, name.as_str()));
    // If there is too little of it, what holds chains up is to be seen.
    match board.keep_figures_of(storages.chain(links).chain(chains)) {
        Ok(0) => {}
        Ok(left_out) => log::warn!(
            "There is no room left for the figures of {left_out} chains, links and storages, until the next restart"
        ),
        Err(error) => log::error!("New chains, links and storages have no figures: {error}"),
    }
}

/// Writes the text in the place of the former one, in one step.
fn keep(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("config-draft");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&draft, path)
}
