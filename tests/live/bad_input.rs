//! Malformed input gets a Redis error or a closed connection, and nobody else notices.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;

use crate::common::{Settings, Stores, eventually};
use crate::protocol::Raw;

#[test]
fn malformed_frames_end_their_client_with_redis_s_words_and_no_one_else() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let mut other = Raw::to(proxy.port);
    let cases: [(&[u8], &str); 7] = [
        (b"*abc\r\n", "invalid multibulk length"),
        (b"*1\r\n$-5\r\n", "invalid bulk length"),
        (b"*1\r\n:5\r\n", "expected '$', got ':'"),
        (b"*2147483648\r\n", "invalid multibulk length"),
        (b"*1\r\n$999999999999\r\n", "invalid bulk length"),
        (b"SET \"unbalanced\r\n", "unbalanced quotes"),
        (&[b'x'; 70_000], "too big inline request"),
    ];
    for (bytes, wanted) in cases {
        let mut bad = Raw::to(proxy.port);
        bad.send(bytes);
        let told = bad.rest();
        assert!(
            told.starts_with("-ERR Protocol error") && told.contains(wanted),
            "{}: {told}",
            bytes[..bytes.len().min(40)].escape_ascii()
        );
        other.send(b"PING\r\n");
        other.expect(b"+PONG\r\n");
    }
}

#[test]
fn deep_nesting_lengths_that_lie_and_clients_that_vanish_cost_nothing() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let mut nested = Raw::to(proxy.port);
    nested.send(&b"*1\r\n".repeat(100_000));
    assert!(nested.rest().starts_with("-ERR Protocol error"));
    // A length that promises much and brings nothing.
    let mut liars: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(("127.0.0.1", proxy.port)).expect("connect")).collect();
    for liar in &mut liars {
        liar.write_all(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$536870912\r\nx").expect("write");
    }
    let mut honest = Raw::to(proxy.port);
    honest.send(b"SET honest 1\r\nGET honest\r\n");
    honest.expect(b"+OK\r\n$1\r\n1\r\n");
    let clients = || proxy.table()["clients"].as_u64().expect("a number");
    eventually("all are counted", || clients() == 201);
    drop(liars);
    eventually("those who went are counted out", || clients() == 1);
}

#[test]
fn wrong_commands_get_redis_s_errors() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let mut client = Raw::to(proxy.port);
    client.send(b"NOSUCH a b\r\nGET\r\nSET k v EX\r\nSELECT 99\r\nSHUTDOWN\r\n");
    client.expect(b"-ERR unknown command 'NOSUCH', with args beginning with: 'a' 'b' \r\n");
    client.expect(b"-ERR wrong number of arguments for 'get' command\r\n");
    client.expect(b"-ERR syntax error\r\n");
    client.expect(b"-ERR DB index is out of range\r\n");
    client.expect(b"-ERR ");
    client.send(b"QUIT\r\n");
    assert!(client.rest().contains("shutdown"));
}

#[test]
fn a_client_beyond_the_limit_and_one_without_the_password_are_told_so() {
    let limits = "max_clients = 2\npassword = \"secret\"";
    let proxy = Settings { listen: limits.into(), ..Settings::of(Stores::shared()) }.start();
    let mut first = Raw::to(proxy.port);
    first.send(b"GET a\r\nAUTH wrong\r\nAUTH nobody secret\r\nAUTH secret\r\nPING\r\n");
    first.expect(b"-NOAUTH Authentication required.\r\n");
    for _ in 0..2 {
        first.expect(b"-WRONGPASS invalid username-password pair or user is disabled.\r\n");
    }
    // Whoever looked whether the proxy is up may be counted for a moment.
    eventually("the first is alone", || proxy.table()["clients"] == 1);
    let _second = Raw::to(proxy.port);
    eventually("both are counted", || proxy.table()["clients"] == 2);
    assert_eq!(Raw::to(proxy.port).rest(), "-ERR max number of clients reached\r\n");
    first.send(b"QUIT\r\n");
    assert!(first.rest().contains("+PONG"));
}

#[test]
fn files_are_taken_up_to_the_hard_limit_and_a_client_beyond_is_told_so() {
    let proxy =
        Settings { before: "ulimit -Sn 100 && ulimit -Hn 200", ..Settings::of(Stores::shared()) }.start().ready();
    let log = proxy.log();
    assert!(log.contains("the limit of 200 open files leaves room for 72 clients, and max_clients is 10000"), "{log}");
    eventually("nobody looks whether it is up", || proxy.table()["clients"] == 0);
    let mut clients: Vec<Raw> = (0..72).map(|_| Raw::to(proxy.port)).collect();
    for client in &mut clients {
        client.send(b"PING\r\n");
        client.expect(b"+PONG\r\n");
    }
    assert_eq!(Raw::to(proxy.port).rest(), "-ERR max number of clients reached\r\n");
    assert_eq!(proxy.http("/readyz").0, 200, "what is no client's still has its files");
}

#[test]
fn the_admin_token_is_asked_of_what_changes_something_and_foreign_pages_are_refused() {
    let proxy =
        Settings { admin: "token = \"t\"".into(), ..Settings::of(Stores::shared()).phase("31", "dual-standalone") }
            .start()
            .ready();
    let post = |headers: &[(&str, &str)]| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut request = agent.post(format!("http://127.0.0.1:{}/api/backfill", proxy.admin_port));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send_json(serde_json::json!({ "routes": ["31"] })).expect("an answer").status().as_u16()
    };
    assert_eq!(post(&[]), 401);
    assert_eq!(post(&[("Authorization", "Bearer wrong")]), 401);
    assert_eq!(post(&[("Authorization", "Bearer t"), ("Origin", "http://evil.example")]), 403);
    assert_eq!(post(&[("Authorization", "Bearer t")]), 200);
    proxy.cli_ok("backfill 31");
}

/// Each bad file has its message beside it; each good one is accepted.
#[test]
fn config_files_are_judged_with_line_caret_and_help() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let check = |path: &std::path::Path| {
        Command::new(env!("CARGO_BIN_EXE_cutover"))
            .arg("--config")
            .arg(path)
            .arg("status")
            .env_remove("NOT_SET")
            .output()
            .expect("run cutover")
    };
    let files = |kind: &str| {
        let mut found: Vec<_> =
            std::fs::read_dir(folder.join(kind)).expect("read").map(|entry| entry.expect("an entry").path()).collect();
        found.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        found.sort();
        assert!(!found.is_empty());
        found
    };
    for path in files("bad") {
        let out = check(&path);
        assert_eq!(out.status.code(), Some(2), "{}", path.display());
        let told = String::from_utf8_lossy(&out.stderr)
            .replace(&path.display().to_string(), &path.file_name().expect("a name").to_string_lossy());
        let beside = path.with_extension("txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&beside, &told).expect("write");
        }
        let wanted = std::fs::read_to_string(&beside)
            .unwrap_or_else(|_| panic!("{} has no message beside it; UPDATE=1 writes it", path.display()));
        assert_eq!(told, wanted, "{}", path.display());
    }
    for path in files("good") {
        // Whether a proxy happens to run at its addresses or not: the file itself is usable.
        let out = check(&path);
        assert_ne!(out.status.code(), Some(2), "{}: {}", path.display(), String::from_utf8_lossy(&out.stderr));
    }
}
