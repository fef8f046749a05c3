//! A further database that moves: the same name in two databases is two keys, in every phase and with both namings.

use redis::{Connection, Value};

use crate::common::{Proxy, Settings, Stores, command, eventually, run, try_run};
use crate::protocol::Raw;

const PHASES: [(&str, &str); 4] =
    [("120", "standalone"), ("121", "dual-standalone"), ("122", "dual-cluster"), ("123", "cluster")];
const RULE: &str = "[databases]\n\"1\" = \"db1:\"";

fn proxy(stores: &Stores, naming: &str, providers: &[(&str, &str)]) -> Proxy {
    let routing = format!("cluster_keys = \"{naming}\"\n{RULE}");
    let settings = Settings { routing, ..Settings::of(stores) };
    providers.iter().fold(settings, |settings, (id, phase)| settings.phase(id, phase)).start().ready()
}

fn in_database(mut connection: Connection, db: u32) -> Connection {
    run(&mut connection, &format!("SELECT {db}"));
    connection
}

fn text(value: &str) -> Value {
    Value::BulkString(value.into())
}

fn sorted(value: Value) -> Vec<String> {
    let mut keys: Vec<String> = redis::from_redis_value(value).expect("keys");
    keys.sort();
    keys
}

/// On the cluster, whichever node has it.
fn there(stores: &Stores, name: &str) -> Value {
    stores.on_cluster(&["GET", name], name)
}

#[test]
fn the_same_name_in_two_databases_is_two_keys_wherever_they_are() {
    let stores = Stores::start();
    let proxy = proxy(&stores, "same", &PHASES);
    let mut clients = [0, 1, 2].map(|db| in_database(proxy.connect(), db));
    // The last looks like a key of database 1 on the cluster, and the one before like what keeps it apart.
    let names = |provider: &str| {
        [format!("provider:{provider}:a"), format!("%x:provider:{provider}:a"), format!("db1:provider:{provider}:a")]
    };
    for (db, client) in clients.iter_mut().enumerate() {
        for (provider, _) in PHASES {
            for name in names(provider) {
                run(client, &format!("SET {name} {db}"));
                run(client, &format!("APPEND {name} !"));
            }
        }
    }
    for (db, client) in clients.iter_mut().enumerate() {
        for (provider, phase) in PHASES {
            let [first, second, third] = names(provider);
            for name in [&first, &second, &third] {
                assert_eq!(run(client, &format!("GET {name}")), text(&format!("{db}!")), "{phase} {name}");
            }
            let mut expected = vec![first.clone(), second.clone(), third.clone()];
            expected.sort();
            assert_eq!(sorted(run(client, &format!("KEYS *provider:{provider}:?"))), expected, "{phase}, {db}");
            assert_eq!(sorted(run(client, &format!("KEYS provider:{provider}:*"))), [first], "{phase}, {db}");
            assert_eq!(sorted(run(client, &format!("KEYS db1:provider:{provider}:*"))), [third], "{phase}, {db}");
        }
        assert_eq!(run(client, "DBSIZE"), Value::Int(12));
        let mut scan = command(&["SCAN"]);
        scan.cursor_arg(0);
        let mut seen: Vec<String> = scan.iter(client).expect("SCAN").map(|key| key.expect("a key")).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 12, "{seen:?}");
        let random: String = command(&["RANDOMKEY"]).query(client).expect("RANDOMKEY");
        assert!(seen.contains(&random), "{random}");
    }
    eventually("the followers have them too", || {
        PHASES[1..].iter().all(|(provider, _)| {
            let [first, second, third] = names(provider);
            let main = [first.clone(), format!("%{second}"), format!("%{third}")];
            let further = [first, second, third].map(|name| format!("db1:{name}"));
            main.iter().all(|name| there(&stores, name) == text("0!"))
                && further.iter().all(|name| there(&stores, name) == text("1!"))
        })
    });
    assert_eq!(there(&stores, "db1:provider:120:a"), Value::Nil, "it has not moved");
    assert_eq!(run(&mut clients[1], "FLUSHDB"), Value::Okay);
    let sizes = |clients: &mut [Connection; 3]| clients.each_mut().map(|client| run(client, "DBSIZE"));
    assert_eq!(sizes(&mut clients), [12, 0, 12].map(Value::Int));
    assert_eq!(there(&stores, "provider:123:a"), text("0!"));
    assert_eq!(there(&stores, "db1:provider:122:a"), Value::Nil);
    assert_eq!(run(&mut in_database(stores.standalone.connect(), 1), "DBSIZE"), Value::Int(0));
    run(&mut clients[1], "SET provider:123:a 1");
    assert_eq!(run(&mut clients[2], "FLUSHALL"), Value::Okay);
    assert_eq!(sizes(&mut clients), [0, 0, 0].map(Value::Int));
    for node in &stores.nodes[..3] {
        assert_eq!(node.keys(), [""; 0]);
    }
}

