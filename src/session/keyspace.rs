//! Commands over the keyspace as a whole: SCAN, KEYS, DBSIZE; each key once, from the store that is complete for its route.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::command::CommandSpec;
use crate::dual::{Target, refusal_of};
use crate::resp::refusal::Refusal;
use crate::resp::reply;
use crate::resp::request::Request;
use crate::resp::write;
use crate::routing::Side;
use crate::session::session::Session;

/// Bits of a cursor that name the source: the standalone, then each primary.
const SOURCE_BITS: u32 = 6;

impl Session {
    pub(super) async fn keyspace(&mut self, request: Request, spec: &'static CommandSpec) {
        let engine = self.shared.engine.clone();
        if !self.is_moving_db() || engine.table().all_standalone() {
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
        let cursor: u64 = std::str::from_utf8(request.arg(1)).ok().and_then(|text| text.parse().ok()).ok_or_else(invalid)?;
        let sources = self.sources();
        let index = (cursor & ((1 << SOURCE_BITS) - 1)) as usize;
        let source = sources.get(index).ok_or_else(invalid)?;
        let (next, keys) = match self.scan_source(source.as_ref(), cursor >> SOURCE_BITS, request).await? {
            Ok(found) => found,
            Err(error) => return Ok(error),
        };
        let next = match next {
            0 if index + 1 == sources.len() => 0,
            0 => (index + 1) as u64,
            next if next >> (64 - SOURCE_BITS) == 0 => next << SOURCE_BITS | index as u64,
            _ => return Err(Refusal::Text("the store's cursor is too long to be passed on".into())),
        };
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
            let plan = engine.plan(key);
            // Before the cluster has every key, the standalone does: it gets every write before it is answered.
            let complete = if plan.is_first_touch() { Side::Standalone } else { plan.leader };
            if complete == side {
                keys.push(list.slice_ref(key));
            }
        }
        Ok(Ok((next.ok_or_else(broken)?, keys)))
    }

    async fn all_keys(&self, pattern: Option<&[u8]>) -> Result<Vec<Bytes>, Refusal> {
        let mut args: Vec<&[u8]> = vec![b"SCAN", b"0", b"COUNT", b"1000"];
        args.extend(pattern.into_iter().flat_map(|pattern| [&b"MATCH"[..], pattern]));
        let request = Request::from_args(&args);
        let mut all = std::collections::HashSet::new();
        for source in self.sources() {
            let mut cursor = 0;
            loop {
                let step = self.scan_source(source.as_ref(), cursor, &request).await?;
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
