//! Lets clients in: the limit of clients, TLS where it is asked for, and a session for each.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

use crate::metrics::Totals;
use crate::session::clients::Client;
use crate::session::session::{Flow, Session, Shared};
use crate::wire::{Acceptor, Stream};

/// How long a client may take for its handshake; it counts as a client meanwhile.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// As Redis's own `tcp-keepalive`.
const KEEPALIVE: Duration = Duration::from_secs(300);
/// Between two lines in the log that a handshake failed: whoever can connect could fill it.
const WARN: Duration = Duration::from_secs(1);

/// Of one worker.
pub struct Entrance {
    pub shared: Rc<Shared>,
    pub totals: Arc<Totals>,
    pub tls: Option<Arc<Acceptor>>,
    /// Clients of this worker.
    pub open: Rc<Cell<usize>>,
}

/// One client's place among those that are counted, for as long as it lives.
struct Place {
    entrance: Rc<Entrance>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Entrance { shared, totals, open, .. } = &*self.entrance;
        shared.clients.remove(self.id);
        totals.clients.fetch_sub(1, Ordering::Relaxed);
        open.set(open.get() - 1);
    }
}

/// Accepts for ever.
pub async fn accept(listener: Rc<TcpListener>, entrance: Rc<Entrance>) {
    let warned = Rc::new(Cell::new(None));
    let mut is_failing = false;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::error!(%error, "no client can be accepted: is the limit of open files reached? trying again 20 times a second; those who are connected are served");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        is_failing = false;
        let Some((place, client)) = entrance.admit(&stream, peer) else { continue };
        match &entrance.tls {
            None => drop(tokio::task::spawn_local(attend(place, Stream::Plain(stream), client))),
            Some(tls) => drop(tokio::task::spawn_local(greet(tls.clone(), place, stream, client, warned.clone()))),
        }
    }
}

impl Entrance {
    fn admit(self: &Rc<Self>, stream: &TcpStream, peer: SocketAddr) -> Option<(Place, Arc<Client>)> {
        let id = self.totals.accepted.fetch_add(1, Ordering::Relaxed) + 1;
        if self.totals.clients.fetch_add(1, Ordering::Relaxed) >= self.shared.bounds.clients_max() as u64 {
            self.totals.clients.fetch_sub(1, Ordering::Relaxed);
            self.totals.rejected.fetch_add(1, Ordering::Relaxed);
            if self.tls.is_none() {
                // A client that can't take one line is closed without it.
                let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
            }
            return None;
        }
        let _ = stream.set_nodelay(true);
        // A client whose machine is gone says nothing more: the system asks it, and it is counted out.
        let _ = SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
        let local = stream.local_addr().unwrap_or(peer);
        self.open.set(self.open.get() + 1);
        let client = self.shared.clients.add(id, peer, local);
        Some((Place { entrance: self.clone(), id }, client))
    }
}

/// A client's task. Not an async function, which would have room for its arguments twice.
fn attend(place: Place, stream: Stream, client: Arc<Client>) -> impl Future<Output = ()> {
    let mut session = Session::new(place.entrance.shared.clone(), stream, client);
    async move {
        if session.serve().await == Flow::Close {
            Box::pin(session.farewell()).await;
        }
        drop(session);
        drop(place);
    }
}

/// The handshake, in a task of its own: a session's is as small as it can be.
async fn greet(
    tls: Arc<Acceptor>,
    place: Place,
    stream: TcpStream,
    client: Arc<Client>,
    warned: Rc<Cell<Option<Instant>>>,
) {
    let accepted = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
    match accepted.unwrap_or_else(|_| Err("no handshake in time".into())) {
        Ok(stream) => drop(tokio::task::spawn_local(attend(place, stream, client))),
        Err(reason) => {
            place.entrance.totals.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            if warned.get().is_none_or(|last: Instant| last.elapsed() >= WARN) {
                warned.set(Some(Instant::now()));
                tracing::warn!(peer = %client.peer, %reason, "a client was refused in its TLS handshake; at most one a second is told of");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::replies::Replies;

    /// An idle client is its task, which tokio adds some 100 bytes to and makes room for in pieces of 128, and little else.
    #[test]
    fn a_client_s_task_is_small() {
        fn size_of_future<F: Future>(_: impl Fn(Place, Stream, Arc<Client>) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = [size_of_future(attend), size_of::<Replies>(), size_of::<Client>()];
        assert!(bytes[0] <= 280 && bytes[1] <= 128 && bytes[2] <= 176, "{bytes:?} bytes");
    }
}
