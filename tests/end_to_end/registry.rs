//! A schema registry of a test, behind a proxy.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{root, succeed};
use crate::proxy::Proxy;
use crate::services::start_services;

/// The path of Confluent's interface in Apicurio.
const INTERFACE: &str = "/apis/ccompat/v7";

/// A registry, which ends when this value is dropped.
pub struct Registry {
    address: SocketAddr,
    dir: PathBuf,
    /// The proxy through which runs reach the registry.
    pub proxy: Proxy,
}

impl Registry {
    /// Starts the registry.
    pub fn start() -> Registry {
        let variables = start_services(Command::new(root().join("tests/services/up")).arg("registry"));
        let address = &variables["HEADWATER_TEST_REGISTRY"];
        let proxy = Proxy::start();
        proxy.forward_to(address);
        let dir = PathBuf::from(&variables["HEADWATER_SERVICES_DIR"]);
        Registry { address: address.parse().expect("an address"), dir, proxy }
    }

    /// Returns the section of the configuration, for runs that reach the registry through the proxy.
    pub fn section(&self) -> String {
        let address = self.proxy.address();
        format!("[source.schema_registry]\nurl = \"http://{address}{INTERFACE}\"\ntimeout = \"1s\"\n")
    }

    /// Registers a schema with references, each a name and a subject; returns its id.
    pub fn register(&self, subject: &str, kind: &str, schema: &str, references: &[(&str, &str)]) -> u32 {
        let references: Vec<_> = references
            .iter()
            .map(|(name, subject)| json!({ "name": name, "subject": subject, "version": 1 }))
            .collect();
        let body = json!({ "schemaType": kind, "schema": schema, "references": references }).to_string();
        let mut stream = TcpStream::connect(self.address).expect("connected");
        write!(
            stream,
            "POST {INTERFACE}/subjects/{subject}/versions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let body = &body[body.find('{').expect(body)..=body.rfind('}').expect(body)];
        let id = serde_json::from_str::<Value>(body).expect("JSON")["id"].as_u64();
        id.unwrap_or_else(|| panic!("{body}")) as u32
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        succeed(Command::new(root().join("tests/services/down")).arg(&self.dir));
    }
}
