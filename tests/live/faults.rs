//! Stores that are down at the start, go away, stop, fail over or give slots away.

use std::time::{Duration, Instant};

use redis::Value;

use crate::common::{Redis, Settings, Stores, command, connect, eventually, run, try_run};

fn divergence(proxy: &crate::common::Proxy) -> u64 {
    let table = proxy.table();
    table["routes"].as_array().expect("routes").iter().filter_map(|route| route["open_divergence"].as_u64()).sum()
}

#[test]
fn a_store_that_is_down_at_the_start_is_told_and_comes_back_by_itself() {
    let mut standalone = Redis::start(&[]);
    standalone.signal("KILL");
    let settings = Settings::of(Stores::shared()).phase("40", "cluster");
    let proxy = Settings { standalone: standalone.url(), ..settings }.start();
    let mut client = proxy.connect();
    let error = try_run(&mut client, "GET other").expect_err("the standalone is down");
    assert!(error.to_string().contains("not"), "{error}");
    eventually("the cluster serves its own routes", || try_run(&mut client, "SET provider:40:a 1").is_ok());
    let (status, why) = proxy.http("/readyz");
    assert_eq!(status, 503);
    assert!(why.contains("the standalone does not answer"), "{why}");
    standalone.restart();
    eventually("the standalone is used again", || try_run(&mut client, "SET other 1").is_ok());
    eventually("ready", || proxy.http("/readyz").0 == 200);
}

#[test]
fn a_follower_that_stops_costs_the_client_nothing_and_is_repaired_when_it_goes_on() {
    let stores = Stores::start();
    let short = "reply_timeout = \"1s\"\npatience = \"500ms\"";
    let proxy =
        Settings { stores: short.into(), ..Settings::of(&stores).phase("41", "dual-standalone") }.start().ready();
    let mut client = proxy.connect();
    for n in 0..200 {
        run(&mut client, &format!("RPUSH provider:41:list{n} a b"));
    }
    proxy.cli_ok("backfill 41");
    for node in &stores.nodes[..3] {
        node.signal("STOP");
    }
    let began = Instant::now();
    for n in 0..200 {
        run(&mut client, &format!("RPUSH provider:41:list{n} c"));
        run(&mut client, &format!("SET provider:41:new{n} {n}"));
    }
    assert!(began.elapsed() < Duration::from_secs(10), "no write waited for the follower: {:?}", began.elapsed());
    eventually("what the follower missed is open divergence", || divergence(&proxy) > 0);
    let refused = proxy.cli("move 41 --to dual-cluster");
    assert_eq!(refused.status.code(), Some(1), "a cutover is refused meanwhile: {refused:?}");
    for node in &stores.nodes[..3] {
        node.signal("CONT");
    }
    eventually("it is repaired", || divergence(&proxy) == 0);
    proxy.cli_ok("verify 41");
    proxy.cli_ok("move 41 --to dual-cluster");
    assert_eq!(run(&mut client, "LRANGE provider:41:list7 0 -1").into_sequence().expect("a list").len(), 3);
}

#[test]
fn a_follower_that_is_away_for_long_costs_bounded_memory_and_is_walked_when_it_comes_back() {
    let mut stores = Stores::start();
    let short = "patience = \"200ms\"\nreply_timeout = \"1s\"\nqueue_bytes = \"4MiB\"";
    let proxy = Settings { stores: short.into(), workers: 1, ..Settings::of(&stores).phase("49", "dual-standalone") }
        .start()
        .ready();
    stores.nodes.iter().for_each(|node| node.signal("KILL"));
    let mut client = proxy.connect();
    // More than a lane remembers one by one.
    let keys = 60_000;
    for from in (0..keys).step_by(5_000) {
        let mut pipe = redis::pipe();
        for n in from..from + 5_000 {
            pipe.cmd("SET").arg(format!("provider:49:{n}")).arg(n).ignore();
        }
        pipe.query::<()>(&mut client).expect("the leader answers");
    }
    eventually("counting is given up", || proxy.log().contains("more diverged keys than are remembered one by one"));
    let metric = |name: &str| -> u64 {
        let page = proxy.http("/metrics").1;
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("cutover_{name} ")).map(str::to_string));
        line.unwrap_or_else(|| panic!("no {name}: {page}")).parse().expect("a number")
    };
    eventually("nothing waits any more", || metric("held_bytes") == 0);
    assert!(metric("exceptional_keys") <= 50_001, "{}", metric("exceptional_keys"));
    eventually("what the lanes remember is what is counted", || metric("open_divergence") == metric("diverged_keys"));
    let refused = proxy.cli("move 49 --to dual-cluster");
    assert_eq!(refused.status.code(), Some(1), "a cutover is refused meanwhile: {refused:?}");
    stores.nodes.iter_mut().for_each(Redis::restart);
    let deadline = Instant::now() + Duration::from_secs(90);
    while !is_synced(&proxy, "49") {
        assert!(Instant::now() < deadline, "never synced: {}", proxy.table());
        std::thread::sleep(Duration::from_millis(100));
    }
    proxy.cli_ok("verify 49 --rate 0");
}

