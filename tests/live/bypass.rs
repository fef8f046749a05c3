//! Who writes to a store around the proxy is found and named, and the routes are not trusted; who only reads is left alone.

use crate::common::{Redis, Settings, Stores, eventually, run};

#[test]
fn a_writer_that_goes_around_the_proxy_is_named_and_its_routes_are_in_doubt_until_it_has_gone() {
    // Stores of its own: other tests write to the shared ones.
    let stores = Stores::start();
    let settings = Settings { look_every: "1s", ..Settings::of(&stores) };
    let mut proxy = settings.phase("931", "dual-standalone").start().ready();
    let mut client = proxy.connect();
    run(&mut client, "SET provider:931:key through");
    proxy.cli_ok("backfill 931 --rate 0");
    let is_synced = |proxy: &crate::common::Proxy| {
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
