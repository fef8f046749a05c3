//! Several proxies on the same stores: one does the dual writes, the others send it their traffic, and one of them goes on when
//! it has died.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redis::Value;

use crate::common::{Proxy, Settings, Stores, command, connect, eventually, run, signal, try_run};

/// Proxies that share a lease of two seconds.
fn settings(stores: &Stores) -> Settings {
    Settings { lease: "name = \"shared\"\ntime = \"2s\"".into(), look_every: "1s", ..Settings::of(stores) }
}

fn role(proxy: &Proxy) -> String {
    proxy.table()["lease"]["role"].as_str().unwrap_or_default().to_string()
}

fn url(proxy: &Proxy) -> String {
    format!("redis://127.0.0.1:{}", proxy.port)
}

fn metric(proxy: &Proxy, name: &str) -> u64 {
    let text = proxy.http("/metrics").1;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("cutover_{name} ")));
    line.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
}

/// Two proxies with the same table; the first holds the lease.
fn pair(settings: &Settings) -> (Proxy, Proxy) {
    let first = settings.clone().start().ready();
    eventually("the first holds the lease", || role(&first) == "holds");
    let second = settings.clone().start().ready();
    eventually("the second follows", || role(&second) == "follows");
    assert_eq!(second.table()["lease"]["holder"], url(&first));
    (first, second)
}

fn route(proxy: &Proxy, id: &str) -> serde_json::Value {
    let table = proxy.table();
    table["routes"].as_array().expect("routes").iter().find(|route| route["id"] == id).cloned().unwrap_or_default()
}

fn is_clean(proxy: &Proxy, id: &str) -> bool {
    let route = route(proxy, id);
    route["synced"] == true && route["in_doubt"] == false && route["open_divergence"] == 0
}

/// What both stores hold of a provider, which must be the same; the standalone's own view of it.
#[track_caller]
fn assert_equal(stores: &Stores, provider: &str) -> BTreeMap<String, String> {
    let read = |ask: &dyn Fn(&[&str], &str) -> Value, key: &str| {
        let kind = format!("{:?}", ask(&["TYPE", key], key));
        let words: &[&str] = match kind.as_str() {
            kind if kind.contains("list") => &["LRANGE", key, "0", "-1"],
            kind if kind.contains("string") => &["GET", key],
            kind => panic!("{key} is {kind}"),
        };
        format!("{:?}", ask(words, key))
    };
    let standalone = |words: &[&str], _: &str| command(words).query(&mut stores.standalone.connect()).expect("read");
    let cluster = |words: &[&str], key: &str| stores.on_cluster(words, key);
    let pattern = format!("provider:{provider}:*");
    let keys: Vec<String> = command(&["KEYS", &pattern]).query(&mut stores.standalone.connect()).expect("keys");
    let mut there = 0;
    for node in &stores.nodes[..3] {
        let keys: Vec<String> = command(&["KEYS", &pattern]).query(&mut node.connect()).expect("keys");
        there += keys.len();
    }
    assert_eq!(keys.len(), there, "as many keys on both");
    let both = |key: String| {
        let (here, there) = (read(&standalone, &key), read(&cluster, &key));
        assert_eq!(here, there, "{key}");
        (key, here)
    };
    keys.into_iter().map(both).collect()
}

/// Writers through several proxies at once to keys that they share. Each counts what was acknowledged.
struct Writers {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<[u64; 2]>>,
}

const KEYS: u64 = 4;

