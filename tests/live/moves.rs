//! A file that is saved is adopted or refused as a whole, and what was adopted outlives the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::Value;

use crate::common::{Settings, Stores, command, connect, eventually, run};

fn phase_of(table: &serde_json::Value, provider: &str) -> String {
    let routes = table["routes"].as_array().expect("routes");
    let route = routes.iter().find(|route| route["id"] == provider).expect("the route");
    route["phase"].as_str().expect("a phase").to_string()
}

#[test]
fn a_saved_file_is_adopted_and_a_file_that_skips_a_phase_changes_nothing() {
    let mut proxy = Settings::of(Stores::shared()).phase("10", "standalone").start().ready();
    proxy.edit(|settings| settings.phase("10", "dual-standalone"));
    eventually("the file is adopted", || phase_of(&proxy.table(), "10") == "dual-standalone");
    proxy.edit(|settings| settings.phase("10", "cluster"));
    eventually("the file is refused", || !proxy.table()["refused"].is_null());
    let table = proxy.table();
    assert_eq!(phase_of(&table, "10"), "dual-standalone");
    let reason = table["refused"].as_str().expect("a reason");
    assert!(
        reason.contains("route 10 cannot go from dual-standalone to cluster") && reason.contains("dual-cluster"),
        "{reason}"
    );
    assert!(proxy.http("/metrics").1.contains("cutover_table_refused 1"));
    eventually("the log tells", || proxy.log().contains("refused"));
    proxy.edit(|settings| settings.phase("10", "standalone"));
    eventually("a good file ends the refusal", || proxy.table()["refused"].is_null());
    assert_eq!(phase_of(&proxy.table(), "10"), "standalone");
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_nearest_known_one_while_traffic_goes_on() {
    let mut proxy = Settings::of(Stores::shared()).phase("11", "standalone").start().ready();
    let mut client = proxy.connect();
    proxy.edit(|settings| Settings { routing: "new_provider = \"standalone\"".into(), ..settings });
    eventually("the file is refused", || !proxy.table()["refused"].is_null());
    let table = proxy.table();
    let reason = table["refused"].as_str().expect("a reason");
    assert!(
        reason.contains("unknown field `new_provider`") && reason.contains("did you mean `new_providers`?"),
        "{reason}"
    );
    assert!(reason.contains("proxy.toml:") && reason.contains("^^^"), "{reason}");
    assert_eq!(run(&mut client, "PING"), Value::SimpleString("PONG".into()));
}

#[test]
fn move_edits_one_word_and_puts_the_file_back_when_it_is_refused() {
    let proxy = Settings::of(Stores::shared()).phase("12", "standalone").start().ready();
    let before = std::fs::read_to_string(proxy.config_path()).expect("read");
    proxy.cli_ok("move 12 --to dual-standalone");
    let after = std::fs::read_to_string(proxy.config_path()).expect("read");
    assert_eq!(after, before.replace("\"12\" = \"standalone\"", "\"12\" = \"dual-standalone\""));
    let refused = proxy.cli("move 12 --to cluster");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("go to `dual-cluster` first"));
    assert_eq!(std::fs::read_to_string(proxy.config_path()).expect("read"), after);
    // A force is for one flip and leaves no trace in the file.
    proxy.cli_ok("move 12 --to cluster --force");
    let forced = std::fs::read_to_string(proxy.config_path()).expect("read");
    assert_eq!(forced, after.replace("\"dual-standalone\"", "\"cluster\""));
}

#[test]
fn a_table_edited_while_the_proxy_was_down_is_judged_as_flips_too() {
    let mut proxy = Settings::of(Stores::shared()).phase("13", "dual-standalone").start().ready();
    eventually("the log tells", || proxy.log().contains("taken as it stands"));
    assert_eq!(proxy.terminate(), Some(0));
    proxy.edit(|settings| settings.phase("13", "cluster"));
    proxy.start_again();
    let table = proxy.table();
    assert_eq!(phase_of(&table, "13"), "dual-standalone", "the last adopted table goes on");
    assert!(table["refused"].as_str().is_some_and(|reason| reason.contains("route 13")), "{table}");
    assert_eq!(proxy.terminate(), Some(0));
    proxy.edit(|settings| settings.phase("13", "standalone"));
    proxy.start_again();
    assert_eq!(phase_of(&proxy.table(), "13"), "standalone");
    assert!(proxy.table()["refused"].is_null());
}

#[test]
fn after_a_kill_every_dual_route_is_in_doubt_until_a_walk_has_ended_it() {
    let mut proxy = Settings::of(Stores::shared()).phase("14", "dual-standalone").start().ready();
    let mut client = proxy.connect();
    for n in 0..50 {
        run(&mut client, &format!("SET provider:14:{n} {n}"));
    }
    proxy.cli_ok("backfill 14");
    proxy.kill();
    proxy.start_again();
    eventually("the log tells", || proxy.log().contains("did not end cleanly"));
    eventually("the walk that begins by itself ends the doubt", || {
        let table = proxy.table();
        table["routes"].as_array().expect("routes").iter().any(|route| route["id"] == "14" && route["synced"] == true)
    });
    proxy.cli_ok("verify 14");
    proxy.cli_ok("move 14 --to dual-cluster");
}

