//! The state file: the phases and coverages of the last run, and whether it ended cleanly.
//!
//! Two small files with the same text, each written beside itself, synced and renamed, with a CRC line: a crash leaves the
//! old one or the new one, and a disk that spoils one of them spoils nothing. A flip must be on disk before a client sees it,
//! while the gates are closed, and three syncs of a busy disk take seconds: it is written whole to a third file before, and
//! counts from when one byte of that is overwritten, which moves no metadata. With both files spoilt, or the third one, the
//! program does not start:
//! which store leads a route, and whether the other one holds keys that were deleted since, cannot be guessed without
//! answering from the wrong one. The operator may, by moving them away, take the table as it stands in proxy.toml; a journal
//! that is there without them puts every dual route in doubt.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::routing::{ClusterKeys, Coverage, Databases, Phase, RouteName};

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
    /// Absent in files of versions that moved one database only.
    #[serde(default)]
    pub databases: Option<Databases>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Document {
    format: u32,
    /// Grows with each save, so that the newer of two is known.
    #[serde(default)]
    number: u64,
    /// Tells this proxy from others; absent in files of versions that knew no others.
    #[serde(default)]
    id: String,
    snapshot: Snapshot,
    /// Routes that were on the cluster and may have left keys there.
    stale_on_cluster: BTreeSet<RouteName>,
}

/// What the file says beside its last snapshot.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Routes that were on the cluster and may have left keys there.
    stale: BTreeSet<RouteName>,
    last: Snapshot,
}

impl Memory {
    /// Takes a snapshot in.
    pub fn note(&mut self, snapshot: &Snapshot) {
        let now: HashMap<&RouteName, &RouteRecord> =
            snapshot.routes.iter().map(|record| (&record.route, record)).collect();
        let before: HashMap<&RouteName, &RouteRecord> =
            self.last.routes.iter().map(|record| (&record.route, record)).collect();
        let on_standalone = || snapshot.routes.iter().filter(|record| record.phase == Phase::Standalone);
        let mut left = BTreeSet::new();
        // A route that is not listed is in phase standalone; if it was on the cluster before, its copies stay behind.
        for record in self.last.routes.iter().filter(|record| record.phase != Phase::Standalone) {
            if now.get(&record.route).is_none_or(|record| record.phase == Phase::Standalone) {
                left.insert(record.route.clone());
            }
        }
        // The same for a line that takes its keys out of one that goes on. A provider has no keys for others to take.
        let may_be_cut = |route: &RouteName| !matches!(route, RouteName::Provider(_));
        let wide =
            self.last.routes.iter().filter(|record| record.phase != Phase::Standalone && may_be_cut(&record.route));
        let wide: Vec<&RouteName> = wide.map(|record| &record.route).collect();
        for record in on_standalone().filter(|record| !before.contains_key(&record.route)) {
            if wide.iter().any(|route| route.may_share_keys(&record.route)) {
                left.insert(record.route.clone());
            }
        }
        // A whole walk over both stores has put right what was left behind, but for lines of their own.
        let is_synced = |route: &RouteName| {
            now.get(route).is_some_and(|record| record.coverage == Some(Coverage::Both) && !record.in_doubt)
        };
        self.stale.append(&mut left);
        let synced: BTreeSet<RouteName>;
        (synced, self.stale) = std::mem::take(&mut self.stale).into_iter().partition(is_synced);
        for route in synced.into_iter().filter(may_be_cut) {
            left.extend(on_standalone().map(|record| &record.route).filter(|own| own.may_share_keys(&route)).cloned());
        }
        self.stale.append(&mut left);
        self.last = snapshot.clone();
    }

    /// Whether the cluster may hold old keys of a route, under whatever line.
    pub fn has_stale_cluster_keys(&self, route: &RouteName) -> bool {
        self.stale.iter().any(|stale| stale.may_share_keys(route))
    }
}

/// A snapshot on its way to the disk.
#[derive(Debug)]
struct Draft {
    document: Document,
    memory: Memory,
    text: String,
}

impl Draft {
    /// Whether the draft says of a snapshot what matters. A doubt that was written down and is none any more costs a backfill;
    /// the other way round it would be forgotten.
    fn stands_for(&self, snapshot: &Snapshot) -> bool {
        let mut drafted = self.document.snapshot.clone();
        for (record, now) in drafted.routes.iter_mut().zip(&snapshot.routes) {
            record.in_doubt &= now.in_doubt;
        }
        drafted == *snapshot
    }
}