impl Writers {
    /// INCR, APPEND and RPUSH. Errors are taken as they come: a client tries something else.
    fn start(ports: &[u16], provider: &str) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let write = |(number, port): (usize, u16)| {
            let (over, provider) = (over.clone(), provider.to_string());
            std::thread::spawn(move || {
                let (mut client, mut counts) = (None, [0, 0]);
                for turn in 0u64.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("provider:{provider}:{}", turn % KEYS);
                    let words = match turn % 3 {
                        0 => format!("INCR {key}:n"),
                        1 => format!("APPEND {key}:s {number}x{turn}."),
                        _ => format!("RPUSH {key}:l {number}x{turn}"),
                    };
                    let connected = client.get_or_insert_with(|| connect(port));
                    match try_run(connected, &words) {
                        Ok(_) if turn % 3 == 0 => counts[0] += 1,
                        Ok(_) if turn % 3 == 2 => counts[1] += 1,
                        Ok(_) => {}
                        Err(error) if error.is_io_error() => {
                            client = None;
                            std::thread::sleep(Duration::from_millis(20));
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(20)),
                    }
                }
                counts
            })
        };
        let threads = ports.iter().copied().enumerate().flat_map(|pair| [pair, (pair.0 + 100, pair.1)]);
        let threads = threads.map(write).collect();
        Self { over, threads }
    }

    /// How many INCRs and RPUSHes were acknowledged.
    fn end(self) -> [u64; 2] {
        self.over.store(true, Ordering::Relaxed);
        let counts = self.threads.into_iter().map(|thread| thread.join().expect("no panic"));
        counts.fold([0, 0], |all, own| [all[0] + own[0], all[1] + own[1]])
    }
}

/// INCRs and RPUSHes that a store holds.
fn counted(values: &BTreeMap<String, String>) -> [u64; 2] {
    let digits = |text: &str| -> u64 {
        let text: Vec<u8> = text.bytes().filter(u8::is_ascii_digit).collect();
        String::from_utf8(text).expect("digits").parse().expect("a number")
    };
    values.iter().fold([0, 0], |[numbers, items], (key, value)| match key.rsplit(':').next() {
        // BulkString('49, 50') is how a Value shows itself: read anew where it is a number.
        Some("n") => [numbers + digits(value), items],
        Some("l") => [numbers, items + value.matches("bulk-string").count() as u64],
        _ => [numbers, items],
    })
}

#[test]
fn what_is_written_through_two_proxies_at_once_is_the_same_on_both_stores_in_both_dual_phases() {
    let stores = Stores::start();
    let (first, second) = pair(&settings(&stores).phase("701", "dual-standalone"));
    first.cli_ok("backfill 701 --rate 0");
    let writers = Writers::start(&[first.port, second.port], "701");
    std::thread::sleep(Duration::from_millis(1_500));
    first.cli_ok("move 701 --to dual-cluster");
    std::thread::sleep(Duration::from_millis(1_500));
    let acknowledged = writers.end();
    eventually("the second has the holder's phase", || route(&second, "701")["phase"] == "dual-cluster");
    eventually("nothing is open", || route(&first, "701")["open_divergence"] == 0);
    first.cli_ok("verify 701 --rate 0");
    let values = assert_equal(&stores, "701");
    assert_eq!(counted(&values), acknowledged, "each acknowledged write once, and no other");
    assert!(acknowledged[0] > 100 && metric(&second, "lease_forwarded_total") > 100);
    assert_eq!((metric(&first, "lease_held"), metric(&second, "lease_held")), (1, 0));
    assert_eq!(first.table()["bypass"], serde_json::json!([]), "the second is no stranger");
    assert!(first.cli_ok("status").contains("holds the lease"), "{}", first.cli_ok("status"));
    assert!(second.cli_ok("status").contains(&format!("the proxy at {} holds the lease", url(&first))));
    let refused = second.cli("backfill 701 --rate 0");
    assert_ne!(refused.status.code(), Some(0), "a job is the holder's");
    assert!(String::from_utf8_lossy(&refused.stderr).contains(&url(&first)), "{refused:?}");
}

