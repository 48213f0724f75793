//! A schema registry with Confluent's interface, as Confluent, Karapace, Apicurio and Redpanda offer it.
//!
//! ```text
//!   id ─▶ GET /schemas/ids/ID ─▶ schema, references ─▶ GET /subjects/SUBJECT/versions/VERSION, for each ─▶ compiled
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::Method;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Response, StatusCode};
use serde::Deserialize;

use crate::client::{Client, Endpoint, HttpOptions};
use crate::decode::{BinaryKind, Fetched, SchemaRegistry};

/// The maximum size of an answer, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// The maximum number of schemas that a schema refers to, directly and indirectly.
const MAX_REFERENCES: usize = 200;

/// The codes with which a registry says that it does not have a subject, a version or a schema. Any other 404 is of
/// something that is no registry.
const NOT_FOUND: std::ops::RangeInclusive<u32> = 40_401..=40_403;

/// The address of a registry, and how to reach it.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// The URL, without a slash at its end.
    pub url: String,
    /// The header that authorises requests.
    pub authorization: Option<HeaderValue>,
    /// The file with the certificate authorities to trust; those of the system without it.
    pub ca_file: Option<PathBuf>,
    /// The maximum time of a request.
    pub timeout: Duration,
}

/// A client of a registry.
pub struct RegistryClient {
    config: RegistryConfig,
    kind: BinaryKind,
    /// Created with the first request, because the certificates of the system are read for it.
    client: OnceLock<Result<Client, String>>,
}

/// An answer with a schema.
#[derive(Debug, Deserialize)]
struct Answer {
    schema: String,
    /// Absent for Avro.
    #[serde(rename = "schemaType")]
    kind: Option<String>,
    references: Option<Vec<Reference>>,
}

#[derive(Debug, Deserialize)]
struct Reference {
    subject: String,
    version: i64,
}

/// An answer with an error.
#[derive(Debug, Deserialize)]
struct ErrorAnswer {
    error_code: u32,
}

/// The reason why there is no answer.
enum NoAnswer {
    /// The registry does not have it.
    NotFound,
    Unavailable(String),
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryClient").field("url", &self.config.url).finish_non_exhaustive()
    }
}

impl RegistryClient {
    /// Creates a client that compiles schemas of this kind.
    pub fn new(config: RegistryConfig, kind: BinaryKind) -> RegistryClient {
        RegistryClient { config, kind, client: OnceLock::new() }
    }

    /// Fetches a schema and those that it refers to, and compiles it.
    async fn load(&self, id: u32) -> Fetched {
        let url = &self.config.url;
        let answer = match self.get(&format!("/schemas/ids/{id}")).await {
            Ok(answer) => answer,
            Err(NoAnswer::Unavailable(reason)) => return Fetched::Unavailable(reason),
            Err(NoAnswer::NotFound) => {
                return Fetched::Unusable(format!(
                    "schema {id} is not known to the schema registry at {url}"
                ));
            }
        };
        let found = answer.kind.as_deref().unwrap_or("AVRO");
        if !found.eq_ignore_ascii_case(self.kind.as_str()) {
            return Fetched::Unusable(format!(
                "schema {id} is of the type {found}, but `source.format` is {}",
                self.kind.as_str()
            ));
        }
        let mut references = Vec::new();
        match self.references(&answer, &mut BTreeSet::new(), &mut references).await {
            Ok(()) => {}
            Err((_, NoAnswer::Unavailable(reason))) => return Fetched::Unavailable(reason),
            Err((reference, NoAnswer::NotFound)) => {
                return Fetched::Unusable(format!(
                    "schema {id} refers to {reference}, which {url} does not have"
                ));
            }
        }
        match self.kind.compile(&answer.schema, &references) {
            Ok(schema) => Fetched::Schema(schema),
            Err(reason) => Fetched::Unusable(format!("schema {id} of {url} cannot be used: {reason}")),
        }
    }

