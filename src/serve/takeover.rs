//! A new proxy takes the place of the one that runs on the same machine, and no client is refused meanwhile.
//!
//! Two proxies must never serve at the same time, for both would do dual writes: the state directory's lock sees to that. So
//! clients have to wait between the old one's last answer and the new one's first, and where they wait must not be closed.
//! Two listeners that share the port (SO_REUSEPORT) would not do: what lies in the backlog of the one that closes is reset.
//! Here the listening sockets themselves go over, as file descriptors through a unix socket in the state directory:
//!
//! ```text
//!   new                              old
//!    │ connects ───────────────────►  │
//!    │ ◄───────── greeting, sockets   │
//!    │ go ─────────────────────────►  │ accepts nobody any more, drains, writes its state, ends: the lock is free
//!    │ takes the lock, reads the state, accepts whoever waits in the backlog
//! ```
//!
//! Whoever ends before `go` leaves the old one as it was.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::net::UnixListener;

/// With the format's number.
const GREETING: &[u8] = b"cutover takeover 1\n";
const GO: &[u8] = b"go\n";
/// The kernel's own bound is 253 a message; a worker has one.
const SOCKETS_MAX: usize = 250;
/// How long either side waits for the other's next word.
pub const PATIENCE: Duration = Duration::from_secs(5);

fn path(directory: &Path) -> PathBuf {
    directory.join("takeover")
}

/// Waits until a successor has the sockets. Cancelling it closes them.
pub async fn offer(directory: PathBuf, sockets: Vec<TcpListener>) {
    let path = path(&directory);
    // One that is left over from an earlier run: whoever holds the lock owns it.
    let _ = std::fs::remove_file(&path);
    let listener = match UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no successor can take over without a pause (`serve --takeover`): its way to ask cannot be opened");
            return std::future::pending().await;
        }
    };
    loop {
        let asked = async {
            let (stream, _) = listener.accept().await?;
            let own = rustix::process::geteuid().as_raw();
            if ![own, 0].contains(&stream.peer_cred()?.uid()) {
                return Err(io::Error::other("asked for by another user"));
            }
            let stream = stream.into_std()?;
            let sockets = sockets.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?;
            tokio::task::spawn_blocking(move || hand_over(stream, &sockets)).await?
        };
        match asked.await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(%error, "a successor asked for the sockets and did not take them; going on");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn hand_over(mut stream: UnixStream, sockets: &[TcpListener]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other(format!("{} sockets are more than one message takes", sockets.len())));
    }
    sendmsg(&stream, &[IoSlice::new(GREETING)], &mut control, SendFlags::empty())?;
    let mut word = [0; GO.len()];
    stream.read_exact(&mut word)?;
    if word == GO { Ok(()) } else { Err(io::Error::other("it said something else than go")) }
}

/// Takes the sockets of the proxy that runs with this state directory; it drains from now on.
pub fn ask(directory: &Path) -> io::Result<Vec<TcpListener>> {
    let mut stream = UnixStream::connect(path(directory))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut greeting = [0; GREETING.len()];
    let received = recvmsg(&stream, &mut [IoSliceMut::new(&mut greeting)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if greeting[..received.bytes] != *GREETING {
        return Err(io::Error::other("the proxy that runs is of a version that hands over in another way"));
    }
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors.map(TcpListener::from));
        }
    }
    stream.write_all(GO)?;
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_went_over_still_has_the_clients_that_wait_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let offered = tokio::spawn(offer(directory.path().to_path_buf(), vec![listener]));
        let place = directory.path().to_path_buf();
        let mut taken = None;
        while taken.is_none() {
            let place = place.clone();
            taken = tokio::task::spawn_blocking(move || ask(&place)).await.unwrap().ok();
        }
        let waiting = std::net::TcpStream::connect(address).unwrap();
        offered.await.unwrap();
        let taken = taken.unwrap();
        assert_eq!(taken.len(), 1);
        let (_, peer) = taken[0].accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
    }
}
