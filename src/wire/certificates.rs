//! Certificates, keys and trusted CAs, read from PEM files, and read again while the program runs: connections that are
//! opened from then on have the new ones, and those that are open stay. What cannot be used changes nothing.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::wire::{Stream, explain};

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {reason}", path = .path.display())]
    Read { path: PathBuf, reason: String },
    #[error("{path}: no {what} in PEM form in it", path = .path.display())]
    Empty { path: PathBuf, what: &'static str },
    #[error("{cert} and {key}: {source}", cert = .cert.display(), key = .key.display())]
    Identity { cert: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("{ca}: {reason}", ca = .ca.display())]
    Authorities { ca: PathBuf, reason: String },
    #[error("no trusted CA was found on this system; name one's file in `ca`")]
    NoRoots,
    #[error("`{0}` is no name that a certificate can have")]
    Name(String),
    #[error(transparent)]
    Provider(#[from] rustls::Error),
}

/// A certificate with what stands above it, and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What a listener needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    pub identity: Identity,
    /// Clients must have a certificate of one of these.
    pub client_ca: Option<PathBuf>,
}

/// Whether a server's certificate is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    #[default]
    Yes,
    /// Whoever stands between may read and change everything.
    No,
}

/// What connections to a store need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// Instead of the CAs that the system trusts.
    pub ca: Option<PathBuf>,
    /// Shown to servers that ask.
    pub identity: Option<Identity>,
    pub verify: Verify,
    /// What the certificate must be for, where that is not the host that is connected to.
    pub server_name: Option<String>,
}

impl Identity {
    fn paths(&self) -> [&Path; 2] {
        [&self.cert, &self.key]
    }

    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| unreadable(&self.key, &error))?;
        Ok((certificates(&self.cert)?, key))
    }

    fn unusable(&self, source: rustls::Error) -> TlsError {
        TlsError::Identity { cert: self.cert.clone(), key: self.key.clone(), source }
    }
}

fn unreadable(path: &Path, error: &pem::Error) -> TlsError {
    let path = path.to_path_buf();
    match error {
        pem::Error::NoItemsFound => TlsError::Empty { path, what: "private key" },
        // The text of an error names a place in the file, never what stands there.
        pem::Error::Io(error) => TlsError::Read { path, reason: error.to_string() },
        _ => TlsError::Read { path, reason: "not in PEM form".into() },
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found = read().map_err(|error| unreadable(path, &error))?;
    if found.is_empty() {
        return Err(TlsError::Empty { path: path.to_path_buf(), what: "certificate" });
    }
    Ok(found)
}

fn authorities(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let unusable = |error: rustls::Error| TlsError::Authorities { ca: path.into(), reason: error.to_string() };
        roots.add(certificate).map_err(unusable)?;
    }
    Ok(Arc::new(roots))
}

/// The CAs that the system trusts. Those among them that can't be understood are left out, as elsewhere.
fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TlsError::NoRoots) } else { Ok(Arc::new(roots)) }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())).clone()
}

/// Greets clients with TLS.
pub struct Acceptor {
    files: ServerFiles,
    config: ArcSwap<ServerConfig>,
}

impl Acceptor {
    /// Reads the files.
    pub fn open(files: ServerFiles) -> Result<Self, TlsError> {
        let config = ArcSwap::from(server_config(&files)?);
        Ok(Self { files, config })
    }

    /// Reads them again.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.config.store(server_config(&self.files)?);
        Ok(())
    }

    /// What it was read from.
    pub fn paths(&self) -> Vec<&Path> {
        self.files.identity.paths().into_iter().chain(self.files.client_ca.as_deref()).collect()
    }

    /// The handshake of one client; the caller sees to it that it ends. The text of an error is for the operator.
    pub async fn accept(&self, stream: TcpStream) -> Result<Stream, String> {
        let accepted = TlsAcceptor::from(self.config.load_full()).accept(stream).await;
        accepted.map(|stream| Stream::Tls(Box::new(TlsStream::Server(stream)))).map_err(|error| explain(&error))
    }
}

fn server_config(files: &ServerFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(authorities(path)?, provider()).build();
            let unusable =
                |error: VerifierBuilderError| TlsError::Authorities { ca: path.clone(), reason: error.to_string() };
            builder.with_client_cert_verifier(verifier.map_err(unusable)?)
        }
    };
    let (chain, key) = files.identity.read()?;
    let config = builder.with_single_cert(chain, key).map_err(|error| files.identity.unusable(error))?;
    Ok(Arc::new(config))
}

/// Opens TLS to servers.
pub struct Connector {
    files: ClientFiles,
    name: Option<ServerName<'static>>,
    config: ArcSwap<ClientConfig>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Connector").field(&self.files).finish()
    }
}

impl Connector {
    /// Reads the files.
    pub fn open(files: ClientFiles) -> Result<Self, TlsError> {
        let parse = |name: &String| ServerName::try_from(name.clone()).map_err(|_| TlsError::Name(name.clone()));
        let name = files.server_name.as_ref().map(parse).transpose()?;
        let config = ArcSwap::from(client_config(&files)?);
        Ok(Self { files, name, config })
    }

    /// Reads them again.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.config.store(client_config(&self.files)?);
        Ok(())
    }

    /// What it was read from.
    pub fn paths(&self) -> Vec<&Path> {
        let identity = self.files.identity.iter().flat_map(Identity::paths);
        identity.chain(self.files.ca.as_deref()).collect()
    }

    /// The handshake with one server; the caller sees to it that it ends. The text of an error is for the operator.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> Result<Stream, String> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_string()).map_err(|_| TlsError::Name(host.into()).to_string())?,
        };
        let connected = TlsConnector::from(self.config.load_full()).connect(name, stream).await;
        connected.map(|stream| Stream::Tls(Box::new(TlsStream::Client(stream)))).map_err(|error| explain(&error))
    }
}

fn client_config(files: &ClientFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier: Arc<dyn ServerCertVerifier> = match files.verify {
        Verify::No => Arc::new(AnyCertificate(provider())),
        Verify::Yes => {
            let roots = files.ca.as_deref().map_or_else(system_roots, authorities)?;
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
            verifier.map_err(|_| TlsError::NoRoots)?
        }
    };
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = identity.read()?;
            builder.with_client_auth_cert(chain, key).map_err(|error| identity.unusable(error))?
        }
    };
    Ok(Arc::new(config))
}

/// For `verify = false`: any certificate, but whoever shows it must have its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
