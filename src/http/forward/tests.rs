use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Instant;

use super::*;
use crate::runtime::HttpAddress;

const TOKEN: &str = "correct-horse-battery";

fn at(listener: &TcpListener) -> HttpAddress {
    HttpAddress { listen: listener.local_addr().expect("bound"), has_tls: false }
}

/// Asks process 1 at this address about a key, with these headers. Returns the status and body.
fn ask(address: Option<HttpAddress>, headers: &HeaderMap) -> (u16, String) {
    let config = HttpConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        token: Some(TOKEN.to_owned().into()),
        tls: None,
        peer_ca_file: None,
        insecure: false,
    };
    let peers = Peers::of_addresses(&[("127.0.0.1", None), ("127.0.0.1", address)]);
    let forwarder = Forwarder::new(&config, 0, peers).expect("valid");
    let uri = Uri::from_static("/api/v1/keys/user/a%2Fb");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let response = forwarder.forward(1, &uri, headers).await.into_response();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8(body.to_vec()).expect("UTF-8"))
    })
}

/// Asks a server that answers with these bytes. Returns the request that it got, and the status and body.
fn ask_answering(answer: &str) -> (String, (u16, String)) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = at(&listener);
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = [0; 4096];
            let read = stream.read(&mut request).expect("a request");
            // The client may have closed the connection, if the answer is too large.
            let _ = stream.write_all(answer.as_bytes());
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        let asked = ask(Some(address), &HeaderMap::new());
        (serving.join().expect("no panic"), asked)
    })
}

fn response(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn the_owner_gets_path_token_and_mark_and_nothing_else() {
    let body = r#"{"process":1,"key":"a/b"}"#;
    let (request, answered) = ask_answering(&response("200 OK", body));
    assert_eq!(answered, (200, body.to_owned()));
    let (line, headers) = request.split_once("\r\n").expect("a head");
    assert_eq!(line, "GET /api/v1/keys/user/a%2Fb HTTP/1.1");
    let mut headers: Vec<_> = headers.trim_end().split("\r\n").collect();
    headers.retain(|header| !header.starts_with("host: 127.0.0.1:"));
    headers.sort_unstable();
    assert_eq!(headers, ["authorization: Bearer correct-horse-battery", "headwater-forwarded: 0"]);
}

#[test]
fn problems_of_the_owner_are_passed_on() {
    for status in ["404 Not Found", "429 Too Many Requests", "503 Service Unavailable"] {
        let body = r#"{"status":0,"detail":"why"}"#;
        let (_, (passed, text)) = ask_answering(&response(status, body));
        assert_eq!((passed.to_string().as_str(), text.as_str()), (&status[..3], body));
    }
}

#[test]
fn answers_of_others_are_not_passed_on() {
    let too_large = format!("{{\"process\":1,\"text\":\"{}\"}}", "x".repeat(MAX_BYTES));
    for (answer, text) in [
        (response("200 OK", "<html>"), "is not a process of this version of Headwater"),
        (response("200 OK", r#"{"process":2}"#), "process 2 answers at http://127.0.0.1:"),
        (response("200 OK", &too_large), "its answer cannot be read: length limit exceeded"),
        (response("401 Unauthorized", "{}"), "does not accept the token of this process"),
        (
            response("421 Misdirected Request", r#"{"detail":"not mine"}"#),
            "421 Misdirected Request: not mine",
        ),
        (response("302 Found", ""), "answers 302 Found"),
        ("SSH-2.0\r\n".to_owned(), "cannot be asked at http://127.0.0.1:"),
        (String::new(), "cannot be asked at http://127.0.0.1:"),
    ] {
        let (_, (status, problem)) = ask_answering(&answer);
        assert_eq!(status, 502, "{problem}");
        assert!(
            problem.contains("process 1 owns the key, but ") && problem.contains(text),
            "{text}: {problem}"
        );
        assert!(!problem.contains(TOKEN), "{problem}");
    }
}

#[test]
fn a_process_that_is_gone_or_silent_is_named_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = at(&listener);
    let begun = Instant::now();
    let (status, problem) = ask(Some(address), &HeaderMap::new());
    assert_eq!(status, 504, "{problem}");
    assert!(problem.contains("no response within 4s; it may be stopped"), "{problem}");
    assert!((TIMEOUT..TIMEOUT + Duration::from_secs(5)).contains(&begun.elapsed()));
    drop(listener);
    let (status, problem) = ask(Some(address), &HeaderMap::new());
    assert_eq!(status, 502, "{problem}");
    assert!(
        problem.contains("cannot connect to 127.0.0.1") && problem.contains("it listens on"),
        "{problem}"
    );
}

#[test]
fn requests_that_cannot_be_forwarded_are_refused() {
    let forwarded = HeaderMap::from_iter([(FORWARDED, HeaderValue::from_static("2"))]);
    let (status, problem) = ask(None, &forwarded);
    assert_eq!(status, 421, "{problem}");
    assert!(problem.contains("is not forwarded again: ask process 1"), "{problem}");
    let (status, problem) = ask(None, &HeaderMap::new());
    assert_eq!(status, 421, "{problem}");
    assert!(problem.contains("belongs to process 1, and it serves no HTTP"), "{problem}");
}
