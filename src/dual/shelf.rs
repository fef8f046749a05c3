//! What one store keeps of the lease: a record and the holder's tables, under two keys of one slot. Read and written on a
//! connection of their own, with WATCH, so that nobody writes over what he has not seen.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::command::{self, Access};
use crate::dual::desk::Records;
use crate::dual::lease::{Record, Seen, Tables};
use crate::resp::reply::{self, Protocol};
use crate::resp::write;
use crate::routing::{RESERVED_LEASES, Side};
use crate::slot;
use crate::store::client_list::{self, field};
use crate::store::link::Endpoint;
use crate::store::private_link::{companion_of, own_name};
use crate::store::{LinkError, PrivateLink, SlotMap};

/// How long a record outlives its lease: whoever takes over is to know what was there.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// How a store is found.
pub enum Where {
    Standalone(Endpoint),
    /// By whoever serves the slot; the seeds say how.
    Cluster {
        seeds: Vec<Endpoint>,
        slot_map: Arc<ArcSwap<SlotMap>>,
        refresh: Arc<Notify>,
    },
}

/// What became of a record that was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Done,
    /// The store takes nothing more, but what it has counts for longer.
    Prolonged,
    /// Somebody else was first.
    Overtaken,
    /// It answered, with an error.
    Refused,
    Unreachable,
}

/// See the module.
pub struct Shelf {
    place: Where,
    /// The record, and the tables.
    keys: [Vec<u8>; 2],
    link: Option<PrivateLink>,
    /// For one question.
    patience: Duration,
    /// The store's clock at the last look.
    now_ms: u64,
    /// [`Tables::number`] that was written last.
    written: Option<u64>,
    /// What the link's name says has been taken of the holder's tables.
    told: Option<u64>,
    records: Arc<Records>,
}

impl Shelf {
    /// For the lease of that name.
    pub fn new(place: Where, name: &str, patience: Duration, records: Arc<Records>) -> Self {
        let record = [RESERVED_LEASES, b"{", name.as_bytes(), b"}"].concat();
        let tables = [&record[..], b":tables"].concat();
        Self { place, keys: [record, tables], link: None, patience, now_ms: 0, written: None, told: None, records }
    }

    fn endpoint(&self) -> Option<Endpoint> {
        match &self.place {
            Where::Standalone(endpoint) => Some(endpoint.clone()),
            Where::Cluster { seeds, slot_map, .. } => {
                let address = slot_map.load().owner(slot::of(&self.keys[0]))?.clone();
                Some(Endpoint { address, ..seeds.first()?.clone() })
            }
        }
    }

    /// Every node of the store.
    pub fn nodes(&self) -> Vec<Endpoint> {
        match &self.place {
            Where::Standalone(endpoint) => vec![endpoint.clone()],
            Where::Cluster { seeds, slot_map, .. } => {
                let of = |address: &Arc<str>| Some(Endpoint { address: address.clone(), ..seeds.first()?.clone() });
                slot_map.load().primaries().iter().filter_map(of).collect()
            }
        }
    }

    /// Which store it is.
    pub fn side(&self) -> Side {
        match self.place {
            Where::Standalone(_) => Side::Standalone,
            Where::Cluster { .. } => Side::Cluster,
        }
    }

    /// Asks; an error of any of the commands ends the connection.
    async fn ask(&mut self, commands: &[&[&[u8]]]) -> Result<Vec<Bytes>, Written> {
        let asked = tokio::time::timeout(self.patience, self.ask_now(commands)).await;
        let answers = asked.unwrap_or(Err(LinkError::TimedOut)).ok();
        let is_refused = |answers: &Vec<Bytes>| answers.iter().any(|answer| reply::is_error(answer));
        if answers.as_ref().is_none_or(is_refused) {
            if let Some(error) = answers.iter().flatten().find(|answer| reply::is_error(answer)) {
                tracing::debug!(store = %self.side(), error = %String::from_utf8_lossy(error).trim_end(), "the lease cannot be kept here");
            }
            (self.link, self.told) = (None, None);
            if let Where::Cluster { refresh, .. } = &self.place {
                refresh.notify_one();
            }
            return Err(answers.map_or(Written::Unreachable, |_| Written::Refused));
        }
        answers.ok_or(Written::Unreachable)
    }

