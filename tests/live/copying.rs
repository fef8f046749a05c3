//! How keys come from store to store: by type and piece by piece, with writers beside it; and what a restart of the proxy
//! leaves of a backfill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::{Connection, Value};

use crate::common::{Proxy, Redis, Settings, Stores, command, eventually, run};

/// All that can be seen of a key, in words; what has no order is put into one.
fn describe(connection: &mut Connection, key: &str) -> String {
    let mut ask = |words: &[&str]| -> Value {
        command(words).query(connection).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    };
    let kind: String = redis::from_redis_value(ask(&["TYPE", key])).expect("a type");
    let sorted = |value: Value, width: usize| match value {
        Value::Array(values) => {
            let mut groups: Vec<String> = values.chunks(width).map(|group| format!("{group:?}")).collect();
            groups.sort();
            groups.join("\n")
        }
        other => format!("{other:?}"),
    };
    let value = match kind.as_str() {
        "string" => format!("{:?}", ask(&["GET", key])),
        "list" => format!("{:?}", ask(&["LRANGE", key, "0", "-1"])),
        "hash" => sorted(ask(&["HGETALL", key]), 2),
        "set" => sorted(ask(&["SMEMBERS", key]), 1),
        "zset" => format!("{:?}", ask(&["ZRANGE", key, "0", "-1", "WITHSCORES"])),
        "stream" => {
            let stream = ask(&["XINFO", "STREAM", key]);
            let mut text = format!("{:?}", ask(&["XRANGE", key, "-", "+"]));
            let about: Vec<(String, Value)> = redis::from_redis_value(stream).expect("pairs");
            for (name, value) in about.iter().filter(|(name, _)| !name.starts_with("radix")) {
                text += &format!("\n{name} {value:?}");
            }
            let groups: Vec<Vec<(String, Value)>> =
                redis::from_redis_value(ask(&["XINFO", "GROUPS", key])).expect("groups");
            for group in groups {
                text += &format!("\n{group:?}");
                let Some((_, Value::BulkString(name))) = group.iter().find(|(field, _)| field == "name") else {
                    panic!("a group without a name: {group:?}")
                };
                let name = String::from_utf8_lossy(name);
                let pending: Vec<(String, String, i64, i64)> =
                    redis::from_redis_value(ask(&["XPENDING", key, &name, "-", "+", "100000"])).expect("pending");
                // Idle times are as old as the look.
                text += &pending
                    .iter()
                    .fold(String::new(), |all, (id, who, _, times)| all + &format!("\n{id} {who} {times}"));
                let consumers: Vec<Vec<(String, Value)>> =
                    redis::from_redis_value(ask(&["XINFO", "CONSUMERS", key, &name])).expect("consumers");
                for consumer in consumers {
                    text += &format!("\n{:?} {:?}", consumer[0], consumer[1]);
                }
            }
            text
        }
        other => other.to_string(),
    };
    format!("{kind} {:?}\n{value}", ask(&["PEXPIRETIME", key]))
}

/// On the primary that serves it.
fn describe_on_cluster(stores: &Stores, key: &str) -> String {
    let slot = cutover::slot::of(key.as_bytes());
    describe(&mut stores.nodes[usize::from(slot > 5460) + usize::from(slot > 10922)].connect(), key)
}

#[track_caller]
fn assert_same(stores: &Stores, keys: &[String]) {
    let mut standalone = stores.standalone.connect();
    for key in keys {
        let (one, other) = (describe(&mut standalone, key), describe_on_cluster(stores, key));
        assert!(one == other, "{key}:\n{}\n---\n{}", &one[..one.len().min(2000)], &other[..other.len().min(2000)]);
    }
}

