//! A snapshot of a whole server (RDB), taken as a replica takes it: by SYNC. The server writes it from a fork, so its
//! clients go on, and no file is made there.
//!
//! The payload is checked on its way: it begins as an RDB does and ends with the checksum that the server computed.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use crc::{CRC_64_REDIS, Crc, Digest, Table};
use tokio::io::AsyncReadExt;

use crate::resp::write;
use crate::store::PrivateLink;

/// A server that forks a large snapshot, or waits for more replicas first, sends an empty line each second meanwhile.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Longer lines are no answer to SYNC.
const LINE_MAX: usize = 4096;
const READ_BYTES: usize = 256 << 10;
/// What ends a payload whose length the server does not know beforehand.
const MARK_BYTES: usize = 40;
const CHECKSUM_BYTES: usize = 8;
const MAGIC: &[u8] = b"REDIS";

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the server refused SYNC: {0}")]
    Refused(String),
    #[error("the server answered SYNC in an unknown form: {0}")]
    Unknown(String),
    #[error("the connection ended in the midst of it")]
    Lost,
    #[error("nothing came for {} s", SILENCE_MAX.as_secs())]
    Silence,
    #[error("what came is no whole RDB: {0}")]
    Damaged(&'static str),
    #[error("write it")]
    Write(#[source] io::Error),
}

/// What was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub bytes: u64,
    /// False where the server computes no checksum (`rdbchecksum no`).
    pub is_checksummed: bool,
}

/// How the server says where the payload ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    After(u64),
    Mark([u8; MARK_BYTES]),
}

impl PrivateLink {
    /// Takes a snapshot; `sink` gets it piece by piece, with how long the whole will be where that is known. The link is of
    /// no use afterwards, for the server takes it for a replica.
    pub async fn snapshot(
        mut self,
        mut sink: impl FnMut(&[u8], Option<u64>) -> io::Result<()>,
    ) -> Result<Snapshot, SnapshotError> {
        // Neither is known to every version; an error is their answer then. `rdb-only`: the server keeps no buffer of the
        // writes that come after the snapshot.
        for (option, value) in [("rdb-only", "1"), ("capa", "eof")] {
            let mut ask = BytesMut::new();
            write::command(&mut ask, &[b"REPLCONF", option.as_bytes(), value.as_bytes()]);
            self.call(&ask).await.map_err(|_| SnapshotError::Lost)?;
        }
        let mut ask = BytesMut::new();
        write::command(&mut ask, &[b"SYNC"]);
        self.send(&ask).await.map_err(|_| SnapshotError::Lost)?;
        let end = self.snapshot_end().await?;
        let mut check = Check::new();
        let total = if let End::After(length) = end { Some(length) } else { None };
        loop {
            let (ready, is_over) = split(&self.buffer, &end, check.bytes);
            check.take(&self.buffer[..ready]);
            sink(&self.buffer[..ready], total).map_err(SnapshotError::Write)?;
            self.buffer.advance(ready);
            if is_over {
                return check.finish();
            }
            self.fill().await?;
        }
    }

    /// `$LENGTH` or `$EOF:MARK`, behind any number of empty lines.
    async fn snapshot_end(&mut self) -> Result<End, SnapshotError> {
        loop {
            while self.buffer.first().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
                self.buffer.advance(1);
            }
            let Some(length) = memchr::memchr(b'\n', &self.buffer) else {
                if self.buffer.len() > LINE_MAX {
                    return Err(SnapshotError::Unknown(self.buffer[..80].escape_ascii().to_string()));
                }
                self.fill().await?;
                continue;
            };
            let line = self.buffer.split_to(length + 1);
            return parse_end(line.trim_ascii_end());
        }
    }

    async fn fill(&mut self) -> Result<(), SnapshotError> {
        self.buffer.reserve(READ_BYTES);
        match tokio::time::timeout(SILENCE_MAX, self.stream.read_buf(&mut self.buffer)).await {
            Ok(Ok(read)) if read > 0 => Ok(()),
            Ok(_) => Err(SnapshotError::Lost),
            Err(_) => Err(SnapshotError::Silence),
        }
    }
}

fn parse_end(line: &[u8]) -> Result<End, SnapshotError> {
    let text = || line[..line.len().min(200)].escape_ascii().to_string();
    if let Some(error) = line.strip_prefix(b"-") {
        return Err(SnapshotError::Refused(String::from_utf8_lossy(error).into_owned()));
    }
    if let Some(mark) = line.strip_prefix(b"$EOF:") {
        return mark.try_into().map(End::Mark).map_err(|_| SnapshotError::Unknown(text()));
    }
    let length = line.strip_prefix(b"$").and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    length.map(End::After).ok_or_else(|| SnapshotError::Unknown(text()))
}

