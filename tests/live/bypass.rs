//! Who writes to a store around the proxy is found and named, and the routes are not trusted; who only reads is left alone.

use std::time::{Duration, Instant};

use crate::common::{Proxy, Redis, Settings, Stores, command, eventually, run, try_run};

#[test]
fn a_writer_that_goes_around_the_proxy_is_named_and_its_routes_are_in_doubt_until_it_has_gone() {
    // Stores of its own: other tests write to the shared ones.
    let stores = Stores::start();
    let settings = Settings { look_every: "1s", ..Settings::of(&stores) };
    let mut proxy = settings.phase("931", "dual-standalone").start().ready();
    let mut client = proxy.connect();
    run(&mut client, "SET provider:931:key through");
    proxy.cli_ok("backfill 931 --rate 0");
    let is_synced = |proxy: &Proxy| {
        let table = proxy.table();
        let route = table["routes"].as_array().and_then(|routes| routes.iter().find(|route| route["id"] == "931"));
        route.is_some_and(|route| route["synced"] == true)
    };
    assert!(is_synced(&proxy));
    // Whoever reads, and whoever uses the proxy, is none. The writer below is found by a later look than these.
    let mut reader = stores.standalone.connect();
    run(&mut reader, "CLIENT SETNAME reader");
    run(&mut reader, "GET provider:931:key");
    let mut elsewhere = stores.standalone.connect();
    run(&mut elsewhere, "SELECT 5");
    run(&mut elsewhere, "SET other 1");
    for (number, node) in [&stores.standalone, &stores.nodes[0]].into_iter().enumerate() {
        let mut writer = Redis::connect(node);
        run(&mut writer, &format!("CLIENT SETNAME stray{number}"));
        let key = (0..).map(|n| format!("provider:931:{n}")).find(|key| cutover::slot::of(key.as_bytes()) <= 5460);
        let key = key.expect("a key of the first primary");
        eventually("the writer is named", || {
            run(&mut writer, &format!("HSET {key} stray {number}"));
            run(&mut client, "SET provider:931:key again");
            run(&mut reader, "GET provider:931:key");
            let table = proxy.table();
            let writers = table["bypass"].as_array().cloned().unwrap_or_default();
            writers.iter().any(|found| found["name"] == format!("stray{number}") && found["command"] == "hset")
        });
        eventually("the route is not trusted", || !is_synced(&proxy));
        let refused = proxy.cli("move 931 --to dual-cluster");
        assert_eq!(refused.status.code(), Some(1), "a route in doubt is not cut over");
        drop(writer);
        // Once it has gone a backfill ends the doubt: what the stray wrote on the leader is copied, on the follower replaced.
        eventually("the route is synced again", || {
            proxy.cli("backfill 931 --rate 0").status.success() && is_synced(&proxy)
        });
        proxy.cli_ok("verify 931 --rate 0");
    }
    let table = proxy.table();
    let names: Vec<_> = table["bypass"].as_array().into_iter().flatten().map(|found| found["name"].clone()).collect();
    assert!(names.iter().all(|name| name.as_str().is_some_and(|name| name.starts_with("stray"))), "{table}");
    assert!(proxy.cli_ok("status").contains("around the proxy"), "status names it");
    assert!(proxy.http("/metrics").1.contains("cutover_bypass_writers 2"), "{}", proxy.http("/metrics").1);
    assert_eq!(proxy.terminate(), Some(0));
}

#[test]
fn a_second_proxy_on_the_same_stores_is_reported_and_its_writes_put_the_routes_in_doubt() {
    let stores = Stores::start();
    let settings = || Settings::of(&stores).phase("932", "dual-standalone");
    let proxy = Settings { look_every: "1s", ..settings() }.start().ready();
    proxy.cli_ok("backfill 932 --rate 0");
    let others = |proxy: &Proxy| proxy.table()["other_proxies"].as_object().map_or(0, serde_json::Map::len);
    // Whoever only looks, like a command line, is none.
    proxy.cli_ok("check");
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(others(&proxy), 0, "{}", proxy.table());
    let second = settings().start().ready();
    eventually("it is reported", || others(&proxy) == 1);
    assert!(proxy.cli_ok("status").contains("another cutover"), "{}", proxy.cli_ok("status"));
    assert!(proxy.log().contains("two of them without a lease in common break the order of writes"), "{}", proxy.log());
    assert!(proxy.http("/metrics").1.contains("cutover_other_proxies 1"));
    let mut client = second.connect();
    eventually("its writes are seen", || {
        run(&mut client, "SET provider:932:key through-the-other");
        let table = proxy.table();
        let mut routes = table["routes"].as_array().expect("routes").iter();
        routes.any(|route| route["id"] == "932" && route["in_doubt"] == true)
    });
    drop(client);
    drop(second);
    eventually("it is gone", || others(&proxy) == 0);
    eventually("the route is synced again", || proxy.cli("backfill 932 --rate 0").status.success());
    proxy.cli_ok("verify 932 --rate 0");
}

