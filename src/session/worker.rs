//! One worker: a thread with a single-threaded runtime that owns its listener, its sessions, its links and its lane.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;

use crate::audit::Audit;
use crate::dual::desk::Desk;
use crate::dual::traffic::TrafficBook;
use crate::dual::{Audience, Copying, Engine, EngineParts, Load, Message, Peers, Recent, Shadowing, Subscribing};
use crate::keep::keep;
use crate::metrics::Totals;
use crate::routing::{Side, Table};
use crate::session::bounds::Bounds;
use crate::session::clients::Clients;
use crate::session::listener::{self, Entrance};
use crate::session::refused;
use crate::session::replies::{self, Outlet};
use crate::session::scripts::Scripts;
use crate::session::session::Shared;
use crate::session::users::Users;
use crate::store::{StoreSide, Stores, StoresConfig};
use crate::wire::Acceptor;

/// How many turns what nobody waits for may wait for more of its kind while there is always something else to do.
const LATER_TURNS: u32 = 4;
const TICK: Duration = Duration::from_millis(25);
/// How often a worker that ends looks whether all is done.
const LOOK: Duration = Duration::from_millis(10);

/// What a worker is made of.
pub struct WorkerParts {
    pub number: usize,
    pub address: SocketAddr,
    pub bounds: Arc<Bounds>,
    pub users: Arc<ArcSwap<Users>>,
    /// Set where clients speak TLS.
    pub tls: Option<Arc<Acceptor>>,
    pub stores: StoresConfig,
    pub slow_keys: Arc<AtomicBool>,
    pub db: u32,
    pub table: Arc<Table>,
    pub peers: Peers,
    pub inbox: mpsc::UnboundedReceiver<Message>,
    /// How many workers may still have sessions.
    pub serving: Arc<AtomicUsize>,
    pub journal: Arc<crate::dual::journal::Journal>,
    pub copying: Arc<Copying>,
    pub recent: Arc<Recent>,
    pub shadowing: Arc<Shadowing>,
    pub totals: Arc<Totals>,
    pub traffic: Arc<TrafficBook>,
    pub clients: Arc<Clients>,
    pub scripts: Arc<Scripts>,
    pub audit: Arc<Audit>,
    pub subscribing: Arc<Subscribing>,
    pub audience: Arc<Audience>,
    pub desk: Arc<Desk>,
}