#[test]
fn a_further_database_is_backfilled_verified_cut_over_and_survives_a_crash() {
    let stores = Stores::shared();
    let mut proxy = proxy(stores, "tagged", &[("124", "standalone")]);
    let mut clients = [0, 1].map(|db| in_database(proxy.connect(), db));
    for n in 0..50 {
        for (db, client) in clients.iter_mut().enumerate() {
            run(client, &format!("SET provider:124:{n} {db}-{n}"));
            run(client, &format!("HSET db1:provider:124:{n} f {db}-{n}"));
        }
    }
    proxy.cli_ok("move 124 --to dual-standalone");
    proxy.cli_ok("backfill 124 --rate 0");
    assert_eq!(there(stores, "{124}db1:provider:124:7"), text("1-7"));
    assert_eq!(there(stores, "{124}provider:124:7"), text("0-7"));
    proxy.cli_ok("verify 124 --rate 0");
    // Something that only one of the two databases differs in is found, told and repaired there.
    stores.on_cluster(&["SET", "{124}db1:provider:124:9", "other"], "{124}db1:provider:124:9");
    let found = proxy.cli("verify 124 --rate 0");
    assert_eq!(found.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&found.stdout).contains("provider:124:9 (database 1)"), "{found:?}");
    proxy.cli_ok("verify 124 --repair --rate 0");
    assert_eq!(there(stores, "{124}db1:provider:124:9"), text("1-9"));
    run(&mut clients[1], "APPEND provider:124:1 x");
    proxy.kill();
    proxy.start_again();
    proxy = proxy.ready();
    let mut clients = [0, 1].map(|db| in_database(proxy.connect(), db));
    run(&mut clients[1], "DEL provider:124:2");
    eventually("doubt ends", || proxy.cli("move 124 --to dual-cluster").status.success());
    assert_eq!(run(&mut clients[1], "GET provider:124:1"), text("1-1x"));
    assert_eq!(run(&mut clients[1], "GET provider:124:2"), Value::Nil);
    assert_eq!(run(&mut clients[0], "GET provider:124:2"), text("0-2"));
    run(&mut clients[1], "SET provider:124:3 new");
    run(&mut clients[1], "LPUSH provider:124:list a");
    proxy.cli_ok("verify 124 --rate 0");
    proxy.cli_ok("move 124 --to cluster");
    run(&mut clients[1], "INCR provider:124:n");
    assert_eq!(run(&mut clients[0], "EXISTS provider:124:n provider:124:list"), Value::Int(0));
    proxy.cli_ok("move 124 --to dual-cluster");
    proxy.cli_ok("backfill 124 --rate 0");
    proxy.cli_ok("move 124 --to dual-standalone");
    let mut further = in_database(stores.standalone.connect(), 1);
    assert_eq!(run(&mut further, "GET provider:124:n"), text("1"));
    assert_eq!(run(&mut further, "GET provider:124:3"), text("new"));
    assert_eq!(run(&mut stores.standalone.connect(), "GET provider:124:3"), text("0-3"));
}

