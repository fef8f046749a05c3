//! One socket, plain or under TLS, to a client or to a store.
//!
//! While a connection is opened it is a [`Stream`]; then a worker takes it apart into a [`ReadHalf`] and a [`WriteHalf`] that
//! never wait to write: what the socket does not take now stays where it is. The plain kind is tokio's own halves behind one
//! branch; what TLS needs stands in `tls.rs`, and from which files it comes in `certificates.rs`.

mod certificates;
mod tls;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::TlsStream;

pub use certificates::{Acceptor, ClientFiles, Connector, Identity, ServerFiles, TlsError, Verify};
pub use tls::explain;

use tls::TlsSocket;

/// A connection in one piece.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// For a worker: its halves stay on one thread.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Plain(stream) => {
                let (reader, writer) = stream.into_split();
                (ReadHalf::Plain(reader), WriteHalf::Plain(writer))
            }
            Self::Tls(stream) => {
                let socket = Rc::new(TlsSocket::new(*stream));
                (ReadHalf::Tls(socket.clone()), WriteHalf::Tls(socket))
            }
        }
    }
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

/// What comes in.
pub enum ReadHalf {
    Plain(OwnedReadHalf),
    Tls(Rc<TlsSocket>),
}

impl AsyncRead for ReadHalf {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_read(context, buffer),
            Self::Tls(socket) => socket.poll_read(context, buffer),
        }
    }
}

/// What goes out.
pub enum WriteHalf {
    Plain(OwnedWriteHalf),
    Tls(Rc<TlsSocket>),
}

impl WriteHalf {
    /// Takes as many of the bytes as it can now.
    #[inline]
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(half) => half.try_write(bytes),
            Self::Tls(socket) => socket.try_write(&[IoSlice::new(bytes)]),
        }
    }

    /// The same for bytes that stand in several places.
    #[inline]
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(half) => half.try_write_vectored(slices),
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

    /// Waits until the socket takes something.
    pub async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Plain(half) => half.writable().await,
            Self::Tls(socket) => socket.writable().await,
        }
    }
}
