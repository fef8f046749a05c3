//! One key copied by its type, piece by piece, for a key so large that DUMP and RESTORE would hold its nodes up, and between
//! servers of which one does not read the other's DUMP.
//!
//! The pieces go to a key of the same slot that ends by itself, and the last step gives it its name: whoever looks finds the
//! old value, or none, or the whole new one. The lane keeps writers away meanwhile; what was written around the lane (a
//! script) is copied again behind the command, as with every copy.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use crate::dual::copy::Replace;
use crate::dual::effect;
use crate::dual::engine::{EngineWaiter, Inner};
use crate::dual::lane::{Fetched, Outcome};
use crate::dual::tally::Wrote;
use crate::resp::{reply, write};
use crate::routing::{Key, RESERVED_COPIES, Side};
use crate::slot;

/// What one piece holds, about: 1 to 3 ms on the server that takes it.
const PIECE_BYTES: u64 = 512 << 10;
/// Elements of a piece, however small they are.
const PIECE_ELEMENTS: u64 = 1_000;
/// How long a key in the making stays if nobody goes on with it.
const UNFINISHED_MS: &[u8] = b"60000";

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copied {
    Done,
    /// The destination had the key already and was not to lose it, or the source has none.
    Nothing,
    Refused,
    Doubt,
}

impl Copied {
    /// As a copy to the follower.
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Done | Self::Nothing => Outcome::Done,
            Self::Refused => Outcome::Refused,
            Self::Doubt => Outcome::Doubt,
        }
    }

    /// As a first touch.
    pub(super) fn fetched(self) -> Fetched {
        match self {
            Self::Done => Fetched::Brought,
            Self::Nothing => Fetched::Unproven,
            Self::Refused | Self::Doubt => Fetched::Failed,
        }
    }
}

/// Why a copy ended early.
enum Broken {
    /// A store gave no answer, or one that this does not understand.
    Unanswered,
    /// A store answered with this error.
    Error(Bytes),
    /// A type that only its module can read.
    Type(Bytes),
    /// The key changed while it was read.
    Changed,
}

/// Where a copy comes from and goes to.
struct Way<'k> {
    engine: Rc<Inner>,
    key: &'k Key,
    from: Side,
    /// The key in the making, of the same slot as the key.
    part: Vec<u8>,
    /// The key's name on the side that it goes to.
    name: Vec<u8>,
    slot: u16,
    /// Elements, or bytes of a string, that make a piece.
    count: u64,
}

impl Inner {
    /// Copies a key from one side to the other, or deletes it there where the source has none.
    pub(super) async fn copy_in_pieces(self: &Rc<Self>, key: &Key, from: Side, replace: Replace) -> Copied {
        let (slot, name) = {
            let table = self.table.borrow();
            let name =
                if from == Side::Standalone { table.cluster_name(key.db, &key.name) } else { key.name[..].into() };
            (table.slot_of(key.db, &key.name), name.into_owned())
        };
        let cluster_name = self.table.borrow().cluster_name(key.db, &key.name).into_owned();
        let part = part_of(&cluster_name, slot, fastrand::u64(..));
        let mut way = Way { engine: self.clone(), key, from, part, name, slot, count: PIECE_ELEMENTS };
        self.copying.count_in_pieces();
        let copied = way.copy(replace).await;
        if !matches!(copied, Ok(Copied::Done)) {
            // Else it ends by itself.
            let _ = way.put(&[&[b"UNLINK", &way.part]]).await;
        }
        copied.unwrap_or_else(|broken| self.note_broken(from, broken))
    }

    fn note_broken(&self, from: Side, broken: Broken) -> Copied {
        match broken {
            Broken::Unanswered | Broken::Changed => Copied::Doubt,
            Broken::Error(reply) => {
                tracing::warn!(reply = %String::from_utf8_lossy(&reply), side = %from.other(), "a copy by type was refused; the key stays diverged");
                Copied::Refused
            }
            Broken::Type(kind) => {
                let kind = String::from_utf8_lossy(&kind).trim().trim_start_matches('+').to_string();
                // A repair tries again and again; one line is enough.
                if self.copying.count_refused() == 0 {
                    tracing::error!(%kind, "a key of a type that only its module can read cannot be copied by type; it stays diverged until both servers are of one version");
                }
                Copied::Refused
            }
        }
    }
}