#[test]
fn a_leader_that_is_killed_gives_errors_and_comes_back_with_both_stores_equal() {
    let mut stores = Stores::start();
    let short = "patience = \"300ms\"";
    let proxy =
        Settings { stores: short.into(), ..Settings::of(&stores).phase("42", "dual-standalone") }.start().ready();
    let mut client = proxy.connect();
    for n in 0..100 {
        run(&mut client, &format!("INCR provider:42:n{n}"));
    }
    proxy.cli_ok("backfill 42");
    let port = proxy.port;
    let writer = std::thread::spawn(move || {
        let (mut client, mut failed) = (connect(port), 0);
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            failed +=
                usize::from(try_run(&mut client, &format!("INCR provider:42:n{}", fastrand::u32(..100))).is_err());
        }
        failed
    });
    std::thread::sleep(Duration::from_millis(500));
    stores.standalone.signal("KILL");
    // Longer than a request waits for a store to come back.
    std::thread::sleep(Duration::from_millis(1_000));
    stores.standalone.restart();
    assert!(writer.join().expect("the writer ends") > 0, "a dead leader is told");
    eventually("repaired", || divergence(&proxy) == 0 && proxy.http("/readyz").0 == 200);
    proxy.cli_ok("verify 42");
}

#[test]
fn a_primary_that_dies_is_replaced_by_its_replica_and_the_proxy_follows() {
    let stores = Stores::start();
    let settings = Settings { stores: "patience = \"15s\"".into(), ..Settings::of(&stores).phase("43", "cluster") };
    let proxy = settings.start().ready();
    let mut client = proxy.connect();
    for n in 0..60 {
        run(&mut client, &format!("SET provider:43:{n} {n}"));
    }
    std::thread::sleep(Duration::from_millis(300));
    stores.nodes[0].signal("KILL");
    for n in 0..60 {
        let key = format!("provider:43:{n}");
        eventually(
            "every key is served again",
            || matches!(try_run(&mut client, &format!("GET {key}")), Ok(Value::BulkString(value)) if value == n.to_string().as_bytes()),
        );
    }
}

/// Replication is asynchronous: what the dead primary had acknowledged may never have reached its replica.
#[test]
fn a_store_that_may_have_lost_acknowledged_writes_is_compared_again() {
    let mut stores = Stores::start();
    let settings = Settings { stores: "patience = \"15s\"".into(), ..Settings::of(&stores) };
    let proxy = settings.phase("47", "dual-standalone").phase("48", "dual-cluster").start().ready();
    let mut client = proxy.connect();
    for n in 0..200 {
        run(&mut client, &format!("SET provider:47:{n} {n}"));
        run(&mut client, &format!("SET provider:48:{n} {n}"));
    }
    proxy.cli_ok("backfill 47 48");
    assert!(is_synced(&proxy, "47") && is_synced(&proxy, "48"));
    // The replica does not keep up, so that it takes over without having acknowledged what comes now.
    let primary = (0..3)
        .find(|node| command(&["GET", "provider:47:7"]).query::<Value>(&mut stores.nodes[*node].connect()).is_ok())
        .expect("an owner");
    stores.nodes[primary + 3].signal("STOP");
    for n in 0..200 {
        run(&mut client, &format!("SET provider:47:{n} new{n}"));
    }
    eventually("the follower has them", || {
        stores.on_cluster(&["GET", "provider:47:7"], "provider:47:7") == Value::BulkString(b"new7".to_vec())
    });
    stores.nodes[primary].signal("KILL");
    stores.nodes[primary + 3].signal("CONT");
    eventually("the log tells", || proxy.log().contains("a primary was replaced"));
    assert!(proxy.log().contains("every dual route is in doubt"));
    eventually("both are walked again", || is_synced(&proxy, "47") && is_synced(&proxy, "48"));
    proxy.cli_ok("verify 47 48");
    // The same for a standalone that comes back without its last writes.
    stores.standalone.signal("KILL");
    stores.standalone.restart();
    eventually("the log tells that, too", || proxy.log().contains("the node was restarted"));
    eventually("both are walked again", || is_synced(&proxy, "47") && is_synced(&proxy, "48"));
    proxy.cli_ok("verify 47 48");
    assert_eq!(run(&mut client, "GET provider:47:7"), Value::BulkString(b"new7".to_vec()), "the leader's word counts");
}

