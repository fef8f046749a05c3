//! Every metric with its help, in the text format of Prometheus.
//!
//! Nothing is counted by atomics on the byte path: a worker counts in cells of its own and adds what changed to these
//! totals at each tick.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::histogram::{Reading, Summed};

/// Panics of any thread, counted by the hook that logs them.
pub static PANICS: AtomicU64 = AtomicU64::new(0);

/// Totals of all workers.
#[derive(Debug, Default)]
pub struct Totals {
    pub clients: AtomicU64,
    pub accepted: AtomicU64,
    pub rejected: AtomicU64,
    pub handshakes_failed: AtomicU64,
    /// 1 or 0.
    pub certificates_refused: AtomicU64,
    pub requests: AtomicU64,
    pub lane_operations: AtomicU64,
    pub in_flight: AtomicU64,
    pub exceptional_keys: AtomicU64,
    pub diverged_keys: AtomicU64,
    pub held_bytes: AtomicU64,
    pub client_buffer_bytes: AtomicU64,
    pub subscriptions: AtomicU64,
    pub subscription_links: AtomicU64,
    pub messages_delivered: AtomicU64,
    pub slow_clients: AtomicU64,
    pub journal_keys: AtomicU64,
    pub journal_bytes: AtomicU64,
    /// 1 or 0.
    pub journal_refused: AtomicU64,
    pub standalone: StoreTotals,
    pub cluster: StoreTotals,
    /// In the order of [`REASONS`].
    pub refused: [AtomicU64; REASONS.len()],
}

/// Of one store.
#[derive(Debug, Default)]
pub struct StoreTotals {
    /// 1 or 0.
    pub up: AtomicU64,
    /// Of a PING; 0: not known.
    pub latency_us: AtomicU64,
    pub round_trips: Summed,
    pub slow: AtomicU64,
    pub private_links: AtomicU64,
    pub queued_bytes: AtomicU64,
}

/// Why the proxy answered with an error of its own. `request`: the request itself was wrong (unknown command, wrong number
/// of arguments, no password); `denied`: a wrong password, or a user that may not do it; `no_link_free`: private_links are all
/// taken, or the server's maxclients.
/// `limited`: more than the route may ask for; `overloaded`: the store has more to do than it can.
pub const REASONS: [&str; 9] = [
    "crossslot",
    "not_supported",
    "store_down",
    "unknown_outcome",
    "request",
    "denied",
    "no_link_free",
    "limited",
    "overloaded",
];