#[test]
fn keys_go_from_one_database_to_another_where_one_store_has_both_or_are_refused() {
    let stores = Stores::shared();
    for naming in ["same", "tagged"] {
        let providers = PHASES.map(|(_, phase)| (format!("{naming}-{phase}"), phase));
        let providers: Vec<(&str, &str)> = providers.iter().map(|(id, phase)| (id.as_str(), *phase)).collect();
        let proxy = proxy(stores, naming, &providers);
        let [mut main, mut further, mut third] = [0, 1, 2].map(|db| in_database(proxy.connect(), db));
        for (provider, phase) in providers {
            let key = |name: &str| format!("provider:{provider}:{name}");
            let (a, b) = (key("a"), key("b"));
            let is_one_slot = naming == "tagged" || phase.ends_with("standalone");
            run(&mut main, &format!("SET {a} 1 EX 1000"));
            let moved = try_run(&mut main, &format!("MOVE {a} 1"));
            if is_one_slot {
                assert_eq!(moved.expect("moved"), Value::Int(1), "{provider}");
                assert_eq!(run(&mut main, &format!("GET {a}")), Value::Nil);
                assert_eq!(run(&mut main, &format!("MOVE {a} 1")), Value::Int(0), "it is not there");
                run(&mut main, &format!("SET {a} 2"));
                assert_eq!(run(&mut main, &format!("MOVE {a} 1")), Value::Int(0), "something else is there");
                assert_eq!(run(&mut further, &format!("COPY {a} {b} DB 0")), Value::Int(1));
            } else {
                assert!(moved.expect_err("refused").to_string().contains("different slots"), "{provider}");
                run(&mut further, &format!("SET {a} 1 EX 1000"));
                let copied = try_run(&mut further, &format!("COPY {a} {b} DB 0"));
                assert!(copied.expect_err("refused").to_string().contains("different slots"), "{provider}");
                run(&mut main, &format!("SET {b} 1 EX 1000"));
            }
            assert_eq!(run(&mut further, &format!("GET {a}")), text("1"));
            assert_eq!(run(&mut main, &format!("GET {b}")), text("1"));
            let left: i64 = command(&["TTL", &b]).query(&mut main).expect("TTL");
            assert!(left > 900, "{left}");
            // From a database that does not move, which the lanes do not see.
            run(&mut third, &format!("SET {a} 3"));
            let copied = try_run(&mut third, &format!("COPY {a} {b} DB 1 REPLACE"));
            if phase.ends_with("standalone") {
                assert_eq!(copied.expect("copied"), Value::Int(1));
                assert_eq!(run(&mut further, &format!("GET {b}")), text("3"));
            } else {
                assert!(copied.expect_err("refused").to_string().contains("stays on the standalone"));
                assert_eq!(run(&mut further, &format!("GET {b}")), Value::Nil);
            }
        }
        for provider in [format!("{naming}-dual-standalone"), format!("{naming}-dual-cluster")] {
            proxy.cli_ok(&format!("backfill {provider} --rate 0"));
            proxy.cli_ok(&format!("verify {provider} --rate 0"));
        }
        assert!(try_run(&mut main, "SWAPDB 1 2").expect_err("refused").to_string().contains("two stores"));
        assert_eq!(run(&mut main, "SWAPDB 14 15"), Value::Okay);
    }
}

