//! PostgreSQL, as sink and ledger: each `sslmode`, client certificates, and silence.

use crate::{Services, closed, fails, headwater, silent};

fn config(url: &str) -> String {
    format!(
        "pipeline = \"connections\"\n[source]\nkind = \"generator\"\nrecords = 2000\n[sinks.postgres]\nurl = \"{url}\"\n\
         [ledger]\nkind = \"postgres\"\n"
    )
}

#[test]
fn postgres_is_connected_to_as_sslmode_has_it_and_fails_closed() {
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
    for (user, parameters, told) in [
        ("headwater", "sslmode=disable".to_owned(), "not encrypted"),
        ("headwater", "sslmode=prefer".to_owned(), encrypted),
        ("headwater", "sslmode=require".to_owned(), encrypted),
        ("headwater", format!("sslmode=verify-ca&sslrootcert={ca}"), encrypted),
        ("locked:locked-secret", format!("sslmode=verify-full&sslrootcert={ca}"), encrypted),
        ("certified", format!("sslmode=verify-full&sslrootcert={ca}&{certificate}"), encrypted),
    ] {
        let config = config(&of(user, "127.0.0.1", &parameters));
        let ended = headwater(dir.path(), &["check", "--connect", "--json"], &config);
        assert_eq!(ended.code, Some(0), "{ended:?}\n{config}");
        assert!(ended.out.matches(told).count() == 2, "{told:?} for sink and ledger: {}", ended.out);
    }
    // A server's own certificate may be the one to trust, as libpq has it; and a name matters only to verify-full.
    let own = services.file("server.pem");
    for parameters in
        [format!("sslmode=verify-full&sslrootcert={own}"), format!("sslmode=verify-ca&sslrootcert={ca}")]
    {
        let host = if parameters.contains("verify-ca") { "localhost" } else { "127.0.0.1" };
        let ended =
            headwater(dir.path(), &["check", "--connect"], &config(&of("headwater", host, &parameters)));
        assert_eq!(ended.code, Some(0), "{parameters}: {ended:?}");
    }
    let run = config(&of("headwater", "127.0.0.1", &format!("sslmode=verify-full&sslrootcert={ca}")));
    let ended = headwater(dir.path(), &["run"], &run);
    assert_eq!(ended.code, Some(0), "{ended:?}");

    let other = services.file("other-ca.pem");
    for (user, host, parameters, code, words) in [
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
        fails(dir.path(), &config(&of(user, host, &parameters)), code, words);
    }
    let elsewhere = |port: u16| format!("postgres://headwater@127.0.0.1:{port}/headwater?sslmode=require");
    fails(dir.path(), &config(&elsewhere(closed())), 1, "refuses connections");
    let plain =
        std::env::var("HEADWATER_TEST_POSTGRES").expect("HEADWATER_TEST_POSTGRES names a server without TLS");
    fails(dir.path(), &config(&format!("{plain}?sslmode=require")), 1, "does not offer TLS");
}

#[test]
fn a_postgres_that_accepts_and_says_nothing_is_told_within_a_bound() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_listener, port) = silent();
    let url = format!("postgres://headwater@127.0.0.1:{port}/headwater");
    let begun = std::time::Instant::now();
    let ended = headwater(dir.path(), &["run"], &config(&url));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let words = format!("PostgreSQL at 127.0.0.1:{port} does not answer within 10s");
    assert!(ended.err.contains(&words) && begun.elapsed() < crate::BOUND, "{ended:?}");
}
