//! The journal of diverged keys: an append-only file of framed records with a CRC each, so that no crash hides what a
//! client was told. A thread of its own writes and syncs; many keys share one sync. A torn tail is what a crash leaves and
//! is cut off; what stands before it counts.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc;

use bytes::Bytes;

const ADD: u8 = 1;
const REMOVE: u8 = 2;
/// Above this the file is rewritten with the open keys only, at the next start.
const KEY_BYTES_MAX: usize = 512 << 20;

type Done = Box<dyn FnOnce() + Send>;

enum Order {
    Write { op: u8, key: Bytes, done: Option<Done> },
}

/// See the module.
pub struct Journal {
    orders: mpsc::Sender<Order>,
}

impl Journal {
    /// Opens the journal of a directory and gives the keys that are open in it. The file is rewritten without the rest.
    pub fn open(directory: &Path) -> io::Result<(Self, HashSet<Bytes>)> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join("journal");
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(mut file) => drop(file.read_to_end(&mut bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let open = recover(&bytes);
        let new = directory.join("journal.new");
        let mut file = File::create(&new)?;
        for key in &open {
            file.write_all(&frame(ADD, key))?;
        }
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        let mut file = OpenOptions::new().append(true).open(&path)?;
        file.seek(SeekFrom::End(0))?;
        let (orders, inbox) = mpsc::channel();
        std::thread::Builder::new().name("journal".into()).spawn(move || write_on(&mut file, &inbox))?;
        Ok((Self { orders }, open))
    }

    /// Notes a key; `done` is called when it is on disk. It is never called if the disk refuses: then the client stays
    /// without an answer until its session ends, which is the safe side.
    pub fn add(&self, key: Bytes, done: impl FnOnce() + Send + 'static) {
        let _ = self.orders.send(Order::Write { op: ADD, key, done: Some(Box::new(done)) });
    }

    /// Notes that a key was repaired. Not synced: losing it costs one more repair.
    pub fn remove(&self, key: &Bytes) {
        let _ = self.orders.send(Order::Write { op: REMOVE, key: key.clone(), done: None });
    }
}

fn write_on(file: &mut File, inbox: &mpsc::Receiver<Order>) {
    while let Ok(first) = inbox.recv() {
        let (mut bytes, mut waiting) = (Vec::new(), Vec::new());
        for Order::Write { op, key, done } in std::iter::once(first).chain(inbox.try_iter()) {
            bytes.extend_from_slice(&frame(op, &key));
            waiting.extend(done);
        }
        let mut written = file.write_all(&bytes);
        while let Err(error) = written.and_then(|()| if waiting.is_empty() { Ok(()) } else { file.sync_data() }) {
            tracing::error!(%error, "write journal: clients whose writes depend on it wait; free the disk");
            std::thread::sleep(std::time::Duration::from_millis(500));
            // A record written twice says the same.
            written = file.write_all(&bytes);
        }
        for done in waiting.drain(..) {
            done();
        }
    }
}

/// op, length, key, CRC of all before.
fn frame(op: u8, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 9);
    out.push(op);
    out.extend_from_slice(&(key.len() as u32).to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out
}

/// The keys that are open after all whole records.
fn recover(mut bytes: &[u8]) -> HashSet<Bytes> {
    let mut open = HashSet::new();
    while bytes.len() >= 9 {
        let length = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
        if length > KEY_BYTES_MAX || bytes.len() < length + 9 {
            break;
        }
        let (record, rest) = bytes.split_at(length + 9);
        let (body, crc) = record.split_at(length + 5);
        if crc32fast::hash(body).to_le_bytes() != crc {
            break;
        }
        let key = Bytes::copy_from_slice(&body[5..]);
        match body[0] {
            ADD => drop(open.insert(key)),
            _ => drop(open.remove(&key)),
        }
        bytes = rest;
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_cut_at_any_byte_gives_what_was_whole() {
        let records = [frame(ADD, b"a"), frame(ADD, b"bb"), frame(REMOVE, b"a")];
        let whole = records.concat();
        for cut in 0..=whole.len() {
            let expected: HashSet<Bytes> = match cut {
                cut if cut < records[0].len() => HashSet::new(),
                cut if cut < records[0].len() + records[1].len() => HashSet::from([Bytes::from_static(b"a")]),
                cut if cut < whole.len() => HashSet::from([Bytes::from_static(b"a"), Bytes::from_static(b"bb")]),
                _ => HashSet::from([Bytes::from_static(b"bb")]),
            };
            assert_eq!(recover(&whole[..cut]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_key_is_on_disk_when_done_is_called() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, open) = Journal::open(directory.path()).unwrap();
        assert!(open.is_empty());
        let (tx, rx) = mpsc::channel();
        journal.add(Bytes::from_static(b"k"), move || tx.send(()).unwrap());
        rx.recv().unwrap();
        assert_eq!(Journal::open(directory.path()).unwrap().1, HashSet::from([Bytes::from_static(b"k")]));
    }
}
