//! TLS over a socket that tasks of one thread share. What is written is encrypted at once and goes out as
//! far as the socket takes it; at most rustls's own limit (64 KiB) of what is encrypted waits in here.

use std::cell::RefCell;
use std::io::{self, BufRead as _, ErrorKind, IoSlice, Read, Write};
use std::task::{Context, Poll, ready};

use rustls::{AlertDescription, CertificateError, Connection, InvalidMessage};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// See the module.
pub struct TlsSocket {
    tcp: TcpStream,
    session: RefCell<Connection>,
}

/// The socket as rustls wants it: reads and writes that never wait.
struct Raw<'s>(&'s TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TlsSocket {
    /// Takes over after the handshake.
    pub(super) fn new(stream: TlsStream<TcpStream>) -> Self {
        let (tcp, session) = match stream {
            TlsStream::Client(stream) => {
                let (tcp, session) = stream.into_inner();
                (tcp, Connection::Client(session))
            }
            TlsStream::Server(stream) => {
                let (tcp, session) = stream.into_inner();
                (tcp, Connection::Server(session))
            }
        };
        Self { tcp, session: RefCell::new(session) }
    }

    pub(super) fn poll_read(&self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut session = self.session.borrow_mut();
        loop {
            let mut reader = session.reader();
            match reader.fill_buf() {
                Ok(bytes) => {
                    let taken = bytes.len().min(buffer.remaining());
                    buffer.put_slice(&bytes[..taken]);
                    reader.consume(taken);
                    return Poll::Ready(Ok(()));
                }
                // Closed without a farewell: every frame has its length, so nothing can be cut off unseen.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            match session.read_tls(&mut Raw(&self.tcp)) {
                Ok(_) => {
                    let processed = session.process_new_packets();
                    // What TLS itself has to say: an alert, a change of keys. If it can't go now, it goes before the next bytes.
                    let sent = send(&self.tcp, &mut session);
                    processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
                    sent?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.tcp.poll_read_ready(context))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    pub(super) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut session = self.session.borrow_mut();
        let taken = session.writer().write_vectored(slices)?;
        send(&self.tcp, &mut session)?;
        if taken > 0 {
            return Ok(taken);
        }
        // It was full; what has gone made room, or the socket takes nothing.
        match session.writer().write_vectored(slices)? {
            0 => Err(ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.session.borrow().wants_write()
    }

    pub(super) fn send_on(&self) -> io::Result<()> {
        send(&self.tcp, &mut self.session.borrow_mut())
    }

    pub(super) fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_write_ready(context)
    }
}

impl Drop for TlsSocket {
    fn drop(&mut self) {
        let session = self.session.get_mut();
        session.send_close_notify();
        // A farewell; a socket that can't take it is closed without.
        let _ = send(&self.tcp, session);
    }
}

/// Writes what is encrypted, as far as the socket takes it.
fn send(tcp: &TcpStream, session: &mut Connection) -> io::Result<()> {
    while session.wants_write() {
        match session.write_tls(&mut Raw(tcp)) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What went wrong, in words that lead to the setting or the file that is to be changed.
pub fn explain(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => explain_tls(error),
        None => error.to_string(),
    }
}

fn explain_tls(error: &rustls::Error) -> String {
    let known = match error {
        rustls::Error::InvalidCertificate(error) => match error {
            // Another CA of the same name makes a bad signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is signed by a CA that is not trusted here"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet; is the clock right?"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name"
            }
            _ => "its certificate is not valid",
        },
        rustls::Error::NoCertificatesPresented => "it sent no certificate, and one is asked for",
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => "it does not speak TLS",
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => "it asks for a certificate of ours",
            AlertDescription::UnknownCA => "it does not trust the CA of our certificate",
            AlertDescription::CertificateExpired => "it says that our certificate has expired",
            AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => "it refuses our certificate",
            AlertDescription::ProtocolVersion => "it speaks none of the versions of TLS that we do (1.2 and 1.3)",
            _ => "it ended the handshake",
        },
        _ => return format!("TLS: {error}"),
    };
    format!("TLS: {known} ({error})")
}
