//! Commands over the keyspace as a whole: SCAN, KEYS, DBSIZE; each key once, from the store that is complete for its route.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::command::CommandSpec;
use crate::dual::{Target, refusal_of};
use crate::resp::refusal::Refusal;
use crate::resp::reply;
use crate::resp::request::Request;
use crate::resp::write;
use crate::routing::{Side, Table};
use crate::session::session::Session;

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

fn parse_cursor(request: &Request) -> Option<u64> {
    std::str::from_utf8(request.arg(1)).ok()?.parse().ok()
}

impl Session {
    pub(super) async fn keyspace(&mut self, request: Request, spec: &'static CommandSpec) {
        let engine = self.shared.engine.clone();
        // A walk that began while every key was on the standalone ends there, whatever flips meanwhile.
        let stays = spec.name == "SCAN" && parse_cursor(&request).is_some_and(|cursor| cursor != 0 && Cursor::parse(cursor).version == 0);
        let begins = spec.name != "SCAN" || parse_cursor(&request) == Some(0);
        if !self.is_moving_db() || stays || (begins && engine.table().all_standalone()) {
            return engine.submit_elsewhere(self.db, request.bytes(), self.protocol, self.reply_to());
        }
        self.replies.settle(0).await;
        let outcome = match spec.name {
            "SCAN" => self.scan(&request).await,
            "KEYS" => self.all_keys(Some(request.arg(1))).await.map(|keys| {
                let mut out = BytesMut::new();
                write::array(&mut out, keys.len());
                keys.iter().for_each(|key| write::bulk(&mut out, key));
                out.freeze()
            }),
            "DBSIZE" => self.all_keys(None).await.map(|keys| {
                let mut out = BytesMut::new();
                write::integer(&mut out, keys.len() as i64);
                out.freeze()
            }),
            name => Err(Refusal::NotSupported {
                command: name.to_lowercase(),
                reason: "keys of this database are on two stores while providers move",
            }),
        };
        self.answer_with(outcome);
    }

    /// Where keys are: the standalone, then the primaries in the order of their addresses.
    fn sources(&self) -> Vec<Option<Arc<str>>> {
        let mut primaries = self.shared.engine.stores().primaries();
        primaries.sort();
        std::iter::once(None).chain(primaries.into_iter().map(Some)).collect()
    }

    async fn scan(&self, request: &Request) -> Result<Bytes, Refusal> {
        let invalid = || Refusal::Text("invalid cursor".into());
        let given = parse_cursor(request).ok_or_else(invalid)?;
        let (now, mut cursor) = (self.shared.engine.table(), Cursor::parse(given));
        if given == 0 {
            cursor.version = low_version(now.version());
            cursor.knowledge = u64::from(now.knowledge()) & ((1 << KNOWLEDGE_BITS) - 1);
        }
        let sources = self.sources();
        let source = sources.get(cursor.source).ok_or_else(invalid)?;
        let began = self.shared.engine.past_table(|table| low_version(table.version()) == cursor.version);
        // The newest number with these low bits.
        let behind = (u64::from(now.knowledge()).wrapping_sub(cursor.knowledge)) & ((1 << KNOWLEDGE_BITS) - 1);
        let view = View { table: began.unwrap_or(now.clone()), knowledge: now.knowledge().saturating_sub(behind as u32) };
        let (next, keys) = match self.scan_source(source.as_ref(), cursor.position, request, &view).await? {
            Ok(found) => found,
            Err(error) => return Ok(error),
        };
        let after = match next {
            0 if cursor.source + 1 == sources.len() => None,
            0 => Some(Cursor { source: cursor.source + 1, position: 0, ..cursor }),
            position => Some(Cursor { position, ..cursor }),
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
        source: Option<&Arc<str>>,
        cursor: u64,
        request: &Request,
        view: &View,
    ) -> Result<Result<(u64, Vec<Bytes>), Bytes>, Refusal> {
        let engine = &self.shared.engine;
        let text = cursor.to_string();
        let args: Vec<&[u8]> =
            request.args().enumerate().map(|(index, arg)| if index == 1 { text.as_bytes() } else { arg }).collect();
        let ask = crate::dual::effect::command(&args);
        let target = source.map_or(Target::Standalone { db: self.db }, |address| Target::Node(address.clone()));
        let frame = engine.call(&target, &ask, self.protocol).await.map_err(|error| refusal_of(&error))?;
        if reply::is_error(&frame) {
            return Ok(Err(frame));
        }
        let broken = || Refusal::Text("the store answered SCAN in an unknown form".into());
        let cells = reply::elements(&frame).filter(|cells| cells.len() == 2).ok_or_else(broken)?;
        let next = reply::bulk(&frame[cells[0].clone()]).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        let list = frame.slice(cells[1].clone());
        let side = if source.is_none() { Side::Standalone } else { Side::Cluster };
        let mut keys = Vec::new();
        for cell in reply::elements(&list).ok_or_else(broken)? {
            let key = reply::bulk(&list[cell]).ok_or_else(broken)?;
            if view.table.complete_side(view.table.route_of(key).0, view.knowledge) == side {
                keys.push(list.slice_ref(key));
            }
        }
        Ok(Ok((next.ok_or_else(broken)?, keys)))
    }

    async fn all_keys(&self, pattern: Option<&[u8]>) -> Result<Vec<Bytes>, Refusal> {
        let mut args: Vec<&[u8]> = vec![b"SCAN", b"0", b"COUNT", b"1000"];
        args.extend(pattern.into_iter().flat_map(|pattern| [&b"MATCH"[..], pattern]));
        let request = Request::from_args(&args);
        let table = self.shared.engine.table();
        let view = View { knowledge: table.knowledge(), table };
        let mut all = std::collections::HashSet::new();
        for source in self.sources() {
            let mut cursor = 0;
            loop {
                let step = self.scan_source(source.as_ref(), cursor, &request, &view).await?;
                let (next, keys) = step.map_err(|error| Refusal::Verbatim(String::from_utf8_lossy(reply::error_text(&error)).into_owned()))?;
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