#[test]
fn slots_that_move_under_traffic_lose_no_increment_and_no_order() {
    let stores = Stores::start();
    let proxy = Settings::of(&stores).phase("44", "cluster").phase("45", "dual-cluster").start().ready();
    let port = proxy.port;
    let clients: Vec<_> = ["44", "45"]
        .into_iter()
        .map(|provider| {
            std::thread::spawn(move || {
                let mut client = connect(port);
                let key = format!("provider:{provider}:{{moving}}:n");
                let list = format!("provider:{provider}:{{moving}}:list");
                let until = Instant::now() + Duration::from_secs(4);
                let mut count = 0i64;
                while Instant::now() < until {
                    let mut pipe = redis::pipe();
                    for n in 1..=20 {
                        pipe.cmd("INCR").arg(&key).cmd("RPUSH").arg(&list).arg(count + n);
                    }
                    let replies: Vec<i64> = pipe.query(&mut client).expect("no error while slots move");
                    for n in 1..=20usize {
                        assert_eq!(replies[2 * n - 2], count + n as i64);
                    }
                    count += 20;
                }
                let elements: Vec<i64> = command(&["LRANGE", &list, "0", "-1"]).query(&mut client).expect("LRANGE");
                assert_eq!(elements, (1..=count).collect::<Vec<_>>(), "in order");
                count
            })
        })
        .collect();
    let slot = cutover::slot::of(b"provider:44:{moving}:n").to_string();
    let id = |node: usize| -> String {
        command(&["CLUSTER", "MYID"]).query(&mut stores.nodes[node].connect()).expect("an id")
    };
    let mut owner = (0..3)
        .find(|node| {
            command(&["GET", "provider:44:{moving}:n"]).query::<Value>(&mut stores.nodes[*node].connect()).is_ok()
        })
        .expect("an owner");
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(400));
        let target = (owner + 1) % 3;
        let (mut from, mut to) = (stores.nodes[owner].connect(), stores.nodes[target].connect());
        run(&mut to, &format!("CLUSTER SETSLOT {slot} IMPORTING {}", id(owner)));
        run(&mut from, &format!("CLUSTER SETSLOT {slot} MIGRATING {}", id(target)));
        std::thread::sleep(Duration::from_millis(100));
        loop {
            let keys: Vec<String> = command(&["CLUSTER", "GETKEYSINSLOT", &slot, "10"]).query(&mut from).expect("keys");
            if keys.is_empty() {
                break;
            }
            for key in keys {
                run(&mut from, &format!("MIGRATE 127.0.0.1 {} {key} 0 5000", stores.nodes[target].port));
            }
        }
        for node in [target, owner] {
            run(&mut stores.nodes[node].connect(), &format!("CLUSTER SETSLOT {slot} NODE {}", id(target)));
        }
        owner = target;
    }
    for client in clients {
        assert!(client.join().expect("nothing wrong") > 100);
    }
    eventually("repaired", || divergence(&proxy) == 0);
    proxy.cli_ok("backfill 45");
    proxy.cli_ok("verify 45");
}

#[test]
fn a_proxy_killed_in_each_phase_loses_no_acknowledged_write() {
    let stores = Stores::start();
    let mut proxy = Settings::of(&stores).phase("46", "dual-standalone").start().ready();
    for (round, phase) in ["dual-standalone", "dual-cluster", "dual-cluster", "dual-standalone"].iter().enumerate() {
        if round > 0 {
            eventually("the doubt ends", || is_synced(&proxy, "46"));
            proxy.cli_ok(&format!("move 46 --to {phase}"));
        }
        let port = proxy.port;
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                std::thread::spawn(move || {
                    let (mut client, mut acknowledged) = (connect(port), Vec::new());
                    for n in 0..2_000 {
                        let key = format!("provider:46:{round}:{writer}:{n}");
                        let words = if n % 3 == 0 { format!("RPUSH {key} a b") } else { format!("SET {key} {n}") };
                        if try_run(&mut client, &words).is_err() {
                            break;
                        }
                        acknowledged.push((key.clone(), true));
                        if n % 5 == 0 {
                            if try_run(&mut client, &format!("DEL {key}")).is_err() {
                                acknowledged.pop();
                                break;
                            }
                            acknowledged.pop();
                            acknowledged.push((key, false));
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(200 + 50 * round as u64));
        proxy.kill();
        let acknowledged: Vec<(String, bool)> =
            writers.into_iter().flat_map(|writer| writer.join().expect("ends")).collect();
        assert!(acknowledged.len() > 100);
        proxy.start_again();
        let mut proxy = proxy_ready(&proxy);
        for (key, exists) in &acknowledged {
            let found: i64 = command(&["EXISTS", key]).query(&mut proxy).expect("EXISTS");
            assert_eq!(found, i64::from(*exists), "round {round} in {phase}: {key}");
        }
    }
    eventually("synced by the walk that began by itself", || is_synced(&proxy, "46"));
    proxy.cli_ok("verify 46");
}

fn is_synced(proxy: &crate::common::Proxy, provider: &str) -> bool {
    let table = proxy.table();
    table["routes"].as_array().expect("routes").iter().any(|route| route["id"] == provider && route["synced"] == true)
}

fn proxy_ready(proxy: &crate::common::Proxy) -> redis::Connection {
    eventually("the proxy is ready", || proxy.http("/readyz").0 == 200);
    proxy.connect()
}