#[test]
fn a_holder_that_is_killed_is_followed_by_the_other_within_the_lease_and_nothing_acknowledged_is_lost() {
    let stores = Stores::start();
    let (mut first, second) = pair(&settings(&stores).phase("702", "dual-standalone"));
    first.cli_ok("backfill 702 --rate 0");
    let writers = Writers::start(&[second.port], "702");
    std::thread::sleep(Duration::from_millis(1_000));
    let died = Instant::now();
    first.kill();
    eventually("the second holds it", || role(&second) == "holds");
    let took = died.elapsed();
    assert!(took < Duration::from_millis(3_500), "{took:?}");
    assert!(second.log().contains("takes over the dual routes"), "{}", second.log());
    std::thread::sleep(Duration::from_millis(1_000));
    let acknowledged = writers.end();
    eventually("the doubt ends by itself", || is_clean(&second, "702"));
    second.cli_ok("verify 702 --rate 0");
    let found = counted(&assert_equal(&stores, "702"));
    assert!(found[0] >= acknowledged[0] && found[1] >= acknowledged[1], "{found:?} of {acknowledged:?}");
    // What was in flight when it died may have run; no more than one of each client.
    assert!(found[0] <= acknowledged[0] + 4 && found[1] <= acknowledged[1] + 4, "{found:?} of {acknowledged:?}");
    // The first one comes back, and follows.
    first.start_again();
    eventually("the first follows", || role(&first) == "follows");
    assert_eq!(run(&mut first.connect(), "GET provider:702:none"), Value::Nil);
}

#[test]
fn a_holder_that_stood_still_for_longer_than_its_lease_writes_nothing_under_it() {
    let stores = Stores::start();
    let (first, second) = pair(&settings(&stores).phase("703", "dual-cluster"));
    first.cli_ok("backfill 703 --rate 0");
    let writers = Writers::start(&[first.port, second.port], "703");
    // A client that has waited for long, and is answered when somebody pushes.
    let port = first.port;
    let blocked = std::thread::spawn(move || try_run(&mut connect(port), "BLPOP provider:703:wait 15"));
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(700));
        let holds_first = role(&first) == "holds";
        let (holder, other) = if holds_first { (&first, &second) } else { (&second, &first) };
        signal(holder.pid(), "STOP");
        eventually("the other one holds it", || role(other) == "holds");
        std::thread::sleep(Duration::from_millis(500));
        run(&mut other.connect(), "RPUSH provider:703:wait one two");
        signal(holder.pid(), "CONT");
        eventually("the one that stood still follows", || role(holder) == "follows");
        assert!(metric(holder, "lease_ends_total") >= 1);
    }
    std::thread::sleep(Duration::from_millis(500));
    let acknowledged = writers.end();
    let _ = blocked.join().expect("no panic");
    let holder = if role(&first) == "holds" { &first } else { &second };
    eventually("the doubt ends by itself", || is_clean(holder, "703"));
    holder.cli_ok("verify 703 --rate 0");
    let found = counted(&assert_equal(&stores, "703"));
    assert!(found[0] >= acknowledged[0] && found[1] >= acknowledged[1], "{found:?} of {acknowledged:?}");
}

