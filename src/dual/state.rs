//! The state file: the phases and coverages of the last run, and whether it ended cleanly.
//!
//! One small file, written beside itself, synced and renamed, with a CRC line: a crash leaves the old one or the new one.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::routing::{ClusterKeys, Coverage, Phase, RouteName};

/// The format's number; a file of another one is refused rather than guessed at.
const FORMAT: u32 = 1;

/// What is remembered of one route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRecord {
    pub route: RouteName,
    pub phase: Phase,
    /// Where the phase is a dual one.
    pub coverage: Option<Coverage>,
    pub in_doubt: bool,
}

/// What is remembered of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub version: u64,
    /// Whether the run ended by a drain; false while it runs.
    pub clean: bool,
    pub routes: Vec<RouteRecord>,
    /// Absent in files of the first version, which knew no other names.
    #[serde(default)]
    pub naming: Option<Naming>,
}

/// What the names of keys on the cluster depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Naming {
    pub cluster_keys: ClusterKeys,
    /// The patterns, as the configuration writes them.
    pub keys: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    snapshot: Snapshot,
    /// Routes that were on the cluster and may have left keys there.
    stale_on_cluster: Vec<RouteName>,
}

/// See the module.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    stale: Vec<RouteName>,
    last: Snapshot,
}

impl StateFile {
    /// Opens or begins the state of a directory; `None`: there was none, so this is the very first start.
    pub fn open(directory: &Path) -> io::Result<(Self, Option<Snapshot>)> {
        fs::create_dir_all(directory)?;
        let path = directory.join("state.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((Self { path, stale: Vec::new(), last: Snapshot::default() }, None));
            }
            Err(error) => return Err(error),
        };
        let document = parse(&text)?;
        let file = Self { path, stale: document.stale_on_cluster, last: document.snapshot.clone() };
        Ok((file, Some(document.snapshot)))
    }

    /// What is remembered in a directory, changing nothing; `None`: nothing yet.
    pub fn read(directory: &Path) -> io::Result<Option<Snapshot>> {
        match fs::read_to_string(directory.join("state.json")) {
            Ok(text) => parse(&text).map(|document| Some(document.snapshot)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the cluster may hold old keys of a route.
    pub fn has_stale_cluster_keys(&self, route: &RouteName) -> bool {
        self.stale.contains(route)
    }

    /// Writes the state; it is on disk when this returns.
    pub fn save(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let now: HashMap<&RouteName, &RouteRecord> = snapshot.routes.iter().map(|record| (&record.route, record)).collect();
        // A route that is not listed is in phase standalone; if it was on the cluster before, its copies stay behind.
        for before in self.last.routes.iter().filter(|before| before.phase != Phase::Standalone) {
            let is_gone = now.get(&before.route).is_none_or(|record| record.phase == Phase::Standalone);
            if is_gone && !self.stale.contains(&before.route) {
                self.stale.push(before.route.clone());
            }
        }
        // A whole walk over both stores has put right what was left behind.
        let is_synced = |record: &&RouteRecord| record.coverage == Some(Coverage::Both) && !record.in_doubt;
        self.stale.retain(|route| now.get(route).filter(|record| is_synced(record)).is_none());
        let document = Document { format: FORMAT, snapshot: snapshot.clone(), stale_on_cluster: self.stale.clone() };
        let body = serde_json::to_string(&document).map_err(io::Error::other)?;
        let text = format!("{body}\n{:08x}\n", crc32fast::hash(body.as_bytes()));
        let new = self.path.with_extension("new");
        let mut file = fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        fs::File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        self.last = snapshot.clone();
        Ok(())
    }
}

fn parse(text: &str) -> io::Result<Document> {
    let broken = |what: &str| {
        io::Error::other(format!(
            "the state file is damaged ({what}); move it away to start with every dual route in doubt"
        ))
    };
    let (body, crc) = text.trim_end().rsplit_once('\n').ok_or_else(|| broken("no checksum"))?;
    if format!("{:08x}", crc32fast::hash(body.as_bytes())) != crc {
        return Err(broken("wrong checksum"));
    }
    let document: Document = serde_json::from_str(body).map_err(|error| broken(&error.to_string()))?;
    if document.format != FORMAT {
        return Err(broken("written by another version"));
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(phase: Phase) -> RouteRecord {
        RouteRecord { route: RouteName::Provider("42".into()), phase, coverage: None, in_doubt: false }
    }

    #[test]
    fn what_was_saved_is_read_and_damage_is_seen_at_every_byte() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, before) = StateFile::open(directory.path()).unwrap();
        assert!(before.is_none());
        let snapshot = Snapshot { version: 3, clean: false, routes: vec![record(Phase::Cluster)], naming: None };
        file.save(&snapshot).unwrap();
        assert_eq!(StateFile::open(directory.path()).unwrap().1, Some(snapshot));
        let path = directory.path().join("state.json");
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() - 1 {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(StateFile::open(directory.path()).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_route_that_left_the_cluster_is_remembered_as_stale_there() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, _) = StateFile::open(directory.path()).unwrap();
        file.save(&Snapshot { version: 1, clean: false, routes: vec![record(Phase::DualStandalone)], naming: None }).unwrap();
        file.save(&Snapshot { version: 2, clean: false, routes: vec![], naming: None }).unwrap();
        let (again, _) = StateFile::open(directory.path()).unwrap();
        assert!(again.has_stale_cluster_keys(&RouteName::Provider("42".into())));
    }
}