    async fn ask_now(&mut self, commands: &[&[&[u8]]]) -> Result<Vec<Bytes>, LinkError> {
        let mut out = BytesMut::new();
        for command in commands {
            write::command(&mut out, command);
        }
        let mut link = match self.link.take() {
            Some(link) => link,
            None => {
                let endpoint = self.endpoint().ok_or(LinkError::Redirects)?;
                PrivateLink::connect(&endpoint, Protocol::Resp2).await?
            }
        };
        let writes = commands.iter().filter_map(|command| command::lookup(command.first()?));
        self.records.send(writes.filter(|spec| spec.access == Access::Write).count() as u64);
        link.send(&out).await?;
        let mut answers = Vec::with_capacity(commands.len());
        for _ in commands {
            answers.push(link.receive().await?);
        }
        self.records.answer();
        self.link = Some(link);
        Ok(answers)
    }

    /// What is there. `wants`: whether an absent record is to be taken, so that it matters who else is connected.
    pub async fn look(&mut self, wants: bool) -> Seen {
        let key = self.keys[0].clone();
        let commands: [&[&[u8]]; 5] = [&[b"UNWATCH"], &[b"WATCH", &key], &[b"GET", &key], &[b"TIME"], &[b"PTTL", &key]];
        let Ok(answers) = self.ask(&commands).await else { return Seen::Unreachable };
        let Some(now_ms) = time_of(&answers[3]) else { return Seen::Unreachable };
        self.now_ms = now_ms;
        let record = reply::bulk(&answers[2]).filter(|_| !reply::is_null(&answers[2]));
        // What is no record was written by nobody that we know of, and is written over.
        match record.and_then(|bytes| serde_json::from_slice::<Record>(bytes).ok()) {
            Some(record) => {
                // It was prolonged if it is kept for longer than it says.
                let left = reply::integer(&answers[4]).and_then(|left| u64::try_from(left).ok()).unwrap_or_default();
                let until_ms = record.until_ms.max((now_ms + left).saturating_sub(ms(KEPT)));
                Seen::Found { record: Record { until_ms, ..record }, now_ms }
            }
            None => {
                self.written = None;
                // One that may not ask is not alone for all it knows.
                let is_alone = wants && self.companions().await.is_some_and(|companions| companions.is_empty());
                Seen::Absent { is_alone }
            }
        }
    }

    /// The other proxies of this lease that are connected, each with what it has taken of the holder's tables. `None`: they
    /// cannot be asked for.
    pub async fn companions(&mut self) -> Option<Vec<(String, Option<u64>)>> {
        let link = self.link.as_mut()?;
        let asked = tokio::time::timeout(self.patience, link.call(client_list::ASK)).await;
        let list = match asked {
            Ok(Ok(frame)) => client_list::parse(&frame)?,
            _ => {
                self.link = None;
                return None;
            }
        };
        let mut found: Vec<(String, Option<u64>)> = Vec::new();
        for name in list.lines().filter_map(|line| field(line, "name")) {
            let Some(proxy) = companion_of(name) else { continue };
            let taken = name[proxy.len()..].strip_prefix(':').and_then(|number| number.parse().ok());
            match found.iter_mut().find(|(known, _)| known == proxy) {
                Some((_, known)) => *known = (*known).max(taken),
                None => found.push((proxy.to_string(), taken)),
            }
        }
        Some(found)
    }

    /// Tells the holder how much of its tables was taken.
    pub async fn tell(&mut self, number: u64) {
        if self.told == Some(number) || self.link.is_none() {
            return;
        }
        let name = format!("{}:{number}", own_name());
        if self.ask(&[&[b"CLIENT", b"SETNAME", name.as_bytes()]]).await.is_ok() {
            self.told = Some(number);
        }
    }