/// Whether a route is known to be equal on both stores.
fn is_synced(proxy: &Proxy, id: &str) -> bool {
    let table = proxy.table();
    let mut routes = table["routes"].as_array().expect("routes").iter();
    routes.any(|route| route["id"] == id && route["synced"] == true)
}

/// What was found by that.
fn found_by(proxy: &Proxy, by: &str) -> Vec<serde_json::Value> {
    let table = proxy.table();
    table["bypass"].as_array().expect("a list").iter().filter(|writer| writer["found_by"] == by).cloned().collect()
}

/// A write on a connection that no look sees writing: it does something else at once, and is gone.
fn stray(node: &Redis, words: &[&str]) {
    let mut commands = redis::pipe();
    commands.add_command(command(words)).add_command(command(&["PING"]));
    commands.query::<redis::Value>(&mut node.connect()).expect("the store takes it");
}

/// A key of a route on the first primary.
fn key_of(id: &str) -> String {
    let mut keys = (0..).map(|number| format!("provider:{id}:{number}"));
    keys.find(|key| cutover::slot::of(key.as_bytes()) <= 5460).expect("one of them")
}

/// Has every server tell of keys that change.
fn tell_changes(stores: &Stores) {
    for node in stores.nodes.iter().chain([&stores.standalone]) {
        run(&mut node.connect(), "CONFIG SET notify-keyspace-events AKE");
    }
}

#[test]
fn a_writer_whose_connections_no_look_sees_is_found_by_what_the_store_has_run() {
    let stores = Stores::start();
    let settings = Settings { look_every: "1s", ..Settings::of(&stores) };
    let proxy = settings.phase("933", "dual-standalone").start().ready();
    let mut client = proxy.connect();
    run(&mut client, "SET provider:933:key through");
    proxy.cli_ok("backfill 933 --rate 0");
    let key = key_of("933");
    for (node, store) in [(&stores.standalone, "standalone"), (&stores.nodes[0], "cluster")] {
        assert!(is_synced(&proxy, "933"));
        let mut number = 0;
        eventually("it is found", || {
            number += 1;
            (0..50).for_each(|_| drop(run(&mut client, "INCR provider:933:counter")));
            if number % 10 == 1 {
                stray(node, &["SET", &key, "around"]);
            }
            std::thread::sleep(Duration::from_millis(20));
            found_by(&proxy, "count").iter().any(|found| found["store"] == store)
        });
        let found = found_by(&proxy, "count");
        let found = found.iter().find(|found| found["store"] == store).expect("it is there still");
        let writes = found["writes"].as_u64().expect("a number");
        assert!((1..=number / 10 + 1).contains(&writes), "{found}: of {number} / 10");
        eventually("the route is not trusted", || !is_synced(&proxy, "933"));
        assert!(found_by(&proxy, "connection").is_empty(), "{}", proxy.table());
        eventually("the route is synced again", || {
            proxy.cli("backfill 933 --rate 0").status.success() && is_synced(&proxy, "933")
        });
    }
    let status = proxy.cli_ok("status");
    assert!(status.contains("commands that write which no proxy sent"), "{status}");
    assert!(proxy.log().contains("which the proxy did not send"), "{}", proxy.log());
    let metrics = proxy.http("/metrics").1;
    assert!(metrics.contains("cutover_bypass_writers 0"), "{metrics}");
    assert!(!metrics.contains("cutover_bypass_commands_total 0"), "{metrics}");
    proxy.cli_ok("verify 933 --rate 0");
}