#[test]
fn a_flip_holds_up_its_own_route_for_a_moment_and_loses_nothing_of_the_others() {
    let proxy = Settings::of(Stores::shared()).phase("15", "standalone").phase("16", "standalone").start().ready();
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = ["15", "16", "16"]
        .iter()
        .enumerate()
        .map(|(number, provider)| {
            let (over, port) = (over.clone(), proxy.port);
            std::thread::spawn(move || {
                let (mut client, mut longest, mut count) = (connect(port), Duration::ZERO, 0i64);
                while !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    count += 1;
                    let reply: i64 = command(&["INCR", &format!("provider:{provider}:count{number}")])
                        .query(&mut client)
                        .expect("INCR");
                    assert_eq!(reply, count);
                    longest = longest.max(began.elapsed());
                }
                (provider.to_string(), longest, count)
            })
        })
        .collect();
    for phase in ["dual-standalone", "standalone", "dual-standalone", "dual-cluster", "dual-standalone", "standalone"] {
        proxy.cli_ok(&format!("move 15 --to {phase}"));
        if phase == "dual-standalone" {
            proxy.cli_ok("backfill 15 --rate 0");
        }
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        let (provider, longest, count) = client.join().expect("no wrong reply");
        eprintln!("provider {provider}: {count} increments, the longest took {longest:?}");
        assert!(count > 10);
    }
}

#[test]
fn sigterm_answers_what_was_asked_and_exits_with_0() {
    let mut proxy = Settings::of(Stores::shared()).phase("17", "dual-standalone").start().ready();
    let mut idle = proxy.connect();
    run(&mut idle, "SET provider:17:a 1");
    let mut blocked = proxy.connect();
    let waiting =
        std::thread::spawn(move || command(&["BLPOP", "provider:17:queue", "30"]).query::<Value>(&mut blocked));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(proxy.terminate(), Some(0));
    drop(waiting.join().expect("a reply or a closed connection"));
    assert_eq!(
        Stores::shared().on_cluster(&["GET", "provider:17:a"], "provider:17:a"),
        Value::BulkString(b"1".to_vec())
    );
    proxy.start_again();
    assert!(!proxy.log().contains("did not end cleanly"), "{}", proxy.log());
}

#[test]
fn status_check_and_json_are_for_people_and_for_programs() {
    let proxy = Settings::of(Stores::shared()).phase("18", "dual-standalone").start().ready();
    let status = proxy.cli_ok("status");
    assert!(status.contains("ROUTE") && status.contains("18") && status.contains("dual-standalone"), "{status}");
    let json: serde_json::Value = serde_json::from_str(&proxy.cli_ok("status 18 --json")).expect("JSON");
    assert_eq!(json["routes"][0]["leader"], "standalone");
    let check = proxy.cli_ok("check");
    assert!(check.contains("Redis 7") || check.contains("Redis 8"), "{check}");
    assert!(check.contains("3 primaries serve all slots") && check.contains("flips: none"), "{check}");
    let unknown = proxy.cli("backfill 99999");
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("99999"));
    let wrong = proxy.cli("move 18 --to nowhere");
    assert_eq!(wrong.status.code(), Some(2));
    let (_, providers) = proxy.http("/api/providers");
    let providers: serde_json::Value = serde_json::from_str(&providers).expect("JSON");
    assert_eq!(providers["providers"][0]["id"], "18");
    assert_eq!(providers["providers"][0]["phase"], "dual-standalone");
    assert_eq!(proxy.http("/healthz").0, 200);
    assert!(proxy.http("/").1.contains("<!doctype html>"));
}

#[test]
fn a_second_proxy_with_the_same_state_is_refused() {
    let proxy = Settings::of(Stores::shared()).start();
    let second = proxy.cli("serve");
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another cutover runs"), "{second:?}");
}

#[test]
fn the_file_is_read_when_it_was_saved_and_not_because_it_was_read() {
    let comment = format!("# {}\n", "-".repeat(1 << 20));
    let settings = Settings { routing: comment, ..Settings::of(Stores::shared()) };
    let proxy = settings.phase("19", "standalone").start().ready();
    run(&mut proxy.connect(), "PING");
    let bytes_read = || -> u64 {
        let io = std::fs::read_to_string(format!("/proc/{}/io", proxy.pid())).expect("read");
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).and_then(|count| count.parse().ok()).expect("a number")
    };
    std::thread::sleep(Duration::from_secs(1));
    let before = bytes_read();
    std::thread::sleep(Duration::from_secs(3));
    // One slow look may fall in between.
    let megabytes = (bytes_read() - before) >> 20;
    assert!(megabytes <= 2, "{megabytes} MiB of a file of one");
    proxy.cli_ok("move 19 --to dual-standalone");
}
