//! Who writes to a store around the proxy is found and named, and the routes are not trusted; who only reads is left alone.

use std::time::Duration;

use crate::common::{Proxy, Redis, Settings, Stores, eventually, run};

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
