//! Commands over the keyspace as a whole, while providers are in every phase.

use redis::Value;

use crate::common::{Proxy, Settings, Stores, command, eventually, run, try_run};

const PHASES: [(&str, &str); 4] =
    [("80", "standalone"), ("81", "dual-standalone"), ("82", "dual-cluster"), ("83", "cluster")];

fn proxy(stores: &Stores, providers: &[(&str, &str)]) -> Proxy {
    providers.iter().fold(Settings::of(stores), |settings, (id, phase)| settings.phase(id, phase)).start().ready()
}

fn fill(proxy: &Proxy, providers: &[(&str, &str)]) {
    let mut client = proxy.connect();
    for (provider, _) in providers {
        for n in 0..300 {
            run(&mut client, &format!("SET provider:{provider}:{n} {n}"));
        }
    }
    run(&mut client, "SET other 1");
}

fn size(stores: &Stores) -> (usize, usize) {
    (stores.standalone.keys().len(), stores.nodes[..3].iter().map(|node| node.keys().len()).sum())
}

#[test]
fn a_flush_takes_every_key_of_the_database_from_both_stores_and_nothing_else() {
    let stores = Stores::start();
    let proxy = proxy(&stores, &PHASES);
    let mut client = proxy.connect();
    run(&mut client, "SELECT 5");
    run(&mut client, "SET elsewhere 1");
    run(&mut client, "SELECT 0");
    fill(&proxy, &PHASES);
    assert_eq!(command(&["DBSIZE"]).query::<i64>(&mut client).expect("DBSIZE"), 1201);
    let key: String = command(&["RANDOMKEY"]).query(&mut client).expect("RANDOMKEY");
    assert!(key == "other" || key.starts_with("provider:8"), "{key}");
    // On the cluster, but of a route that has nothing there: not this proxy's to remove.
    let _: Value = command(&["SET", "other", "theirs"]).query(&mut cluster_of(&stores, "other")).expect("SET");
    assert_eq!(run(&mut client, "FLUSHDB"), Value::Okay);
    assert_eq!(size(&stores), (0, 1));
    assert_eq!(command(&["DBSIZE"]).query::<i64>(&mut client).expect("DBSIZE"), 0);
    assert_eq!(run(&mut client, "RANDOMKEY"), Value::Nil);
    run(&mut client, "SELECT 5");
    assert_eq!(run(&mut client, "GET elsewhere"), Value::BulkString(b"1".to_vec()));
    assert_eq!(run(&mut client, "FLUSHALL ASYNC"), Value::Okay);
    assert_eq!(run(&mut client, "GET elsewhere"), Value::Nil);
    assert!(try_run(&mut client, "FLUSHALL NOW").expect_err("syntax").to_string().contains("syntax"));
}

#[test]
fn a_flush_of_what_the_standalone_leads_is_atomic_and_reaches_the_follower() {
    let stores = Stores::start();
    let providers = [("84", "standalone"), ("85", "dual-standalone")];
    let proxy = proxy(&stores, &providers);
    fill(&proxy, &providers);
    proxy.cli_ok("backfill 85");
    assert_eq!(size(&stores), (601, 300));
    assert_eq!(run(&mut proxy.connect(), "FLUSHALL"), Value::Okay);
    assert_eq!(size(&stores), (0, 0));
    proxy.cli_ok("verify 85");
}

#[test]
fn a_key_changes_its_database_only_where_the_standalone_leads_it() {
    let proxy = proxy(Stores::shared(), &PHASES);
    let mut client = proxy.connect();
    for (provider, phase) in PHASES {
        let key = format!("provider:{provider}:moved");
        run(&mut client, &format!("SET {key} 1"));
        let moved = try_run(&mut client, &format!("MOVE {key} 6"));
        if phase.ends_with("standalone") {
            assert_eq!(moved.expect("moved"), Value::Int(1));
            assert_eq!(run(&mut client, &format!("EXISTS {key}")), Value::Int(0));
            run(&mut client, "SELECT 6");
            assert_eq!(run(&mut client, &format!("MOVE {key} 0")), Value::Int(1));
            run(&mut client, "SELECT 0");
        } else {
            assert!(moved.expect_err("refused").to_string().contains("stays on the standalone"));
        }
        assert_eq!(run(&mut client, &format!("GET {key}")), Value::BulkString(b"1".to_vec()), "{phase}");
    }
    // It is copied behind the answer.
    eventually("the follower has it again", || {
        Stores::shared().on_cluster(&["EXISTS", "provider:81:moved"], "provider:81:moved") == Value::Int(1)
    });
    assert!(try_run(&mut client, "SWAPDB 0 1").expect_err("refused").to_string().contains("two stores"));
}

#[test]
fn a_transaction_that_looks_at_the_whole_keyspace_is_refused_rather_than_half_right() {
    let proxy = proxy(Stores::shared(), &PHASES);
    let mut client = proxy.connect();
    run(&mut client, "MULTI");
    run(&mut client, "FLUSHDB");
    let refused = try_run(&mut client, "EXEC").expect_err("refused").to_string();
    assert!(refused.contains("flushdb"), "{refused}");
}

fn cluster_of(stores: &Stores, key: &str) -> redis::Connection {
    let slot = cutover::slot::of(key.as_bytes());
    stores.nodes[usize::from(slot > 5460) + usize::from(slot > 10922)].connect()
}
