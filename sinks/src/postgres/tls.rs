//! TLS according to `sslmode`: encryption only, with a server certified by a trusted CA, or also with its host name.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::target::{Mode, Tls};
use crate::Misconfigured;

/// Creates a connector. Reads the files each time, so that certificates can be renewed while the program runs.
///
/// # Errors
/// If a file cannot be read or parsed.
pub(super) fn connector(tls: &Tls) -> Result<MakeRustlsConnect, Misconfigured> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(verifier(tls, &provider)?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Misconfigured(format!("TLS cannot be set up: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match &tls.certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("sslcert", certificate)?;
            let key_file = unusable("sslkey", key);
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| key_file(error.to_string()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| unusable("sslcert", certificate)(error.to_string()))?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

fn unusable(parameter: &str, file: &str) -> impl Fn(String) -> Misconfigured + use<> {
    let what = format!("`{parameter}`: the file {file} cannot be used");
    move |reason| Misconfigured(format!("{what}: {reason}"))
}

fn certificates(parameter: &str, file: &str) -> Result<Vec<CertificateDer<'static>>, Misconfigured> {
    let unusable = unusable(parameter, file);
    let read = |error: rustls::pki_types::pem::Error| unusable(error.to_string());
    let found: Vec<_> =
        CertificateDer::pem_file_iter(file).map_err(read)?.collect::<Result<_, _>>().map_err(read)?;
    if found.is_empty() {
        return Err(unusable("it contains no certificate".to_owned()));
    }
    Ok(found)
}

/// Returns the trusted certificates.
fn trusted(root: &str) -> Result<Vec<CertificateDer<'static>>, Misconfigured> {
    if root != "system" {
        return certificates("sslrootcert", root);
    }
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let reason =
            "`sslrootcert=system`: this system has no CA certificates (on Debian, install `ca-certificates`)";
        return Err(Misconfigured(reason.to_owned()));
    }
    Ok(found.certs)
}

fn verifier(tls: &Tls, provider: &Arc<CryptoProvider>) -> Result<Verifier, Misconfigured> {
    let root = tls.root.as_ref().filter(|_| tls.mode >= Mode::VerifyCa);
    let Some(root) = root else {
        return Ok(Verifier { provider: Arc::clone(provider), trusted: None, by_name: false });
    };
    let certificates = trusted(root)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| unusable("sslrootcert", root)(error.to_string()))?;
    let trusted = Some(Trusted { chains, certificates });
    Ok(Verifier { provider: Arc::clone(provider), trusted, by_name: tls.mode == Mode::VerifyFull })
}

/// Verifies the certificate of a server.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None` if every certificate is accepted.
    trusted: Option<Trusted>,
    by_name: bool,
}

/// The certificates to trust.
#[derive(Debug)]
struct Trusted {
    chains: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(Trusted { chains, certificates }) = &self.trusted else {
            return Ok(ServerCertVerified::assertion());
        };
        // As in libpq, the server's own certificate may be in `sslrootcert`; then it needs no chain.
        if certificates.contains(certificate) {
            if self.by_name {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match chains.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is checked last, so everything else is valid.
            Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
                if !self.by_name =>
            {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
