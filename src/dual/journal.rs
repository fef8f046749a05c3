//! The journal of diverged keys: an append-only file of framed records with a CRC each, so that no crash hides what a
//! client was told. A thread of its own writes and syncs; many keys share one sync.
//!
//! A record that was cut short at the end of the file is what a crash leaves: it was promised to nobody and is dropped.
//! Anything else that does not read is damage: the file is kept aside, what stands before the damage counts, and the caller
//! takes every dual route for doubtful. The file never holds a part of a record in front of others: after a failed write it
//! is cut back to its last whole record before anything is tried again. It is rewritten with the open keys alone when it has
//! grown past `COMPACT_BYTES` and twice what is open.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::metrics::Totals;
use crate::routing::Key;

/// What the file begins with: its kind and the number of its format.
pub const HEADER: &[u8] = b"cutover journal 2\n";
/// A record says that a key is diverged, or that it is so no longer.
pub const ADD: u8 = 1;
pub const REMOVE: u8 = 2;
/// op, length, half a CRC of these, so that a length that changed is not taken for a record that was cut.
const HEAD_BYTES: usize = 7;
/// The number of the key's database stands before its name.
const DB_BYTES: usize = 4;
/// The head, the database, and the CRC of all before it.
const FRAME_BYTES: usize = HEAD_BYTES + DB_BYTES + 4;
/// The file is left to grow to this.
const COMPACT_BYTES: u64 = 16 << 20;
/// Between two tries of a disk that refuses.
const RETRY: Duration = Duration::from_millis(500);

type Done = Box<dyn FnOnce() + Send>;

struct Order {
    op: u8,
    key: Key,
    done: Option<Done>,
}

/// See the module.
pub struct Journal {
    orders: mpsc::Sender<Order>,
}

/// What an earlier run left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub open: HashSet<Key>,
    /// What is wrong with the file, and where it was put.
    pub damage: Option<String>,
    /// There was none: nothing has run here before.
    pub is_new: bool,
}

impl Journal {
    /// Opens the journal of a directory and gives what is open in it. The file is rewritten without the rest. `totals` are
    /// told its size, in keys and in bytes, and whether the disk refuses it.
    pub fn open(directory: &Path, totals: Arc<Totals>) -> io::Result<(Self, Found)> {
        fs::create_dir_all(directory)?;
        let path = directory.join("journal");
        let found = read(&path)?;
        let file = rewrite(&path, &found.open)?;
        let (length, open) = (size_of(&found.open), found.open.clone());
        let writer =
            Writer { file, path, length, live: length, open, compact_at: COMPACT_BYTES, bound: COMPACT_BYTES, totals };
        writer.tell();
        let (orders, inbox) = mpsc::channel();
        std::thread::Builder::new().name("journal".into()).spawn(move || writer.run(&inbox))?;
        Ok((Self { orders }, found))
    }

    /// Notes a key; `done` is called when it is on disk. While the disk refuses it is not called: the client stays without an
    /// answer until the disk is free again or its session ends, which is the safe side.
    pub fn add(&self, key: Key, done: impl FnOnce() + Send + 'static) {
        let _ = self.orders.send(Order { op: ADD, key, done: Some(Box::new(done)) });
    }

    /// Notes that a key was repaired. Not synced: losing it costs one more repair.
    pub fn remove(&self, key: &Key) {
        let _ = self.orders.send(Order { op: REMOVE, key: key.clone(), done: None });
    }
}

/// What the writer needs of a file.
trait Disk: Write {
    fn cut(&mut self, length: u64) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

impl Disk for File {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The thread's own side.
struct Writer<D> {
    file: D,
    path: PathBuf,
    /// Bytes of the file up to the end of its last whole record.
    length: u64,
    /// What the file would have with the open keys alone.
    live: u64,
    open: HashSet<Key>,
    /// The length at which it is rewritten; grows where that failed.
    compact_at: u64,
    bound: u64,
    totals: Arc<Totals>,
}

impl Writer<File> {
    fn run(mut self, inbox: &mpsc::Receiver<Order>) {
        while let Ok(first) = inbox.recv() {
            let orders: Vec<Order> = std::iter::once(first).chain(inbox.try_iter()).collect();
            self.write_until_done(orders, || std::thread::sleep(RETRY));
            self.keep_small();
            self.tell();
        }
    }