impl Way<'_> {
    async fn copy(&mut self, replace: Replace) -> Result<Copied, Broken> {
        let kind = self.ask(&[b"TYPE", &self.key.name]).await?;
        let length = match &*kind {
            b"+none\r\n" if replace == Replace::No => return Ok(Copied::Nothing),
            b"+none\r\n" => {
                self.put(&[&[b"UNLINK", &self.name]]).await?;
                return Ok(Copied::Done);
            }
            b"+string\r\n" => b"STRLEN" as &[u8],
            b"+list\r\n" => b"LLEN",
            b"+hash\r\n" => b"HLEN",
            b"+set\r\n" => b"SCARD",
            b"+zset\r\n" => b"ZCARD",
            b"+stream\r\n" => b"XLEN",
            _ => return Err(Broken::Type(kind)),
        };
        let before = self.number(&[length, &self.key.name]).await?;
        let bytes = self.number(&[b"MEMORY", b"USAGE", &self.key.name]).await.unwrap_or(0);
        self.count = (PIECE_BYTES / (bytes / before.max(1)).max(1)).clamp(1, PIECE_ELEMENTS);
        match &*kind {
            b"+string\r\n" => self.string().await?,
            b"+list\r\n" => self.ranks(b"LRANGE", b"RPUSH").await?,
            b"+zset\r\n" => self.ranks(b"ZRANGE", b"ZADD").await?,
            b"+hash\r\n" => self.scanned(b"HSCAN", b"HSET").await?,
            b"+set\r\n" => self.scanned(b"SSCAN", b"SADD").await?,
            _ => self.stream().await?,
        }
        // Whoever wrote around the lane had it copied again; this only keeps a torn value from being shown meanwhile.
        let arrived = self.integer_at_destination(&[length, &self.part]).await?;
        if (before, before) != (self.number(&[length, &self.key.name]).await?, arrived) {
            return Err(Broken::Changed);
        }
        self.name_it(replace).await
    }

    /// The value gets its name, and the time at which it ends.
    async fn name_it(&self, replace: Replace) -> Result<Copied, Broken> {
        let expiry = self.ask(&[b"PEXPIRETIME", &self.key.name]).await?;
        let at = reply::integer(&expiry).ok_or(Broken::Unanswered)?.to_string();
        if at == "-2" && replace == Replace::No {
            return Ok(Copied::Nothing);
        }
        let timed: &[&[u8]] = match at.as_str() {
            "-1" => &[b"PERSIST", &self.name],
            // Gone meanwhile, and so it goes there; 1 ms after 1970 is past everywhere.
            "-2" => &[b"PEXPIREAT", &self.name, b"1"],
            _ => &[b"PEXPIREAT", &self.name, at.as_bytes()],
        };
        if replace == Replace::Yes {
            let rename: &[&[u8]] = &[b"RENAME", &self.part, &self.name];
            self.put(&[&[b"UNLINK", &self.name], rename, timed]).await?;
            self.engine.copying.count_key();
            return Ok(Copied::Done);
        }
        // The key in the making gets its time first: RENAMENX may leave another key in place.
        let part: Vec<&[u8]> =
            timed.iter().map(|word| if *word == self.name { &self.part[..] } else { *word }).collect();
        let answers = self.put(&[&part, &[b"RENAMENX", &self.part, &self.name]]).await?;
        self.engine.copying.count_key();
        Ok(if answers.ends_with(b":1\r\n") { Copied::Done } else { Copied::Nothing })
    }

    async fn string(&self) -> Result<(), Broken> {
        let mut from = 0u64;
        loop {
            let to = from + PIECE_BYTES - 1;
            let piece =
                self.ask(&[b"GETRANGE", &self.key.name, digits(from).as_bytes(), digits(to).as_bytes()]).await?;
            let text = reply::bulk(&piece).ok_or(Broken::Unanswered)?;
            self.add(&[&[b"APPEND", &self.part, text]]).await?;
            from += text.len() as u64;
            if (text.len() as u64) < PIECE_BYTES {
                return Ok(());
            }
        }
    }

    /// Lists and sorted sets, in their order.
    async fn ranks(&self, read: &[u8], append: &[u8]) -> Result<(), Broken> {
        let has_scores = read == b"ZRANGE";
        let mut from = 0u64;
        loop {
            let (first, last) = (digits(from), digits(from + self.count - 1));
            let mut ask: Vec<&[u8]> = vec![read, &self.key.name, first.as_bytes(), last.as_bytes()];
            ask.extend(has_scores.then_some(&b"WITHSCORES"[..]));
            let piece = self.ask(&ask).await?;
            let values = bulks(&piece)?;
            if values.is_empty() {
                return Ok(());
            }
            let mut command: Vec<&[u8]> = vec![append, &self.part];
            match has_scores {
                true => command.extend(values.chunks_exact(2).flat_map(|pair| [&pair[1][..], &pair[0][..]])),
                false => command.extend(values.iter().map(|value| &value[..])),
            }
            self.add(&[&command]).await?;
            from += self.count;
        }
    }

    /// Hashes and sets. An element may come twice, which is all the same.
    async fn scanned(&self, read: &[u8], append: &[u8]) -> Result<(), Broken> {
        let count = digits(self.count);
        let mut cursor = Bytes::from_static(b"0");
        loop {
            let page = self.ask(&[read, &self.key.name, &cursor, b"COUNT", count.as_bytes()]).await?;
            let cells = reply::elements(&page).filter(|cells| cells.len() == 2).ok_or(Broken::Unanswered)?;
            let values = bulks(&page.slice(cells[1].clone()))?;
            let times = if read == b"HSCAN" { self.field_times(&values).await? } else { Vec::new() };
            if !values.is_empty() {
                let mut command: Vec<&[u8]> = vec![append, &self.part];
                command.extend(values.iter().map(|value| &value[..]));
                self.add(&[&command]).await?;
                self.add_owned(&times).await?;
            }
            cursor = page.slice_ref(reply::bulk(&page[cells[0].clone()]).ok_or(Broken::Unanswered)?);
            if &*cursor == b"0" {
                return Ok(());
            }
        }
    }

    /// What gives the fields of a page their own times, where the source knows such (Redis 7.4, Valkey 9).
    async fn field_times(&self, pairs: &[Bytes]) -> Result<Vec<Vec<Bytes>>, Broken> {
        let fields: Vec<&Bytes> = pairs.iter().step_by(2).collect();
        if fields.is_empty() {
            return Ok(Vec::new());
        }
        let count = digits(fields.len() as u64);
        let mut ask: Vec<&[u8]> = vec![b"HPEXPIRETIME", &self.key.name, b"FIELDS", count.as_bytes()];
        ask.extend(fields.iter().map(|field| &field[..]));
        let times = match self.ask(&ask).await {
            Ok(times) => texts(&times)?,
            Err(Broken::Error(error)) if reply::error_text(&error).starts_with(b"ERR unknown command") => {
                return Ok(Vec::new());
            }
            Err(broken) => return Err(broken),
        };
        let timed = fields.into_iter().zip(times).filter(|(_, at)| !at.starts_with(b"-"));
        let set = |(field, at): (&Bytes, Bytes)| {
            let head = [&b"HPEXPIREAT"[..], &self.part].map(Bytes::copy_from_slice);
            let tail = [Bytes::from_static(b"FIELDS"), Bytes::from_static(b"1"), field.clone()];
            head.into_iter().chain([at]).chain(tail).collect()
        };
        Ok(timed.map(set).collect())
    }

    /// Entries, then the numbers that a stream remembers, then its groups with what is pending in each.
    async fn stream(&self) -> Result<(), Broken> {
        let count = digits(self.count);
        let mut from = Bytes::from_static(b"-");
        // A stream may be empty, and XADD cannot make one that is; whatever it is made with goes again.
        self.add(&[&[b"XGROUP", b"CREATE", &self.part, b"cutover", b"$", b"MKSTREAM"]]).await?;
        loop {
            let piece = self.ask(&[b"XRANGE", &self.key.name, &from, b"+", b"COUNT", count.as_bytes()]).await?;
            let mut last = None;
            let mut commands = Vec::new();
            for entry in reply::elements(&piece).ok_or(Broken::Unanswered)? {
                let entry = piece.slice(entry);
                let cells = reply::elements(&entry).filter(|cells| cells.len() == 2).ok_or(Broken::Unanswered)?;
                let id = entry.slice_ref(reply::bulk(&entry[cells[0].clone()]).ok_or(Broken::Unanswered)?);
                let mut command = vec![Bytes::from_static(b"XADD"), Bytes::copy_from_slice(&self.part), id.clone()];
                command.extend(bulks(&entry.slice(cells[1].clone()))?);
                commands.push(command);
                last = Some(id);
            }
            let Some(last) = last else { break };
            self.add_owned(&commands).await?;
            from = [b"(", &last[..]].concat().into();
        }
        let about = pairs(&self.ask(&[b"XINFO", b"STREAM", &self.key.name]).await?)?;
        let field = |name: &[u8]| value_of(&about, name).ok_or(Broken::Unanswered);
        let mut set = vec![&b"XSETID"[..], &self.part];
        let (last, added, deleted) =
            (field(b"last-generated-id")?, field(b"entries-added")?, field(b"max-deleted-entry-id")?);
        set.extend([&last[..], b"ENTRIESADDED", &added, b"MAXDELETEDID", &deleted]);
        self.add(&[&set, &[b"XGROUP", b"DESTROY", &self.part, b"cutover"]]).await?;
        let groups = self.ask(&[b"XINFO", b"GROUPS", &self.key.name]).await?;
        for group in reply::elements(&groups).ok_or(Broken::Unanswered)? {
            self.group(&pairs(&groups.slice(group))?).await?;
        }
        Ok(())
    }

    async fn group(&self, about: &[(Bytes, Bytes)]) -> Result<(), Broken> {
        let field = |name: &[u8]| value_of(about, name).ok_or(Broken::Unanswered);
        let (name, last) = (field(b"name")?, field(b"last-delivered-id")?);
        let mut create: Vec<&[u8]> = vec![b"XGROUP", b"CREATE", &self.part, &name, &last];
        // Not known to the server where entries in the middle were deleted.
        let read = value_of(about, b"entries-read").filter(|read| !read.is_empty());
        create.extend(read.iter().flat_map(|read| [&b"ENTRIESREAD"[..], read]));
        self.add(&[&create]).await?;
        let consumers = self.ask(&[b"XINFO", b"CONSUMERS", &self.key.name, &name]).await?;
        for consumer in reply::elements(&consumers).ok_or(Broken::Unanswered)? {
            let about = pairs(&consumers.slice(consumer))?;
            let consumer = value_of(&about, b"name").ok_or(Broken::Unanswered)?;
            self.add(&[&[b"XGROUP", b"CREATECONSUMER", &self.part, &name, &consumer]]).await?;
        }
        let mut from = Bytes::from_static(b"-");
        loop {
            let count = digits(PIECE_ELEMENTS);
            let pending = self.ask(&[b"XPENDING", &self.key.name, &name, &from, b"+", count.as_bytes()]).await?;
            let mut commands = Vec::new();
            for row in reply::elements(&pending).ok_or(Broken::Unanswered)? {
                let row = pending.slice(row);
                let cells = texts(&row)?;
                let [id, consumer, idle, deliveries] = &cells[..] else { return Err(Broken::Unanswered) };
                let words: [&[u8]; 3] = [b"XCLAIM", &self.part, &name];
                let tail: [&[u8]; 9] =
                    [consumer, b"0", id, b"IDLE", idle, b"RETRYCOUNT", deliveries, b"FORCE", b"JUSTID"];
                commands.push(words.iter().chain(&tail).map(|word| Bytes::copy_from_slice(word)).collect::<Vec<_>>());
                from = [b"(", &id[..]].concat().into();
            }
            if commands.is_empty() {
                return Ok(());
            }
            self.add_owned(&commands).await?;
        }
    }

    /// Asks the source about the key.
    async fn ask(&self, command: &[&[u8]]) -> Result<Bytes, Broken> {
        let index = if matches!(command[0], b"MEMORY" | b"XINFO") { 2 } else { 1 };
        let (sender, receiver) = oneshot::channel();
        let waiter = EngineWaiter::Once { sender, may_be_refused: false };
        self.engine.send(self.engine.address(self.from, (self.key, index), effect::command(command)), None, waiter);
        match receiver.await {
            Ok(Ok(reply)) if reply::is_error(&reply) => Err(Broken::Error(reply)),
            Ok(Ok(reply)) => Ok(reply),
            _ => Err(Broken::Unanswered),
        }
    }

    async fn number(&self, command: &[&[u8]]) -> Result<u64, Broken> {
        let reply = self.ask(command).await?;
        reply::integer(&reply).and_then(|number| u64::try_from(number).ok()).ok_or(Broken::Unanswered)
    }

    /// Adds to the key in the making, which ends by itself from then on.
    async fn add(&self, commands: &[&[&[u8]]]) -> Result<(), Broken> {
        let expire: &[&[u8]] = &[b"PEXPIRE", &self.part, UNFINISHED_MS];
        let all: Vec<&[&[u8]]> = commands.iter().copied().chain([expire]).collect();
        self.put(&all).await.map(drop)
    }

    async fn add_owned(&self, commands: &[Vec<Bytes>]) -> Result<(), Broken> {
        if commands.is_empty() {
            return Ok(());
        }
        let views: Vec<Vec<&[u8]>> =
            commands.iter().map(|command| command.iter().map(|word| &word[..]).collect()).collect();
        self.add(&views.iter().map(|command| &command[..]).collect::<Vec<_>>()).await
    }

    async fn integer_at_destination(&self, command: &[&[u8]]) -> Result<u64, Broken> {
        let answers = self.put(&[command]).await?;
        let cells = reply::elements(&answers).ok_or(Broken::Unanswered)?;
        let number = cells.first().and_then(|cell| reply::integer(&answers[cell.clone()]));
        number.and_then(|number| u64::try_from(number).ok()).ok_or(Broken::Unanswered)
    }

    /// One transaction at the destination; an error of any of its commands is an error of the whole.
    async fn put(&self, commands: &[&[&[u8]]]) -> Result<Bytes, Broken> {
        let mut out = BytesMut::new();
        write::command(&mut out, &[b"MULTI"]);
        for command in commands {
            write::command(&mut out, command);
        }
        write::command(&mut out, &[b"EXEC"]);
        let (request, replies) = (out.freeze(), commands.len() as u32 + 2);
        self.engine.copying.count(request.len());
        let (sender, receiver) = oneshot::channel();
        if !self.engine.stores.fence().is_holder() {
            return Err(Broken::Unanswered);
        }
        let (stores, waiter) = (&self.engine.stores, EngineWaiter::Once { sender, may_be_refused: false });
        let unanswered = self.engine.tally.open(self.from.other(), Wrote { writes: commands.len() as u64, scripts: 0 });
        match self.from.other() {
            Side::Standalone => stores.standalone_batch(self.key.db, request, replies, None, waiter),
            Side::Cluster => stores.cluster_batch(self.slot, request, replies, None, waiter),
        }
        let Ok(Ok(reply)) = receiver.await else { return Err(Broken::Unanswered) };
        unanswered.answered();
        if reply::is_error(&reply) {
            return Err(Broken::Error(reply));
        }
        let cells = reply::elements(&reply).ok_or(Broken::Unanswered)?;
        match cells.into_iter().find(|cell| reply::is_error(&reply[cell.clone()])) {
            Some(cell) => Err(Broken::Error(reply.slice(cell))),
            None => Ok(reply),
        }
    }
}

