//! Redis as a state store and as a sink: TLS, users, and servers that do not report their durability settings.

use crate::{Services, assert_connect_fails, closed_port, headwater, silent_port};

fn config(state: &str) -> String {
    format!(
        "pipeline = \"connections\"\n[source]\nkind = \"generator\"\nrecords = 2000\n[sinks.sqlite]\npath = \"out.db\"\n\
         [ledger]\nkind = \"sqlite\"\npath = \"ledger.db\"\n[checkpoint]\n[state]\nkind = \"redis\"\n{state}\n"
    )
}

#[test]
fn redis_supports_tls_and_users_and_fails_closed() {
    let services = Services::up(&["tls", "redis"]);
    let dir = tempfile::tempdir().expect("a directory");
    let encrypted = services.of("TEST_REDIS_TLS");
    let ca = format!("ca_file = \"{}\"", services.file("ca.pem"));
    let at = |user: &str, more: &str| config(&format!("url = \"rediss://{user}{encrypted}/0\"\n{more}"));
    let certificate = format!(
        "{ca}\ncert_file = \"{}\"\nkey_file = \"{}\"",
        services.file("certified.pem"),
        services.file("certified.key")
    );
    let assumed = format!("{ca}\ndurability = \"assumed\"");
    for right in [
        at("", &ca),
        at("", &ca).replace("rediss://", "valkeys://"),
        at("ops:ops-secret@", &ca),
        at("ops:ops-secret@", &certificate),
        at("app:app-secret@", &assumed),
    ] {
        let result = headwater(dir.path(), &["check", "--connect"], &right);
        assert_eq!(result.code, Some(0), "{result:?}\n{right}");
    }
    let result = headwater(dir.path(), &["run"], &at("app:app-secret@", &assumed));
    assert_eq!(result.code, Some(0), "{result:?}");
    assert!(result.err.contains("Redis is assumed to be durable"), "{}", result.err);

    let other = format!("ca_file = \"{}\"", services.file("other-ca.pem"));
    let plain = services.of("TEST_REDIS").trim_start_matches("redis://").trim_end_matches('/').to_owned();
    let by_name = encrypted.replace("127.0.0.1", "localhost");
    // The CA of a state store is not one that the receivers of routes are trusted by.
    let route = format!(
        "[[routes]]\nname = \"x\"\nallow_private = true\nto = {{ kind = \"slack\", url = \"https://{encrypted}/\" }}\n"
    );
    for (wrong, code, expected) in [
        (at("", &other), 1, "is not trusted: check that `state.ca_file`"),
        (config(&format!("url = \"rediss://{by_name}/0\"\n{ca}")), 1, "for another host name"),
        (at("ops:wrong@", &ca), 1, "does not accept user and password"),
        (at("app:app-secret@", &ca), 1, "set `state.durability = \"assumed\"`"),
        (at("", &ca.replace("ca.pem", "none.pem")), 2, "none.pem cannot be read"),
        (config(&format!("url = \"rediss://{plain}/0\"\n{ca}")), 1, "and whether it speaks TLS on this port"),
        (config(&format!("url = \"redis://{encrypted}/0\"")), 1, "it may expect TLS on this port"),
        (config(&format!("url = \"redis://127.0.0.1:{}/0\"", closed_port())), 1, "refuses connections"),
        (config("url = \"redis://nowhere.invalid/0\""), 1, "has an unknown host name"),
        (at("", &ca) + &route, 1, "UnknownIssuer"),
    ] {
        assert_connect_fails(dir.path(), &wrong, code, expected);
    }
    let (_listener, port) = silent_port();
    assert_connect_fails(
        dir.path(),
        &config(&format!("url = \"redis://127.0.0.1:{port}/0\"")),
        1,
        "does not answer in time",
    );
    assert_connect_fails(
        dir.path(),
        &config(&format!("url = \"rediss://127.0.0.1:{port}/0\"\n{ca}")),
        1,
        "does not answer in time",
    );
}

#[test]
fn profiles_support_tls_and_users_and_fail_closed() {
    let services = Services::up(&["tls", "redis"]);
    let dir = tempfile::tempdir().expect("a directory");
    let encrypted = services.of("TEST_REDIS_TLS");
    let config = |sink: &str| {
        format!(
            "pipeline = \"connections\"\n[source]\nkind = \"generator\"\nrecords = 2000\n[ledger]\nkind = \"sqlite\"\n\
             path = \"ledger.db\"\n[sinks.redis]\n{sink}\n"
        )
    };
    let ca = format!("ca_file = \"{}\"", services.file("ca.pem"));
    std::fs::write(dir.path().join("password"), "app-secret\n").expect("written");
    let right = config(&format!("url = \"rediss://app@{encrypted}/1\"\npassword_file = \"password\"\n{ca}"));
    let result = headwater(dir.path(), &["check", "--connect"], &right);
    assert_eq!(result.code, Some(0), "{result:?}");
    let place = format!("Redis at {encrypted}, database 1: reachable, version ");
    assert!(result.out.contains(&place), "{result:?}");
    let result = headwater(dir.path(), &["run"], &right);
    assert_eq!(result.code, Some(0), "{result:?}");
    let result = headwater(dir.path(), &["status"], &right);
    assert!(result.out.contains("sink redis: through epoch "), "{result:?}");

    let (_listener, silent) = silent_port();
    let other = format!("ca_file = \"{}\"", services.file("other-ca.pem"));
    for (wrong, code, expected) in [
        (format!("url = \"rediss://{encrypted}\"\n{other}"), 1, "check that `sinks.redis.ca_file`"),
        (format!("url = \"rediss://app:wrong@{encrypted}\"\n{ca}"), 1, "check those of `sinks.redis.url`"),
        (format!("url = \"redis://{encrypted}\""), 1, "it may expect TLS on this port"),
        (format!("url = \"redis://127.0.0.1:{}\"", closed_port()), 1, "refuses connections"),
        (format!("url = \"redis://127.0.0.1:{silent}\""), 1, "does not answer in time"),
    ] {
        assert_connect_fails(dir.path(), &config(&wrong), code, expected);
    }
}
