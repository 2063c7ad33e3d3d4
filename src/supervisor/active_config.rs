//! The configuration in force: only the supervisor reads `config.yml`, and hands it to its children.
//!
//! A file that is not valid never replaces one that was; what has Python modules is a `candidate` first. The text in force is kept beside the
//! scoreboard, private to this user, for children that are not forked from the supervisor and for
//! workers that run already.

use std::fs::OpenOptions;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Config, ConfigErrors, Source, Stamp};
use crate::runtime_dir;
use crate::scoreboard::{Board, SeriesKind, Shape, chain_link_name};

/// The configuration in force.
pub(super) struct ActiveConfig {
    file: PathBuf,
    stamp: Option<Stamp>,
    text: String,
    /// What workers forked from the supervisor begin with.
    pub parsed: Arc<Config>,
    /// Its number.
    pub generation: u64,
    /// Whether metrics are sent to a collector, which get more figures.
    sends_metrics: bool,
}

impl ActiveConfig {
    /// Puts the first configuration in force.
    pub fn begin(
        source: Source,
        file: PathBuf,
        sends_metrics: bool,
        board: &mut Board,
    ) -> io::Result<Self> {
        runtime_dir::replace(&board.config_path(), &source.text)?;
        make_room(&source.config, sends_metrics, board);
        board.set_config(1);
        Ok(Self {
            file,
            stamp: source.stamp,
            text: source.text,
            parsed: Arc::new(source.config),
            generation: 1,
            sends_metrics,
        })
    }

    /// The file it is read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Replaces the kept text if someone, like a service that clears temporary folders, has removed it.
    pub fn mend(&self, board: &Board) {
        let kept = board.config_path();
        if runtime_dir::open(&kept, OpenOptions::new().read(true)).is_err()
            && let Err(error) = runtime_dir::replace(&kept, &self.text)
        {
            log::error!("The configuration could not be passed on: {error}");
        }
    }

    /// Whether the file has changed since it was read last.
    pub fn has_changed(&self) -> bool {
        Stamp::of(&self.file) != self.stamp
    }

    /// Reads the file again, and logs what is wrong with it.
    pub fn read(&mut self) -> Option<Source> {
        self.stamp = Stamp::of(&self.file);
        // No file may bring the supervisor down.
        let loaded = catch_unwind(AssertUnwindSafe(|| Source::load(&self.file)));
        match loaded {
            Ok(Ok(source)) => {
                self.stamp = source.stamp;
                Some(source)
            }
            Ok(Err(errors)) => {
                log_refusal(&errors);
                None
            }
            Err(_) => {
                log::error!("The configuration could not be read, the former one stays");
                None
            }
        }
    }

    /// Puts it in force. Returns whether it could be passed on to the children.
    pub fn put_in_force(&mut self, source: Source, board: &mut Board) -> bool {
        if let Err(error) = runtime_dir::replace(&board.config_path(), &source.text) {
            log::error!("The configuration could not be passed on, the former one stays: {error}");
            return false;
        }
        self.text = source.text;
        self.parsed = Arc::new(source.config);
        self.generation += 1;
        make_room(&self.parsed, self.sends_metrics, board);
        board.set_config(self.generation);
        let file = self.file.display();
        log::info!("Configuration {file} was read and is in force");
        for warning in self.parsed.warnings.lines() {
            log::warn!("{warning}");
        }
        true
    }
}

/// Logs why a configuration does not come into force.
pub fn log_refusal(errors: &ConfigErrors) {
    log::error!("The configuration is not valid, the former one stays:");
    errors.lines().for_each(|line| log::error!("{line}"));
}

/// The sizes of a scoreboard for this configuration, and for later ones.
pub(super) fn shape(lanes: usize, config: &Config, sends_metrics: bool) -> Shape {
    let (links, storages) = (config.links.len(), config.storages.len());
    let shape = Shape::of(lanes, config.chains.len(), links, storages);
    shape.with_more_series(for_collector(config, sends_metrics).len())
}

/// The further series that metrics for a collector are computed from.
fn for_collector(config: &Config, sends_metrics: bool) -> Vec<(SeriesKind, String)> {
    if !sends_metrics {
        return Vec::new();
    }
    let lists = config.chains.iter().flat_map(|chain| &chain.ingress_lists);
    let lists = lists.map(|list| (SeriesKind::List, list.to_string()));
    let links = config.chains.iter().flat_map(|chain| {
        let links = chain.links.iter();
        links.map(|link| (SeriesKind::ChainLink, chain_link_name(&chain.name, link)))
    });
    let storages = config.storages.keys();
    let storages = storages.map(|name| (SeriesKind::StorageFailure, name.clone()));
    lists.chain(links).chain(storages).collect()
}

/// Makes room on the scoreboard for the figures of every chain, link and storage. vCons are processed
/// without them too.
fn make_room(config: &Config, sends_metrics: bool, board: &mut Board) {
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
    // If there is too little, storages come first: they hold chains up.
    let more = for_collector(config, sends_metrics);
    let more = more.iter().map(|(kind, name)| (*kind, name.as_str()));
    match board.keep_figures_of(storages.chain(links).chain(chains).chain(more)) {
        Ok(0) => {}
        Ok(left_out) => log::warn!(
            "no room for the figures of {left_out} chains, links and storages until the next restart"
        ),
        Err(error) => log::error!(
            "could not make room for the figures of new chains, links and storages: {error}"
        ),
    }
}
