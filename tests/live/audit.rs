//! `cutover audit`: what will not work the same on the cluster is told before anything moves, with route, client and remedy.

use serde_json::Value as Json;

use crate::common::{Proxy, Settings, Stores, run, try_run};

fn findings(proxy: &Proxy) -> Vec<Json> {
    let answer: Json = serde_json::from_str(&proxy.http("/api/audit").1).expect("JSON");
    answer["findings"].as_array().expect("findings").clone()
}

fn send(proxy: &Proxy) {
    let mut client = proxy.connect();
    run(&mut client, "CLIENT SETNAME web");
    let lines = [
        "SADD provider:120:a x",
        "SUNION provider:120:a provider:120:b",
        "SUNION provider:120:a provider:120:b",
        "SUNION provider:120:{t}a provider:120:{t}b",
        "RENAMENX provider:120:a provider:121:b",
        "MGET provider:120:a provider:120:c",
        "SORT provider:120:a BY nosort GET w_*",
        "BRPOP provider:120:q provider:120:r 0.01",
        "EVAL return(1) 0",
        "EVAL return(1) 2 provider:120:a provider:120:b",
        "WATCH provider:120:a provider:121:b",
        "UNWATCH",
        "MULTI",
        "SET provider:120:m 1",
        "SET provider:120:n 1",
        "EXEC",
        "SELECT 9",
        "GET elsewhere",
        "SELECT 0",
    ];
    for line in lines {
        run(&mut client, line);
    }
    try_run(&mut client, "MONITOR").expect_err("refused");
}

#[test]
fn what_will_not_work_the_same_is_told_by_route_and_client_with_a_remedy() {
    let proxy = Settings::of(Stores::shared()).phase("120", "standalone").phase("121", "standalone").start().ready();
    let quiet = proxy.cli("audit");
    assert!(quiet.status.success() && String::from_utf8_lossy(&quiet.stdout).contains("works the same"), "{quiet:?}");
    send(&proxy);
    let found = findings(&proxy);
    let of = |kind: &str, command: &str| {
        let fits =
            |finding: &&Json| finding["kind"] == kind && finding["command"] == command && finding["client"] == "web";
        found.iter().find(fits).unwrap_or_else(|| panic!("no {kind} of {command}: {found:?}")).clone()
    };
    let sunion = of("cross-slot", "sunion");
    assert_eq!(
        (sunion["route"].as_str(), sunion["count"].as_u64()),
        (Some("120"), Some(2)),
        "the one with a hash tag is none"
    );
    assert_eq!(sunion["example"], "provider:120:a provider:120:b");
    assert_eq!(of("cross-route", "renamenx")["route"], "120 121");
    of("cross-slot", "brpop");
    of("cross-slot", "eval");
    of("script-without-keys", "eval");
    of("sort-pattern", "sort");
    of("cross-watch", "watch");
    of("cross-transaction", "exec");
    of("database", "select");
    of("refused", "monitor");
    assert!(
        found.iter().all(|finding| finding["command"] != "mget" && finding["command"] != "get"),
        "what is split works the same"
    );
    let told = proxy.cli("audit");
    assert_eq!(told.status.code(), Some(1));
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        told.contains("cross-slot: refused with CROSSSLOT") && told.contains("tagged") && told.contains("renamenx"),
        "{told}"
    );
}

#[test]
fn what_tagged_keys_mend_is_not_told() {
    let settings = Settings { routing: "cluster_keys = \"tagged\"".into(), ..Settings::of(Stores::shared()) };
    let proxy = settings.phase("120", "standalone").phase("121", "standalone").start().ready();
    send(&proxy);
    let mut kinds: Vec<String> =
        findings(&proxy).iter().map(|finding| finding["kind"].as_str().expect("a kind").to_string()).collect();
    kinds.dedup();
    assert_eq!(kinds, ["cross-route", "cross-watch", "script-without-keys", "sort-pattern", "database", "refused"]);
}

/// By its text where the store lets it do everything, by the node's error where the text does not show it.
#[test]
fn scripts_that_touch_undeclared_keys_are_told_and_put_a_dual_route_in_doubt() {
    let settings = Settings::of(Stores::shared()).phase("122", "standalone").phase("123", "dual-standalone");
    let proxy = settings.phase("124", "cluster").start().ready();
    proxy.cli_ok("backfill 123");
    let mut client = proxy.connect();
    run(&mut client, "CLIENT SETNAME web");
    let put_together = "redis.call('SET',KEYS[1]..':x',1)";
    for id in [122, 123] {
        run(&mut client, &format!("EVAL {put_together} 1 provider:{id}:a"));
    }
    let digest = match run(&mut client, &format!("SCRIPT LOAD {put_together}")) {
        redis::Value::BulkString(digest) => String::from_utf8(digest).expect("hexadecimal"),
        other => panic!("{other:?}"),
    };
    run(&mut client, &format!("EVALSHA {digest} 1 provider:122:a"));
    for line in ["MULTI", "EVAL redis.call('DEL',ARGV[1]) 1 provider:122:m provider:122:n", "EXEC"] {
        run(&mut client, line);
    }
    run(&mut client, "EVAL return(redis.call('GET',KEYS[1])) 1 provider:122:a");
    // What a function of the script is given does not show where it comes from.
    let hidden = "EVAL local\tfunction\tf(k)return(redis.call('GET',k))end;return(f(ARGV[1])) 1 provider:124:{t}a";
    // Slots of the same node pass.
    let elsewhere = (0..9).filter(|n| try_run(&mut client, &format!("{hidden} provider:124:{n}")).is_err()).count();
    assert!(elsewhere > 0);
    run(&mut client, &format!("{hidden} provider:124:{{t}}b"));

    let found: Vec<Json> =
        findings(&proxy).into_iter().filter(|finding| finding["kind"] == "script-undeclared").collect();
    let of = |command: &str, route: &str| {
        let fits = |finding: &&Json| finding["command"] == command && finding["route"] == route;
        found.iter().find(fits).unwrap_or_else(|| panic!("no {command} of {route}: {found:?}")).clone()
    };
    let of_122 = of("eval", "122");
    assert_eq!((of_122["count"].as_u64(), of_122["client"].as_str()), (Some(2), Some("web")));
    assert_eq!(of_122["example"], put_together);
    assert_eq!(of("evalsha", "122")["count"].as_u64(), Some(1));
    of("eval", "123");
    let by_node = of("eval", "124");
    assert_eq!(by_node["count"].as_u64(), Some(elsewhere as u64));
    assert!(by_node["example"].as_str().is_some_and(|text| text.contains("non local key")), "{by_node}");
    assert_eq!(found.len(), 4, "{found:?}");
    let told = String::from_utf8_lossy(&proxy.cli("audit").stdout).into_owned();
    assert!(told.contains("script-undeclared: it touches keys that it does not declare"), "{told}");

    // The key that the script made up is on the standalone only, so the route may not trust the cluster.
    let refused = proxy.cli("move 123 --to dual-cluster");
    assert_eq!(refused.status.code(), Some(1));
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("a script that writes what it does not declare"), "{refused}");
    proxy.cli_ok("backfill 123");
    proxy.cli_ok("move 123 --to dual-cluster");
    assert_eq!(run(&mut client, "GET provider:123:a:x"), redis::Value::BulkString(b"1".to_vec()));
    assert!(proxy.log().contains("a script writes keys that it does not declare"), "the operator is told once");
}
