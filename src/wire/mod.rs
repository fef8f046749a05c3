//! One socket, plain or under TLS, to a client or to a store.
//!
//! While a connection is opened it is a [`Stream`]; then it is a worker's [`Socket`], which tasks of one thread share and which
//! never waits to write: what it does not take now stays where it is. The plain kind is tokio's own behind one branch; what
//! TLS needs stands in `tls.rs`, and from which files it comes in `certificates.rs`.

mod certificates;
mod tls;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

pub use certificates::{Acceptor, ClientFiles, Connector, Identity, ServerFiles, TlsError, Verify};
pub use tls::explain;

use tls::TlsSocket;

/// A connection in one piece.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// A connection that tasks of one thread share.
pub enum Socket {
    /// Borrowed for one call to the system.
    Plain(RefCell<TcpStream>),
    Tls(Box<TlsSocket>),
}

impl From<Stream> for Socket {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Plain(stream) => Self::Plain(RefCell::new(stream)),
            Stream::Tls(stream) => Self::Tls(Box::new(TlsSocket::new(*stream))),
        }
    }
}

/// By one task at a time.
impl AsyncRead for &Socket {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(&mut *stream.borrow_mut()).poll_read(context, buffer),
            Socket::Tls(socket) => socket.poll_read(context, buffer),
        }
    }
}

impl Socket {
    /// Takes as many of the bytes as it can now.
    #[inline]
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.borrow().try_write(bytes),
            Self::Tls(socket) => socket.try_write(&[IoSlice::new(bytes)]),
        }
    }

    /// The same for bytes that stand in several places.
    #[inline]
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.borrow().try_write_vectored(slices),
            Self::Tls(socket) => socket.try_write(slices),
        }
    }

    /// Whether bytes that were taken wait here for the socket. A plain one takes none that it can't write.
    #[inline]
    pub fn has_unsent(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(socket) => socket.has_unsent(),
        }
    }

    /// Writes on with these.
    #[inline]
    pub fn send_on(&self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(socket) => socket.send_on(),
        }
    }

    /// Waits until it takes something; by one task at a time.
    pub async fn writable(&self) -> io::Result<()> {
        poll_fn(|context| match self {
            Self::Plain(stream) => stream.borrow().poll_write_ready(context),
            Self::Tls(socket) => socket.poll_writable(context),
        })
        .await
    }
}