/// Reads a total.
pub fn get(total: &AtomicU64) -> u64 {
    total.load(Ordering::Relaxed)
}

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A page of metrics being written.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// A metric with one value.
    pub fn add(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help, [(String::new(), value)]);
    }

    /// The same under a name that is not this program's own.
    pub fn add_plain(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }

    /// A histogram in seconds for each set of labels.
    pub fn histogram<'l>(
        &mut self,
        name: &str,
        help: &str,
        readings: impl IntoIterator<Item = (&'l [Pair<'l>], Reading)>,
    ) {
        let name = format!("cutover_{name}");
        self.head(&name, Kind::Histogram, help);
        for (labels, reading) in readings {
            let bounds = reading.up_to.iter().map(|(bound, count)| (bound.to_string(), *count));
            for (bound, count) in bounds.chain([("+Inf".to_string(), reading.count)]) {
                self.line(&format!("{name}_bucket"), &label(&[labels, &[("le", &bound)]].concat()), count);
            }
            self.line(&format!("{name}_sum"), &label(labels), reading.sum_seconds);
            self.line(&format!("{name}_count"), &label(labels), reading.count);
        }
    }

    /// A metric with labels: `{label="value"}` and the sample, for each.
    pub fn family<V: Display>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = (String, V)>,
    ) {
        let name = format!("cutover_{name}");
        self.head(&name, kind, help);
        for (labels, value) in samples {
            self.line(&name, &labels, value);
        }
    }

    fn head(&mut self, name: &str, kind: Kind, help: &str) {
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {word}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

/// A label's name and value.
pub type Pair<'l> = (&'l str, &'l str);

/// `{name="value"}`, the value escaped as the text format asks.
pub fn label(pairs: &[Pair<'_>]) -> String {
    let pair = |(name, value): &Pair<'_>| {
        format!("{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
    };
    format!("{{{}}}", pairs.iter().map(pair).collect::<Vec<_>>().join(","))
}

/// What the workers count.
pub fn totals(page: &mut Page, totals: &Totals) {
    use Kind::{Counter, Gauge};
    page.add("clients", Gauge, "Clients that are connected.", get(&totals.clients));
    page.add("clients_accepted_total", Counter, "Connections that were accepted.", get(&totals.accepted));
    page.add(
        "clients_rejected_total",
        Counter,
        "Connections refused because max_clients was reached.",
        get(&totals.rejected),
    );
    page.add(
        "tls_handshakes_failed_total",
        Counter,
        "Clients that were refused in their TLS handshake.",
        get(&totals.handshakes_failed),
    );
    page.add(
        "tls_certificates_refused",
        Gauge,
        "Whether the newest certificates could not be used, so that the ones before stay; the log says why.",
        get(&totals.certificates_refused),
    );
    page.add(
        "panics_total",
        Counter,
        "Internal errors that ended a task; each is in the log, and worth a report.",
        get(&PANICS),
    );
    page.add("requests_total", Counter, "Requests that were sent to a store or a lane.", get(&totals.requests));
    page.add(
        "lane_operations_total",
        Counter,
        "Commands and copies that went through a lane.",
        get(&totals.lane_operations),
    );
    page.add("in_flight", Gauge, "Requests and copies that are not answered yet.", get(&totals.in_flight));
    page.add(
        "exceptional_keys",
        Gauge,
        "Keys of which a lane has to remember something: a copy in flight, a divergence.",
        get(&totals.exceptional_keys),
    );
    page.add(
        "held_bytes",
        Gauge,
        "Memory of requests that wait for a slot or a store that takes none; bound by queue_bytes a worker.",
        get(&totals.held_bytes),
    );
    page.add(
        "client_buffer_bytes",
        Gauge,
        "Memory that requests of clients are read into and their answers are gathered in, as far as it is kept for the next ones.",
        get(&totals.client_buffer_bytes),
    );
    page.add(
        "subscriptions",
        Gauge,
        "Channels, patterns and shard channels that clients are subscribed to, each once a client.",
        get(&totals.subscriptions),
    );
    page.add(
        "subscription_links",
        Gauge,
        "Connections to the stores on which the subscriptions are: up to one a worker and node.",
        get(&totals.subscription_links),
    );
    page.add(
        "messages_delivered_total",
        Counter,
        "Messages of channels given to clients, each once a client.",
        get(&totals.messages_delivered),
    );
    page.add(
        "slow_clients_closed_total",
        Counter,
        "Clients closed because more than max_pending_reply_bytes of replies and messages waited for them.",
        get(&totals.slow_clients),
    );
    page.add("diverged_keys", Gauge, "Keys known or feared to differ between the stores.", get(&totals.diverged_keys));
    page.add("journal_keys", Gauge, "Diverged keys that the journal on disk names.", get(&totals.journal_keys));
    page.add("journal_bytes", Gauge, "Size of the journal's file.", get(&totals.journal_bytes));
    page.add(
        "journal_refused",
        Gauge,
        "Whether the disk refuses the journal, so that writes which need it are not answered.",
        get(&totals.journal_refused),
    );
    let refused = REASONS.iter().zip(&totals.refused).map(|(reason, count)| (label(&[("reason", reason)]), get(count)));
    page.family(
        "refused_requests_total",
        Counter,
        "Requests that the proxy answered with an error of its own, by reason.",
        refused,
    );
    stores(page, totals);
}

/// What is known of each store.
fn stores(page: &mut Page, totals: &Totals) {
    use Kind::{Counter, Gauge};
    let stores: [(&[Pair<'_>], _); 2] =
        [(&[("store", "standalone")], &totals.standalone), (&[("store", "cluster")], &totals.cluster)];
    let up = stores.map(|(labels, store)| (label(labels), get(&store.up)));
    page.family("store_up", Gauge, "Whether the store answers.", up);
    let known = stores.iter().filter(|(_, store)| get(&store.latency_us) > 0);
    let seconds = known.map(|(labels, store)| (label(labels), get(&store.latency_us) as f64 / 1e6));
    page.family(
        "store_latency_seconds",
        Gauge,
        "Time of the last PING behind the requests that wait on a link; of the cluster's slowest primary.",
        seconds,
    );
    page.histogram(
        "store_round_trip_seconds",
        "From the write of a batch of requests to a node until the last of them is answered.",
        stores.map(|(labels, store)| (labels, store.round_trips.read())),
    );
    let private = stores.map(|(labels, store)| (label(labels), get(&store.private_links)));
    page.family(
        "private_links",
        Gauge,
        "Connections that single clients have of their own, for a blocked command or WATCH; bound by private_links.",
        private,
    );
    let queued = stores.map(|(labels, store)| (label(labels), get(&store.queued_bytes)));
    page.family(
        "queued_bytes",
        Gauge,
        "Requests that are to be written to a node as soon as its connection takes them; bound by queue_bytes a connection.",
        queued,
    );
    let slow = stores.map(|(labels, store)| (label(labels), get(&store.slow)));
    page.family("slow_commands_total", Counter, "Commands that the store took longer for than log.slow_command.", slow);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_help_and_hostile_labels_are_escaped() {
        let mut page = Page::default();
        totals(&mut page, &Totals::default());
        page.family("x", Kind::Gauge, "X.", [(label(&[("route", "a\"\\\nb")]), 1)]);
        let text = page.finish();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let parts = ["_bucket", "_sum", "_count"].iter().filter(|_| name.contains("_seconds_"));
            let name = parts.fold(name, |name, part| name.strip_suffix(part).unwrap_or(name));
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        }
        assert!(text.contains("cutover_x{route=\"a\\\"\\\\\\nb\"} 1"));
    }
}
