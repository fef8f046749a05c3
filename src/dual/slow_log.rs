//! The log of slow commands: which command of which route a store took long for. Keys stand in it only where a setting says
//! so, values never. So many lines a second and no more; what is left out is counted.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::command;
use crate::dual::engine::EngineWaiter;
use crate::resp::limits::Limits;
use crate::resp::request::Request;
use crate::resp::scan::RequestScanner;
use crate::routing::{Side, Table};
use crate::store::{SlowRequest, StoreSide, Stores};

/// Lines of one worker in one second. A store that stops for a moment makes everything slow that waits for it.
const LINES_MAX: u64 = 10;
/// Keys are cut here.
const KEY_BYTES_MAX: usize = 128;

/// See the module; one a worker.
pub struct SlowLog {
    shows_keys: Arc<AtomicBool>,
    /// When the second began that is being written, and what was written and left out in it.
    began: Cell<Option<Instant>>,
    written: Cell<u64>,
    left_out: Cell<u64>,
    /// Slow requests that were heard of.
    heard: Cell<u64>,
}

/// What is said of a request.
#[derive(Debug, PartialEq, Eq)]
struct Described {
    command: String,
    /// Empty: it has no key.
    route: String,
    key: String,
}

impl SlowLog {
    pub fn new(shows_keys: Arc<AtomicBool>) -> Self {
        Self { shows_keys, began: Cell::new(None), written: Cell::new(0), left_out: Cell::new(0), heard: Cell::new(0) }
    }

    /// Writes what was slow since the last time.
    pub fn tick(&self, stores: &Stores<EngineWaiter>, table: &Table, now: Instant) {
        if self.began.get().is_none_or(|began| now.duration_since(began) >= Duration::from_secs(1)) {
            self.began.set(Some(now));
            self.written.set(0);
            let left_out = self.left_out.take();
            if left_out > 0 {
                tracing::warn!(
                    left_out,
                    "more commands were slow within a second than are listed; metrics count all of them"
                );
            }
        }
        let watches = [(stores.watch(StoreSide::Standalone), false), (stores.watch(StoreSide::Cluster), true)];
        let slow = watches.iter().map(|(watch, _)| watch.slow()).sum::<u64>();
        let new = slow - self.heard.replace(slow);
        if new == 0 {
            return;
        }
        let before = self.written.get();
        for (watch, is_cluster) in watches {
            for slow in watch.take_slow() {
                self.write(&slow, is_cluster, table);
            }
        }
        self.left_out.set(self.left_out.get() + new - (self.written.get() - before));
    }

    fn write(&self, slow: &SlowRequest, is_cluster: bool, table: &Table) {
        if self.written.get() >= LINES_MAX {
            return;
        }
        self.written.set(self.written.get() + 1);
        let Described { command, route, key } = describe(&slow.request, is_cluster, table);
        let key = self.shows_keys.load(Ordering::Relaxed).then_some(key);
        let store = if is_cluster { Side::Cluster } else { Side::Standalone };
        let ms = (slow.took.as_secs_f64() * 1e4).round() / 10.0;
        tracing::warn!(command, route, %store, node = %slow.node, ms, key, "slow command: it was answered; what came behind it on the same link has waited as long");
    }
}

/// Of a transaction: its first command with a key.
fn describe(bytes: &Bytes, is_cluster: bool, table: &Table) -> Described {
    let mut described = Described { command: String::new(), route: String::new(), key: String::new() };
    let (mut scanner, mut rest) = (RequestScanner::default(), bytes.clone());
    while let Ok(Some(length)) = scanner.scan(&rest, &Limits::default()) {
        let request = Request::new(rest.split_to(length), scanner.args().clone());
        if request.is_empty() {
            continue;
        }
        let spec = command::lookup(request.arg(0)).or_else(|| command::learnt::find(request.arg(0)));
        if described.command.is_empty() {
            // An unknown name may be anything, a password too.
            described.command = spec.map_or("?", |spec| spec.name).to_lowercase();
        }
        let keys = spec.and_then(|spec| command::keys_of(spec, &request)).unwrap_or_default();
        if let Some(name) = keys.first().map(|index| request.arg(*index)) {
            let key = if is_cluster { table.own_name(name).unwrap_or(name) } else { name };
            described.route = table.route_of(key).0.name.to_string();
            described.key = key[..key.len().min(KEY_BYTES_MAX)].escape_ascii().to_string();
            break;
        }
    }
    described
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dual::effect::command as frame;
    use crate::routing::{ClusterKeys, RoutingSpec, sample_spec};

    #[test]
    fn a_command_is_named_with_its_route_and_a_transaction_with_that_of_its_first_key() {
        let table = Table::build(&sample_spec(), 1, None);
        let of = |bytes: &[u8]| describe(&Bytes::copy_from_slice(bytes), false, &table);
        let described = of(&frame(&[b"hgetall", b"provider:42:cart"]));
        assert_eq!((&*described.command, &*described.route, &*described.key), ("hgetall", "42", "provider:42:cart"));
        let batch = [frame(&[b"MULTI"]), frame(&[b"SET", b"asgi:x", b"secret"]), frame(&[b"EXEC"])].concat();
        let described = of(&batch);
        assert_eq!((&*described.command, &*described.route, &*described.key), ("multi", "asgi:", "asgi:x"));
        assert_eq!(of(&frame(&[b"PING"])).route, "");
        assert_eq!(of(&frame(&[b"PASSWORD-BY-MISTAKE", b"x"])).command, "?");
        let long = of(&frame(&[b"GET", &[b'x'; 5_000]]));
        assert_eq!((&*long.route, long.key.len()), ("other_keys", KEY_BYTES_MAX));
    }

    #[test]
    fn a_key_has_its_own_name_again_where_the_cluster_calls_it_by_another() {
        let table = Table::build(&RoutingSpec { cluster_keys: ClusterKeys::Tagged, ..sample_spec() }, 1, None);
        let bytes = frame(&[b"GET", b"{42}provider:42:cart"]);
        let described = describe(&bytes, true, &table);
        assert_eq!((&*described.route, &*described.key), ("42", "provider:42:cart"));
    }
}
