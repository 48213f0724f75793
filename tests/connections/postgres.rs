//! PostgreSQL, as sink and ledger: each `sslmode`, client certificates, and a server that does not respond.

use crate::{Services, assert_connect_fails, closed_port, headwater, silent_port};

fn config(url: &str) -> String {
    format!(
        "pipeline = \"connections\"\n[source]\nkind = \"generator\"\nrecords = 2000\n[sinks.postgres]\nurl = \"{url}\"\n\
         [ledger]\nkind = \"postgres\"\n"
    )
}

#[test]
fn postgres_supports_each_sslmode_and_fails_closed() {
    let services = Services::up(&["tls", "postgres"]);
    let dir = tempfile::tempdir().expect("a directory");
    let url = services.of("TEST_POSTGRES");
    let ca = services.file("ca.pem");
    let of = |user: &str, host: &str, parameters: &str| {
        url.replace("headwater@127.0.0.1", &format!("{user}@{host}")) + "?" + parameters
    };
    let certificate =
        format!("sslcert={}&sslkey={}", services.file("certified.pem"), services.file("certified.key"));
    let encrypted = "TLS; schema";
    for (user, parameters, expected) in [
        ("headwater", "sslmode=disable".to_owned(), "not encrypted"),
        ("headwater", "sslmode=prefer".to_owned(), encrypted),
        ("headwater", "sslmode=require".to_owned(), encrypted),
        ("headwater", format!("sslmode=verify-ca&sslrootcert={ca}"), encrypted),
        ("locked:locked-secret", format!("sslmode=verify-full&sslrootcert={ca}"), encrypted),
        ("certified", format!("sslmode=verify-full&sslrootcert={ca}&{certificate}"), encrypted),
    ] {
        let config = config(&of(user, "127.0.0.1", &parameters));
        let result = headwater(dir.path(), &["check", "--connect", "--json"], &config);
        assert_eq!(result.code, Some(0), "{result:?}\n{config}");
        assert!(
            result.out.matches(expected).count() == 2,
            "{expected:?} for sink and ledger: {}",
            result.out
        );
    }
    // As in libpq, `sslrootcert` may be the server's own certificate, and only verify-full checks the host name.
    let own = services.file("server.pem");
    for parameters in
        [format!("sslmode=verify-full&sslrootcert={own}"), format!("sslmode=verify-ca&sslrootcert={ca}")]
    {
        let host = if parameters.contains("verify-ca") { "localhost" } else { "127.0.0.1" };
        let result =
            headwater(dir.path(), &["check", "--connect"], &config(&of("headwater", host, &parameters)));
        assert_eq!(result.code, Some(0), "{parameters}: {result:?}");
    }
    let run = config(&of("headwater", "127.0.0.1", &format!("sslmode=verify-full&sslrootcert={ca}")));
    let result = headwater(dir.path(), &["run"], &run);
    assert_eq!(result.code, Some(0), "{result:?}");

    let other = services.file("other-ca.pem");
    for (user, host, parameters, code, expected) in [
        ("headwater", "127.0.0.1", format!("sslmode=verify-ca&sslrootcert={other}"), 1, "is not trusted"),
        ("headwater", "127.0.0.1", format!("sslmode=require&sslrootcert={other}"), 1, "is not trusted"),
        (
            "headwater",
            "localhost",
            format!("sslmode=verify-full&sslrootcert={ca}"),
            1,
            "for another host name",
        ),
        (
            "headwater",
            "127.0.0.1",
            format!("sslmode=verify-full&sslrootcert={ca}.none"),
            2,
            "ca.pem.none cannot be used",
        ),
        ("locked:wrong", "127.0.0.1", "sslmode=require".to_owned(), 1, "check user and password"),
        ("locked:locked-secret", "127.0.0.1", "sslmode=disable".to_owned(), 1, "no encryption"),
        ("certified", "127.0.0.1", "sslmode=require".to_owned(), 1, "valid client certificate"),
        ("headwater", "nowhere.invalid", "sslmode=require".to_owned(), 1, "has an unknown host name"),
    ] {
        assert_connect_fails(dir.path(), &config(&of(user, host, &parameters)), code, expected);
    }
    let elsewhere = |port: u16| format!("postgres://headwater@127.0.0.1:{port}/headwater?sslmode=require");
    assert_connect_fails(dir.path(), &config(&elsewhere(closed_port())), 1, "refuses connections");
    let plain =
        std::env::var("HEADWATER_TEST_POSTGRES").expect("HEADWATER_TEST_POSTGRES names a server without TLS");
    assert_connect_fails(dir.path(), &config(&format!("{plain}?sslmode=require")), 1, "does not offer TLS");
}

#[test]
fn a_silent_postgres_fails_within_the_time_limit() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_listener, port) = silent_port();
    let url = format!("postgres://headwater@127.0.0.1:{port}/headwater");
    let started = std::time::Instant::now();
    let result = headwater(dir.path(), &["run"], &config(&url));
    assert_eq!(result.code, Some(1), "{result:?}");
    let expected = format!("PostgreSQL at 127.0.0.1:{port} does not answer within 10s");
    assert!(result.err.contains(&expected) && started.elapsed() < crate::BOUND, "{result:?}");
}