    /// Appends the schemas that a schema refers to, each after its own references.
    async fn references(
        &self,
        answer: &Answer,
        seen: &mut BTreeSet<String>,
        found: &mut Vec<String>,
    ) -> Result<(), (String, NoAnswer)> {
        for Reference { subject, version } in answer.references.iter().flatten() {
            let name = format!("version {version} of the subject {subject}");
            let path = format!("/subjects/{}/versions/{version}", percent_encoded(subject));
            if !seen.insert(path.clone()) {
                continue;
            }
            if seen.len() > MAX_REFERENCES {
                let reason = format!("a schema refers to more than {MAX_REFERENCES} others");
                return Err((name, NoAnswer::Unavailable(reason)));
            }
            let reference = self.get(&path).await.map_err(|error| (name, error))?;
            Box::pin(self.references(&reference, seen, found)).await?;
            found.push(reference.schema);
        }
        Ok(())
    }

    async fn get(&self, path: &str) -> Result<Answer, NoAnswer> {
        let RegistryConfig { url, authorization, ca_file, timeout } = &self.config;
        let unavailable = |reason: String| NoAnswer::Unavailable(format!("{url}: {reason}"));
        let client = self.client.get_or_init(|| match ca_file {
            Some(file) => Client::with_authorities(file),
            None => Client::new(),
        });
        let client = client.as_ref().map_err(|error| unavailable(error.clone()))?;
        let endpoint = Endpoint::parse(&format!("{url}{path}")).map_err(unavailable)?;
        let mut headers = HeaderMap::new();
        headers.insert(
            ACCEPT,
            HeaderValue::from_static("application/vnd.schemaregistry.v1+json, application/json"),
        );
        headers
            .insert(USER_AGENT, HeaderValue::from_static(concat!("headwater/", env!("CARGO_PKG_VERSION"))));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let request = endpoint.request(Method::GET, headers, Bytes::new()).map_err(unavailable)?;
        // A registry is usually in the same network.
        let options = HttpOptions { allow_private: true, connect_timeout: *timeout, timeout: *timeout };
        let sent = client.send(&endpoint, options, request, read).await;
        let (status, body) = sent.map_err(|error| unavailable(error.to_string()))?.map_err(unavailable)?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body).map_err(|error| {
                unavailable(format!("its answer has no schema ({error}): is it a schema registry?"))
            }),
            StatusCode::NOT_FOUND => match serde_json::from_slice::<ErrorAnswer>(&body) {
                Ok(error) if NOT_FOUND.contains(&error.error_code) => Err(NoAnswer::NotFound),
                _ => Err(unavailable(
                    "404 without the error code of a schema registry: is the path right?".to_owned(),
                )),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(unavailable(format!(
                "{status}: check `user` and `password`, or `token`, in `[source.schema_registry]`"
            ))),
            status => Err(unavailable(status.to_string())),
        }
    }
}

/// Reads an answer, up to its maximum size.
async fn read(response: Response<Incoming>) -> Result<(StatusCode, Bytes), String> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| format!("its answer cannot be read: {error}"))?;
    Ok((status, body.to_bytes()))
}