/// How much of what was read is payload for sure, and whether that is the rest of it. The server sends nothing behind the
/// mark, so the mark can only be what was read last.
fn split(read: &[u8], end: &End, taken: u64) -> (usize, bool) {
    match end {
        End::After(length) => {
            let left = usize::try_from(length - taken).unwrap_or(usize::MAX);
            (left.min(read.len()), left <= read.len())
        }
        End::Mark(mark) => {
            let ready = read.len().saturating_sub(MARK_BYTES);
            (ready, read.len() >= MARK_BYTES && read[ready..] == *mark)
        }
    }
}

/// The first bytes, the last ones, and the checksum of all but those.
struct Check {
    digest: Digest<'static, u64, Table<16>>,
    bytes: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Check {
    fn new() -> Self {
        static REDIS: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_REDIS);
        Self { digest: REDIS.digest(), bytes: 0, head: Vec::new(), tail: Vec::new() }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.head.extend(bytes.iter().take(MAGIC.len().saturating_sub(self.head.len())));
        let over = (self.tail.len() + bytes.len()).saturating_sub(CHECKSUM_BYTES);
        let of_tail = over.min(self.tail.len());
        self.digest.update(&self.tail[..of_tail]);
        self.tail.drain(..of_tail);
        let (before, last) = bytes.split_at(over - of_tail);
        self.digest.update(before);
        self.tail.extend_from_slice(last);
    }

    fn finish(self) -> Result<Snapshot, SnapshotError> {
        if self.head != MAGIC {
            return Err(SnapshotError::Damaged("it does not begin as one"));
        }
        let Ok(tail) = <[u8; CHECKSUM_BYTES]>::try_from(&self.tail[..]) else {
            return Err(SnapshotError::Damaged("it is too short"));
        };
        let expected = u64::from_le_bytes(tail);
        if expected != 0 && expected != self.digest.finalize() {
            return Err(SnapshotError::Damaged("its checksum is wrong"));
        }
        Ok(Snapshot { bytes: self.bytes, is_checksummed: expected != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(pieces: &[&[u8]]) -> Result<Snapshot, SnapshotError> {
        let mut check = Check::new();
        pieces.iter().for_each(|piece| check.take(piece));
        check.finish()
    }

    #[test]
    fn a_payload_is_whole_however_it_is_cut_and_a_changed_byte_is_seen() {
        let body = b"REDIS0010 and some keys \xff";
        let sum = Crc::<u64>::new(&CRC_64_REDIS).checksum(body).to_le_bytes();
        let whole = [&body[..], &sum].concat();
        for cut in 0..=whole.len() {
            let snapshot = checked(&[&whole[..cut], &[], &whole[cut..]]).unwrap();
            assert_eq!(snapshot, Snapshot { bytes: whole.len() as u64, is_checksummed: true }, "cut at {cut}");
        }
        for index in 0..whole.len() {
            let mut spoilt = whole.clone();
            spoilt[index] ^= 1;
            assert!(checked(&[&spoilt]).is_err(), "byte {index}");
        }
        assert!(checked(&[&whole[..whole.len() - 1]]).is_err(), "cut short");
        assert!(!checked(&[body, &[0; 8]]).unwrap().is_checksummed);
    }

    #[test]
    fn both_forms_of_an_end_are_found_where_they_are() {
        let mark = [b'm'; MARK_BYTES];
        assert_eq!(parse_end(b"$12").unwrap(), End::After(12));
        assert_eq!(parse_end(&[b"$EOF:", &mark[..]].concat()).unwrap(), End::Mark(mark));
        assert!(matches!(parse_end(b"-NOPERM no"), Err(SnapshotError::Refused(_))));
        assert!(parse_end(b"$EOF:short").is_err() && parse_end(b"+FULLRESYNC").is_err());
        assert_eq!(split(b"abcdef", &End::After(10), 6), (4, true));
        assert_eq!(split(b"abc", &End::After(10), 6), (3, false));
        let read = [b"payload", &mark[..]].concat();
        assert_eq!(split(&read, &End::Mark(mark), 0), (7, true));
        for cut in 0..read.len() {
            let (ready, is_over) = split(&read[..cut], &End::Mark(mark), 0);
            assert!(ready <= 7 && !is_over, "cut at {cut}");
        }
    }
}
