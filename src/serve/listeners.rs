//! The listening sockets: bound here, or inherited from a service manager (`LISTEN_FDS`) or from the proxy whose place is
//! taken. One that was inherited keeps the clients that wait in its backlog, so none of them is ever closed.

use std::net::{SocketAddr, TcpListener};

use anyhow::Context as _;
use listenfd::ListenFd;

use crate::config::Config;
use crate::session::worker;

/// Those of the workers, which share a port, and that of the admin side.
pub struct Listeners {
    pub clients: Vec<TcpListener>,
    pub admin: TcpListener,
}

/// What a service manager holds for this process; none without one.
pub fn from_environment() -> anyhow::Result<Vec<TcpListener>> {
    let mut passed = ListenFd::from_env();
    let mut found = Vec::new();
    for index in 0..passed.len() {
        let taken = passed.take_tcp_listener(index).context("take a socket that LISTEN_FDS names")?;
        found.extend(taken);
    }
    Ok(found)
}

impl Listeners {
    /// Those of `inherited` that listen where the configuration says, and what is missing newly bound.
    pub fn open(config: &Config, inherited: Vec<TcpListener>, workers: usize) -> anyhow::Result<Self> {
        let (mut clients, mut admin) = (Vec::new(), None);
        for listener in inherited {
            listener.set_nonblocking(true).context("prepare an inherited socket")?;
            match listener.local_addr().context("ask an inherited socket for its address")? {
                address if address == config.listen.address => clients.push(listener),
                address if address == config.admin.address => admin = Some(listener),
                address => {
                    tracing::warn!(%address, "inherited a socket that listens where proxy.toml names nothing; closed: name its address under [listen] or [admin], or take it out of the unit")
                }
            }
        }
        if clients.is_empty() {
            clients = bind(config.listen.address, workers)?;
        }
        let admin = match admin {
            Some(admin) => admin,
            None => TcpListener::bind(config.admin.address)
                .with_context(|| in_vain("the admin address ", config.admin.address))?,
        };
        Ok(Self { clients, admin })
    }

    /// Further handles to the same sockets.
    pub fn all(&self) -> std::io::Result<Vec<TcpListener>> {
        self.clients.iter().chain([&self.admin]).map(TcpListener::try_clone).collect()
    }
}

/// One for each worker on the same port; the kernel spreads the clients over them.
fn bind(address: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpListener>> {
    // SO_REUSEPORT would let two programs share the port without a word: a plain bind finds out.
    drop(TcpListener::bind(address).with_context(|| in_vain("", address))?);
    (0..count).map(|_| worker::bind(address).with_context(|| in_vain("", address))).collect()
}

fn in_vain(which: &str, address: SocketAddr) -> String {
    format!("listen on {which}{address}; stop whoever has it, or name another address in proxy.toml")
}

/// Every worker accepts from some socket, and every socket has a worker: fewer sockets than workers are shared.
pub fn spread(sockets: Vec<TcpListener>, workers: usize) -> std::io::Result<Vec<Vec<TcpListener>>> {
    let mut spread: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for worker in sockets.len()..workers {
        spread[worker].push(sockets[worker % sockets.len()].try_clone()?);
    }
    for (index, socket) in sockets.into_iter().enumerate() {
        spread[index % workers].push(socket);
    }
    Ok(spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_has_a_socket_and_every_socket_a_worker() {
        let sockets = |count| (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect::<Vec<_>>();
        let counts = |sockets, workers| spread(sockets, workers).unwrap().iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(counts(sockets(2), 2), [1, 1]);
        assert_eq!(counts(sockets(1), 3), [1, 1, 1]);
        assert_eq!(counts(sockets(3), 2), [2, 1]);
    }
}