/// A name of that slot which no other copy has. `name`: the key's on the cluster.
fn part_of(name: &[u8], slot: u16, number: u64) -> Vec<u8> {
    let hashed = slot::hash_tag(name);
    let part = |tag: &[u8]| [RESERVED_COPIES, b"{", tag, format!("}}:{number:x}").as_bytes()].concat();
    if !hashed.is_empty() && memchr::memchr(b'}', hashed).is_none() {
        return part(hashed);
    }
    // A name that cannot be its own tag: 16,384 tries on average, under 2 ms.
    let tag = (0u32..).map(|number| number.to_string()).find(|tag| slot::of(tag.as_bytes()) == slot);
    part(tag.unwrap_or_default().as_bytes())
}

fn digits(number: u64) -> String {
    number.to_string()
}

/// The texts of an array, none of which may be missing.
fn bulks(frame: &Bytes) -> Result<Vec<Bytes>, Broken> {
    let cells = reply::elements(frame).ok_or(Broken::Unanswered)?;
    let text = |cell| {
        let cell = frame.slice(cell);
        reply::bulk(&cell).map(|text| cell.slice_ref(text)).ok_or(Broken::Unanswered)
    };
    cells.into_iter().map(text).collect()
}

/// Texts and numbers of an array as texts; what is neither (a null, an array) is empty.
fn texts(frame: &Bytes) -> Result<Vec<Bytes>, Broken> {
    let cells = reply::elements(frame).ok_or(Broken::Unanswered)?;
    let text = |cell| {
        let cell = frame.slice(cell);
        match reply::integer(&cell) {
            Some(number) => number.to_string().into(),
            None => reply::bulk(&cell).map(|text| cell.slice_ref(text)).unwrap_or_default(),
        }
    };
    Ok(cells.into_iter().map(text).collect())
}

/// Names and values in turn.
fn pairs(frame: &Bytes) -> Result<Vec<(Bytes, Bytes)>, Broken> {
    let texts = texts(frame)?;
    Ok(texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
}

fn value_of(pairs: &[(Bytes, Bytes)], name: &[u8]) -> Option<Bytes> {
    pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_the_making_has_the_slot_of_its_key() {
        for name in ["provider:7:cart", "{42}provider:42:x", "a}b", "{}a", "{", "}", "x{y}z}", ""] {
            let slot = slot::of(name.as_bytes());
            assert_eq!(slot::of(&part_of(name.as_bytes(), slot, 7)), slot, "{name}");
        }
    }
}