    fn keep_small(&mut self) {
        if self.length <= self.compact_at || self.length <= 2 * self.live {
            return;
        }
        match rewrite(&self.path, &self.open) {
            Ok(file) => {
                tracing::info!(
                    from_bytes = self.length,
                    to_bytes = self.live,
                    "the journal was rewritten with the open keys alone"
                );
                (self.file, self.length, self.compact_at) = (file, self.live, self.bound);
            }
            Err(error) => {
                tracing::warn!(%error, "rewrite journal: it goes on growing until the disk has room for a second one");
                self.compact_at = self.length + self.bound;
            }
        }
    }
}

impl<D: Disk> Writer<D> {
    /// Everybody who waits is told; before that the disk has it, however long that takes.
    fn write_until_done(&mut self, orders: Vec<Order>, mut pause: impl FnMut()) {
        let mut bytes = Vec::new();
        orders.iter().for_each(|order| bytes.extend_from_slice(&frame(order.op, &order.key)));
        let needs_sync = orders.iter().any(|order| order.done.is_some());
        let mut is_refused = false;
        while let Err(error) = self.write(&bytes, needs_sync) {
            if !std::mem::replace(&mut is_refused, true) {
                tracing::error!(%error, path = %self.path.display(), "write journal: writes of which the follower has not heard are not answered; free the disk");
                self.totals.journal_refused.store(1, Ordering::Relaxed);
            }
            pause();
        }
        if is_refused {
            tracing::info!("the journal is written again");
            self.totals.journal_refused.store(0, Ordering::Relaxed);
        }
        for Order { op, key, done } in orders {
            let size = size_of_record(&key);
            match op {
                ADD if self.open.insert(Key::copied(key.db, &key.name)) => self.live += size,
                REMOVE if self.open.remove(&key) => self.live -= size,
                _ => {}
            }
            done.into_iter().for_each(|done| done());
        }
    }

    /// All or nothing: what a failed try left behind is cut off, now or before the next one.
    fn write(&mut self, bytes: &[u8], needs_sync: bool) -> io::Result<()> {
        // Also what a try left behind whose cut failed.
        self.file.cut(self.length)?;
        let written = self.file.write_all(bytes).and_then(|()| if needs_sync { self.file.sync() } else { Ok(()) });
        match written {
            Ok(()) => self.length += bytes.len() as u64,
            // A program that is killed before the next try leaves whole records too.
            Err(_) => drop(self.file.cut(self.length)),
        }
        written
    }

    fn tell(&self) {
        self.totals.journal_bytes.store(self.length, Ordering::Relaxed);
        self.totals.journal_keys.store(self.open.len() as u64, Ordering::Relaxed);
    }
}

fn size_of(open: &HashSet<Key>) -> u64 {
    open.iter().map(size_of_record).sum::<u64>() + HEADER.len() as u64
}

fn size_of_record(key: &Key) -> u64 {
    (key.name.len() + FRAME_BYTES) as u64
}

/// Reads what is there; what cannot be read is put aside.
fn read(path: &Path) -> io::Result<Found> {
    let (open, damage) = match fs::read(path) {
        Ok(bytes) => match recover(&bytes) {
            (open, Tail::Whole) => return Ok(Found { open, ..Found::default() }),
            (open, Tail::Cut { at }) => {
                tracing::warn!(at, "the journal ends within a record, as a crash leaves it; the rest counts");
                return Ok(Found { open, ..Found::default() });
            }
            (open, Tail::Damaged { at }) => (open, format!("its content is damaged from byte {at} on")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found { is_new: true, ..Found::default() }),
        Err(error) => (HashSet::new(), format!("it cannot be read ({error})")),
    };
    // Never over an earlier one: it may be wanted to find out what was lost.
    let mut number = 1;
    let name = |number: u32| path.with_extension(format!("damaged-{number}"));
    while fs::symlink_metadata(name(number)).is_ok() {
        number += 1;
    }
    let aside = name(number);
    fs::rename(path, &aside)?;
    Ok(Found { open, damage: Some(format!("{damage}; it is kept as {}", aside.display())), is_new: false })
}

/// The journal with the open keys alone: written beside the old one, synced, and put into its place.
fn rewrite(path: &Path, open: &HashSet<Key>) -> io::Result<File> {
    let new = path.with_extension("new");
    let mut out = io::BufWriter::new(File::create(&new)?);
    out.write_all(HEADER)?;
    for key in open {
        out.write_all(&frame(ADD, key))?;
    }
    out.into_inner()?.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    OpenOptions::new().append(true).open(path)
}

/// A record: head, key, CRC of all before. The length is that of database and name.
pub fn frame(op: u8, key: &Key) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.name.len() + FRAME_BYTES);
    out.push(op);
    out.extend_from_slice(&((DB_BYTES + key.name.len()) as u32).to_le_bytes());
    out.extend_from_slice(&head_crc(&out));
    out.extend_from_slice(&key.db.to_le_bytes());
    out.extend_from_slice(&key.name);
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out
}

fn head_crc(head: &[u8]) -> [u8; 2] {
    (crc32fast::hash(head) as u16).to_le_bytes()
}

/// How a journal ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Tail {
    Whole,
    /// Within its last record.
    Cut {
        at: usize,
    },
    Damaged {
        at: usize,
    },
}

