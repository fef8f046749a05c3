//! Commands over the keyspace as a whole: SCAN, KEYS, DBSIZE, RANDOMKEY; each key once, from the store that is complete for
//! its route. What removes or moves keys is in `flush`.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::command::{Access, CommandSpec};
use crate::dual::{Target, refusal_of};
use crate::resp::refusal::Refusal;
use crate::resp::reply;
use crate::resp::request::Request;
use crate::resp::write;
use crate::routing::{Key, Side, Table, glob, is_reserved};
use crate::session::session::Session;

/// How often RANDOMKEY asks a source before it walks.
const RANDOM_TRIES: usize = 32;

/// What a client's cursor is made of: where the walk stands, and under which table it began, so that a flip in its middle
/// neither hides a key nor shows it twice. A cursor of the standalone alone, handed out while all routes were there, has
/// zeros in the upper parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    /// 0: the standalone; then the primaries in the order of their addresses.
    source: usize,
    /// The low bits of the table's version, one added; 0: the walk never leaves the standalone.
    version: u64,
    /// The low bits of [`crate::routing::Table::knowledge`].
    knowledge: u64,
    /// The store's own.
    position: u64,
}

/// A store's cursor has as many bits as its table of keys, and 14 more from Redis 8 on.
const POSITION_BITS: u32 = 40;
const KNOWLEDGE_BITS: u32 = 8;
const VERSION_BITS: u32 = 9;
const SOURCE_BITS: u32 = 6;
const VERSIONS: u64 = (1 << VERSION_BITS) - 1;

impl Cursor {
    fn parse(number: u64) -> Self {
        let take = |from: u32, bits: u32| (number >> from) & ((1 << bits) - 1);
        Self {
            position: take(0, POSITION_BITS),
            knowledge: take(POSITION_BITS, KNOWLEDGE_BITS),
            version: take(POSITION_BITS + KNOWLEDGE_BITS, VERSION_BITS),
            source: take(POSITION_BITS + KNOWLEDGE_BITS + VERSION_BITS, SOURCE_BITS) as usize,
        }
    }

    /// `None`: a part does not fit.
    fn number(self) -> Option<u64> {
        let fits = self.position >> POSITION_BITS == 0 && (self.source as u64) >> SOURCE_BITS == 0;
        let upper = (self.source as u64) << VERSION_BITS | self.version;
        fits.then_some((upper << KNOWLEDGE_BITS | self.knowledge) << POSITION_BITS | self.position)
    }
}

/// The part of a version that a cursor keeps.
fn low_version(version: u64) -> u64 {
    version % VERSIONS + 1
}

/// What a walk goes by from beginning to end.
struct View {
    table: Arc<Table>,
    knowledge: u32,
}

