//! TLS between processes, in a build with the feature `tls`. Both ends show a certificate.

#[cfg(feature = "tls")]
mod with_tls {
    use std::io::{self, Read, Write};
    use std::path::Path;
    use std::sync::{Arc, Mutex, MutexGuard};

    use rustls::crypto::ring;
    use rustls::pki_types::pem::{Error, PemObject};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

    use crate::config::{ClusterTls, TlsFiles};

    /// The label by which a proof is bound to the session that it was made in.
    const LABEL: &[u8] = b"EXPORTER-headwater-cluster";

    /// The certificates of this process, and the authorities that it trusts.
    pub struct TlsIdentity {
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    }

    /// An encrypted session.
    pub struct TlsSession(Mutex<Connection>);

    fn invalid(path: &Path, error: impl std::fmt::Display) -> String {
        format!("{}: {error}", path.display())
    }

    fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
        let read: Result<Vec<_>, Error> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
        let read = read.map_err(|error| invalid(file, error))?;
        if read.is_empty() { Err(invalid(file, "the file has no certificate in PEM")) } else { Ok(read) }
    }

    impl TlsIdentity {
        /// Reads the files.
        ///
        /// # Errors
        /// If a file cannot be read or used; the error names it.
        pub fn read(files: &ClusterTls) -> Result<TlsIdentity, String> {
            let ClusterTls { identity: TlsFiles { cert_file, key_file }, ca_file } = files;
            let mut roots = RootCertStore::empty();
            for certificate in certificates(ca_file)? {
                roots.add(certificate).map_err(|error| invalid(ca_file, error))?;
            }
            let roots = Arc::new(roots);
            let chain = certificates(cert_file)?;
            let key = || PrivateKeyDer::from_pem_file(key_file).map_err(|error| invalid(key_file, error));
            let provider = Arc::new(ring::default_provider());
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
            let verifier = verifier.build().map_err(|error| invalid(ca_file, error))?;
            let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain.clone(), key()?)
                .map_err(|error| invalid(key_file, error))?;
            let client = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key()?)
                .map_err(|error| invalid(key_file, error))?;
            Ok(TlsIdentity { client: Arc::new(client), server: Arc::new(server) })
        }

        /// Performs the handshake of the process that connects to `host`.
        ///
        /// # Errors
        /// If the other end does not use TLS, or its certificate is not trusted.
        pub fn connect(&self, host: &str, socket: &mut (impl Read + Write)) -> io::Result<TlsSession> {
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
            let name = name.map_err(io::Error::other)?;
            let connection =
                ClientConnection::new(Arc::clone(&self.client), name).map_err(io::Error::other)?;
            TlsSession::of(connection.into(), socket)
        }

        /// Performs the handshake of the process that accepts a connection.
        ///
        /// # Errors
        /// If the other end does not use TLS, or its certificate is not trusted.
        pub fn accept(&self, socket: &mut (impl Read + Write)) -> io::Result<TlsSession> {
            let connection = ServerConnection::new(Arc::clone(&self.server)).map_err(io::Error::other)?;
            TlsSession::of(connection.into(), socket)
        }
    }

    impl TlsSession {
        fn of(mut connection: Connection, socket: &mut (impl Read + Write)) -> io::Result<TlsSession> {
            connection.set_buffer_limit(None);
            while connection.is_handshaking() {
                connection.complete_io(socket)?;
            }
            Ok(TlsSession(Mutex::new(connection)))
        }

        fn lock(&self) -> MutexGuard<'_, Connection> {
            self.0.lock().expect("no thread panics while it holds the lock")
        }

        /// Returns bytes that only the two ends of this session know.
        ///
        /// # Errors
        /// If the handshake is not complete.
        pub fn binding(&self) -> io::Result<[u8; 32]> {
            self.lock().export_keying_material([0; 32], LABEL, None).map_err(io::Error::other)
        }

        /// Decrypts what was received into `out`, and removes what was used. Returns None if more must be received first.
        ///
        /// # Errors
        /// If it was changed on the way.
        pub fn decrypt(&self, received: &mut &[u8], out: &mut [u8]) -> io::Result<Option<usize>> {
            let mut connection = self.lock();
            loop {
                match connection.reader().read(out) {
                    Ok(read) => return Ok(Some(read)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                if received.is_empty() {
                    return Ok(None);
                }
                connection.read_tls(received)?;
                connection
                    .process_new_packets()
                    .map_err(|error| io::Error::other(format!("TLS: {error}")))?;
            }
        }

        /// Encrypts a text, and appends it to `out` with whatever else the session has to send.
        ///
        /// # Errors
        /// If the session has ended.
        pub fn encrypt(&self, text: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
            let mut connection = self.lock();
            connection.writer().write_all(text)?;
            while connection.wants_write() {
                connection.write_tls(out)?;
            }
            Ok(())
        }
    }
}

#[cfg(not(feature = "tls"))]
mod without_tls {
    use std::io::{self, Read, Write};

    use crate::config::ClusterTls;

    /// The identity that this build cannot have.
    pub enum TlsIdentity {}

    /// The session that this build cannot have.
    pub enum TlsSession {}

    impl TlsIdentity {
        /// Refuses, since the program was built without TLS.
        ///
        /// # Errors
        /// Always.
        pub fn read(_files: &ClusterTls) -> Result<TlsIdentity, String> {
            Err("this program was built without TLS: build it with `--features tls`".to_owned())
        }

        /// Cannot be called: there is no such identity.
        ///
        /// # Errors
        /// Never.
        pub fn connect(&self, _host: &str, _socket: &mut (impl Read + Write)) -> io::Result<TlsSession> {
            match *self {}
        }

        /// Cannot be called: there is no such identity.
        ///
        /// # Errors
        /// Never.
        pub fn accept(&self, _socket: &mut (impl Read + Write)) -> io::Result<TlsSession> {
            match *self {}
        }
    }

    impl TlsSession {
        /// Cannot be called: there is no such session.
        ///
        /// # Errors
        /// Never.
        pub fn binding(&self) -> io::Result<[u8; 32]> {
            match *self {}
        }

        /// Cannot be called: there is no such session.
        ///
        /// # Errors
        /// Never.
        pub fn decrypt(&self, _received: &mut &[u8], _out: &mut [u8]) -> io::Result<Option<usize>> {
            match *self {}
        }

        /// Cannot be called: there is no such session.
        ///
        /// # Errors
        /// Never.
        pub fn encrypt(&self, _text: &[u8], _out: &mut Vec<u8>) -> io::Result<()> {
            match *self {}
        }
    }
}

#[cfg(feature = "tls")]
pub use with_tls::{TlsIdentity, TlsSession};
#[cfg(not(feature = "tls"))]
pub use without_tls::{TlsIdentity, TlsSession};