/// Returns a segment of a path, with every byte that may mean something in a URL escaped.
fn percent_encoded(segment: &str) -> String {
    let mut encoded = String::new();
    for byte in segment.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

impl SchemaRegistry for RegistryClient {
    fn fetch(&self, id: u32) -> Fetched {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return Fetched::Unavailable(format!("cannot start a request: {error}")),
        };
        let fetched = runtime.block_on(self.load(id));
        // Look-ups of names that do not end must not hold up the caller.
        runtime.shutdown_background();
        fetched
    }

    fn place(&self) -> String {
        self.config.url.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Serves answers, by a part of the path, and returns the address. Requests without the expected authorisation get
    /// 401.
    fn serve(answers: &'static [(&'static str, u16, &'static str)], token: Option<&'static str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                let found = answers.iter().find(|(part, ..)| path == *part);
                let is_allowed = token.is_none_or(|token| request.contains(token));
                let (status, body) = match found {
                    Some((_, status, body)) if is_allowed => (*status, *body),
                    _ if is_allowed => (404, r#"{"error_code":40403,"message":"not found"}"#),
                    _ => (401, "{}"),
                };
                let length = body.len();
                let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}");
            }
        });
        format!("http://{address}")
    }

    fn client(url: String, kind: BinaryKind, authorization: Option<&'static str>) -> RegistryClient {
        let authorization = authorization.map(HeaderValue::from_static);
        let config = RegistryConfig { url, authorization, ca_file: None, timeout: Duration::from_secs(5) };
        RegistryClient::new(config, kind)
    }

    fn unavailable(fetched: Fetched) -> String {
        match fetched {
            Fetched::Unavailable(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn unusable(fetched: Fetched) -> String {
        match fetched {
            Fetched::Unusable(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_schema_comes_with_all_that_it_refers_to() {
        let url = serve(
            &[
                (
                    "/schemas/ids/7",
                    200,
                    r#"{"schemaType":"PROTOBUF","schema":"syntax = \"proto3\"; message M { A a = 1; }","references":[
                        {"name":"a.proto","subject":"a/b c","version":3}]}"#,
                ),
                (
                    "/subjects/a%2Fb%20c/versions/3",
                    200,
                    r#"{"schema":"message A { B b = 1; }","references":[{"name":"b","subject":"b","version":1}]}"#,
                ),
                ("/subjects/b/versions/1", 200, r#"{"schema":"message B { optional int32 x = 1; }"}"#),
                (
                    "/schemas/ids/8",
                    200,
                    r#"{"schemaType":"PROTOBUF","schema":"","references":[{"name":"x","subject":"x","version":1}]}"#,
                ),
            ],
            None,
        );
        let client = client(url, BinaryKind::Protobuf, None);
        assert!(matches!(client.fetch(7), Fetched::Schema(_)), "{:?}", client.fetch(7));
        assert!(unusable(client.fetch(8)).contains("refers to version 1 of the subject x"));
    }

    #[test]
    fn only_the_answer_of_a_registry_says_that_an_id_is_unknown() {
        let url = serve(
            &[
                ("/schemas/ids/1", 404, "<html>not here</html>"),
                ("/schemas/ids/2", 500, "{}"),
                ("/schemas/ids/3", 200, "<html>"),
                ("/schemas/ids/4", 200, r#"{"schema":"{}","schemaType":"JSON"}"#),
                ("/schemas/ids/5", 200, r#"{"schema":"{"}"#),
                ("/schemas/ids/6", 404, r#"{"error_code":404}"#),
            ],
            None,
        );
        let client = client(url, BinaryKind::Avro, None);
        assert!(unavailable(client.fetch(1)).contains("404 without the error code"));
        assert!(unavailable(client.fetch(2)).contains("500"));
        assert!(unavailable(client.fetch(3)).contains("is it a schema registry?"));
        assert!(unusable(client.fetch(4)).contains("of the type JSON, but `source.format` is avro"));
        assert!(unusable(client.fetch(5)).contains("cannot be used: not JSON"));
        assert!(unavailable(client.fetch(6)).contains("404 without the error code"));
        assert!(unusable(client.fetch(9)).contains("schema 9 is not known"));
    }

    #[test]
    fn refused_credentials_are_no_answer() {
        let answers: &[_] = &[("/schemas/ids/1", 200, r#"{"schema":"\"string\""}"#)];
        let url = serve(answers, Some("authorization: Bearer right"));
        let with = |token| client(url.clone(), BinaryKind::Avro, Some(token)).fetch(1);
        assert!(matches!(with("Bearer right"), Fetched::Schema(_)));
        assert!(unavailable(with("Bearer wrong")).contains("check `user` and `password`, or `token`"));
        let nobody = client("http://127.0.0.1:1".to_owned(), BinaryKind::Avro, None);
        assert!(unavailable(nobody.fetch(1)).contains("cannot connect"));
    }
}