#[test]
fn everything_that_a_client_may_ask_of_one_proxy_it_may_ask_of_the_second() {
    let stores = Stores::start();
    let (first, second) = pair(&settings(&stores).phase("704", "dual-standalone").phase("705", "standalone"));
    first.cli_ok("backfill 704 --rate 0");
    let (mut here, mut there) = (second.connect(), first.connect());
    // A transaction, alone and watched; one whose watched key was written through the other proxy does nothing.
    for words in ["MULTI", "INCR provider:704:n", "RPUSH provider:704:l a b", "SET provider:705:x 1"] {
        run(&mut here, words);
    }
    assert!(matches!(run(&mut here, "EXEC"), Value::Array(answers) if answers.len() == 3));
    run(&mut here, "WATCH provider:704:n");
    run(&mut there, "INCR provider:704:n");
    run(&mut here, "MULTI");
    run(&mut here, "SET provider:704:n 99");
    assert_eq!(run(&mut here, "EXEC"), Value::Nil);
    run(&mut here, "WATCH provider:704:n");
    run(&mut here, "MULTI");
    run(&mut here, "INCR provider:704:n");
    assert_eq!(run(&mut here, "EXEC"), Value::Array(vec![Value::Int(3)]));
    // A blocking pop through the one, a push through the other.
    let port = second.port;
    let popping = std::thread::spawn(move || run(&mut connect(port), "BLPOP provider:704:queue 10"));
    std::thread::sleep(Duration::from_millis(200));
    run(&mut there, "RPUSH provider:704:queue job");
    let popped = popping.join().expect("no panic");
    assert!(format!("{popped:?}").contains("job"), "{popped:?}");
    assert_eq!(run(&mut here, "BLPOP provider:704:queue 0.1"), Value::Nil);
    // Scripts, by their text and by a digest that only this proxy knows.
    let body = "return redis.call('INCRBY',KEYS[1],ARGV[1])";
    let eval = |client: &mut redis::Connection, words: &[&str]| -> i64 { command(words).query(client).expect("run") };
    assert_eq!(eval(&mut here, &["EVAL", body, "1", "provider:704:n", "10"]), 13);
    let digest: String = command(&["SCRIPT", "LOAD", body]).query(&mut here).expect("load");
    run(&mut stores.standalone.connect(), "SCRIPT FLUSH");
    assert_eq!(eval(&mut here, &["EVALSHA", &digest, "1", "provider:704:n", "10"]), 23);
    // Several keys, of both kinds of routes.
    run(&mut here, "MSET provider:704:a 1 provider:705:a 2 provider:704:b 3");
    let values: Vec<String> = command(&["MGET", "provider:704:b", "provider:705:a"]).query(&mut here).expect("MGET");
    assert_eq!(values, ["3", "2"]);
    run(&mut here, "RENAME provider:704:b provider:704:c");
    // Channels are on one store, whoever asks.
    let subscriber = redis::Client::open(format!("redis://127.0.0.1:{}", second.port)).expect("a URL");
    let mut subscriber = subscriber.get_connection().expect("connect");
    let mut subscriber = subscriber.as_pubsub();
    subscriber.subscribe("news").expect("subscribe");
    run(&mut there, "PUBLISH news hello");
    assert_eq!(subscriber.get_message().expect("a message").get_payload::<String>().expect("text"), "hello");
    // All keys, in one list, and none of the proxies' own.
    let mut keys: Vec<String> = command(&["KEYS", "*"]).query(&mut here).expect("KEYS");
    keys.sort();
    let wanted =
        ["provider:704:a", "provider:704:c", "provider:704:l", "provider:704:n", "provider:705:a", "provider:705:x"];
    assert_eq!(keys, wanted);
    eventually("every effect has come", || route(&first, "704")["open_divergence"] == 0);
    first.cli_ok("verify 704 --rate 0");
    assert_equal(&stores, "704");
}

