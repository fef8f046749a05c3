//! Which jobs run, and how far they are, for the next start.
//!
//! The file names every running job from its beginning, so that one which a crash cut off is begun again. How far it had
//! come is written at a clean stop only, behind the last effect, because only then it may be relied on: nobody writes
//! through a proxy that is down, and what was copied is equal still, unless a store came up anew meanwhile (its `run_id`
//! tells), the cluster's slots moved (a cursor means nothing to another node), or a key diverged since the job began. After
//! any other end effects may have been lost on their way to keys that had been copied already, so the walk begins anew; what
//! it finds equal it does not copy again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::jobs::{Difference, Kind};
use crate::routing::{Coverage, Phase, RouteName};

const FORMAT: u32 = 1;

/// A job that runs, or ran when the proxy ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub kind: Kind,
    pub routes: Vec<RouteName>,
    pub rate: u64,
    pub repair: bool,
    /// After a clean stop, if it may be relied on.
    pub at: Option<Checkpoint>,
}

impl Record {
    /// Whether it is a backfill that walks a route.
    pub fn covers(&self, route: &RouteName) -> bool {
        self.kind == Kind::Backfill && self.routes.contains(route)
    }
}

/// Where a job stood.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub place: Place,
    pub stores: Stores,
    pub standing: Vec<Standing>,
    pub counts: Counts,
    pub differences: Vec<Difference>,
}

/// Where a walk stands: what was walked to its end, and up to where the node after it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The number of the walk in its job.
    pub walk: u32,
    pub nodes_done: Vec<String>,
    /// The node that is walked, and the cursor behind the last page of which every key is done.
    pub node: Option<(String, String)>,
}

/// The server processes of both stores, and who serves which slots: what a place is relative to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stores {
    /// `run_id` by address.
    pub processes: BTreeMap<String, String>,
    /// CRC-32 of the layout.
    pub layout: u32,
}

/// What was known of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub route: RouteName,
    pub phase: Phase,
    pub coverage: Coverage,
    pub in_doubt: bool,
}

/// A job's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub scanned: u64,
    pub matched: u64,
    pub copied: u64,
    pub differing: u64,
    pub repaired: u64,
    pub pending: u64,
}

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    jobs: Vec<Record>,
}

/// The file. The lock is held while it is written.
#[derive(Debug)]
pub struct JobFile {
    path: PathBuf,
    /// What was written is for the next start, and nothing comes after it.
    is_over: Mutex<bool>,
}

impl JobFile {
    /// Of a state directory.
    pub fn of(directory: &Path) -> Self {
        Self { path: directory.join("jobs.json"), is_over: Mutex::new(false) }
    }

    /// What ran when the proxy ended. A file that is damaged is told and counts as none: the routes of a backfill that did
    /// not end are not synced, so nothing is trusted that should not be.
    pub fn read(&self) -> Vec<Record> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                tracing::warn!(%error, "jobs.json cannot be read; jobs that ran at the last end are not begun again: start them anew");
                return Vec::new();
            }
        };
        let parsed = text.trim_end().rsplit_once('\n').and_then(|(body, crc)| {
            let is_whole = format!("{:08x}", crc32fast::hash(body.as_bytes())) == crc;
            let document: Document = serde_json::from_str(body).ok()?;
            (is_whole && document.format == FORMAT).then_some(document.jobs)
        });
        parsed.unwrap_or_else(|| {
            tracing::warn!(
                "jobs.json is damaged or of another version; jobs that ran at the last end are not begun again: start them anew"
            );
            Vec::new()
        })
    }

    /// Writes what runs now. It is asked under the lock, so that of two that write at once the later one is right.
    pub fn write(&self, jobs: impl FnOnce() -> Vec<Record>) -> io::Result<()> {
        let is_over = self.is_over.lock();
        if *is_over {
            return Ok(());
        }
        self.replace(jobs())
    }

    /// Writes what the next start is to find.
    pub fn write_last(&self, jobs: Vec<Record>) -> io::Result<()> {
        let mut is_over = self.is_over.lock();
        *is_over = true;
        self.replace(jobs)
    }

    /// Whole, beside itself first: a crash leaves the old one or the new one.
    fn replace(&self, jobs: Vec<Record>) -> io::Result<()> {
        let body = serde_json::to_string(&Document { format: FORMAT, jobs }).map_err(io::Error::other)?;
        let new = self.path.with_extension("new");
        let mut file = fs::File::create(&new)?;
        file.write_all(format!("{body}\n{:08x}\n", crc32fast::hash(body.as_bytes())).as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_read_as_written_and_a_damaged_file_names_none() {
        let directory = tempfile::tempdir().unwrap();
        let file = JobFile::of(directory.path());
        assert_eq!(file.read(), []);
        let at = Checkpoint {
            place: Place { walk: 2, nodes_done: vec!["a:1".into()], node: Some(("b:2".into(), "77".into())) },
            stores: Stores { processes: BTreeMap::from([("a:1".into(), "x".into())]), layout: 5 },
            standing: vec![Standing {
                route: RouteName::OtherKeys,
                phase: Phase::DualStandalone,
                coverage: Coverage::StandaloneOnly,
                in_doubt: false,
            }],
            counts: Counts { scanned: 9, ..Counts::default() },
            differences: Vec::new(),
        };
        let routes = vec![RouteName::Provider("42".into())];
        let record = Record { kind: Kind::Backfill, routes, rate: 100, repair: false, at: Some(at) };
        file.write(|| vec![record.clone()]).unwrap();
        assert_eq!(file.read(), std::slice::from_ref(&record));
        file.write_last(vec![record.clone()]).unwrap();
        file.write(Vec::new).unwrap();
        assert_eq!(file.read(), [record], "what is written for the next start stays");
        let path = directory.path().join("jobs.json");
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() - 1 {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(file.read(), [], "cut at {cut}");
        }
    }
}