/// The third file ends with one of them, on a line of its own; neither can stand there in the text.
const PREPARED: u8 = b'?';
const COMMITTED: u8 = b'!';

/// See the module.
#[derive(Debug)]
pub struct StateFile {
    paths: [PathBuf; 2],
    next: PathBuf,
    number: u64,
    id: String,
    memory: Memory,
    /// In the third file, and that file.
    prepared: Option<(Draft, fs::File)>,
}

impl StateFile {
    /// Opens or begins the state of a directory; `None`: there was none, so this is the very first start.
    pub fn open(directory: &Path) -> io::Result<(Self, Option<Snapshot>)> {
        fs::create_dir_all(directory)?;
        let (paths, next) = (paths(directory), next(directory));
        let found = newest(directory)?;
        let number = found.as_ref().map_or(0, |document| document.number);
        let known = found.as_ref().map(|document| document.id.clone()).filter(|id| !id.is_empty());
        let id = known.unwrap_or_else(|| format!("{:016x}", fastrand::u64(..)));
        let (memory, snapshot) = match found {
            Some(Document { snapshot, stale_on_cluster, .. }) => {
                (Memory { stale: stale_on_cluster, last: snapshot.clone() }, Some(snapshot))
            }
            None => (Memory::default(), None),
        };
        Ok((Self { paths, next, number, id, memory, prepared: None }, snapshot))
    }

    /// What tells this proxy from others, in every run with this directory.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is remembered in a directory, changing nothing; `None`: nothing yet.
    pub fn read(directory: &Path) -> io::Result<Option<Snapshot>> {
        Ok(newest(directory)?.map(|document| document.snapshot))
    }

    /// See [`Memory::has_stale_cluster_keys`].
    pub fn has_stale_cluster_keys(&self, route: &RouteName) -> bool {
        self.memory.has_stale_cluster_keys(route)
    }

    /// Writes the state; it is on disk when this returns.
    pub fn save(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.prepared = None;
        let draft = self.draft(snapshot)?;
        self.write_whole(&draft)?;
        self.memory = draft.memory;
        Ok(())
    }

    /// Writes what the state may become, which [`StateFile::commit`] decides.
    pub fn prepare(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.prepared = None;
        let draft = self.draft(snapshot)?;
        write_beside(&self.next, &[draft.text.as_bytes(), &[PREPARED]])?;
        self.sync_directory()?;
        self.prepared = Some((draft, fs::File::options().write(true).open(&self.next)?));
        Ok(())
    }

    /// What was prepared is the state, and is on disk when this returns; what differs from it, or was not prepared, is saved.
    pub fn commit(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let Some((draft, file)) = self.prepared.take().filter(|(draft, _)| draft.stands_for(snapshot)) else {
            return self.save(snapshot);
        };
        let at = draft.text.len() as u64;
        if let Err(error) = file.write_all_at(&[COMMITTED], at).and_then(|()| file.sync_data()) {
            // The caller goes on as before, so that is what the next start has to find.
            file.write_all_at(&[PREPARED], at)?;
            return Err(error);
        }
        self.memory = draft.memory.clone();
        self.prepared = Some((draft, file));
        Ok(())
    }

    /// Brings what was committed into the two files. The gates are open by now, and nothing depends on how long it takes.
    pub fn settle(&mut self) -> io::Result<()> {
        let Some((draft, _)) = self.prepared.take() else { return Ok(()) };
        self.write_whole(&draft)
    }

    fn draft(&mut self, snapshot: &Snapshot) -> io::Result<Draft> {
        let mut memory = self.memory.clone();
        memory.note(snapshot);
        self.number += 1;
        let (number, stale_on_cluster) = (self.number, memory.stale.clone());
        let document =
            Document { format: FORMAT, number, id: self.id.clone(), snapshot: snapshot.clone(), stale_on_cluster };
        let body = serde_json::to_string(&document).map_err(io::Error::other)?;
        let text = format!("{body}\n{:08x}\n", crc32fast::hash(body.as_bytes()));
        Ok(Draft { document, memory, text })
    }

