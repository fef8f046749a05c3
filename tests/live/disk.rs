//! The state directory on a disk that is full, spoilt or read-only.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use redis::Value;

use crate::common::{Proxy, Settings, Stores, eventually, run, try_run};

/// A proxy whose route waits for both stores, synced, with the follower stopped.
fn stopped_follower(stores: &Stores, provider: &str) -> Proxy {
    let settings = Settings {
        routing: "ack = \"both\"".into(),
        stores: "reply_timeout = \"1s\"\npatience = \"300ms\"".into(),
        ..Settings::of(stores)
    };
    let proxy = settings.phase(provider, "dual-standalone").start().ready();
    proxy.cli_ok(&format!("backfill {provider}"));
    stores.nodes[..3].iter().for_each(|node| node.signal("STOP"));
    proxy
}

fn metric(proxy: &Proxy, name: &str) -> u64 {
    let page = proxy.http("/metrics").1;
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("cutover_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().expect("a number")
}

fn limit_files(proxy: &Proxy, bytes: &str) {
    let done = Command::new("prlimit").args(["--pid", &proxy.pid().to_string(), &format!("--fsize={bytes}:")]).status();
    assert!(done.expect("run prlimit").success());
}

fn state_of(proxy: &Proxy, provider: &str) -> serde_json::Value {
    let table = proxy.table();
    table["routes"].as_array().expect("routes").iter().find(|route| route["id"] == provider).expect("the route").clone()
}

#[test]
fn a_disk_that_is_full_delays_the_answer_and_loses_no_record() {
    let stores = Stores::start();
    let mut proxy = stopped_follower(&stores, "630");
    let mut client = proxy.connect();
    // More than a state file has, so that the limit is the journal's alone.
    let pad = "x".repeat(400);
    for n in 0..10 {
        run(&mut client, &format!("SET provider:630:{n}:{pad} 1"));
    }
    assert_eq!(metric(&proxy, "journal_keys"), 10);
    let size = metric(&proxy, "journal_bytes");
    let path = proxy.directory.path().join("state/journal");
    assert_eq!(std::fs::metadata(&path).expect("a journal").len(), size);
    limit_files(&proxy, &(size + 100).to_string());
    let (port, words) = (proxy.port, format!("SET provider:630:late:{pad} 1"));
    let writer = std::thread::spawn(move || run(&mut crate::common::connect(port), &words));
    eventually("the operator is told", || metric(&proxy, "journal_refused") == 1);
    std::thread::sleep(Duration::from_millis(700));
    assert!(!writer.is_finished(), "nobody is answered while the journal lacks the key");
    assert_eq!(std::fs::metadata(&path).expect("a journal").len(), size, "no part of a record stays");
    // Reads and what needs no journal go on.
    assert_eq!(run(&mut client, &format!("GET provider:630:1:{pad}")), Value::BulkString(b"1".to_vec()));
    limit_files(&proxy, "unlimited");
    let began = Instant::now();
    assert_eq!(writer.join().expect("answered"), Value::Okay);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(proxy.log().contains("free the disk"), "{}", proxy.log());
    proxy.kill();
    proxy.start_again();
    assert!(!proxy.log().contains("unusable"), "{}", proxy.log());
    eventually("what the journal named is open", || metric(&proxy, "diverged_keys") == 11);
    stores.nodes[..3].iter().for_each(|node| node.signal("CONT"));
    eventually("repaired, and the journal is empty", || {
        metric(&proxy, "diverged_keys") == 0 && metric(&proxy, "journal_keys") == 0
    });
}

/// A pipe where the state file is to be written: whoever opens it stands still until somebody reads, like on a disk that
/// hangs.
fn hang_disk(proxy: &Proxy, file: &str) -> PathBuf {
    let pipe = proxy.directory.path().join("state").join(file);
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("run mkfifo").success());
    pipe
}

