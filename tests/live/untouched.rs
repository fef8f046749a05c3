//! A provider of which no key is there yet may start in any phase.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::Value;

use crate::common::{Proxy, Settings, Stores, command, connect, eventually, run, try_run};

fn phase(proxy: &Proxy, id: &str) -> Option<String> {
    let table = proxy.table();
    let routes = table["routes"].as_array().expect("routes");
    let route = routes.iter().find(|route| route["id"] == id)?;
    route["phase"].as_str().map(String::from)
}

#[test]
fn a_provider_without_a_key_starts_on_the_cluster_and_goes_back_while_it_has_none() {
    let stores = Stores::shared();
    let mut proxy = Settings::of(stores).start().ready();
    proxy.edit(|settings| settings.phase("9001", "cluster").phase("9000001..9000009", "dual-cluster"));
    eventually("adopted", || phase(&proxy, "9001").as_deref() == Some("cluster"));
    assert_eq!(phase(&proxy, "9000001..9000009").as_deref(), Some("dual-cluster"));
    proxy.cli_ok("move 9001 --to standalone");
    proxy.cli_ok("move 9001 --to cluster");
    let mut client = proxy.connect();
    for id in ["9001", "9000005"] {
        run(&mut client, &format!("SET provider:{id}:a 1"));
    }
    let mut standalone = stores.standalone.connect();
    assert_eq!(run(&mut standalone, "EXISTS provider:9001:a"), Value::Int(0));
    // It has one now, on the cluster.
    let back = proxy.cli("move 9001 --to standalone");
    assert_eq!(back.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&back.stderr).contains("unless no key of the route is there yet"), "{back:?}");
    assert_eq!(run(&mut client, "GET provider:9001:a"), Value::BulkString(b"1".to_vec()));
}

#[test]
fn a_key_on_either_store_keeps_a_provider_to_its_neighbours_and_the_table_whole() {
    let stores = Stores::shared();
    for tagged in [false, true] {
        let cluster_keys = if tagged { "tagged" } else { "same" };
        let settings = Settings { routing: format!("cluster_keys = \"{cluster_keys}\""), ..Settings::of(stores) };
        let proxy = settings.start().ready();
        let [here, there] = if tagged { ["9011", "9012"] } else { ["9013", "9014"] };
        run(&mut proxy.connect(), &format!("SET provider:{here}:a 1"));
        // What an earlier stay, or somebody else, left on the cluster.
        let left = if tagged { format!("{{{there}}}provider:{there}:a") } else { format!("provider:{there}:a") };
        let kept = stores.nodes.iter().any(|node| try_run(&mut node.connect(), &format!("SET {left} old")).is_ok());
        assert!(kept, "no node has the slot of {left}");
        for id in [here, there] {
            let moved = proxy.cli(&format!("move {id} --to cluster"));
            assert_eq!(moved.status.code(), Some(1), "{moved:?}");
            assert_eq!(phase(&proxy, id).unwrap_or("standalone".into()), "standalone");
        }
        let free = format!("{here}0");
        let both = proxy.cli(&format!("move {free} {here} --to cluster"));
        assert_eq!(both.status.code(), Some(1), "one of them refuses the whole table: {both:?}");
        assert!(!proxy.log().contains("asked for"), "nobody did");
        proxy.cli_ok(&format!("move {free} --to cluster"));
    }
}

#[test]
fn a_provider_that_is_asked_for_meanwhile_waits_for_no_search_and_stays() {
    let stores = Stores::start();
    // SCAN of these takes its time.
    let fill = "for n = 1, 300000 do redis.call('SET', 'filler:' .. n, n) end";
    command(&["EVAL", fill, "0"]).exec(&mut stores.standalone.connect()).expect("filled");
    let proxy = Settings::of(&stores).start().ready();
    let (port, began) = (proxy.port, Instant::now());
    let asking = std::thread::spawn(move || {
        let mut client = connect(port);
        let mut slowest = Duration::ZERO;
        while began.elapsed() < Duration::from_secs(3) {
            let asked = Instant::now();
            assert_eq!(run(&mut client, "GET provider:9021:a"), Value::Nil);
            slowest = slowest.max(asked.elapsed());
        }
        slowest
    });
    let moved = proxy.cli("move 9021 --to cluster");
    assert_eq!(moved.status.code(), Some(1), "{moved:?}");
    assert!(proxy.log().contains("one of them was asked for meanwhile"), "{}", proxy.log());
    let slowest = asking.join().expect("no error");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    // Nobody asks any more, and other routes are served all the time.
    let over = Arc::new(AtomicBool::new(false));
    let ended = over.clone();
    let other = std::thread::spawn(move || {
        let mut client = connect(port);
        let mut slowest = Duration::ZERO;
        while !ended.load(Ordering::Relaxed) {
            let asked = Instant::now();
            run(&mut client, "INCR provider:9022:n");
            slowest = slowest.max(asked.elapsed());
        }
        slowest
    });
    proxy.cli_ok("move 9021 --to cluster");
    over.store(true, Ordering::Relaxed);
    let slowest = other.join().expect("no error");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[test]
fn a_line_that_was_written_while_the_proxy_was_down_is_looked_at_when_the_stores_can_be_asked() {
    let mut proxy = Settings::of(Stores::shared()).phase("9031", "dual-standalone").start().ready();
    run(&mut proxy.connect(), "SET provider:9032:a 1");
    proxy.terminate();
    proxy.edit(|settings| settings.phase("9033", "cluster"));
    proxy.start_again();
    eventually("adopted", || phase(&proxy, "9033").as_deref() == Some("cluster"));
    proxy.terminate();
    proxy.edit(|settings| settings.phase("9032", "cluster"));
    proxy.start_again();
    eventually("refused", || proxy.log().contains("route 9032 cannot go from standalone to cluster"));
    assert_eq!(phase(&proxy, "9032").unwrap_or("standalone".into()), "standalone");
    assert_eq!(run(&mut proxy.connect(), "GET provider:9032:a"), Value::BulkString(b"1".to_vec()));
}