/// The COUNT of a SCAN: how many keys a step is to look at.
fn count_of(request: &Request) -> usize {
    let at = (2..request.len()).find(|index| request.arg(*index).eq_ignore_ascii_case(b"COUNT"));
    let text = at.and_then(|at| request.args().nth(at + 1)).and_then(|text| std::str::from_utf8(text).ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(10)
}

fn parse_cursor(request: &Request) -> Option<u64> {
    std::str::from_utf8(request.arg(1)).ok()?.parse().ok()
}

/// Whether a command of any database may concern one that moves.
pub(super) fn reaches_all(spec: &CommandSpec) -> bool {
    matches!(spec.name, "FLUSHALL" | "MOVE" | "SWAPDB")
}

impl Session {
    pub(super) async fn keyspace(&mut self, request: Request, spec: &'static CommandSpec) {
        let engine = self.shared.engine.clone();
        if !engine.is_holder() && (self.is_moving_db() || reaches_all(spec)) {
            self.replies.settle(0).await;
            if let Some(outcome) = self.keyspace_away(&request).await {
                return self.answer_with(outcome);
            }
        }
        if spec.access == Access::Write {
            self.replies.settle(0).await;
            let outcome = self.flush(&request, spec).await;
            return self.answer_with(outcome);
        }
        // A walk that began while every key was on the standalone ends there, whatever flips meanwhile.
        let stays = spec.name == "SCAN"
            && parse_cursor(&request).is_some_and(|cursor| cursor != 0 && Cursor::parse(cursor).version == 0);
        let begins = spec.name != "SCAN" || parse_cursor(&request) == Some(0);
        if !self.is_moving_db() || stays || (begins && engine.table().all_standalone()) {
            return engine.submit_elsewhere(spec, request.into_bytes(), self.caller());
        }
        self.replies.settle(0).await;
        let outcome = match spec.name {
            "SCAN" => self.scan(&request).await,
            "KEYS" => self.all_keys(self.db, Some(request.arg(1))).await.map(|keys| {
                let mut out = BytesMut::new();
                write::array(&mut out, keys.len());
                keys.iter().for_each(|key| write::bulk(&mut out, key));
                out.freeze()
            }),
            "DBSIZE" => self.all_keys(self.db, None).await.map(|keys| {
                let mut out = BytesMut::new();
                write::integer(&mut out, keys.len() as i64);
                out.freeze()
            }),
            _ => self.random_key().await,
        };
        self.answer_with(outcome);
    }

    /// Where keys are told from under a table: the standalone, then the primaries in the order of their addresses.
    fn sources(&self, table: &Table) -> Vec<Option<Arc<str>>> {
        let mut primaries = match table.is_read(Side::Cluster) {
            true => self.shared.engine.stores().primaries(),
            false => Vec::new(),
        };
        primaries.sort();
        let standalone = table.is_read(Side::Standalone).then_some(None);
        standalone.into_iter().chain(primaries.into_iter().map(Some)).collect()
    }

    async fn scan(&self, request: &Request) -> Result<Bytes, Refusal> {
        let invalid = || Refusal::Text("invalid cursor".into());
        let given = parse_cursor(request).ok_or_else(invalid)?;
        let (now, mut cursor) = (self.shared.engine.table(), Cursor::parse(given));
        if given == 0 {
            cursor.version = low_version(now.version());
            cursor.knowledge = u64::from(now.knowledge()) & ((1 << KNOWLEDGE_BITS) - 1);
        }
        let began = self.shared.engine.past_table(|table| low_version(table.version()) == cursor.version);
        // The newest number with these low bits.
        let behind = (u64::from(now.knowledge()).wrapping_sub(cursor.knowledge)) & ((1 << KNOWLEDGE_BITS) - 1);
        let view =
            View { table: began.unwrap_or(now.clone()), knowledge: now.knowledge().saturating_sub(behind as u32) };
        let sources = self.sources(&view.table);
        let wanted = count_of(request);
        let mut keys = Vec::new();
        // A source that ends gives way to the next one at once, so that a small database is told in one step, as Redis does.
        let after = loop {
            let source = sources.get(cursor.source).ok_or_else(invalid)?;
            let (next, some) = match self.scan_source(self.db, source.as_ref(), cursor.position, request, &view).await?
            {
                Ok(found) => found,
                Err(error) => return Ok(error),
            };
            keys.extend(some);
            cursor.position = next;
            if next == 0 {
                cursor.source += 1;
            }
            if cursor.source == sources.len() {
                break None;
            }
            if next != 0 || keys.len() >= wanted {
                break Some(cursor);
            }
        };
        let too_long = || Refusal::Text("the store's cursor is too long to be passed on".into());
        let next = after.map_or(Some(0), Cursor::number).ok_or_else(too_long)?;
        let mut out = BytesMut::new();
        write::array(&mut out, 2);
        write::bulk(&mut out, next.to_string().as_bytes());
        write::array(&mut out, keys.len());
        keys.iter().for_each(|key| write::bulk(&mut out, key));
        Ok(out.freeze())
    }

    /// One step of a source: the next cursor and the keys that are this source's to tell; `Err` is the store's own error.
    async fn scan_source(
        &self,
        db: u32,
        source: Option<&Arc<str>>,
        cursor: u64,
        request: &Request,
        view: &View,
    ) -> Result<Result<(u64, Vec<Bytes>), Bytes>, Refusal> {
        let engine = &self.shared.engine;
        let side = if source.is_none() { Side::Standalone } else { Side::Cluster };
        let text = cursor.to_string();
        let pattern_at = (3..request.len()).find(|index| request.arg(index - 1).eq_ignore_ascii_case(b"MATCH"));
        let own_pattern = pattern_at.map(|index| request.arg(index));
        let pattern = own_pattern.map(|pattern| match side {
            Side::Standalone => pattern.into(),
            Side::Cluster => view.table.cluster_pattern(db, pattern),
        });
        let args = request.args().enumerate().map(|(index, arg)| match (index, &pattern) {
            (1, _) => text.as_bytes(),
            (index, Some(pattern)) if Some(index) == pattern_at => pattern,
            _ => arg,
        });
        let ask = crate::dual::effect::command(&args.collect::<Vec<_>>());
        let target = source.map_or(Target::Standalone { db }, |address| Target::Node(address.clone()));
        let frame = engine.call(&target, &ask, self.protocol).await.map_err(|error| refusal_of(&error))?;
        if reply::is_error(&frame) {
            return Ok(Err(frame));
        }
        let (next, mut keys) = parse_page(&frame).ok_or_else(unknown_form)?;
        if side == Side::Cluster {
            let is_renamed = view.table.is_renamed();
            let fits = |name: &[u8]| own_pattern.is_none_or(|pattern| !is_renamed || glob::fits(pattern, name));
            keys.retain_mut(|key| match view.table.own_key(key).filter(|(own, name)| *own == db && fits(name)) {
                Some((_, name)) => {
                    *key = key.slice_ref(name);
                    true
                }
                None => false,
            });
        }
        keys.retain(|key| {
            !is_reserved(key) && view.table.complete_side(view.table.route_of(key).0, view.knowledge) == side
        });
        Ok(Ok((next, keys)))
    }

    /// A key of a random source; after too many that are not this source's to tell, the first that a walk finds.
    async fn random_key(&self) -> Result<Bytes, Refusal> {
        let engine = &self.shared.engine;
        let table = engine.table();
        let sources = self.sources(&table);
        let ask = crate::dual::effect::command(&[b"RANDOMKEY"]);
        for _ in 0..RANDOM_TRIES {
            let source = &sources[fastrand::usize(..sources.len())];
            let (target, side) = match source {
                None => (Target::Standalone { db: self.db }, Side::Standalone),
                Some(address) => (Target::Node(address.clone()), Side::Cluster),
            };
            let frame = engine.call(&target, &ask, self.protocol).await.map_err(|error| refusal_of(&error))?;
            let is_told = |key: &&[u8]| {
                !is_reserved(key) && table.complete_side(table.route_of(key).0, table.knowledge()) == side
            };
            let own = |name| match side {
                Side::Standalone => Some(name),
                Side::Cluster => table.own_key(name).filter(|(db, _)| *db == self.db).map(|(_, name)| name),
            };
            let key = reply::bulk(&frame).filter(|_| !reply::is_null(&frame)).and_then(own).filter(is_told);
            if let Some(key) = key {
                let mut out = BytesMut::new();
                write::bulk(&mut out, key);
                return Ok(out.freeze());
            }
        }
        let mut out = BytesMut::new();
        match self.all_keys(self.db, None).await?.first() {
            Some(key) => write::bulk(&mut out, key),
            None => write::null(&mut out, self.protocol),
        }
        Ok(out.freeze())
    }

    /// Every key of one primary that has a name of this table, of whatever route.
    pub(super) async fn own_keys_of_node(&self, address: &Arc<str>) -> Result<Vec<Key>, Refusal> {
        let (engine, target) = (&self.shared.engine, Target::Node(address.clone()));
        let (mut all, mut cursor) = (Vec::new(), 0);
        loop {
            let ask = crate::dual::effect::command(&[b"SCAN", cursor.to_string().as_bytes(), b"COUNT", b"1000"]);
            let frame = engine.call(&target, &ask, self.protocol).await.map_err(|error| refusal_of(&error))?;
            let (next, keys) = parse_page(&frame).ok_or_else(unknown_form)?;
            let table = engine.table();
            let own = |key: &Bytes| table.own_key(key).map(|(db, name)| Key { name: key.slice_ref(name), db });
            all.extend(keys.iter().filter(|key| !is_reserved(key)).filter_map(own));
            cursor = next;
            if cursor == 0 {
                return Ok(all);
            }
        }
    }

    /// Every key of a database that moves, and that a pattern fits.
    pub(super) async fn all_keys(&self, db: u32, pattern: Option<&[u8]>) -> Result<Vec<Bytes>, Refusal> {
        let mut args: Vec<&[u8]> = vec![b"SCAN", b"0", b"COUNT", b"1000"];
        args.extend(pattern.into_iter().flat_map(|pattern| [&b"MATCH"[..], pattern]));
        let request = Request::from_args(&args);
        let table = self.shared.engine.table();
        let view = View { knowledge: table.knowledge(), table };
        let mut all = std::collections::HashSet::new();
        for source in self.sources(&view.table) {
            let mut cursor = 0;
            loop {
                let step = self.scan_source(db, source.as_ref(), cursor, &request, &view).await?;
                let (next, keys) = step.map_err(|error| {
                    Refusal::Verbatim(String::from_utf8_lossy(reply::error_text(&error)).into_owned())
                })?;
                all.extend(keys);
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(all.into_iter().collect())
    }
}

/// The next cursor and the keys of a reply to SCAN.
fn parse_page(frame: &Bytes) -> Option<(u64, Vec<Bytes>)> {
    let cells = reply::elements(frame).filter(|cells| cells.len() == 2)?;
    let next = std::str::from_utf8(reply::bulk(&frame[cells[0].clone()])?).ok()?.parse().ok()?;
    let list = frame.slice(cells[1].clone());
    let keys = reply::elements(&list)?.into_iter().map(|cell| Some(list.slice_ref(reply::bulk(&list[cell])?)));
    Some((next, keys.collect::<Option<_>>()?))
}

fn unknown_form() -> Refusal {
    Refusal::Text("the store answered SCAN in an unknown form".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_way_through_the_client() {
        let cursor = Cursor { source: 5, version: low_version(1022), knowledge: 255, position: (1 << 40) - 1 };
        let number = cursor.number().unwrap();
        assert!(number < 1 << 63, "signed integers of clients hold it");
        assert_eq!(Cursor::parse(number), cursor);
        assert_eq!(Cursor::parse(12_345).version, 0);
        assert!(Cursor { position: 1 << 40, ..cursor }.number().is_none());
        assert!((0..2000).all(|version| (1..512).contains(&low_version(version))));
    }
}
