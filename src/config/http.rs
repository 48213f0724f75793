//! The section `[http]`: the address of the HTTP server, and who may use it.

use std::net::SocketAddr;
use std::path::PathBuf;

use headwater_sinks::Secret;

use crate::settings::{Diagnostics, Section, secrets};

/// The settings of the HTTP server.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The token that a request must have; None if none is needed.
    pub token: Option<Secret>,
    /// The certificate and key; None for HTTP without TLS.
    pub tls: Option<TlsFiles>,
    /// The certificate authorities that the other processes of the cluster are verified with; None for the system's.
    pub peer_ca_file: Option<PathBuf>,
    /// True if everyone who reaches the address may use it.
    pub insecure: bool,
}

/// The files of a server's identity, in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, followed by its intermediate certificates.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// The minimum length of a token, in bytes.
const MIN_TOKEN: usize = 16;

/// Reads the section.
pub fn read(mut section: Section<'_>, diagnostics: &mut Diagnostics) -> Option<HttpConfig> {
    let listen: Option<SocketAddr> = section.get_text("listen", diagnostics, |text| {
        let address = text.and_then(|text| text.parse().ok());
        address.ok_or_else(|| "an address such as \"127.0.0.1:9464\"".into())
    });
    let token = secrets::text(&mut section, "token", diagnostics);
    let insecure = section.bool("insecure", diagnostics);
    let tls = section.section("tls", diagnostics).map(|section| read_tls(section, "http.tls", diagnostics));
    let peer_ca_file = section.file("peer_ca_file", diagnostics);
    if peer_ca_file.is_some() && !cfg!(feature = "tls") {
        let message = "this program was built without TLS: build it with `--features tls`, or remove the key";
        section.report_error("peer_ca_file", message, diagnostics);
    }
    let has_token = token.is_some() || section.has("token") || section.has("token_file");
    if let Some(short) = token.as_ref().filter(|token| token.expose().len() < MIN_TOKEN) {
        let message = format!("the token has {} bytes; use at least {MIN_TOKEN}", short.expose().len());
        section.report_error("token", message, diagnostics);
    }
    if let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback())
        && !has_token
        && insecure == Some(false)
    {
        let message = format!(
            "{listen} can be reached from other machines: set `http.token_file` to a file with a token, or \
             `http.insecure = true` if everyone who reaches the address may read results and send dead letters again"
        );
        section.report_error("listen", message, diagnostics);
    }
    section.end(diagnostics);
    let tls = match tls {
        Some(tls) => Some(tls?),
        None => None,
    };
    Some(HttpConfig { listen: listen?, token, tls, peer_ca_file, insecure: insecure? })
}

/// Reads the certificate and key of a section of this name.
pub fn read_tls(mut section: Section<'_>, name: &str, diagnostics: &mut Diagnostics) -> Option<TlsFiles> {
    let cert_file = section.file("cert_file", diagnostics);
    let key_file = section.file("key_file", diagnostics);
    if !cfg!(feature = "tls") {
        let message =
            format!("this program was built without TLS: build it with `--features tls`, or remove `{name}`");
        section.report_error("cert_file", message, diagnostics);
    }
    section.end(diagnostics);
    Some(TlsFiles { cert_file: cert_file?, key_file: key_file? })
}