/// The keys that are open after all whole records.
pub fn recover(bytes: &[u8]) -> (HashSet<Key>, Tail) {
    let mut open = HashSet::new();
    if !bytes.starts_with(HEADER) {
        return (open, Tail::Damaged { at: 0 });
    }
    let mut at = HEADER.len();
    while at < bytes.len() {
        let rest = &bytes[at..];
        let Some(head) = rest.get(..HEAD_BYTES) else { return (open, Tail::Cut { at }) };
        if head[5..] != head_crc(&head[..5]) || !matches!(head[0], ADD | REMOVE) {
            return (open, Tail::Damaged { at });
        }
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let Some(record) = rest.get(..length + FRAME_BYTES - DB_BYTES) else { return (open, Tail::Cut { at }) };
        let (body, crc) = record.split_at(record.len() - 4);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return (open, Tail::Damaged { at });
        }
        let Some((db, name)) = body[HEAD_BYTES..].split_first_chunk() else { return (open, Tail::Damaged { at }) };
        let key = Key::copied(u32::from_le_bytes(*db), name);
        match body[0] {
            ADD => drop(open.insert(key)),
            _ => drop(open.remove(&key)),
        }
        at += record.len();
    }
    (open, Tail::Whole)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    /// Of a database that is not the first, so that its number matters.
    fn key(name: &str) -> Key {
        Key::copied(258, name.as_bytes())
    }

    fn keys(names: &[&str]) -> HashSet<Key> {
        names.iter().map(|name| key(name)).collect()
    }

    fn open(directory: &Path) -> (Journal, Found) {
        Journal::open(directory, Arc::default()).unwrap()
    }

    fn add(journal: &Journal, key: &str) {
        let (tx, rx) = mpsc::channel();
        journal.add(self::key(key), move || tx.send(()).unwrap());
        rx.recv().unwrap();
    }

    #[test]
    fn damaged_journals_are_cut_or_damaged_or_whole_and_name_no_key_that_was_not_there() {
        let whole =
            [HEADER, &frame(ADD, &key("key:a")), &frame(ADD, &key("key:b")), &frame(REMOVE, &key("key:a"))].concat();
        crate::fuzz::fuzz(&[&whole, HEADER], |bytes| {
            let (open, tail) = recover(bytes);
            assert!(open.iter().all(|key| key.name.starts_with(b"key:")), "{open:?}");
            match tail {
                Tail::Whole => {}
                Tail::Cut { at } | Tail::Damaged { at } => assert!(at <= bytes.len()),
            }
        });
    }

    #[test]
    fn a_journal_cut_at_any_byte_gives_what_was_whole() {
        let records = [frame(ADD, &key("a")), frame(ADD, &key("bb")), frame(REMOVE, &key("a"))];
        let whole = [HEADER, &records.concat()].concat();
        let ends: Vec<usize> = (0..=3).map(|count| HEADER.len() + records[..count].concat().len()).collect();
        for cut in HEADER.len()..=whole.len() {
            let count = ends.iter().rposition(|end| *end <= cut).unwrap();
            let expected = [keys(&[]), keys(&["a"]), keys(&["a", "bb"]), keys(&["bb"])];
            let tail = if ends.contains(&cut) { Tail::Whole } else { Tail::Cut { at: ends[count] } };
            assert_eq!(recover(&whole[..cut]), (expected[count].clone(), tail), "cut at {cut}");
        }
    }

    #[test]
    fn a_byte_that_changed_is_never_taken_for_a_whole_journal() {
        let whole = [HEADER, &frame(ADD, &key("a")), &frame(ADD, &key("bb")), &frame(REMOVE, &key("a"))].concat();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            assert!(matches!(recover(&bytes).1, Tail::Damaged { .. }), "byte {at}");
        }
    }

    #[test]
    fn a_key_is_on_disk_when_done_is_called() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, found) = open(directory.path());
        assert!(found.open.is_empty() && found.is_new);
        add(&journal, "k");
        assert_eq!(open(directory.path()).1, Found { open: keys(&["k"]), ..Found::default() });
    }

    #[test]
    fn a_damaged_or_unreadable_journal_is_put_aside_and_what_was_whole_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let mut bytes = [HEADER, &frame(ADD, &key("a")), &frame(ADD, &key("b")), &frame(ADD, &key("c"))].concat();
        let middle = HEADER.len() + frame(ADD, &key("a")).len() + 2;
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let found = open(directory.path()).1;
        assert_eq!(found.open, keys(&["a"]));
        assert!(found.damage.unwrap().contains("journal.damaged-1"));
        assert_eq!(fs::read(directory.path().join("journal.damaged-1")).unwrap(), bytes);
        assert_eq!(open(directory.path()).1.damage, None, "it is damaged once");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(open(directory.path()).1.damage.unwrap().contains("cannot be read"));
        fs::write(&path, b"").unwrap();
        assert!(open(directory.path()).1.damage.is_some(), "not even a header");
    }

    fn writer<D: Disk>(file: D, path: &Path, bound: u64) -> Writer<D> {
        let length = HEADER.len() as u64;
        let (open, totals) = (HashSet::new(), Arc::default());
        Writer { file, path: path.into(), length, live: length, open, compact_at: bound, bound, totals }
    }

    /// A file on a disk that has room for so many bytes, and takes so many cuts before it is read-only.
    struct Small {
        file: File,
        room: Arc<AtomicU64>,
        cuts: Arc<AtomicU64>,
    }

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.room.load(Ordering::Relaxed).saturating_sub(self.file.metadata()?.len());
            match room.min(bytes.len() as u64) {
                0 => Err(io::ErrorKind::StorageFull.into()),
                fits => self.file.write(&bytes[..fits as usize]),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Disk for Small {
        fn cut(&mut self, length: u64) -> io::Result<()> {
            let left = self.cuts.load(Ordering::Relaxed).checked_sub(1).ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
            self.cuts.store(left, Ordering::Relaxed);
            self.file.set_len(length)
        }

        fn sync(&mut self) -> io::Result<()> {
            self.file.sync_data()
        }
    }

    #[test]
    fn a_disk_that_is_full_at_any_byte_and_then_read_only_keeps_whole_records_and_tells_nobody_before() {
        for room in HEADER.len()..HEADER.len() + 32 {
            for cuts in 0..4 {
                let directory = tempfile::tempdir().unwrap();
                let path = directory.path().join("journal");
                let (room_left, cuts_left) = (Arc::new(AtomicU64::new(room as u64)), Arc::new(AtomicU64::new(cuts)));
                let file = Small {
                    file: rewrite(&path, &HashSet::new()).unwrap(),
                    room: room_left.clone(),
                    cuts: cuts_left.clone(),
                };
                let mut writer = writer(file, &path, u64::MAX);
                let told = Arc::new(AtomicU64::new(0));
                for name in ["first", "second"] {
                    let (tell, before, told_before, mut tries) =
                        (told.clone(), writer.open.clone(), told.load(Ordering::Relaxed), 0);
                    let done: Done = Box::new(move || {
                        tell.fetch_add(1, Ordering::Relaxed);
                    });
                    let order = Order { op: ADD, key: key(name), done: Some(done) };
                    writer.write_until_done(vec![order], || {
                        let (open, tail) = recover(&fs::read(&path).unwrap());
                        assert!(
                            open == before && !matches!(tail, Tail::Damaged { .. }),
                            "room {room}, cuts {cuts}: {tail:?}"
                        );
                        assert_eq!(told.load(Ordering::Relaxed), told_before);
                        tries += 1;
                        if tries > 2 {
                            cuts_left.store(9, Ordering::Relaxed);
                            room_left.store(1_000, Ordering::Relaxed);
                        }
                    });
                }
                assert_eq!(told.load(Ordering::Relaxed), 2);
                assert_eq!(
                    recover(&fs::read(&path).unwrap()),
                    (keys(&["first", "second"]), Tail::Whole),
                    "room {room}, cuts {cuts}"
                );
            }
        }
    }

    #[test]
    fn a_journal_stays_bounded_while_it_runs_also_where_a_second_file_has_no_room_at_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let mut writer = writer(rewrite(&path, &HashSet::new()).unwrap(), &path, 400);
        let in_the_way = directory.path().join("journal.new");
        let mut longest = 0;
        for n in 0..1_000 {
            match n {
                100 => fs::create_dir(&in_the_way).unwrap(),
                200 => fs::remove_dir(&in_the_way).unwrap(),
                _ => {}
            }
            let order = |op, name: String| Order { op, key: key(&name), done: None };
            let mut orders = vec![order(ADD, format!("key {n}"))];
            if n % 300 > 0 {
                orders.push(order(REMOVE, format!("key {n}")));
            }
            writer.write_until_done(orders, || panic!("a disk with room"));
            writer.keep_small();
            let length = fs::metadata(&path).unwrap().len();
            assert_eq!(length, writer.length);
            longest = if n < 300 { 0 } else { length.max(longest) };
        }
        assert!(longest < 520, "{longest}");
        assert_eq!(
            recover(&fs::read(&path).unwrap()),
            (keys(&["key 0", "key 300", "key 600", "key 900"]), Tail::Whole)
        );
    }
}
