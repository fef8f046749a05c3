//! Shadow reads: repeated on the follower and compared, never answered from there.

use std::sync::atomic::{AtomicBool, Ordering};

use redis::Value;

use crate::common::{Proxy, Settings, Stores, connect, eventually, run};

fn metric(proxy: &Proxy, name: &str) -> u64 {
    let page = proxy.http("/metrics").1;
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("cutover_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().expect("a number")
}

fn shadows_of(proxy: &Proxy, provider: &str) -> [u64; 2] {
    let table = proxy.table();
    let mut routes = table["routes"].as_array().expect("routes").iter();
    let route = routes.find(|route| route["id"] == provider).expect("the route");
    ["shadow_reads", "shadow_reads_differing"].map(|name| route[name].as_u64().expect("a number"))
}

#[test]
fn reads_under_writes_of_every_kind_never_differ_on_the_follower() {
    let settings = Settings { routing: "shadow_reads = 1".into(), ..Settings::of(Stores::shared()) };
    let mut proxy = settings.phase("651", "dual-standalone").start().ready();
    let read_and_write = |proxy: &Proxy| {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (over, port) = (&over, proxy.port);
                scope.spawn(move || {
                    let mut client = connect(port);
                    let key = |kind: &str| format!("provider:651:{kind}{}", worker % 2);
                    for n in 0..400 {
                        for words in [
                            format!("SET {} v{worker}.{n} PX 40", key("brief")),
                            format!("GET {}", key("brief")),
                            format!("INCR {}", key("count")),
                            format!("GET {}", key("count")),
                            format!("RPUSH {} {n}", key("list")),
                            format!("LRANGE {} 0 -1", key("list")),
                            format!("LTRIM {} -5 -1", key("list")),
                            format!("SADD {} {n}", key("set")),
                            format!("SMEMBERS {}", key("set")),
                            format!("SPOP {}", key("set")),
                            format!("HSET {} f{} {n} g {worker}", key("hash"), n % 9),
                            format!("HGETALL {}", key("hash")),
                            format!("ZINCRBY {} 0.1 m{}", key("sorted"), n % 7),
                            format!("ZRANGE {} 0 -1 WITHSCORES", key("sorted")),
                            format!("DEL {}", key("list")),
                        ] {
                            if !over.load(Ordering::Relaxed) {
                                run(&mut client, &words);
                            }
                        }
                    }
                });
            }
        });
    };
    read_and_write(&proxy);
    assert_eq!(shadows_of(&proxy, "651"), [0, 0], "before it is synced the follower lacks keys");
    proxy.cli_ok("backfill 651 --rate 0");
    for phase in ["dual-standalone", "dual-cluster"] {
        proxy.cli_ok(&format!("move 651 --to {phase}"));
        let before = metric(&proxy, "shadow_reads_total");
        read_and_write(&proxy);
        let compared = metric(&proxy, "shadow_reads_total") - before;
        println!("{phase}: {compared} reads compared");
        assert!(compared > 1_000, "{compared}");
        assert_eq!(metric(&proxy, "shadow_reads_differing_total"), 0, "{phase}\n{}", proxy.log());
    }
    // Off at a word in the file.
    proxy.edit(|settings| Settings { routing: "shadow_reads = 0".into(), ..settings.phase("651", "dual-cluster") });
    eventually("the file is adopted", || proxy.log().matches("table adopted").count() >= 2);
    let before = metric(&proxy, "shadow_reads_total");
    run(&mut proxy.connect(), "GET provider:651:count0");
    assert_eq!(metric(&proxy, "shadow_reads_total"), before);
}

#[test]
fn what_differs_on_the_follower_is_counted_told_and_copied_and_clients_see_the_leader_s_answer() {
    let stores = Stores::shared();
    let settings = Settings { routing: "shadow_reads = 1.0".into(), ..Settings::of(stores) };
    let proxy = settings.phase("652", "dual-standalone").start().ready();
    let mut client = proxy.connect();
    for n in 0..20 {
        run(&mut client, &format!("SET provider:652:{n} right"));
    }
    proxy.cli_ok("backfill 652 --rate 0");
    stores.on_cluster(&["SET", "provider:652:7", "wrong"], "provider:652:7");
    stores.on_cluster(&["DEL", "provider:652:8"], "provider:652:8");
    for n in 0..20 {
        assert_eq!(run(&mut client, &format!("GET provider:652:{n}")), Value::BulkString(b"right".to_vec()));
    }
    eventually("both are counted", || metric(&proxy, "shadow_reads_differing_total") == 2);
    assert_eq!(shadows_of(&proxy, "652")[1], 2);
    assert!(proxy.log().contains("answered differently on its follower"), "{}", proxy.log());
    for n in [7, 8] {
        let key = format!("provider:652:{n}");
        eventually("copied again", || stores.on_cluster(&["GET", &key], &key) == Value::BulkString(b"right".to_vec()));
    }
    proxy.cli_ok("verify 652 --rate 0");
}