#[test]
fn the_second_goes_by_the_holder_s_phases_and_tells_what_its_own_file_says_otherwise() {
    let stores = Stores::start();
    let settings = settings(&stores).phase("706", "standalone").phase("707", "dual-standalone");
    let (mut first, mut second) = pair(&settings);
    first.cli_ok("backfill 707 --rate 0");
    // The holder flips 706 into a dual phase while the second, whose file does not say so, writes to it.
    let writers = Writers::start(&[second.port, first.port], "706");
    std::thread::sleep(Duration::from_millis(500));
    first.edit(|settings| settings.phase("706", "dual-standalone"));
    eventually("the holder has it", || route(&first, "706")["phase"] == "dual-standalone");
    assert_eq!(route(&second, "706")["phase"], "dual-standalone", "the second had it before");
    eventually("the difference is told", || metric(&second, "lease_tables_differ") == 1);
    let refused = second.table()["refused"].as_str().unwrap_or_default().to_string();
    assert!(refused.contains("706 is dual-standalone there and standalone here"), "{refused}");
    assert!(second.cli_ok("status").contains("differs from the holder's table"));
    std::thread::sleep(Duration::from_millis(500));
    let acknowledged = writers.end();
    second.edit(|settings| settings.phase("706", "dual-standalone"));
    eventually("both say the same", || {
        metric(&second, "lease_tables_differ") == 0 && second.table()["refused"].is_null()
    });
    first.cli_ok("backfill 706 --rate 0");
    let values = assert_equal(&stores, "706");
    assert_eq!(counted(&values), acknowledged);
    // The follower's file alone flips nothing.
    second.edit(|settings| settings.phase("707", "dual-cluster"));
    eventually("it is refused", || !second.table()["refused"].is_null());
    assert_eq!(route(&second, "707")["phase"], "dual-standalone");
    first.edit(|settings| settings.phase("707", "dual-cluster"));
    eventually("the holder flips, and the second is content", || {
        let has = |proxy: &Proxy| route(proxy, "707")["phase"] == "dual-cluster";
        has(&first) && has(&second) && second.table()["refused"].is_null()
    });
    // Out of the dual phases again: the lease goes, and each serves its clients itself.
    for phase in ["dual-standalone", "standalone"] {
        first.edit(|settings| settings.phase("707", phase).phase("706", "standalone"));
        eventually("the holder has flipped", || route(&first, "707")["phase"] == phase);
    }
    second.edit(|settings| settings.phase("707", "standalone").phase("706", "standalone"));
    eventually("no lease is needed", || role(&first) == "not needed" && role(&second) == "not needed");
    let before = metric(&second, "lease_forwarded_total");
    run(&mut second.connect(), "SET provider:707:x 1");
    assert_eq!(metric(&second, "lease_forwarded_total"), before);
    let keys: Vec<String> = command(&["KEYS", "cutover:*"]).query(&mut stores.standalone.connect()).expect("keys");
    assert_eq!(keys, Vec::<String>::new(), "nothing of it stays");
}