#[test]
fn where_a_store_tells_of_changes_the_route_of_a_foreign_one_is_named_and_no_other_is_in_doubt() {
    let stores = Stores::start();
    tell_changes(&stores);
    // The standalone counts this database with the one that moves, so its numbers prove nothing.
    let mut elsewhere = stores.standalone.connect();
    run(&mut elsewhere, "SELECT 5");
    run(&mut elsewhere, "SET other 1");
    drop(elsewhere);
    let settings = Settings { look_every: "1s", ..Settings::of(&stores) };
    let proxy = settings.phase("934", "dual-standalone").phase("935", "dual-standalone").start().ready();
    let mut client = proxy.connect();
    for id in ["934", "935"] {
        run(&mut client, &format!("SET provider:{id}:key through"));
    }
    proxy.cli_ok("backfill 934 935 --rate 0");
    eventually("all primaries and the standalone are listened to", || proxy.table()["bypass_listening"] == 4);
    for (node, store, id, event) in
        [(&stores.standalone, "standalone", "934", "hset"), (&stores.nodes[0], "cluster", "935", "hset")]
    {
        let key = key_of(id);
        eventually("the route is named", || {
            stray(node, &["HSET", &key, "around", "the proxy"]);
            std::thread::sleep(Duration::from_millis(200));
            let found = found_by(&proxy, "notification");
            found.iter().any(|found| {
                found["route"] == id && found["store"] == store && found["key"] == *key && found["command"] == event
            })
        });
        eventually("it is not trusted", || !is_synced(&proxy, id));
        if id == "934" {
            assert!(is_synced(&proxy, "935"), "the other one is: {}", proxy.table());
            let refused = proxy.cli("move 934 --to dual-cluster");
            assert_eq!(refused.status.code(), Some(1), "a route in doubt is not cut over");
            assert!(found_by(&proxy, "count").is_empty(), "{}", proxy.table());
        }
    }
    assert!(proxy.cli_ok("status").contains("route 934: "), "{}", proxy.cli_ok("status"));
    assert!(proxy.log().contains("keys of this route were changed on a store"), "{}", proxy.log());
    assert!(proxy.http("/metrics").1.contains("cutover_bypass_route{route=\"934\"} 1"));
    eventually("both are synced again", || {
        proxy.cli("backfill 934 935 --rate 0").status.success() && is_synced(&proxy, "934") && is_synced(&proxy, "935")
    });
    proxy.cli_ok("verify 934 935 --rate 0");
}

