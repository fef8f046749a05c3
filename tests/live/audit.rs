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