/// Keys of each type, small and large, some with a time.
fn seed(connection: &mut Connection, provider: &str) -> Vec<String> {
    let key = |name: &str| format!("provider:{provider}:{name}");
    let (mut run, mut random) = (|words: &str| run(connection, words), fastrand::Rng::with_seed(7));
    run(&format!("SET {} short", key("string")));
    run(&format!("SET {} {} PX 3600000", key("string:large"), "0123456789".repeat(150_000)));
    run(&format!("SET {} \u{0}\u{1}", key("string:}odd{")));
    for (kind, count) in [("small", 5), ("large", 2_000)] {
        // Not to be compressed, so that a DUMP is as large as the value.
        let value: String = (0..60).map(|_| random.alphanumeric()).collect();
        for from in (0..count).step_by(500) {
            let numbers = from..(from + 500).min(count);
            let words = |word: &dyn Fn(usize) -> String| numbers.clone().map(word).collect::<Vec<_>>().join(" ");
            run(&format!(
                "HSET {} {}",
                key(&format!("hash:{kind}")),
                words(&|n| format!("f{n} {}{n}", mixed(&value, n)))
            ));
            run(&format!("RPUSH {} {}", key(&format!("list:{kind}")), words(&|n| format!("{}{n}", mixed(&value, n)))));
            run(&format!("SADD {} {}", key(&format!("set:{kind}")), words(&|n| format!("{}{n}", mixed(&value, n)))));
            let scores = |n: usize| format!("{} m{n}", [0.1, 1e300, -2.5e-9, 3.0][n % 4] * (n as f64 + 1.0) / 7.0);
            run(&format!("ZADD {} {}", key(&format!("zset:{kind}")), words(&scores)));
        }
        for n in 0..count.min(700) {
            run(&format!("XADD {} {}-{n} field {value} n {n}", key(&format!("stream:{kind}")), n + 1));
        }
    }
    run(&format!("ZADD {} inf top -inf bottom", key("zset:small")));
    run(&format!("SADD {} 1 2 3 -9", key("set:numbers")));
    run(&format!("EXPIRE {} 5000", key("hash:large")));
    let stream = key("stream:large");
    run(&format!("XGROUP CREATE {stream} readers 0"));
    run(&format!("XGROUP CREATE {stream} later 500-499"));
    run(&format!("XGROUP CREATECONSUMER {stream} later nobody"));
    run(&format!("XREADGROUP GROUP readers ann COUNT 40 STREAMS {stream} >"));
    run(&format!("XREADGROUP GROUP readers bob COUNT 10 STREAMS {stream} >"));
    run(&format!("XACK {stream} readers 3-2 4-3 45-44"));
    run(&format!("XDEL {stream} 700-699 600-599"));
    let empty = key("stream:empty");
    run(&format!("XADD {empty} 7-7 a b"));
    run(&format!("XDEL {empty} 7-7"));
    let names = ["string", "string:large", "string:}odd{", "set:numbers", "stream:empty"];
    let typed = ["hash", "list", "set", "zset", "stream"];
    let typed = typed.iter().flat_map(|kind| ["small", "large"].map(|size| format!("{kind}:{size}")));
    names.iter().map(|name| name.to_string()).chain(typed).map(|name| key(&name)).collect()
}

/// The same letters in an order of its own for each number.
fn mixed(value: &str, n: usize) -> String {
    let mut letters: Vec<char> = value.chars().collect();
    fastrand::Rng::with_seed(n as u64).shuffle(&mut letters);
    letters.into_iter().collect()
}

/// Copies of a provider's keys that were begun and not ended; those of other tests on the same stores may be under way.
fn leftovers(stores: &Stores, provider: &str) -> Vec<String> {
    let mut all = vec![stores.standalone.connect()];
    all.extend(stores.nodes[..3].iter().map(Redis::connect));
    all.iter_mut()
        .flat_map(|node| {
            command(&["KEYS", &format!("cutover:copy:*[:{{]{provider}[:}}]*")])
                .query::<Vec<String>>(node)
                .expect("KEYS")
        })
        .collect()
}

fn metric(proxy: &Proxy, name: &str) -> u64 {
    let page = proxy.http("/metrics").1;
    let line = page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}:\n{page}"));
    line.trim().parse().expect("a number")
}

