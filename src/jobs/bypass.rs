//! Who writes to the stores around the proxy. A key that somebody else changes on one store differs on the other, and no
//! lane knows of it.
//!
//! Now and then, while a route is dual, the nodes are asked for their connections (CLIENT LIST). One that is not the proxy's,
//! not a replica and not a monitor, whose last command writes and ran since the last look, is a writer. Its key is not known, so
//! every dual route is in doubt from then on, until a backfill has gone through it with the writer gone. One that only reads
//! is left alone, and so is one in another database. What this does not see: a connection that came, wrote and went between
//! two looks, or that read after it had written.
//!
//! Another proxy is told apart by the number in its name, and reported as soon as it is connected. One that shares the lease
//! writes what it may; any other is a writer like all when it is seen writing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;

use crate::command::{self, Access, Kind};
use crate::jobs::{Context, scan};
use crate::routing::Side;
use crate::store::client_list::{self, field};
use crate::store::link::Endpoint;
use crate::store::private_link::{self, CONNECTION_NAME, own_name};

/// Writers that are named one by one; the others are counted.
const WRITERS_MAX: usize = 100;

/// A connection that writes around the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Writer {
    pub store: &'static str,
    pub node: String,
    pub address: String,
    /// As it calls itself; often empty.
    pub name: String,
    /// The writing command that was seen last, as the server calls it.
    pub command: String,
    /// Seconds since 1970.
    pub last_seen: u64,
    /// Looks that found it writing.
    pub looks: u64,
}

/// What was found in this run. The lock guards the list, for an instant a look.
#[derive(Debug, Default)]
pub struct Bypass {
    writers: Mutex<BTreeMap<(String, String), Writer>>,
    /// Other proxies at the last look, by name, with the address from which they came.
    proxies: Mutex<BTreeMap<String, String>>,
    sightings: AtomicU64,
}

impl Bypass {
    /// All writers, by node and address.
    pub fn writers(&self) -> Vec<Writer> {
        self.writers.lock().values().cloned().collect()
    }

    /// Other proxies that are connected to a store, by name, with the address from which they came: those that share the lease,
    /// and those that do not.
    pub fn proxies(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let all = self.proxies.lock().clone();
        all.into_iter().partition(|(name, _)| private_link::companion_of(name).is_some())
    }

    /// How often a look found a writer.
    pub fn sightings(&self) -> u64 {
        self.sightings.load(Ordering::Relaxed)
    }

    /// True the first time.
    fn note(&self, writer: Writer) -> bool {
        self.sightings.fetch_add(1, Ordering::Relaxed);
        let mut writers = self.writers.lock();
        let place = (writer.node.clone(), writer.address.clone());
        if let Some(known) = writers.get_mut(&place) {
            *known = Writer { looks: known.looks + 1, ..writer };
            return false;
        }
        if writers.len() < WRITERS_MAX {
            writers.insert(place, writer);
        }
        true
    }
}

/// Looks at the nodes for as long as the program runs.
pub(super) async fn watch(context: &Context, every: Duration) {
    if every.is_zero() {
        return;
    }
    loop {
        tokio::time::sleep(every).await;
        if !context.table().routes().iter().any(|route| route.dual.is_some()) {
            continue;
        }
        let map = context.slot_map.load_full();
        let primaries = map.primaries().iter().map(|address| (Side::Cluster, scan::node(context, address)));
        let (mut found, mut proxies) = (Vec::new(), BTreeMap::new());
        for (side, endpoint) in std::iter::once((Side::Standalone, context.standalone.clone())).chain(primaries) {
            // A node that does not answer is nobody's to write to; the links say that it is down.
            let list = tokio::time::timeout(endpoint.timeouts.reply, client_list::ask(&endpoint)).await.ok().flatten();
            let is_moving = |db| side == Side::Cluster || context.table().databases().is_moving(db);
            found.extend(list.iter().flat_map(|list| writers(list, side, &endpoint, every, is_moving)));
            proxies.extend(list.iter().flat_map(|list| other_proxies(list)));
        }
        let known = std::mem::replace(&mut *context.bypass.proxies.lock(), proxies.clone());
        for (name, address) in proxies.iter().filter(|(name, _)| !known.contains_key(*name)) {
            if private_link::companion_of(name).is_some() {
                tracing::info!(
                    name,
                    address,
                    "another cutover with this one's lease is connected to these stores: one of the two serves the dual routes, and the other one sends it their traffic"
                );
                continue;
            }
            tracing::error!(
                name,
                address,
                "another cutover is connected to these stores: two of them without a lease in common break the order of writes in dual phases; give both the same lease.name, or stop one of the two"
            );
        }
        if found.is_empty() {
            continue;
        }
        for writer in found {
            let (store, node, address, name, command) = (
                writer.store,
                writer.node.clone(),
                writer.address.clone(),
                writer.name.clone(),
                writer.command.clone(),
            );
            if context.bypass.note(writer) {
                tracing::warn!(
                    store,
                    node,
                    address,
                    name,
                    command,
                    "somebody writes to a store around the proxy: every dual route is in doubt until it has stopped and `cutover backfill --all` has gone through"
                );
            }
        }
        context.adopter.doubt_all().await;
    }
}

