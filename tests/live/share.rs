//! A share of the providers goes ahead of the others: always the same ones, by the rules of every line.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cutover::routing::share_of;
use redis::Value;

use crate::common::{Proxy, Settings, Stores, command, connect, eventually, run};

/// Providers without a line; each part of the share has some of them.
const IDS: std::ops::Range<u32> = 6000..6400;

/// Those of the first so many parts, and the others.
fn divided(parts: u8) -> (Vec<u32>, Vec<u32>) {
    IDS.partition(|id| share_of(id.to_string().as_bytes()) < parts)
}

/// A share is of all providers in the stores, so a test of it has stores of its own.
fn start(stores: &Stores) -> Proxy {
    Settings::of(stores).start().ready()
}

/// Saves the file with these lines under [routing], and waits until the proxy has looked at it; gives why it was refused.
fn save(proxy: &mut Proxy, lines: &str) -> Option<String> {
    let before = proxy.table()["considered"].as_u64().expect("a number");
    proxy.edit(|settings| Settings { routing: lines.into(), ..settings });
    eventually("the file is looked at", || proxy.table()["considered"].as_u64() > Some(before));
    proxy.table()["refused"].as_str().map(str::to_string)
}

#[track_caller]
fn adopt(proxy: &mut Proxy, lines: &str) {
    assert_eq!(save(proxy, lines), None, "{lines}");
}

fn write(proxy: &Proxy, name: &str) {
    let mut client = proxy.connect();
    for id in IDS {
        run(&mut client, &format!("SET provider:{id}:{name} {id}"));
    }
}

/// Which of the providers have a key on a store, asked of the store itself.
fn on_standalone(stores: &Stores, name: &str) -> Vec<u32> {
    let mut standalone = stores.standalone.connect();
    IDS.filter(|id| run(&mut standalone, &format!("EXISTS provider:{id}:{name}")) == Value::Int(1)).collect()
}

fn on_cluster(stores: &Stores, name: &str) -> Vec<u32> {
    let has = |id: &u32| {
        let key = format!("provider:{id}:{name}");
        stores.on_cluster(&["EXISTS", &key], &key) == Value::Int(1)
    };
    IDS.filter(has).collect()
}

#[track_caller]
fn everything_is_there(proxy: &Proxy, names: &[&str]) {
    let mut client = proxy.connect();
    for id in IDS {
        for name in names {
            let value: u32 = command(&["GET", &format!("provider:{id}:{name}")]).query(&mut client).expect("the value");
            assert_eq!(value, id, "{name}");
        }
    }
}

fn is_synced(proxy: &Proxy) -> bool {
    let table = proxy.table();
    let parts = table["routes"].as_array().expect("routes").iter().filter(|route| route["kind"] == "share");
    parts.clone().count() > 0 && parts.clone().all(|part| part["synced"] == true && part["in_doubt"] == false)
}