/// Binds the shared port once, so that a port that is taken is told before anything starts.
pub fn bind(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// Runs a worker on the calling thread until it is told to stop. True: everything was answered, effects included.
pub fn run(parts: WorkerParts, listeners: Vec<std::net::TcpListener>) -> std::io::Result<bool> {
    // Looked at between polls of the sockets: more tasks a turn make larger writes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(256).build()?;
    let local = LocalSet::new();
    runtime.block_on(local.run_until(serve(parts, listeners)))
}

async fn serve(parts: WorkerParts, listeners: Vec<std::net::TcpListener>) -> std::io::Result<bool> {
    let listeners = listeners.into_iter().map(TcpListener::from_std).collect::<std::io::Result<Vec<_>>>()?;
    let wake = Rc::new(Notify::new());
    let stores = Stores::new(parts.stores, wake.clone());
    let engine = Engine::new(EngineParts {
        worker: parts.number,
        table: parts.table,
        stores: stores.clone(),
        db: parts.db,
        peers: parts.peers,
        journal: parts.journal,
        copying: parts.copying,
        recent: parts.recent,
        shadowing: parts.shadowing,
        traffic: parts.traffic,
        slow_keys: parts.slow_keys,
        subscribing: parts.subscribing,
        audience: parts.audience,
        desk: parts.desk,
    });
    let outlet = Rc::new(Outlet::new(wake.clone(), parts.bounds.clone()));
    let shared = Rc::new(Shared {
        engine: engine.clone(),
        bounds: parts.bounds.clone(),
        users: parts.users,
        outlet: outlet.clone(),
        clients: parts.clients.clone(),
        scripts: parts.scripts,
        audit: parts.audit,
        chunks: RefCell::default(),
    });
    let flusher = keep("flusher", move |_| {
        let (wake, stores, outlet) = (wake.clone(), stores.clone(), outlet.clone());
        async move {
            let mut turns = 0;
            loop {
                if stores.has_later() {
                    tokio::task::yield_now().await;
                    turns += 1;
                } else {
                    wake.notified().await;
                    turns = 0;
                }
                let is_busy = stores.flush() | outlet.flush();
                if !is_busy || turns >= LATER_TURNS {
                    stores.flush_later();
                    turns = 0;
                }
            }
        }
    });
    let (ticking, totals, number) = (shared.clone(), parts.totals.clone(), parts.number);
    let ticker = keep("ticker", move |_| tick(ticking.clone(), totals.clone(), number));
    let open = Rc::new(Cell::new(0usize));
    let entrance = Rc::new(Entrance { shared, totals: parts.totals, tls: parts.tls, open: open.clone() });
    let accept = |listener: TcpListener| {
        let (listener, entrance) = (Rc::new(listener), entrance.clone());
        keep("listener", move |_| listener::accept(listener.clone(), entrance.clone()))
    };
    let accepting: Vec<_> = listeners.into_iter().map(accept).collect();
    let (inbox, hearing) = (parts.inbox, engine.clone());
    let hearing = tokio::task::spawn_local(async move { hearing.run_inbox(inbox).await });
    engine.stopped().await;
    parts.clients.ring_all();
    accepting.iter().for_each(|task| task.abort());
    let deadline = Instant::now() + parts.bounds.drain_timeout();
    while open.get() > 0 && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
    // The last thing that a session elsewhere does may be to have a key copied here: nobody's lane ends before it was heard.
    parts.serving.fetch_sub(1, Ordering::AcqRel);
    while parts.serving.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
    engine.caught_up(deadline).await;
    while engine.load().in_flight > 0 && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
    for task in [hearing, flusher, ticker] {
        task.abort();
    }
    Ok(parts.serving.load(Ordering::Acquire) == 0 && engine.load().in_flight == 0)
}

async fn tick(shared: Rc<Shared>, totals: Arc<Totals>, number: usize) {
    let Shared { engine, bounds, clients, chunks, outlet, .. } = &*shared;
    let (mut last, mut buffers_before) = (Load::default(), 0);
    loop {
        tokio::time::sleep(TICK).await;
        chunks.borrow_mut().tick();
        engine.stores().tick(Instant::now());
        engine.tick();
        let now = engine.load();
        publish(&totals.in_flight, last.in_flight, now.in_flight);
        publish(&totals.requests, last.requests, now.requests);
        publish(&totals.lane_operations, last.lane_operations, now.lane_operations);
        publish(&totals.exceptional_keys, last.exceptional_keys, now.exceptional_keys);
        publish(&totals.diverged_keys, last.diverged_keys, now.diverged_keys);
        publish(&totals.held_bytes, last.held_bytes, now.held_bytes);
        publish(&totals.standalone.queued_bytes, last.queued_standalone, now.queued_standalone);
        publish(&totals.cluster.queued_bytes, last.queued_cluster, now.queued_cluster);
        let buffers = (chunks.borrow().bytes() + outlet.spare_bytes()) as u64;
        publish(&totals.client_buffer_bytes, std::mem::replace(&mut buffers_before, buffers), buffers);
        let (heard_before, heard) = (last.subscriptions, now.subscriptions);
        publish(&totals.subscriptions, heard_before.members, heard.members);
        publish(&totals.subscription_links, heard_before.feeds, heard.feeds);
        publish(&totals.messages_delivered, heard_before.delivered, heard.delivered);
        publish(&totals.standalone.slow, last.slow_standalone, now.slow_standalone);
        publish(&totals.cluster.slow, last.slow_cluster, now.slow_cluster);
        last = now;
        for (side, totals) in [(StoreSide::Standalone, &totals.standalone), (StoreSide::Cluster, &totals.cluster)] {
            engine.stores().watch(side).latency.publish(&totals.round_trips);
        }
        refused::publish(&totals.refused);
        replies::publish_slow(&totals.slow_clients);
        if number == 0 {
            if clients.tick() && bounds.idle_seconds() > 0 {
                clients.close_idle(bounds.idle_seconds());
            }
            engine.probe(Instant::now());
            let micros = |side| engine.latency(side, Instant::now()).map_or(0, |took| took.as_micros().max(1) as u64);
            totals.standalone.latency_us.store(micros(Side::Standalone), Ordering::Relaxed);
            totals.cluster.latency_us.store(micros(Side::Cluster), Ordering::Relaxed);
            totals.standalone.up.store(engine.stores().is_up(StoreSide::Standalone).into(), Ordering::Relaxed);
            totals.cluster.up.store(engine.stores().is_up(StoreSide::Cluster).into(), Ordering::Relaxed);
            let private = |side| engine.stores().private_links(side);
            totals.standalone.private_links.store(private(StoreSide::Standalone), Ordering::Relaxed);
            totals.cluster.private_links.store(private(StoreSide::Cluster), Ordering::Relaxed);
        }
    }
}

/// Adds what changed of this worker's share to the total.
fn publish(total: &AtomicU64, last: u64, now: u64) {
    total.fetch_add(now.wrapping_sub(last), Ordering::Relaxed);
}