/// Name and host of the proxies in a CLIENT LIST that are not this one.
fn other_proxies(list: &str) -> impl Iterator<Item = (String, String)> {
    list.lines().filter_map(|line| {
        let name = private_link::proxy_of(field(line, "name")?)?;
        let host = field(line, "addr")?.rsplit_once(':')?.0;
        (name != own_name()).then(|| (name.to_string(), host.to_string()))
    })
}

/// Those of a CLIENT LIST that have written since the last look.
fn writers(
    list: &str,
    side: Side,
    endpoint: &Endpoint,
    every: Duration,
    is_moving: impl Fn(u32) -> bool,
) -> Vec<Writer> {
    let last_seen = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let writer = |line: &str| {
        let field = |wanted: &str| field(line, wanted);
        let command = field("cmd")?;
        let is_ours = field("name").is_some_and(|name| {
            name == CONNECTION_NAME
                || private_link::proxy_of(name) == Some(own_name())
                || private_link::companion_of(name).is_some()
        });
        // S: a replica, M: the primary of one, O: a monitor.
        let is_server = field("flags")?.contains(['S', 'M', 'O']);
        let is_elsewhere = !field("db")?.parse().is_ok_and(&is_moving);
        // The server counts idle time in whole seconds.
        let is_old = field("idle")?.parse::<u64>().ok()? > every.as_secs();
        if is_ours || is_server || is_elsewhere || is_old || !may_write(command) {
            return None;
        }
        Some(Writer {
            store: if side == Side::Standalone { "standalone" } else { "cluster" },
            node: endpoint.address.to_string(),
            address: field("addr")?.to_string(),
            name: field("name").unwrap_or_default().to_string(),
            command: command.to_string(),
            last_seen,
            looks: 1,
        })
    };
    list.lines().filter_map(writer).collect()
}

/// Whether a command, as CLIENT LIST calls it (`set`, `xgroup|create`), may change keys. What a transaction or a script did is
/// not told.
fn may_write(command: &str) -> bool {
    let name = command.split('|').next().unwrap_or_default();
    let Some(spec) = command::lookup(name.as_bytes()) else { return false };
    let is_script =
        spec.kind == Kind::Script && !matches!(spec.name, "SCRIPT" | "FUNCTION") && !spec.name.ends_with("_RO");
    spec.access == Access::Write || is_script || spec.name == "EXEC"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Login, Timeouts};

    #[test]
    fn only_a_stranger_that_has_just_written_to_the_database_that_moves_is_a_writer() {
        let second = Duration::from_secs(1);
        let timeouts = Timeouts { connect: second, reply: second, patience: second, queue: second };
        let endpoint =
            Endpoint { address: "10.0.0.1:6379".into(), tls: None, login: Login::default(), db: 2, timeouts };
        let line = |name: &str, flags: &str, db: u32, idle: u32, command: &str| {
            format!(
                "id=7 addr=10.0.0.9:4711 laddr=10.0.0.1:6379 fd=8 name={name} age=60 idle={idle} flags={flags} db={db} sub=0 cmd={command} user=default redir=-1 resp=2\n"
            )
        };
        let is_found = |line: String| writers(&line, Side::Standalone, &endpoint, Duration::from_secs(5), |db| db == 2);
        let found = is_found(line("shop", "N", 2, 1, "hset"));
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].address.as_str(), found[0].name.as_str(), found[0].command.as_str()),
            ("10.0.0.9:4711", "shop", "hset")
        );
        for command in ["xgroup|create", "exec", "evalsha", "del", "restore"] {
            assert_eq!(is_found(line("", "N", 2, 0, command)).len(), 1, "{command}");
        }
        for command in
            ["get", "client|list", "info", "ping", "config|get", "eval_ro", "psync", "publish", "scan", "NULL"]
        {
            assert_eq!(is_found(line("", "N", 2, 0, command)), [], "{command}");
        }
        assert_eq!(is_found(line(own_name(), "N", 2, 0, "set")), [], "the proxy itself");
        assert_eq!(is_found(line("cutover:00000001", "N", 2, 0, "set")).len(), 1, "another proxy");
        assert_eq!(is_found(line("", "S", 2, 0, "set")), [], "a replica");
        assert_eq!(is_found(line("", "O", 2, 0, "set")), [], "a monitor");
        assert_eq!(is_found(line("", "N", 0, 0, "set")), [], "another database does not move");
        assert_eq!(is_found(line("", "N", 2, 60, "set")), [], "before the last look");
    }
}
