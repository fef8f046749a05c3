//! `cluster_keys = "tagged"`: all keys of a provider share a slot, and the application never sees the tag.

use redis::Value;

use crate::common::{Settings, Stores, command, eventually, run, try_run};
use crate::protocol::Raw;

fn tagged(stores: &Stores) -> Settings {
    Settings { routing: "cluster_keys = \"tagged\"".into(), ..Settings::of(stores) }
}

#[test]
fn multi_key_commands_transactions_and_scripts_of_a_provider_work_on_the_cluster() {
    let stores = Stores::shared();
    let proxy = tagged(stores).phase("91", "cluster").phase("92", "dual-cluster").start().ready();
    let mut client = proxy.connect();
    for provider in ["91", "92"] {
        let key = |name: &str| format!("provider:{provider}:{name}");
        let (a, b, d) = (key("a"), key("b"), key("d"));
        run(&mut client, &format!("SADD {a} x y"));
        run(&mut client, &format!("SADD {b} y z"));
        assert_eq!(run(&mut client, &format!("SINTERSTORE {d} {a} {b}")), Value::Int(1));
        assert_eq!(run(&mut client, &format!("RENAME {d} {}", key("e"))), Value::Okay);
        assert_eq!(run(&mut client, &format!("MSETNX {} 1 {} 2", key("m1"), key("m2"))), Value::Int(1));
        let sum = "return tonumber(redis.call('GET',KEYS[1]))+tonumber(redis.call('GET',KEYS[2]))";
        let sum: i64 = command(&["EVAL", sum, "2", &key("m1"), &key("m2")]).query(&mut client).expect("EVAL");
        assert_eq!(sum, 3);
        let mut pipe = redis::pipe();
        pipe.atomic()
            .cmd("LPUSH")
            .arg(key("l1"))
            .arg("v")
            .cmd("LMOVE")
            .arg(key("l1"))
            .arg(key("l2"))
            .arg("LEFT")
            .arg("LEFT");
        pipe.cmd("LMPOP").arg("2").arg(key("l1")).arg(key("l2")).arg("LEFT");
        let (_, _, (from, _)): (i64, String, (String, Vec<String>)) = pipe.query(&mut client).expect("EXEC");
        assert_eq!(from, key("l2"), "the reply names the key as the application does");
        let name = format!("{{{provider}}}provider:{provider}:m1");
        assert_eq!(stores.on_cluster(&["GET", &name], &name), Value::BulkString(b"1".to_vec()));
    }
    // What the standalone has of a dual route has its own name.
    assert_eq!(run(&mut stores.standalone.connect(), "GET provider:92:m1"), Value::BulkString(b"1".to_vec()));
}

#[test]
fn replies_scans_and_errors_name_keys_as_the_application_does() {
    let proxy = tagged(Stores::shared()).phase("93", "cluster").start().ready();
    let mut client = Raw::to(proxy.port);
    client.send(b"RPUSH provider:93:q v\r\nBLPOP provider:93:none provider:93:q 1\r\n");
    client.expect(b":1\r\n*2\r\n$13\r\nprovider:93:q\r\n$1\r\nv\r\n");
    client.send(b"XADD provider:93:s 1-1 f v\r\nXREAD STREAMS provider:93:s 0\r\n");
    client.expect(
        b"$3\r\n1-1\r\n*1\r\n*2\r\n$13\r\nprovider:93:s\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n",
    );
    client.send(b"XREADGROUP GROUP g c STREAMS provider:93:s >\r\n");
    client.expect(b"-NOGROUP No such key 'provider:93:s' or consumer group 'g' in XREADGROUP with GROUP option\r\n");
    let mut scan = command(&["SCAN"]);
    scan.cursor_arg(0).arg(&["MATCH", "provider:93:*", "COUNT", "1000"]);
    let seen: Vec<String> = scan.iter(&mut proxy.connect()).expect("SCAN").map(|key| key.expect("a key")).collect();
    assert_eq!(seen, ["provider:93:s"]);
    client.send(b"KEYS provider:93:?\r\nWATCH provider:93:s\r\nMULTI\r\nXLEN provider:93:s\r\nEXEC\r\n");
    client.expect(b"*1\r\n$13\r\nprovider:93:s\r\n+OK\r\n+OK\r\n+QUEUED\r\n*1\r\n:1\r\n");
}

#[test]
fn a_script_that_a_store_has_not_seen_is_loaded_there() {
    let stores = Stores::shared();
    let proxy = tagged(stores).phase("94", "cluster").start().ready();
    let mut client = proxy.connect();
    let digest: String = command(&["SCRIPT", "LOAD", "return {KEYS[1], 94}"]).query(&mut client).expect("SCRIPT LOAD");
    for node in &stores.nodes[..3] {
        run(&mut node.connect(), "SCRIPT FLUSH");
    }
    let (_, value): (String, i64) =
        command(&["EVALSHA", &digest, "1", "provider:94:k"]).query(&mut client).expect("EVALSHA");
    assert_eq!(value, 94);
    assert!(
        try_run(&mut client, &format!("EVALSHA {} 1 provider:94:k", "0".repeat(40)))
            .expect_err("unknown")
            .to_string()
            .contains("NoScript")
    );
}

#[test]
fn names_on_the_cluster_cannot_be_changed_while_keys_are_there() {
    let mut proxy = tagged(Stores::shared()).phase("95", "dual-standalone").start().ready();
    proxy.edit(|settings| Settings { routing: String::new(), ..settings });
    eventually("the file is refused", || {
        proxy.table()["refused"].as_str().is_some_and(|reason| reason.contains("cluster_keys"))
    });
    proxy.terminate();
    proxy.start_again();
    assert!(
        proxy.table()["refused"].as_str().is_some_and(|reason| reason.contains("cluster_keys")),
        "edited while it was down, too"
    );
    let mut client = proxy.connect();
    run(&mut client, "SET provider:95:a 1");
    eventually("the old names are used", || {
        Stores::shared().on_cluster(&["GET", "{95}provider:95:a"], "{95}provider:95:a")
            == Value::BulkString(b"1".to_vec())
    });
    proxy.edit(|settings| {
        Settings { routing: "cluster_keys = \"tagged\"".into(), ..settings }.phase("95", "standalone")
    });
    eventually("back to the standalone", || proxy.table()["refused"].is_null());
    proxy.edit(|settings| Settings { routing: String::new(), ..settings });
    eventually("now they can", || {
        proxy.table()["table_version"].as_u64() > Some(2) && proxy.table()["refused"].is_null()
    });
}