/// For 2 s, the admin side and clients of these providers get their answers at once.
fn assert_nobody_waits(proxy: &Proxy, providers: &[u32]) {
    let mut client = proxy.connect();
    let until = Instant::now() + Duration::from_secs(2);
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        let began = Instant::now();
        assert_eq!(proxy.http("/readyz").0, 200);
        for provider in providers {
            assert!(matches!(run(&mut client, &format!("INCR provider:{provider}:n")), Value::Int(_)));
        }
        slowest = slowest.max(began.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[test]
fn a_disk_that_hangs_during_a_flip_stops_neither_the_admin_side_nor_other_routes() {
    let stores = Stores::shared();
    let mut proxy = Settings::of(stores).phase("633", "standalone").start().ready();
    let pipe = hang_disk(&proxy, "state.next.new");
    proxy.edit(|settings| settings.phase("633", "dual-standalone"));
    assert_nobody_waits(&proxy, &[633, 634]);
    assert_eq!(state_of(&proxy, "633")["phase"], "standalone", "nothing begins before it is written down");
    // The disk answers, and cannot sync.
    std::fs::read(&pipe).expect("read the pipe");
    eventually("refused", || proxy.log().contains("the state file cannot be written"));
    std::fs::remove_file(&pipe).expect("remove");
    // It stands in the file, and is asked for once more.
    proxy.cli_ok("move 633 --to dual-standalone");
    assert_eq!(state_of(&proxy, "633")["phase"], "dual-standalone");
    // Hanging from the moment in which the decision is on disk, it holds up what comes next and no client.
    let pipe = hang_disk(&proxy, "state.new");
    proxy.edit(|settings| settings.phase("633", "standalone"));
    eventually("flipped", || state_of(&proxy, "633")["phase"] == "standalone");
    assert_nobody_waits(&proxy, &[633, 634]);
    proxy.kill();
    std::fs::remove_file(&pipe).expect("remove");
    proxy.start_again();
    assert_eq!(state_of(&proxy, "633")["phase"], "standalone");
    assert!(!proxy.log().contains("first start"), "{}", proxy.log());
}

/// A process that was killed in its first moments has still done what it has done.
#[test]
fn nobody_is_served_before_the_disk_says_that_the_last_clean_end_is_over() {
    let mut proxy = Settings::of(Stores::shared()).phase("635", "dual-standalone").start().ready();
    assert_eq!(proxy.terminate(), Some(0));
    let pipe = hang_disk(&proxy, "state.new");
    proxy.spawn_again();
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        let answered = redis::Client::open(format!("redis://127.0.0.1:{}/", proxy.port))
            .and_then(|client| client.get_connection_with_timeout(Duration::from_millis(100)))
            .and_then(|mut connection| try_run(&mut connection, "PING"));
        assert!(answered.is_err(), "{answered:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    proxy.kill();
    std::fs::remove_file(&pipe).expect("remove");
    proxy.start_again();
    assert!(!proxy.log().contains("did not end cleanly"), "it has served nobody: {}", proxy.log());
    run(&mut proxy.connect(), "PING");
    proxy.kill();
    proxy.start_again();
    assert!(proxy.log().contains("did not end cleanly"), "{}", proxy.log());
}

#[test]
fn a_spoilt_journal_puts_dual_routes_in_doubt_and_the_walk_that_follows_ends_it() {
    let stores = Stores::start();
    let mut proxy = stopped_follower(&stores, "631");
    let mut client = proxy.connect();
    for n in 0..5 {
        run(&mut client, &format!("RPUSH provider:631:{n} a"));
    }
    proxy.kill();
    let path = proxy.directory.path().join("state/journal");
    let mut bytes = std::fs::read(&path).expect("a journal");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&path, &bytes).expect("write");
    proxy.start_again();
    let log = proxy.log();
    assert!(log.contains("the journal of diverged keys is unusable") && log.contains("journal.damaged-1"), "{log}");
    assert_eq!(state_of(&proxy, "631")["synced"], false);
    assert_eq!(proxy.cli("move 631 --to dual-cluster").status.code(), Some(1), "a cutover is refused meanwhile");
    stores.nodes[..3].iter().for_each(|node| node.signal("CONT"));
    eventually("synced by the walk that began by itself", || state_of(&proxy, "631")["synced"] == true);
    proxy.cli_ok("verify 631");
}

#[test]
fn one_spoilt_state_file_is_made_good_and_two_are_not_guessed_over() {
    let stores = Stores::shared();
    let mut proxy = Settings::of(stores).phase("632", "dual-standalone").start().ready();
    proxy.cli_ok("backfill 632");
    assert_eq!(proxy.terminate(), Some(0));
    let file = |name: &str| proxy.directory.path().join("state").join(name);
    std::fs::write(file("state.json"), "{").expect("write");
    let (one, copy) = (file("state.json"), file("state.copy.json"));
    proxy.start_again();
    let proxy_up = |proxy: &Proxy| proxy.http("/readyz").0 == 200;
    eventually("ready", || proxy_up(&proxy));
    assert_eq!(state_of(&proxy, "632")["synced"], true, "{}", proxy.log());
    assert!(proxy.log().contains("the other one is whole"), "{}", proxy.log());
    assert_eq!(proxy.terminate(), Some(0));
    for path in [&one, &copy] {
        std::fs::write(path, "{").expect("write");
    }
    let refused = proxy.cli("serve");
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("must not be guessed"), "{text}");
    for path in [&one, &copy] {
        std::fs::remove_file(path).expect("remove");
    }
    proxy.start_again();
    eventually("the log says it", || proxy.log().contains("every dual route is in doubt"));
    eventually("synced again", || state_of(&proxy, "632")["synced"] == true);
}
