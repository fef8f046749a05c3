//! What a service manager is told: the protocol of systemd's `sd_notify(3)`, a datagram to the socket that `NOTIFY_SOCKET`
//! names. Without one nothing is sent.

use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells it: `READY=1`, `STOPPING=1`, `STATUS=…`, one a line. Who cannot be told is only named in the log.
pub fn tell(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let name = name.to_string_lossy();
    if let Err(error) = send(&name, state) {
        tracing::warn!(%error, socket = %name, "the service manager cannot be told of the state; serving goes on, and it may give up waiting");
    }
}

fn send(name: &str, state: &str) -> io::Result<()> {
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address(name)?).map(drop)
}

/// A path, or `@name` for one without a file.
fn address(name: &str) -> io::Result<SocketAddr> {
    match name.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(hidden) => {
            use std::os::linux::net::SocketAddrExt as _;
            SocketAddr::from_abstract_name(hidden)
        }
        _ => SocketAddr::from_pathname(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn a_socket_with_a_path_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(&path.display().to_string(), "READY=1").unwrap();
        assert_eq!(receive(&socket), "READY=1");
        assert!(send(&folder.path().join("nobody").display().to_string(), "READY=1").is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_socket_without_a_file_is_told() {
        let name = format!("cutover-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&address(&format!("@{name}")).unwrap()).unwrap();
        send(&format!("@{name}"), "STOPPING=1").unwrap();
        assert_eq!(receive(&socket), "STOPPING=1");
    }
}