    fn write_whole(&self, draft: &Draft) -> io::Result<()> {
        for path in &self.paths {
            write_beside(path, &[draft.text.as_bytes()])?;
        }
        self.sync_directory()?;
        match fs::remove_file(&self.next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        fs::File::open(self.next.parent().unwrap_or(Path::new(".")))?.sync_all()
    }
}

/// Replaces a file by one that is on disk.
fn write_beside(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    parts.iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()?;
    fs::rename(&new, path)
}

fn paths(directory: &Path) -> [PathBuf; 2] {
    [directory.join("state.json"), directory.join("state.copy.json")]
}

fn next(directory: &Path) -> PathBuf {
    directory.join("state.next.json")
}

/// The newest of those that can be read; `None`: there are none. One of the two that is missing or spoilt is told and made
/// good by the next save.
fn newest(directory: &Path) -> io::Result<Option<Document>> {
    let paths = paths(directory);
    let read = |path: &PathBuf| match fs::read(path) {
        Ok(bytes) => parse(&String::from_utf8_lossy(&bytes)).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let newer = |one: Option<Document>, other: Option<Document>| {
        [one, other].into_iter().flatten().max_by_key(|document| document.number)
    };
    let saved = match [read(&paths[0]), read(&paths[1])] {
        [Ok(one), Ok(other)] => newer(one, other),
        [Err(error), Ok(Some(good))] | [Ok(Some(good)), Err(error)] => {
            tracing::warn!(%error, "one of the two state files cannot be used; the other one is whole");
            Some(good)
        }
        [Err(error), _] | [_, Err(error)] => return Err(error),
    };
    let committed = match fs::read(next(directory)) {
        Ok(bytes) => parse_next(&bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(newer(saved, committed))
}

/// `None`: it was never committed.
fn parse_next(bytes: &[u8]) -> io::Result<Option<Document>> {
    match bytes.split_last() {
        Some((&PREPARED, [.., b'\n'])) => Ok(None),
        Some((&COMMITTED, text)) => parse(&String::from_utf8_lossy(text)).map(Some),
        _ => Err(broken("state.next.json has no mark")),
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::other(format!(
        "the state files are damaged ({what}), and which store leads must not be guessed; restore {{state,state.copy,state.next}}.json, or move them \
         all away to take the table as it stands in proxy.toml, with every dual route in doubt"
    ))
}

fn parse(text: &str) -> io::Result<Document> {
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

    #[test]
    fn damaged_texts_are_refused_even_with_a_right_checksum() {
        let body = r#"{"format":1,"number":3,"snapshot":{"version":7,"clean":true,"routes":[]}}"#;
        crate::fuzz::fuzz(&[body.as_bytes(), b"\n00000000", b""], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let _ = parse(&text);
            let _ = parse(&format!("{text}\n{:08x}\n", crc32fast::hash(text.as_bytes())));
        });
    }

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
        assert_eq!(StateFile::open(directory.path()).unwrap().1, Some(snapshot.clone()));
        let path = directory.path().join("state.json");
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() - 1 {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(
                StateFile::open(directory.path()).unwrap().1,
                Some(snapshot.clone()),
                "cut at {cut}, and the copy is whole"
            );
            assert!(parse(&String::from_utf8_lossy(&whole[..cut])).is_err(), "cut at {cut}");
        }
        fs::write(directory.path().join("state.copy.json"), b"{}").unwrap();
        let error = StateFile::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("which store leads must not be guessed"), "{error}");
    }

    #[test]
    fn what_was_prepared_counts_once_it_is_committed_and_at_every_byte_of_the_way() {
        let directory = tempfile::tempdir().unwrap();
        let read = || StateFile::read(directory.path()).unwrap().unwrap().version;
        let snapshot = |version| Snapshot { version, routes: vec![record(Phase::Cluster)], ..Snapshot::default() };
        let (mut file, _) = StateFile::open(directory.path()).unwrap();
        file.save(&snapshot(1)).unwrap();
        file.prepare(&snapshot(2)).unwrap();
        assert_eq!(read(), 1, "not decided yet");
        file.commit(&snapshot(2)).unwrap();
        assert_eq!(read(), 2);
        let next = directory.path().join("state.next.json");
        let whole = fs::read(&next).unwrap();
        for cut in 0..whole.len() {
            fs::write(&next, &whole[..cut]).unwrap();
            assert!(StateFile::read(directory.path()).is_err(), "cut at {cut}: which of the two counts is not guessed");
        }
        fs::write(&next, &whole).unwrap();
        file.settle().unwrap();
        assert!(!next.exists());
        assert_eq!(read(), 2);
        // What changed since it was prepared, and what was saved in between, is not lost to it.
        file.prepare(&snapshot(3)).unwrap();
        file.commit(&snapshot(4)).unwrap();
        assert_eq!(read(), 4);
        file.prepare(&snapshot(5)).unwrap();
        file.save(&snapshot(6)).unwrap();
        file.commit(&snapshot(5)).unwrap();
        assert_eq!(read(), 5);
        // A start after a crash between the two.
        file.prepare(&snapshot(7)).unwrap();
        file.commit(&snapshot(7)).unwrap();
        let (mut file, found) = StateFile::open(directory.path()).unwrap();
        assert_eq!(found.unwrap().version, 7);
        file.save(&snapshot(8)).unwrap();
        assert_eq!(read(), 8);
    }

    #[test]
    fn a_doubt_that_came_up_since_it_was_prepared_is_written_down() {
        let directory = tempfile::tempdir().unwrap();
        let doubtful = |in_doubt| Snapshot {
            routes: vec![RouteRecord { in_doubt, ..record(Phase::Cluster) }],
            ..Snapshot::default()
        };
        let (mut file, _) = StateFile::open(directory.path()).unwrap();
        for (prepared, now, remembered) in [(false, true, true), (true, false, true), (false, false, false)] {
            file.prepare(&doubtful(prepared)).unwrap();
            file.commit(&doubtful(now)).unwrap();
            assert_eq!(StateFile::read(directory.path()).unwrap(), Some(doubtful(remembered)));
            file.settle().unwrap();
        }
    }

    #[test]
    fn of_two_state_files_the_newer_one_counts() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, _) = StateFile::open(directory.path()).unwrap();
        let save = |file: &mut StateFile, version| {
            file.save(&Snapshot { version, clean: true, routes: vec![record(Phase::Cluster)], ..Snapshot::default() })
                .unwrap()
        };
        save(&mut file, 1);
        let old = fs::read(directory.path().join("state.json")).unwrap();
        save(&mut file, 2);
        // A crash between the two writes, and the other way round, and one that is missing.
        for name in ["state.copy.json", "state.json"] {
            let whole = fs::read(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name), &old).unwrap();
            assert_eq!(StateFile::open(directory.path()).unwrap().1.unwrap().version, 2);
            fs::remove_file(directory.path().join(name)).unwrap();
            assert_eq!(StateFile::open(directory.path()).unwrap().1.unwrap().version, 2);
            fs::write(directory.path().join(name), whole).unwrap();
        }
    }

    #[test]
    fn a_provider_that_is_taken_out_of_a_line_on_the_cluster_is_remembered_as_stale_there() {
        let line = |route: RouteName, phase, coverage| RouteRecord { route, phase, coverage, in_doubt: false };
        let snapshot = |routes: &[RouteRecord]| Snapshot { routes: routes.to_vec(), ..Snapshot::default() };
        let (range, own) = (RouteName::Range(5, 9), RouteName::Provider("8".into()));
        let dual = || line(range.clone(), Phase::DualStandalone, Some(Coverage::StandaloneOnly));
        let synced = || line(range.clone(), Phase::DualStandalone, Some(Coverage::Both));
        let apart = || line(own.clone(), Phase::Standalone, None);
        let mut memory = Memory::default();
        memory.note(&snapshot(&[dual()]));
        memory.note(&snapshot(&[dual(), apart()]));
        assert!(memory.has_stale_cluster_keys(&own), "taken out of a line that stays");
        let mut memory = Memory::default();
        memory.note(&snapshot(&[dual()]));
        memory.note(&snapshot(&[]));
        memory.note(&snapshot(&[apart()]));
        memory.note(&snapshot(&[synced(), apart()]));
        assert!(memory.has_stale_cluster_keys(&own), "the walk over the range left it out");
        assert_eq!(memory.stale.len(), 1);
        memory.note(&snapshot(&[synced(), line(own.clone(), Phase::DualStandalone, Some(Coverage::Both))]));
        assert!(memory.stale.is_empty(), "walked itself");
    }

    #[test]
    fn a_route_that_left_the_cluster_is_remembered_as_stale_there() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, _) = StateFile::open(directory.path()).unwrap();
        file.save(&Snapshot { version: 1, clean: false, routes: vec![record(Phase::DualStandalone)], naming: None })
            .unwrap();
        file.save(&Snapshot { version: 2, clean: false, routes: vec![], naming: None }).unwrap();
        let (again, _) = StateFile::open(directory.path()).unwrap();
        assert!(again.has_stale_cluster_keys(&RouteName::Provider("42".into())));
    }
}