#[test]
fn every_type_is_copied_by_type_to_the_last_detail_and_back() {
    let stores = Stores::shared();
    for (provider, naming, last) in [("921", "same", 0), ("922", "tagged", 1)] {
        let keys = seed(&mut stores.standalone.connect(), provider);
        let routing = format!("cluster_keys = \"{naming}\"\n[copying]\nmethod = \"by-type\"");
        let settings = Settings { routing, ..Settings::of(stores) };
        let proxy = settings.phase(provider, "dual-standalone").start().ready();
        let text = proxy.cli_ok(&format!("backfill {provider} --rate 0"));
        assert!(text.contains("synced"), "{text}");
        assert!(metric(&proxy, "cutover_copied_in_pieces_total") >= keys.len() as u64);
        if last == 0 {
            assert_same(stores, &keys);
        }
        proxy.cli_ok(&format!("verify {provider} --rate 0"));
        proxy.cli_ok(&format!("move {provider} --to dual-cluster"));
        proxy.cli_ok(&format!("move {provider} --to cluster"));
        // The standalone misses everything that is written now.
        let mut client = proxy.connect();
        run(&mut client, &format!("HSET provider:{provider}:hash:large only-there 1"));
        run(&mut client, &format!("DEL provider:{provider}:list:large"));
        proxy.cli_ok(&format!("move {provider} --to dual-cluster"));
        proxy.cli_ok(&format!("backfill {provider} --rate 0"));
        if last == 0 {
            assert_same(stores, &keys);
        }
        proxy.cli_ok(&format!("verify {provider} --rate 0"));
        assert_eq!(leftovers(stores, provider), Vec::<String>::new());
    }
}

#[test]
fn a_large_key_is_copied_in_pieces_while_clients_write_to_it_and_none_of_it_is_lost() {
    let stores = Stores::shared();
    let settings = Settings { routing: "[copying]\nlarge_key_bytes = \"64KiB\"".into(), ..Settings::of(stores) };
    let proxy = settings.phase("923", "dual-standalone").start().ready();
    let keys = seed(&mut stores.standalone.connect(), "923");
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|number| {
            let (over, mut client) = (over.clone(), proxy.connect());
            std::thread::spawn(move || {
                let mut n = 0;
                while !over.load(Ordering::Relaxed) {
                    n += 1;
                    run(&mut client, &format!("HSET provider:923:hash:large w{number} {n}"));
                    let seen: i64 = command(&["HGET", "provider:923:hash:large", &format!("w{number}")])
                        .query(&mut client)
                        .expect("HGET");
                    assert_eq!(seen, n, "a client reads what it wrote");
                    run(&mut client, &format!("RPUSH provider:923:list:large {number}:{n}"));
                    run(&mut client, "INCR provider:923:count");
                }
                n
            })
        })
        .collect();
    proxy.cli_ok("backfill 923 --rate 0");
    over.store(true, Ordering::Relaxed);
    let written: i64 = writers.into_iter().map(|writer| writer.join().expect("a writer that saw nothing wrong")).sum();
    assert!(metric(&proxy, "cutover_copied_in_pieces_total") >= 5, "five keys are large");
    let mut client = proxy.connect();
    let counted: i64 = command(&["GET", "provider:923:count"]).query(&mut client).expect("GET");
    let pushed: i64 = command(&["LLEN", "provider:923:list:large"]).query(&mut client).expect("LLEN");
    assert_eq!((counted, pushed), (written, written + 2_000));
    proxy.cli_ok("verify 923 --rate 0");
    assert_same(stores, &keys);
    assert_eq!(leftovers(stores, "923"), Vec::<String>::new());
}

#[test]
fn a_large_key_is_brought_over_in_pieces_at_its_first_touch() {
    let stores = Stores::shared();
    let keys = seed(&mut stores.standalone.connect(), "924");
    let settings = Settings { routing: "[copying]\nlarge_key_bytes = \"64KiB\"".into(), ..Settings::of(stores) };
    let proxy = settings.phase("924", "dual-cluster").start().ready();
    let mut client = proxy.connect();
    let length: i64 = command(&["HLEN", "provider:924:hash:large"]).query(&mut client).expect("HLEN");
    assert_eq!(length, 2_000);
    run(&mut client, "RPUSH provider:924:list:large more");
    assert!(metric(&proxy, "cutover_copied_in_pieces_total") >= 2);
    proxy.cli_ok("backfill 924 --rate 0");
    proxy.cli_ok("verify 924 --rate 0");
    assert_same(stores, &keys);
    assert_eq!(leftovers(stores, "924"), Vec::<String>::new());
}

