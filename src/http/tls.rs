//! The server's side of TLS, in a build with the feature `tls`.

use crate::config::TlsFiles;
use tokio::net::TcpStream;

/// The identity of the server.
#[derive(Clone)]
pub struct Tls {
    #[cfg(feature = "tls")]
    acceptor: tokio_rustls::TlsAcceptor,
    #[cfg(not(feature = "tls"))]
    never: std::convert::Infallible,
}

#[cfg(feature = "tls")]
mod with_tls {
    use std::io;
    use std::path::Path;
    use std::sync::Arc;

    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::{Error, PemObject};
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::server::TlsStream;

    use super::{TcpStream, Tls, TlsFiles};

    fn invalid(path: &Path, error: impl std::fmt::Display) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
    }

    impl Tls {
        /// Reads the certificate and the key.
        ///
        /// # Errors
        /// If a file cannot be read, or if key and certificate do not belong together; the error names the file.
        pub fn read(files: &TlsFiles) -> io::Result<Tls> {
            let TlsFiles { cert_file, key_file } = files;
            let certificates: Result<Vec<_>, Error> =
                CertificateDer::pem_file_iter(cert_file).and_then(Iterator::collect);
            let certificates = certificates.map_err(|error| invalid(cert_file, error))?;
            if certificates.is_empty() {
                return Err(invalid(cert_file, "the file has no certificate in PEM"));
            }
            let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| invalid(key_file, error))?;
            let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
                .map_err(|error| invalid(key_file, error))?;
            Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)) })
        }

        /// Performs the handshake.
        ///
        /// # Errors
        /// If the client does not speak TLS, or the handshake fails.
        pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
            self.acceptor.accept(stream).await
        }
    }
}

#[cfg(not(feature = "tls"))]
impl Tls {
    /// Refuses, since the program was built without TLS.
    ///
    /// # Errors
    /// Always.
    pub fn read(_files: &TlsFiles) -> std::io::Result<Tls> {
        Err(std::io::Error::other("this program was built without TLS: build it with `--features tls`"))
    }

    /// Cannot be called: there is no such identity.
    ///
    /// # Errors
    /// Never.
    pub async fn accept(&self, _stream: TcpStream) -> std::io::Result<TcpStream> {
        match self.never {}
    }
}
