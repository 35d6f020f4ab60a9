//! TLS for the control connection (rustls), and the secret that a connection gives for sealing what goes by RDMA beside it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConnectionCommon, ProtocolVersion, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::seal::{EXPORTER_LABEL, SECRET, Secret};

/// Why there can be no TLS; the text is for the user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file of certificates or with a key makes no sense.
    #[error("{path}: {why}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// This system trusts nobody.
    #[error("no certificate that this system trusts was found ({0}); name a file of some")]
    NoRoots(String),
    /// What rustls says.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

fn file_error(path: &Path, error: PemError) -> TlsError {
    let why = match error {
        PemError::Io(error) => error.to_string(),
        PemError::NoItemsFound => {
            "it has no section of the kind that is wanted (PEM, with -----BEGIN … lines)".into()
        }
        other => other.to_string(),
    };
    TlsError::File { path: path.to_owned(), why }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error| file_error(path, error);
    let all: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if all.is_empty() {
        return Err(failed(PemError::NoItemsFound));
    }
    Ok(all)
}

/// What a server does TLS with.
#[derive(Clone)]
pub struct ServerTls(TlsAcceptor);

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

impl ServerTls {
    /// With the certificate and what vouches for it (PEM, the server's own first) and its private key (PEM).
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let chain = certificates(certificate)?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| file_error(key, error))?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(|error| TlsError::File { path: key.to_owned(), why: error.to_string() })?;
        Ok(Self::from_config(config))
    }

    /// With a configuration of the caller's. HTTP/1.1 is all that is offered (ALPN).
    pub fn from_config(mut config: ServerConfig) -> Self {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self(TlsAcceptor::from(Arc::new(config)))
    }

    /// Shakes hands. Whoever calls bounds the time.
    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(tokio_rustls::server::TlsStream<TcpStream>, Option<Secret>)> {
        let stream = self.0.accept(stream).await?;
        let secret = secret(stream.get_ref().1);
        Ok((stream, secret))
    }
}

/// What a client does TLS with.
#[derive(Clone)]
pub struct ClientTls(TlsConnector);

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientTls")
    }
}

impl ClientTls {
    /// Trusts whom this system trusts.
    pub fn of_system() -> Result<Self, TlsError> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let why = found.errors.first().map_or_else(|| "none is installed".into(), ToString::to_string);
            return Err(TlsError::NoRoots(why));
        }
        Self::trusting(roots)
    }

    /// Trusts the certificates of a file (PEM), and those that they vouch for, only.
    pub fn from_file(path: &Path) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            let added = roots.add(certificate);
            added.map_err(|error| TlsError::File { path: path.to_owned(), why: error.to_string() })?;
        }
        Self::trusting(roots)
    }

    fn trusting(roots: RootCertStore) -> Result<Self, TlsError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Shakes hands with `host`, a name or an address. Whoever calls bounds the time.
    pub(crate) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<(tokio_rustls::client::TlsStream<TcpStream>, Option<Secret>)> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = self.0.connect(name, stream).await?;
        let secret = secret(stream.get_ref().1);
        Ok((stream, secret))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What is used to seal; with TLS 1.3 only, whose exporter is bound to all of the handshake.
fn secret<Side>(connection: &ConnectionCommon<Side>) -> Option<Secret> {
    if connection.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
        return None;
    }
    let exported = connection.export_keying_material([0; SECRET], EXPORTER_LABEL, None).ok()?;
    Some(Secret::new(&exported))
}