/// A proxy whose backfill is cut off in its middle, and what becomes of that after the next start.
fn cut_off(provider: &str, end: impl Fn(&mut Proxy)) -> (u64, serde_json::Value, u64) {
    let stores = Stores::shared();
    let mut seed = stores.standalone.connect();
    for from in (0..12_000).step_by(1_000) {
        let words: Vec<String> = (from..from + 1_000).map(|n| format!("provider:{provider}:k{n} {n}")).collect();
        run(&mut seed, &format!("MSET {}", words.join(" ")));
    }
    let mut proxy = Settings::of(stores).phase(provider, "dual-standalone").start().ready();
    let body = serde_json::json!({ "routes": [provider], "rate": 4_000 });
    let began = ureq::post(format!("http://127.0.0.1:{}/api/backfill", proxy.admin_port)).send_json(body);
    began.expect("the job begins");
    let job = |proxy: &Proxy| -> serde_json::Value {
        let jobs: serde_json::Value = serde_json::from_str(&proxy.http("/api/jobs").1).unwrap_or_default();
        let mine = jobs["jobs"].as_array().and_then(|jobs| jobs.iter().find(|job| job["routes"][0] == provider));
        mine.cloned().unwrap_or_default()
    };
    eventually("a part is copied", || job(&proxy)["copied"].as_u64() > Some(1_500));
    let copied = job(&proxy)["copied"].as_u64().expect("a number");
    end(&mut proxy);
    proxy.start_again();
    let proxy = proxy.ready();
    eventually("the job goes on by itself", || !job(&proxy).is_null());
    let seen = job(&proxy);
    eventually("the route is synced", || {
        let table = proxy.table();
        let route = table["routes"].as_array().and_then(|routes| routes.iter().find(|route| route["id"] == provider));
        route.is_some_and(|route| route["synced"] == true)
    });
    proxy.cli_ok(&format!("verify {provider} --rate 0"));
    (copied, seen, metric(&proxy, "cutover_found_equal_total"))
}

#[test]
fn a_backfill_goes_on_where_a_clean_stop_cut_it_off() {
    let (copied, job, _) = cut_off("925", |proxy| assert_eq!(proxy.terminate(), Some(0), "{}", proxy.log()));
    assert!(job["resumed_at"].as_u64() >= Some(copied), "{job}");
}

#[test]
fn a_backfill_begins_anew_after_a_kill_and_copies_only_what_differs() {
    let (copied, job, equal) = cut_off("926", |proxy| proxy.kill());
    assert_eq!(job["resumed_at"], 0, "{job}");
    assert!(equal >= copied, "{equal} were found equal of {copied} that had been copied");
}

#[test]
fn a_doubt_that_comes_while_a_backfill_walks_has_it_walk_once_more() {
    // Of its own: the walk goes over every key of a store, and is as slow as it is told to.
    let stores = Stores::start();
    let proxy = Settings::of(&stores).phase("129", "dual-standalone").start().ready();
    let mut client = proxy.connect();
    let keys: Vec<String> = (0..1_000).map(|n| format!("provider:129:{n}")).collect();
    for key in &keys {
        run(&mut client, &format!("SET {key} 1"));
    }
    std::thread::scope(|scope| {
        let backfill = scope.spawn(|| proxy.cli("backfill 129 --rate 1000"));
        eventually("it copies", || {
            let jobs: serde_json::Value = serde_json::from_str(&proxy.http("/api/jobs").1).expect("JSON");
            jobs["jobs"][0]["copied"].as_u64().is_some_and(|copied| copied > 0)
        });
        // What it writes is not declared, so the follower has it from the walk that follows at the earliest.
        run(&mut client, "EVAL redis.call('SET',KEYS[1]..':made-up',1) 1 provider:129:0");
        let ended = backfill.join().expect("no panic");
        assert!(ended.status.success(), "{}", proxy.log());
    });
    assert!(proxy.log().contains("these routes are walked again"), "{}", proxy.log());
    let made_up = "provider:129:0:made-up".to_string();
    assert_same(&stores, &[keys, vec![made_up]].concat());
    proxy.cli_ok("move 129 --to dual-cluster");
}
