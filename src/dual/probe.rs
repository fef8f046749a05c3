//! How long the stores take to answer: a PING twice a second on the links that the application's requests use, behind
//! whatever waits there. Nothing is timed a request. One worker asks; the links of the others share its network and nodes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::dual::engine::{Engine, EngineWaiter, Inner};
use crate::routing::Side;
use crate::store::LinkError;

const PERIOD: Duration = Duration::from_millis(500);
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// The last answer of one node.
#[derive(Default)]
pub struct Timing {
    /// When the PING that is not answered yet was sent. One at a time, so that a node that hangs costs one.
    sent: Cell<Option<Instant>>,
    took: Cell<Option<Duration>>,
}

impl Timing {
    pub(super) fn answered(&self, outcome: Result<(), LinkError>) {
        let took = self.sent.take().map(|sent| sent.elapsed());
        self.took.set(took.filter(|_| outcome.is_ok()));
    }

    /// How long it took, or has taken up to now.
    fn latency(&self, now: Instant) -> Option<Duration> {
        let waits = self.sent.get().map(|sent| now.saturating_duration_since(sent));
        match (waits, self.took.get()) {
            (Some(waits), Some(took)) => Some(waits.max(took)),
            (Some(waits), None) if waits > PERIOD => Some(waits),
            (_, took) => took,
        }
    }
}

/// The nodes of both stores.
#[derive(Default)]
pub struct Probes {
    standalone: Rc<Timing>,
    nodes: RefCell<HashMap<Arc<str>, Rc<Timing>>>,
    asked: Cell<Option<Instant>>,
}

impl Engine {
    /// Asks the stores, when it is time.
    pub fn probe(&self, now: Instant) {
        let inner = &self.0;
        let probes = &inner.probes;
        if probes.asked.get().is_some_and(|asked| now.duration_since(asked) < PERIOD) {
            return;
        }
        probes.asked.set(Some(now));
        inner.ask(&probes.standalone, |request, waiter| inner.stores.standalone(inner.db, request, None, waiter));
        let primaries = inner.stores.primaries();
        probes.nodes.borrow_mut().retain(|address, _| primaries.contains(address));
        for address in primaries {
            let timing = probes.nodes.borrow_mut().entry(address.clone()).or_default().clone();
            inner.ask(&timing, |request, waiter| inner.stores.node(&address, request, None, waiter));
        }
    }

    /// The last answer's time; of the cluster that of its slowest primary. `None`: it does not answer, or was not asked yet.
    pub fn latency(&self, side: Side, now: Instant) -> Option<Duration> {
        let probes = &self.0.probes;
        match side {
            Side::Standalone => probes.standalone.latency(now),
            Side::Cluster => probes.nodes.borrow().values().map(|timing| timing.latency(now)).max().flatten(),
        }
    }
}

impl Inner {
    fn ask(&self, timing: &Rc<Timing>, send: impl FnOnce(Bytes, EngineWaiter)) {
        if timing.sent.get().is_some() {
            return;
        }
        timing.sent.set(Some(Instant::now()));
        send(Bytes::from_static(PING), EngineWaiter::Probe(timing.clone()));
    }
}