#[test]
fn a_transaction_may_change_its_database_and_nobody_else_s() {
    let stores = Stores::shared();
    for (provider, phase) in PHASES {
        let provider = format!("{provider}x");
        let proxy = proxy(stores, "tagged", &[(&provider, phase)]);
        let (mut raw, mut other) = (Raw::to(proxy.port), proxy.connect());
        let key = format!("provider:{provider}:a");
        run(&mut other, &format!("SET {key} main"));
        raw.send(format!("MULTI\r\nAPPEND {key} 0\r\nSELECT 1\r\nSET {key} further\r\n").as_bytes());
        raw.send(format!("SELECT 99\r\nGET {key}\r\nLMPOP 1 {key} LEFT\r\nEXEC\r\nGET {key}\r\n").as_bytes());
        raw.expect(format!("+OK\r\n{}*6\r\n:5\r\n+OK\r\n+OK\r\n", "+QUEUED\r\n".repeat(6)).as_bytes());
        raw.expect(b"-ERR DB index is out of range\r\n$7\r\nfurther\r\n");
        raw.expect(b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n$7\r\nfurther\r\n");
        assert_eq!(run(&mut other, &format!("GET {key}")), text("main0"), "{phase}: the shared link is as it was");
        let mut client = in_database(proxy.connect(), 1);
        // What is watched in one database and written in another transaction's way is seen in both.
        run(&mut client, &format!("WATCH {key}"));
        run(&mut client, "SELECT 0");
        run(&mut client, &format!("WATCH {key}"));
        run(&mut client, "MULTI");
        run(&mut client, &format!("SET {key} lost"));
        run(&mut in_database(proxy.connect(), 1), &format!("SET {key} changed"));
        assert_eq!(run(&mut client, "EXEC"), Value::Nil, "{phase}");
        run(&mut client, &format!("WATCH {key}"));
        run(&mut client, "SELECT 1");
        run(&mut client, "MULTI");
        run(&mut client, &format!("GET {key}"));
        assert_eq!(run(&mut client, "EXEC"), Value::Array(vec![text("changed")]), "{phase}");
    }
}

#[test]
fn scripts_blocking_commands_and_streams_name_keys_of_a_further_database_as_the_application_does() {
    let stores = Stores::shared();
    for naming in ["same", "tagged"] {
        let proxy = proxy(stores, naming, &[("125", "cluster")]);
        let mut client = in_database(proxy.connect(), 1);
        let key = format!("provider:125:{naming}");
        let ask = |client: &mut Connection, words: &[&str]| command(words).query::<Value>(client).expect("answered");
        assert_eq!(ask(&mut client, &["EVAL", "return {KEYS[1], redis.call('INCR', KEYS[1])}", "1", &key]), {
            Value::Array(vec![text(&key), Value::Int(1)])
        });
        assert_eq!(run(&mut in_database(proxy.connect(), 0), &format!("GET {key}")), Value::Nil);
        run(&mut client, &format!("RPUSH {key}:list v"));
        assert_eq!(run(&mut client, &format!("BLPOP {key}:list 1")), {
            Value::Array(vec![text(&format!("{key}:list")), text("v")])
        });
        run(&mut client, &format!("XADD {key}:s 1-1 f v"));
        let error = try_run(&mut client, &format!("XREADGROUP GROUP g c STREAMS {key}:s >")).expect_err("no group");
        assert!(error.to_string().contains(&format!("'{key}:s'")), "{error}");
    }
}

#[test]
fn databases_cannot_be_changed_while_keys_are_on_the_cluster() {
    let mut proxy = proxy(Stores::shared(), "same", &[("126", "dual-standalone")]);
    let refused = |proxy: &Proxy| proxy.table()["refused"].as_str().is_some_and(|why| why.contains("[databases]"));
    for routing in ["", "[databases]\n\"1\" = \"one:\"", "[databases]\n\"1\" = \"db1:\"\n\"2\" = \"db2:\""] {
        proxy.edit(|settings| Settings { routing: routing.into(), ..settings });
        eventually("the file is refused", || refused(&proxy));
        proxy.edit(|settings| Settings { routing: RULE.into(), ..settings });
        eventually("as it was", || proxy.table()["refused"].is_null());
    }
    proxy.terminate();
    proxy.edit(|settings| Settings { routing: String::new(), ..settings });
    proxy.start_again();
    assert!(refused(&proxy), "edited while it was down, too");
    let mut client = in_database(proxy.connect(), 1);
    run(&mut client, "SET provider:126:a 1");
    eventually("the old rule is used", || there(Stores::shared(), "db1:provider:126:a") == text("1"));
    proxy.edit(|settings| Settings { routing: RULE.into(), ..settings }.phase("126", "standalone"));
    eventually("back to the standalone", || proxy.table()["refused"].is_null());
    proxy.edit(|settings| Settings { routing: String::new(), ..settings });
    eventually("now they can", || {
        proxy.table()["table_version"].as_u64() > Some(4) && proxy.table()["refused"].is_null()
    });
}