    /// The holder's tables.
    pub async fn tables(&mut self) -> Option<Tables> {
        let key = self.keys[1].clone();
        let answers = self.ask(&[&[b"GET", &key]]).await.ok()?;
        serde_json::from_slice(reply::bulk(&answers[0])?).ok()
    }

    /// Writes the record, which lasts that long from the last look on, and the tables if they are not there yet.
    pub async fn write(&mut self, record: &Record, lasts: Duration, tables: &Tables) -> Written {
        let own_id = record.id.clone();
        let record = Record { until_ms: self.now_ms.saturating_add(ms(lasts)), ..record.clone() };
        let kept = ms(KEPT + lasts).to_string();
        let [own, others] = self.keys.clone();
        // Neither can fail: both are plain data.
        let record = serde_json::to_vec(&record).unwrap_or_default();
        let is_new = self.written != Some(tables.number);
        let document = if is_new { serde_json::to_vec(tables).unwrap_or_default() } else { Vec::new() };
        let mut commands: Vec<Vec<&[u8]>> = vec![vec![b"MULTI"], vec![b"SET", &own, &record, b"PX", kept.as_bytes()]];
        match is_new {
            true => commands.push(vec![b"SET", &others, &document, b"PX", kept.as_bytes()]),
            false => commands.push(vec![b"PEXPIRE", &others, kept.as_bytes()]),
        }
        commands.push(vec![b"EXEC"]);
        let (written, answers) = self.exec(&commands).await;
        if written == Written::Done {
            // Tables that were evicted are written anew the next time.
            let is_there = is_new || !answers.ends_with(b":0\r\n");
            self.written = is_there.then_some(tables.number);
        }
        match written {
            Written::Refused => self.prolong(&own_id, &kept).await,
            written => written,
        }
    }

    /// A store that is full refuses what is longer than what it has, and every transaction, but lets a key live on: so a
    /// record's time is what it is kept for, beside what it says. That it was ours when it was prolonged shows behind that.
    async fn prolong(&mut self, own_id: &str, kept: &str) -> Written {
        let [own, others] = self.keys.clone();
        let kept = kept.as_bytes();
        let commands: [&[&[u8]]; 3] = [&[b"PEXPIRE", &own, kept], &[b"PEXPIRE", &others, kept], &[b"GET", &own]];
        let is_own = |record: &Record| record.id == own_id && record.connections == own_name() && !record.released;
        let answers = self.ask(&commands).await.ok();
        let record = answers.and_then(|answers| serde_json::from_slice::<Record>(reply::bulk(&answers[2])?).ok());
        if record.as_ref().is_some_and(is_own) { Written::Prolonged } else { Written::Refused }
    }

    /// Removes both.
    pub async fn clear(&mut self) -> Written {
        let [own, others] = self.keys.clone();
        self.written = None;
        self.exec(&[vec![b"MULTI"], vec![b"DEL", &own, &others], vec![b"EXEC"]]).await.0
    }

    async fn exec(&mut self, commands: &[Vec<&[u8]>]) -> (Written, Bytes) {
        let commands: Vec<&[&[u8]]> = commands.iter().map(Vec::as_slice).collect();
        match self.ask(&commands).await.map(|mut answers| answers.pop().unwrap_or_default()) {
            Err(why) => (why, Bytes::new()),
            Ok(answer) if reply::is_null(&answer) => (Written::Overtaken, answer),
            Ok(answer) => (Written::Done, answer),
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970, of a reply to TIME.
fn time_of(frame: &[u8]) -> Option<u64> {
    let number = |cell: &std::ops::Range<usize>| -> Option<u64> {
        std::str::from_utf8(reply::bulk(&frame[cell.clone()])?).ok()?.parse().ok()
    };
    let cells = reply::elements(frame)?;
    Some(number(cells.first()?)? * 1_000 + number(cells.get(1)?)? / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_s_clock_is_read() {
        assert_eq!(time_of(b"*2\r\n$10\r\n1700000000\r\n$6\r\n123456\r\n"), Some(1_700_000_000_123));
        assert_eq!(time_of(b"*1\r\n$1\r\nx\r\n"), None);
    }
}