#[test]
fn a_share_goes_over_and_grows_by_neighbours_and_those_in_it_stay_in_it() {
    let stores = Stores::start();
    let mut proxy = start(&stores);
    write(&proxy, "a");
    let refused = save(&mut proxy, "share = { cluster = 10 }").expect("existing keys are on the standalone");
    let reason = "route share_0 cannot go from standalone to cluster: only neighbouring phases flip";
    assert!(refused.contains(reason) && refused.contains("go to `dual-standalone` first"), "{refused}");
    assert!(refused.ends_with("(and 9 more parts of the share)"), "{refused}");

    // A tenth of them, and nobody else, is written to both stores.
    adopt(&mut proxy, "share = { dual-standalone = 10 }");
    let (tenth, others) = divided(10);
    assert!((20..=60).contains(&tenth.len()), "{}", tenth.len());
    write(&proxy, "b");
    eventually("the cluster has what was written", || on_cluster(&stores, "b") == tenth);
    let status = proxy.cli_ok("status");
    assert!(status.contains("share (10 of 100)") && !status.contains("share_"), "{status}");
    assert!(
        proxy.cli_ok(&format!("status {}", tenth[0])).contains("(by share_"),
        "who is in it is shown with its part"
    );
    let moved = proxy.cli("move share --to dual-cluster");
    let told = String::from_utf8_lossy(&moved.stderr).into_owned();
    assert!(!moved.status.success() && told.contains("change `share` under [routing]"), "{told}");

    adopt(&mut proxy, "share = { dual-cluster = 10 }");
    let refused = save(&mut proxy, "share = { cluster = 10 }").expect("nothing was copied yet");
    assert!(refused.contains("not known to hold every key"), "{refused}");
    proxy.cli_ok("backfill share --rate 0");
    proxy.cli_ok("verify share");
    adopt(&mut proxy, "share = { cluster = 10 }");
    write(&proxy, "c");
    assert_eq!((on_cluster(&stores, "c"), on_standalone(&stores, "c")), (tenth.clone(), others));

    // It grows: those that were in it stay where they are, and as many others follow.
    adopt(&mut proxy, "share = { cluster = 10, dual-standalone = 10 }");
    proxy.cli_ok("backfill share --rate 0");
    adopt(&mut proxy, "share = { cluster = 10, dual-cluster = 10 }");
    adopt(&mut proxy, "share = { cluster = 20 }");
    let (fifth, others) = divided(20);
    assert!(tenth.iter().all(|id| fifth.contains(id)) && fifth.len() > tenth.len());
    write(&proxy, "d");
    assert_eq!((on_cluster(&stores, "d"), on_standalone(&stores, "d")), (fifth.clone(), others));
    everything_is_there(&proxy, &["a", "b", "c", "d"]);

    // The state file remembers the parts: an edit while the proxy was down is judged as flips too.
    assert_eq!(proxy.terminate(), Some(0));
    proxy.edit(|settings| Settings { routing: "share = { cluster = 10 }".into(), ..settings });
    proxy.start_again();
    eventually("the proxy is ready", || proxy.http("/readyz").0 == 200);
    let refused = proxy.table()["refused"].as_str().expect("a reason").to_string();
    assert!(refused.contains("route share_10 cannot go from cluster to standalone"), "{refused}");
    everything_is_there(&proxy, &["a", "d"]);

    // And all the way back.
    adopt(&mut proxy, "share = { dual-cluster = 20 }");
    eventually("the standalone is given what it lacks", || is_synced(&proxy));
    adopt(&mut proxy, "share = { dual-standalone = 20 }");
    adopt(&mut proxy, "");
    assert_eq!(on_standalone(&stores, "d").len(), IDS.len());
    everything_is_there(&proxy, &["a", "b", "c", "d"]);
    write(&proxy, "e");
    assert_eq!(on_cluster(&stores, "e"), [0; 0]);
}

#[test]
fn a_share_flips_under_traffic_without_a_lost_write_and_a_line_takes_one_out_of_it() {
    let stores = Stores::start();
    let mut proxy = start(&stores);
    let (tenth, others) = divided(10);
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = [tenth[0], tenth[1], others[0], others[1]]
        .into_iter()
        .map(|id| {
            let (over, port) = (over.clone(), proxy.port);
            std::thread::spawn(move || {
                let (mut client, mut count, mut longest) = (connect(port), 0i64, Duration::ZERO);
                while !over.load(Ordering::Relaxed) {
                    count += 1;
                    let began = Instant::now();
                    let incr = command(&["INCR", &format!("provider:{id}:traffic")]);
                    assert_eq!(incr.query::<i64>(&mut client).expect("INCR"), count, "provider {id}");
                    longest = longest.max(began.elapsed());
                }
                (id, count, longest)
            })
        })
        .collect();
    for share in ["dual-standalone = 10", "dual-cluster = 10", "dual-standalone = 10", "dual-cluster = 10"] {
        adopt(&mut proxy, &format!("share = {{ {share} }}"));
        proxy.cli_ok("backfill share --rate 0");
    }
    // Who gets a line goes its own way; the others of its part stay.
    proxy.cli_ok(&format!("move {} --to cluster", tenth[0]));
    let table = proxy.table();
    let phase = |id: String| {
        let routes = table["routes"].as_array().expect("routes");
        routes.iter().find(|route| route["id"] == id.as_str()).map(|route| route["phase"].clone())
    };
    assert_eq!(phase(tenth[0].to_string()), Some("cluster".into()));
    let part = share_of(tenth[0].to_string().as_bytes());
    assert_eq!(phase(format!("share_{part}")), Some("dual-cluster".into()));
    adopt_beside_lines(&mut proxy, "share = { cluster = 10 }", tenth[0]);
    over.store(true, Ordering::Relaxed);
    for client in clients {
        let (id, count, longest) = client.join().expect("no wrong reply");
        eprintln!("provider {id}: {count} increments, the longest took {longest:?}");
        assert!(count > 10);
    }
}

/// The test's file knows nothing of the line that `cutover move` has written.
fn adopt_beside_lines(proxy: &mut Proxy, lines: &str, id: u32) {
    let before = proxy.table()["considered"].as_u64().expect("a number");
    proxy.edit(|settings| Settings { routing: lines.into(), ..settings }.phase(&id.to_string(), "cluster"));
    eventually("the file is looked at", || proxy.table()["considered"].as_u64() > Some(before));
    assert!(proxy.table()["refused"].is_null(), "{}", proxy.table()["refused"]);
}