#[test]
fn what_the_proxy_itself_does_is_nobody_s_else() {
    let stores = Stores::start();
    tell_changes(&stores);
    let mut before = stores.standalone.connect();
    for id in ["936", "937", "938"] {
        for number in 0..3_000 {
            run(&mut before, &format!("HSET provider:{id}:old:{number} a 1 b {number}"));
        }
    }
    drop(before);
    let settings = Settings { look_every: "1s", ..Settings::of(&stores) };
    let proxy = settings.phase("936", "dual-standalone").phase("937", "dual-cluster").start().ready();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let has_scripts = std::sync::atomic::AtomicBool::new(true);
    let ordering = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        for id in ["936", "937", "938"] {
            let (mut blocked, proxy, is_over, has_scripts) = (proxy.connect(), &proxy, &is_over, &has_scripts);
            scope.spawn(move || {
                run(&mut blocked, &format!("BLMOVE provider:{id}:{{q}}late provider:{id}:{{q}}moved LEFT RIGHT 60"))
            });
            let mut popper = proxy.connect();
            scope.spawn(move || {
                while !is_over.load(ordering) {
                    run(&mut popper, &format!("BLPOP provider:{id}:queue 1"));
                }
            });
            scope.spawn(move || {
                let mut client = proxy.connect();
                let mut number = 0;
                while !is_over.load(ordering) {
                    number += 1;
                    for words in [
                        format!("SET provider:{id}:short:{number} x PX 300"),
                        format!("GET provider:{id}:short:{}", number - 1),
                        format!("HSET provider:{id}:old:{} c {number}", number % 3_000),
                        format!("RPUSH provider:{id}:queue {number}"),
                        format!("INCR provider:{id}:counter"),
                        format!("ZADD provider:{id}:rank {number} m{}", number % 50),
                        format!("XADD provider:{id}:stream MAXLEN 20 * a {number}"),
                        format!("DEL provider:{id}:old:{} provider:{id}:old:{}", number % 997, number % 499),
                        format!("SADD provider:{id}:{{s}}one {number}"),
                        format!("SUNIONSTORE provider:{id}:{{s}}all provider:{id}:{{s}}one provider:{id}:{{s}}two"),
                        format!("RENAME provider:{id}:{{s}}all provider:{id}:{{s}}two"),
                        format!("WATCH provider:{id}:{{t}}a"),
                        "MULTI".to_string(),
                        format!("SET provider:{id}:{{t}}a {number}"),
                        format!("LPUSH provider:{id}:{{t}}b {number}"),
                        format!("LTRIM provider:{id}:{{t}}b 0 9"),
                        "EXEC".to_string(),
                        "MULTI".to_string(),
                        format!("INCR provider:{id}:{{t}}c"),
                        format!("PEXPIRE provider:{id}:{{t}}c 200"),
                        "EXEC".to_string(),
                    ] {
                        run(&mut client, &words);
                    }
                    if has_scripts.load(ordering) {
                        let key = format!("provider:{id}:script");
                        let body = "redis.call('INCR', KEYS[1]) return redis.call('EXPIRE', KEYS[1], 5)";
                        drop(command(&["EVAL", body, "1", &key]).query::<redis::Value>(&mut client).expect("a script"));
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
        std::thread::sleep(Duration::from_millis(1_500));
        proxy.cli_ok("backfill 936 --rate 0");
        proxy.cli_ok("move 938 --to dual-standalone");
        proxy.cli_ok("backfill 937 938 --rate 0");
        std::thread::sleep(Duration::from_secs(2));
        has_scripts.store(false, ordering);
        proxy.cli_ok("move 938 --to dual-cluster");
        proxy.cli_ok("move 936 --to dual-cluster");
        std::thread::sleep(Duration::from_secs(2));
        proxy.cli_ok("move 936 --to dual-standalone");
        proxy.cli_ok("verify 936 --repair --rate 0");
        std::thread::sleep(Duration::from_secs(8));
        // It has waited for longer than an own write is remembered.
        for id in ["936", "937", "938"] {
            run(&mut proxy.connect(), &format!("RPUSH provider:{id}:{{q}}late x"));
        }
        std::thread::sleep(Duration::from_secs(5));
        is_over.store(true, ordering);
    });
    assert_eq!(proxy.table()["bypass_listening"], 4);
    assert_eq!(proxy.table()["bypass"], serde_json::json!([]), "{}", proxy.log());
    assert!(!proxy.log().contains("around the proxy"), "{}", proxy.log());
    // And neither was deaf meanwhile.
    let key = key_of("936");
    eventually("a foreign write is found by both", || {
        stray(&stores.standalone, &["SET", &key, "around"]);
        std::thread::sleep(Duration::from_millis(200));
        !found_by(&proxy, "count").is_empty() && !found_by(&proxy, "notification").is_empty()
    });
}

#[test]
fn what_befalls_the_stores_is_nobody_s_writing() {
    let stores = Stores::start();
    tell_changes(&stores);
    let mut settings = Settings { look_every: "1s", ..Settings::of(&stores) };
    settings.stores = "reply_timeout = \"400ms\"\npatience = \"300ms\"".into();
    let proxy = settings.phase("939", "dual-standalone").start().ready();
    let mut client = proxy.connect();
    let key = key_of("939");
    run(&mut client, &format!("SET {key} 0"));
    proxy.cli_ok("backfill 939 --rate 0");
    eventually("all are listened to", || proxy.table()["bypass_listening"] == 4);
    let traffic = |client: &mut redis::Connection, seconds: u64| {
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut number = 0;
        while Instant::now() < until {
            number += 1;
            for words in [format!("INCR {key}"), format!("HSET provider:939:{} a {number}", number % 100)] {
                // A store that stands still answers with an error.
                drop(try_run(client, &words));
            }
        }
    };
    traffic(&mut client, 5);
    // A slot goes from one primary to another, with its keys.
    let slot = cutover::slot::of(key.as_bytes());
    let id = |node: &Redis| command(&["CLUSTER", "MYID"]).query::<String>(&mut node.connect()).expect("an id");
    let (from, to) = (&stores.nodes[0], &stores.nodes[1]);
    run(&mut to.connect(), &format!("CLUSTER SETSLOT {slot} IMPORTING {}", id(from)));
    run(&mut from.connect(), &format!("CLUSTER SETSLOT {slot} MIGRATING {}", id(to)));
    traffic(&mut client, 2);
    let keys: Vec<String> =
        command(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "100"]).query(&mut from.connect()).expect("keys");
    for key in &keys {
        run(&mut from.connect(), &format!("MIGRATE 127.0.0.1 {} {key} 0 5000", to.port));
    }
    traffic(&mut client, 2);
    for node in &stores.nodes[..3] {
        run(&mut node.connect(), &format!("CLUSTER SETSLOT {slot} NODE {}", id(to)));
    }
    traffic(&mut client, 3);
    // The stores stand still for longer than the proxy waits, and run afterwards what lies before them.
    for node in [&stores.nodes[2], &stores.standalone] {
        node.signal("STOP");
        traffic(&mut client, 1);
        node.signal("CONT");
        traffic(&mut client, 3);
    }
    for node in [&stores.nodes[2], &stores.standalone] {
        run(&mut node.connect(), "CONFIG RESETSTAT");
    }
    traffic(&mut client, 3);
    assert!(!keys.is_empty(), "something was moved");
    assert_eq!(proxy.table()["bypass"], serde_json::json!([]), "{}", proxy.log());
    eventually("a foreign write is found by both", || {
        stray(&stores.standalone, &["SET", "provider:939:stray", "around"]);
        std::thread::sleep(Duration::from_millis(200));
        !found_by(&proxy, "count").is_empty() && !found_by(&proxy, "notification").is_empty()
    });
}
