//! One worker: a thread with a single-threaded runtime that owns its listener, its sessions, its links and its lane.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;

use crate::dual::{Engine, EngineParts, Message, Peers};
use crate::routing::Table;
use crate::session::session::{Session, SessionLimits, Shared};
use crate::store::link::Dirty;
use crate::store::{Stores, StoresConfig};

const TICK: Duration = Duration::from_millis(25);
/// How long sessions get to answer what they have when the program ends.
const DRAIN: Duration = Duration::from_secs(10);

/// What all workers share and show.
#[derive(Default)]
pub struct Counters {
    pub clients: AtomicUsize,
    pub accepted: AtomicU64,
    pub rejected: AtomicU64,
    pub in_flight: AtomicU64,
    pub exceptional_keys: AtomicU64,
    pub standalone_up: AtomicUsize,
    pub cluster_up: AtomicUsize,
}

/// What a worker is made of.
pub struct WorkerParts {
    pub number: usize,
    pub address: SocketAddr,
    pub clients_max: usize,
    pub limits: SessionLimits,
    pub stores: StoresConfig,
    pub db: u32,
    pub table: Arc<Table>,
    pub peers: Peers,
    pub inbox: mpsc::UnboundedReceiver<Message>,
    pub journal: Arc<crate::dual::journal::Journal>,
    pub counters: Arc<Counters>,
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

/// Runs a worker on the calling thread until it is told to stop.
pub fn run(parts: WorkerParts, listener: std::net::TcpListener) -> std::io::Result<()> {
    // Looked at between polls of the sockets: more tasks a turn make larger writes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(256).build()?;
    let local = LocalSet::new();
    runtime.block_on(local.run_until(serve(parts, listener)))
}

async fn serve(parts: WorkerParts, listener: std::net::TcpListener) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let wake = Rc::new(Notify::new());
    let stores = Stores::new(parts.stores, wake.clone());
    let engine = Engine::new(EngineParts {
        worker: parts.number,
        table: parts.table,
        stores: stores.clone(),
        db: parts.db,
        peers: parts.peers,
        journal: parts.journal,
    });
    let dirty = Rc::new(Dirty::new(wake.clone()));
    let shared = Rc::new(Shared {
        engine: engine.clone(),
        limits: parts.limits,
        dirty: dirty.clone(),
        arena: RefCell::new(BytesMut::new()),
    });
    let flusher = tokio::task::spawn_local(async move {
        loop {
            wake.notified().await;
            stores.flush();
            for replies in dirty.take() {
                replies.flush();
            }
        }
    });
    let ticker = tokio::task::spawn_local(tick(engine.clone(), parts.counters.clone(), parts.number));
    let open = Rc::new(Cell::new(0usize));
    let accepting = tokio::task::spawn_local(accept(listener, shared, parts.counters, parts.clients_max, open.clone()));
    engine.run_inbox(parts.inbox).await;
    accepting.abort();
    let deadline = Instant::now() + DRAIN;
    while open.get() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while engine.load().0 > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    flusher.abort();
    ticker.abort();
    Ok(())
}

async fn tick(engine: Engine, counters: Arc<Counters>, number: usize) {
    let mut published = (0u64, 0u64);
    loop {
        tokio::time::sleep(TICK).await;
        engine.stores().tick(Instant::now());
        engine.tick();
        let (in_flight, keys) = engine.load();
        publish(&counters.in_flight, &mut published.0, in_flight);
        publish(&counters.exceptional_keys, &mut published.1, keys as u64);
        if number == 0 {
            use crate::store::StoreSide::{Cluster, Standalone};
            counters.standalone_up.store(usize::from(engine.stores().is_up(Standalone)), Ordering::Relaxed);
            counters.cluster_up.store(usize::from(engine.stores().is_up(Cluster)), Ordering::Relaxed);
        }
    }
}

/// Adds what changed of this worker's share to a gauge of all.
fn publish(gauge: &AtomicU64, last: &mut u64, now: u64) {
    gauge.fetch_add(now.wrapping_sub(*last), Ordering::Relaxed);
    *last = now;
}

async fn accept(
    listener: TcpListener,
    shared: Rc<Shared>,
    counters: Arc<Counters>,
    clients_max: usize,
    open: Rc<Cell<usize>>,
) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::error!(%error, "accept: is the limit of open files reached? trying again");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let id = counters.accepted.fetch_add(1, Ordering::Relaxed) + 1;
        if counters.clients.fetch_add(1, Ordering::Relaxed) >= clients_max {
            counters.clients.fetch_sub(1, Ordering::Relaxed);
            counters.rejected.fetch_add(1, Ordering::Relaxed);
            reject(&stream);
            continue;
        }
        let _ = stream.set_nodelay(true);
        let session = Session::new(shared.clone(), stream, id, peer.to_string());
        let (counters, open) = (counters.clone(), open.clone());
        open.set(open.get() + 1);
        tokio::task::spawn_local(async move {
            session.run().await;
            counters.clients.fetch_sub(1, Ordering::Relaxed);
            open.set(open.get() - 1);
        });
    }
}

fn reject(stream: &TcpStream) {
    // A client that can't take one line is closed without it.
    let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
}
