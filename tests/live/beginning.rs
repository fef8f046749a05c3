//! The first two commands: a configuration that fits what the stores hold, and a backup that is one.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use redis::{Connection, Value};

use crate::common::{Redis, Stores, command, run};

fn cutover(folder: &Path, words: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .args(words)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start cutover");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("answer");
    child.wait_with_output().expect("wait for cutover")
}

#[track_caller]
fn done(out: &Output) -> String {
    let (text, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{}\n{text}{error}", out.status);
    text.into_owned()
}

/// Keys of all types, of forty providers and of none.
fn fill(standalone: &mut Connection) {
    for id in 1..=40 {
        run(standalone, &format!("SET provider:{id}:profile p{id}"));
        run(standalone, &format!("SET provider:{id}:session:{} s PX 5000000", id * 3));
        run(standalone, &format!("HSET :1:provider:{id}:cart a 1 b 2"));
        run(standalone, &format!("RPUSH provider:{id}:queue x y z"));
        run(standalone, &format!("SADD asgi:group:{id} c"));
    }
    run(standalone, "ZADD board 1 a 2 b");
    run(standalone, "XADD log 1-1 f v");
}

fn dumps(connection: &mut Connection) -> BTreeMap<Vec<u8>, (Value, i64)> {
    let keys: Vec<Vec<u8>> = command(&["KEYS", "*"]).query(connection).expect("keys");
    let mut ask = |key: Vec<u8>| {
        let dump: Value = command(&["DUMP"]).arg(&key).query(connection).expect("dump");
        let expiry: i64 = command(&["PEXPIRETIME"]).arg(&key).query(connection).expect("expiry");
        (key, (dump, expiry))
    };
    keys.into_iter().map(&mut ask).collect()
}

#[test]
fn init_finds_where_the_provider_stands_and_prepare_takes_a_backup_that_a_server_loads() {
    let stores = Stores::shared();
    let standalone = Redis::start(&["--repl-diskless-sync-delay", "0", "--maxmemory-policy", "volatile-lru"]);
    fill(&mut standalone.connect());
    let folder = tempfile::tempdir().expect("make a folder");
    let seed = format!("127.0.0.1:{}", stores.nodes[0].port);
    let text = done(&cutover(folder.path(), &["init"], &format!("{}\n{seed}\n", standalone.url())));
    assert!(text.contains("40 providers in 160 of 202 sampled keys"), "{text}");
    let file = std::fs::read_to_string(folder.path().join("proxy.toml")).expect("read");
    for line in ["keys = [\"*:provider:{provider}:*\", \"provider:{provider}:*\"]", "# \"asgi:\" = \"standalone\""] {
        assert!(file.contains(line), "{line}: {file}");
    }
    assert_eq!(file.matches("redis://127.0.0.1").count(), 4, "the standalone and three nodes: {file}");
    let again = cutover(folder.path(), &["init", "--standalone", &standalone.url(), "--cluster", &seed], "");
    let error = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(1) && error.contains("--yes"), "{error}");
    done(&cutover(folder.path(), &["check"], ""));
    // With an end mark, as servers send it by themselves, and with a length, as they do from a file.
    for diskless in ["yes", "no"] {
        run(&mut standalone.connect(), &format!("CONFIG SET repl-diskless-sync {diskless}"));
        let text = done(&cutover(folder.path(), &["prepare", "--output", diskless], ""));
        assert!(text.contains("checksum") && text.contains("volatile-lru drops keys"), "{text}");
        let place = folder.path().join(diskless);
        for name in ["standalone.info", "standalone.config", "cluster.nodes", "report.json"] {
            assert!(std::fs::metadata(place.join(name)).expect(name).len() > 100, "{name}");
        }
        let place = place.to_str().expect("text");
        let copy = Redis::start(&["--appendonly", "no", "--dir", place, "--dbfilename", "standalone.rdb"]);
        assert_eq!(dumps(&mut copy.connect()), dumps(&mut standalone.connect()));
    }
}

#[test]
fn a_backup_that_is_refused_is_told_and_leaves_nothing_behind() {
    let standalone = Redis::start(&[]);
    let mut admin = standalone.connect();
    run(&mut admin, "SET provider:1:a v");
    run(&mut admin, "ACL SETUSER reader on >word ~* +@all -sync -psync");
    let folder = tempfile::tempdir().expect("make a folder");
    let url = format!("redis://reader:word@127.0.0.1:{}/0", standalone.port);
    done(&cutover(folder.path(), &["init", "--standalone", &url, "--cluster", "-"], ""));
    let out = cutover(folder.path(), &["prepare", "--output", "p"], "");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("refused SYNC") && text.contains("--no-backup") && text.contains("add [cluster]"), "{text}");
    let left: Vec<_> = std::fs::read_dir(folder.path().join("p")).expect("list").flatten().collect();
    assert!(!left.iter().any(|entry| entry.file_name().to_string_lossy().contains("rdb")), "{left:?}");
}