#[test]
fn the_lease_is_no_key_of_the_application_and_a_flush_opens_no_way_around_it() {
    let stores = Stores::start();
    // Longer than a busy machine holds up a process.
    let settings = Settings { lease: "name = \"hidden\"\ntime = \"10s\"".into(), ..settings(&stores) };
    let (first, second) = pair(&settings.phase("708", "dual-cluster"));
    let mut client = second.connect();
    run(&mut client, "SET provider:708:a 1");
    for proxy in [&first, &second] {
        let mut client = proxy.connect();
        assert_eq!(run(&mut client, "DBSIZE"), Value::Int(1));
        let keys: Vec<String> = command(&["KEYS", "*"]).query(&mut client).expect("KEYS");
        assert_eq!(keys, ["provider:708:a"]);
        let (_, keys): (u64, Vec<String>) = command(&["SCAN", "0", "COUNT", "1000"]).query(&mut client).expect("SCAN");
        assert_eq!(keys, ["provider:708:a"]);
        for _ in 0..20 {
            let key: String = command(&["RANDOMKEY"]).query(&mut client).expect("RANDOMKEY");
            assert_eq!(key, "provider:708:a");
        }
    }
    let report = first.directory.path().join("inventory.json");
    first.cli_ok(&format!("inventory --output {}", report.display()));
    let report = std::fs::read_to_string(report).expect("a report");
    assert!(!report.contains("cutover:lease"), "{report}");
    // Through a proxy, and around it on both stores at once.
    for round in 0..6 {
        run(&mut client, "SET provider:708:b 1");
        if round % 2 == 0 {
            run(&mut client, "FLUSHALL");
        } else {
            run(&mut stores.standalone.connect(), "FLUSHALL");
            stores.nodes[..3].iter().for_each(|node| {
                run(&mut node.connect(), "FLUSHALL");
            });
        }
        for _ in 0..20 {
            assert_eq!((role(&first), role(&second)), ("holds".into(), "follows".into()), "round {round}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert_eq!(metric(&first, "lease_ends_total"), 0);
}

#[test]
fn the_same_proxy_has_its_lease_again_at_once_after_a_restart_a_crash_and_a_succession() {
    let stores = Stores::start();
    let settings = Settings { lease: "name = \"own\"\ntime = \"10s\"".into(), ..settings(&stores) };
    let mut proxy = settings.phase("709", "dual-standalone").start().ready();
    eventually("it holds the lease", || role(&proxy) == "holds");
    let writes_soon = |proxy: &Proxy| {
        let began = Instant::now();
        run(&mut proxy.connect(), "INCR provider:709:n");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    };
    writes_soon(&proxy);
    assert_eq!(proxy.terminate(), Some(0));
    proxy.start_again();
    writes_soon(&proxy);
    proxy.kill();
    proxy.start_again();
    writes_soon(&proxy);
    assert_eq!(proxy.be_succeeded().0, Some(0));
    writes_soon(&proxy);
    eventually("every effect has come", || route(&proxy, "709")["open_divergence"] == 0);
    eventually("the doubt ends", || is_clean(&proxy, "709"));
    assert_equal(&stores, "709");
}

#[test]
fn a_store_that_is_down_stops_neither_a_holder_nor_its_successor_and_a_clean_end_hands_over_at_once() {
    let stores = Stores::start();
    let settings = Settings { lease: "name = \"down\"\ntime = \"6s\"".into(), ..settings(&stores) };
    let (mut first, second) = pair(&settings.phase("710", "dual-standalone"));
    first.cli_ok("backfill 710 --rate 0");
    stores.nodes.iter().for_each(|node| node.signal("STOP"));
    let (mut one, mut other) = (first.connect(), second.connect());
    let until = Instant::now() + Duration::from_secs(9);
    while Instant::now() < until {
        run(&mut one, "INCR provider:710:n");
        run(&mut other, "INCR provider:710:n");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((role(&first), metric(&first, "lease_ends_total")), ("holds".into(), 0));
    stores.nodes.iter().for_each(|node| node.signal("CONT"));
    eventually("what the follower missed is repaired", || is_clean(&first, "710"));
    let began = Instant::now();
    assert_eq!(first.terminate(), Some(0));
    eventually("the second goes on", || role(&second) == "holds");
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}: it need not wait for a lease that was given back",
        began.elapsed()
    );
    run(&mut other, "INCR provider:710:n");
    second.cli_ok("verify 710 --rate 0");
    assert_equal(&stores, "710");
}

/// What they have is not written anew then, and yet it is kept.
#[test]
fn stores_that_are_full_do_not_end_the_lease() {
    let stores = Stores::start();
    let (mut first, second) = pair(&settings(&stores).phase("9", "dual-standalone"));
    let mut clients = [first.connect(), second.connect()];
    clients.iter_mut().for_each(|client| drop(run(client, "SET provider:9:a 1")));
    let all = || stores.nodes[..3].iter().chain([&stores.standalone]);
    all().for_each(|store| drop(run(&mut store.connect(), "CONFIG SET maxmemory 1")));
    let until = Instant::now() + Duration::from_secs(7);
    while Instant::now() < until {
        for client in &mut clients {
            assert_eq!(run(client, "GET provider:9:a"), Value::BulkString(b"1".to_vec()));
            let refused = try_run(client, "SET provider:9:a 2").expect_err("it is full").to_string();
            assert!(refused.contains("OOM"), "{refused}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!([role(&first), role(&second)], ["holds", "follows"]);
    all().for_each(|store| drop(run(&mut store.connect(), "CONFIG SET maxmemory 0")));
    clients.iter_mut().for_each(|client| drop(run(client, "SET provider:9:a 3")));
    assert!(!first.log().contains("has ended"), "{}", first.log());
    // Whoever comes after it finds the record as the holder left it.
    first.kill();
    eventually("the second takes over", || role(&second) == "holds");
}
