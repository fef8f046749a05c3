//! Everything that can go wrong goes wrong while twelve clients work: each knows for each of its keys every value that is
//! legal, checks every reply against it, and at the end both stores are compared in full.
//!
//! `CUTOVER_MODEL_SECONDS=30` makes each ordeal that long; without it they take a few seconds. `--nocapture` shows what was
//! counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use redis::{Connection, Value};
use serde_json::Value as Json;

use crate::common::{Proxy, Redis, Settings, Stores, command, connect, eventually, run, try_run};
use crate::fault::{Fault, FaultProxy, Point, Way};

const CLIENTS: usize = 12;
/// Keys of each kind that a client has for itself.
const KEYS: usize = 6;

pub fn seconds() -> Duration {
    let text = std::env::var("CUTOVER_MODEL_SECONDS").ok();
    Duration::from_secs(text.map_or(3, |text| text.parse().expect("CUTOVER_MODEL_SECONDS is a number of seconds")))
}

fn is_long() -> bool {
    seconds() >= Duration::from_secs(20)
}

/// What a key holds: words, joined in a string or as elements of a list. None: it does not exist.
type Held = Option<Vec<String>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    List,
}

/// What a client does with a key; the word is new each time.
#[derive(Clone, Debug)]
enum Deed {
    Read,
    Set(String),
    SetNew(String),
    Swap(String),
    Add(String),
    Script(String),
    Together(String),
    Take,
    Delete,
}

impl Deed {
    fn any(rng: &mut Rng, kind: Kind, word: String) -> Self {
        match (kind, rng.u32(..12)) {
            (_, 0..3) => Self::Read,
            (_, 3) => Self::Delete,
            (_, 4..6) => Self::Add(word),
            (_, 6) => Self::Script(word),
            (_, 7) => Self::Together(word),
            (Kind::Text, 8) => Self::SetNew(word),
            (Kind::Text, 9) => Self::Swap(word),
            (Kind::Text, _) => Self::Set(word),
            (Kind::List, 8..10) => Self::Take,
            (Kind::List, _) => Self::Add(word),
        }
    }

    fn ask(&self, kind: Kind, key: &str, through: &mut Connection) -> redis::RedisResult<Value> {
        let query = |words: &[&str], through: &mut Connection| command(words).query(through);
        let add = if kind == Kind::Text { "APPEND" } else { "RPUSH" };
        match self {
            Self::Read if kind == Kind::Text => query(&["GET", key], through),
            Self::Read => query(&["LRANGE", key, "0", "-1"], through),
            Self::Set(word) => query(&["SET", key, word, "EX", "9000"], through),
            Self::SetNew(word) => query(&["SETNX", key, word], through),
            Self::Swap(word) => query(&["GETSET", key, word], through),
            Self::Add(word) => query(&[add, key, word], through),
            Self::Script(word) => {
                let body = format!("return redis.call('{add}',KEYS[1],ARGV[1])");
                query(&["EVAL", &body, "1", key, word], through)
            }
            Self::Together(word) => {
                let mut pipe = redis::pipe();
                pipe.atomic().cmd(add).arg(key).arg(word).cmd("EXISTS").arg(key);
                pipe.query(through)
            }
            Self::Take => query(&["LPOP", key], through),
            Self::Delete => query(&["DEL", key], through),
        }
    }

    /// What Redis would answer, and what the key would hold.
    fn run_on(&self, kind: Kind, held: &Held) -> (Value, Held) {
        let text = |words: &[String]| Value::BulkString(words.concat().into_bytes());
        let size = |words: &[String]| match kind {
            Kind::Text => Value::Int(words.iter().map(String::len).sum::<usize>() as i64),
            Kind::List => Value::Int(words.len() as i64),
        };
        let added = |word: &String| {
            let mut words = held.clone().unwrap_or_default();
            words.push(word.clone());
            words
        };
        let old = || held.as_deref().map_or(Value::Nil, text);
        match self {
            Self::Read if kind == Kind::Text => (old(), held.clone()),
            Self::Read => {
                let words = held.clone().unwrap_or_default();
                (
                    Value::Array(words.into_iter().map(|word| Value::BulkString(word.into_bytes())).collect()),
                    held.clone(),
                )
            }
            Self::Set(word) => (Value::Okay, Some(vec![word.clone()])),
            Self::SetNew(_) if held.is_some() => (Value::Int(0), held.clone()),
            Self::SetNew(word) => (Value::Int(1), Some(vec![word.clone()])),
            Self::Swap(word) => (old(), Some(vec![word.clone()])),
            Self::Add(word) | Self::Script(word) => (size(&added(word)), Some(added(word))),
            Self::Together(word) => (Value::Array(vec![size(&added(word)), Value::Int(1)]), Some(added(word))),
            Self::Take => match held.as_deref() {
                None => (Value::Nil, None),
                Some([only]) => (Value::BulkString(only.clone().into_bytes()), None),
                Some(words) => (Value::BulkString(words[0].clone().into_bytes()), Some(words[1..].to_vec())),
            },
            Self::Delete => (Value::Int(i64::from(held.is_some())), None),
        }
    }
}

/// Whether a store may drop any key at any time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Eviction {
    No,
    Yes,
}

/// What a client may find in each of its keys, and what it has counted.
#[derive(Default)]
struct Told {
    legal: BTreeMap<String, (bool, Vec<Held>)>,
    done: u64,
    errors: Vec<String>,
    wrong: Vec<String>,
    longest: (Duration, String),
}

fn client(over: &AtomicBool, port: u16, provider: &str, number: usize, eviction: Eviction) -> Told {
    let (mut rng, mut told) = (Rng::with_seed(number as u64), Told::default());
    let mut connection = Some(connect(port));
    while !over.load(Ordering::Relaxed) {
        let kind = if rng.bool() { Kind::Text } else { Kind::List };
        let key = format!("provider:{provider}:{{c{number}}}:{kind:?}{}", rng.usize(..KEYS));
        let legal = told.legal.entry(key.clone()).or_insert_with(|| (kind == Kind::List, vec![None]));
        if eviction == Eviction::Yes && !legal.1.contains(&None) {
            legal.1.push(None);
        }
        // What happened to a command that failed is looked at before anything is built on it.
        let is_open = legal.1.len() > 1;
        let deed = if is_open { Deed::Read } else { Deed::any(&mut rng, kind, format!("{number}.{};", told.done)) };
        let began = Instant::now();
        let reply = match &mut connection {
            Some(connection) => deed.ask(kind, &key, connection),
            None => Err(redis::RedisError::from((redis::ErrorKind::Io, "not connected"))),
        };
        match reply {
            Ok(reply) => {
                let matching: Vec<Held> = legal
                    .1
                    .iter()
                    .map(|held| deed.run_on(kind, held))
                    .filter(|(wanted, _)| *wanted == reply)
                    .map(|(_, held)| held)
                    .collect();
                if matching.is_empty() {
                    told.wrong.push(format!("{deed:?} of {key} answered {reply:?}, legal were {:?}", legal.1));
                    over.store(true, Ordering::Relaxed);
                    return told;
                }
                legal.1 = matching;
                if began.elapsed() > told.longest.0 {
                    told.longest = (began.elapsed(), format!("{deed:?}"));
                }
                told.done += 1;
            }
            Err(error) => {
                let after: Vec<Held> = legal.1.iter().map(|held| deed.run_on(kind, held).1).collect();
                legal.1.extend(after);
                legal.1.sort();
                legal.1.dedup();
                told.errors.push(format!("{error}"));
                if error.is_unrecoverable_error() || error.is_timeout() || connection.is_none() {
                    let url = format!("redis://127.0.0.1:{port}/");
                    let opened =
                        redis::Client::open(url).expect("a URL").get_connection_with_timeout(Duration::from_secs(1));
                    connection = opened.ok();
                    if let Some(connection) = &connection {
                        connection.set_read_timeout(Some(Duration::from_secs(20))).expect("set a time-out");
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
    told
}

/// Clients at work.
struct Crew {
    over: Arc<AtomicBool>,
    provider: String,
    eviction: Eviction,
    threads: Vec<std::thread::JoinHandle<Told>>,
}

impl Crew {
    fn start(port: u16, provider: &str, eviction: Eviction) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let start = |number| {
            let (over, provider) = (over.clone(), provider.to_string());
            std::thread::spawn(move || client(&over, port, &provider, number, eviction))
        };
        let threads = (0..CLIENTS).map(start).collect();
        Self { over, provider: provider.into(), eviction, threads }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Ends the work: every key has a legal value, and both stores have the same.
    #[track_caller]
    fn end(self, name: &str, proxy: &Proxy, stores: &Stores) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        let told: Vec<Told> = self.threads.into_iter().map(|thread| thread.join().expect("no client panics")).collect();
        let sum = |of: fn(&Told) -> u64| told.iter().map(of).sum::<u64>();
        let (longest, deed) = told.iter().map(|told| told.longest.clone()).max().unwrap_or_default();
        let errors: Vec<String> = told.iter().flat_map(|told| told.errors.clone()).collect();
        let wrong: Vec<String> = told.iter().flat_map(|told| told.wrong.clone()).collect();
        let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap_or_default();
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM unknown").to_string();
        let flips: Json = serde_json::from_str(&proxy.http("/api/flips").1).expect("JSON");
        let flips = flips["history"].as_array().expect("entries");
        let paused = flips.iter().filter_map(|entry| entry["paused_ms"].as_f64()).fold(0.0, f64::max);
        println!(
            "{name}: {} operations, {} errors, {} wrong values, the longest took {longest:?} ({deed}), the longest flip paused {paused:.1} ms, {}",
            sum(|told| told.done),
            errors.len(),
            wrong.len(),
            peak.split_whitespace().collect::<Vec<_>>().join(" "),
        );
        assert!(wrong.is_empty(), "{name}: {wrong:?}");
        assert!(sum(|told| told.done) > 200, "{name}: too little was done");
        eventually("the proxy is ready again", || proxy.http("/readyz").0 == 200);
        let mut through = proxy.connect();
        let mut keys = Vec::new();
        for (key, (is_list, legal)) in told.iter().flat_map(|told| told.legal.clone()) {
            let kind = if is_list { Kind::List } else { Kind::Text };
            let reply = Deed::Read.ask(kind, &key, &mut through).expect("a reply in peace");
            let is_legal = legal.iter().any(|held| Deed::Read.run_on(kind, held).0 == reply);
            let may_be_gone = self.eviction == Eviction::Yes && Deed::Read.run_on(kind, &None).0 == reply;
            assert!(is_legal || may_be_gone, "{name}: at the end {key} is {reply:?}, legal were {legal:?}");
            keys.push((key, kind));
        }
        let table = proxy.table();
        let routes = table["routes"].as_array().expect("routes");
        // A route in phase `standalone` is not remembered over a start.
        let route = routes.iter().find(|route| route["id"] == self.provider.as_str());
        let phase = route.and_then(|route| route["phase"].as_str()).unwrap_or("standalone");
        if !phase.starts_with("dual") {
            return errors;
        }
        eventually("nothing is diverged", || divergence(proxy) == 0);
        proxy.cli_ok(&format!("backfill {} --rate 0", self.provider));
        proxy.cli_ok(&format!("verify {} --rate 0", self.provider));
        let mut standalone = stores.standalone.connect();
        for (key, kind) in keys {
            let here = Deed::Read.ask(kind, &key, &mut standalone).expect("the standalone answers");
            assert_eq!(on_cluster(stores, kind, &key), here, "{name}: {key}");
        }
        errors
    }
}

/// On whichever node has the slot now.
fn on_cluster(stores: &Stores, kind: Kind, key: &str) -> Value {
    let found = stores.nodes.iter().find_map(|node| {
        let mut connection =
            redis::Client::open(node.url()).ok()?.get_connection_with_timeout(Duration::from_secs(2)).ok()?;
        Deed::Read.ask(kind, key, &mut connection).ok()
    });
    found.unwrap_or_else(|| panic!("no node has the slot of {key}"))
}

fn divergence(proxy: &Proxy) -> u64 {
    let table = proxy.table();
    let routes = table["routes"].as_array().expect("routes");
    routes.iter().filter_map(|route| route["open_divergence"].as_u64()).sum()
}

fn is_synced(proxy: &Proxy, provider: &str) -> bool {
    let table = proxy.table();
    let routes = table["routes"].as_array().expect("routes");
    routes.iter().any(|route| route["id"] == provider && route["synced"] == true)
}

/// Longer than the five seconds of other tests: a walk waits for a store that was just restarted.
#[track_caller]
fn until_synced(proxy: &Proxy, provider: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_synced(proxy, provider) {
        assert!(Instant::now() < deadline, "never synced: {}\n{}", proxy.table(), proxy.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn flips_up_and_down_for_as_long_as_it_takes_cost_no_client_an_error() {
    let stores = Stores::shared();
    let proxy = Settings::of(stores).phase("950", "standalone").start().ready();
    let crew = Crew::start(proxy.port, "950", Eviction::No);
    let (until, mut rng, mut flips) = (Instant::now() + seconds(), Rng::with_seed(1), 0);
    while Instant::now() < until && !crew.is_over() {
        let early = rng.bool();
        for step in
            ["dual-standalone", "", "dual-cluster", "", "cluster", "dual-cluster", "", "dual-standalone", "standalone"]
        {
            match step {
                "" if early && rng.bool() => {}
                "" => drop(proxy.cli_ok("backfill 950 --rate 0")),
                // Without the backfill a flip that trusts the follower is refused and leaves no trace.
                step => {
                    let out = proxy.cli(&format!("move 950 --to {step}"));
                    if !out.status.success() {
                        proxy.cli_ok("backfill 950 --rate 0");
                        proxy.cli_ok(&format!("move 950 --to {step}"));
                    }
                    flips += 1;
                }
            }
        }
    }
    let errors = crew.end(&format!("{flips} flips"), &proxy, stores);
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn a_proxy_that_is_killed_at_random_moments_of_each_phase_and_flip_keeps_every_promise() {
    let stores = Stores::shared();
    let mut proxy = Settings::of(stores).phase("951", "standalone").start().ready();
    let crew = Crew::start(proxy.port, "951", Eviction::No);
    let (until, mut rng, mut kills) = (Instant::now() + seconds(), Rng::with_seed(2), 0);
    let path = ["dual-standalone", "dual-cluster", "cluster", "dual-cluster", "dual-standalone", "standalone"];
    let mut steps = path.iter().cycle();
    while (Instant::now() < until || kills < 4) && !crew.is_over() {
        let step = steps.next().expect("they go round");
        // Now and then without a backfill, so that keys are still to be fetched when it is killed.
        if rng.u32(..3) > 0 && proxy.table().to_string().contains("dual-") {
            until_synced_or_backfilled(&proxy, "951");
        }
        let moved = {
            let (config, step) = (proxy.config_path(), step.to_string());
            std::thread::spawn(move || {
                let words = ["--config", config.to_str().expect("a path"), "move", "951", "--to", &step];
                std::process::Command::new(env!("CARGO_BIN_EXE_cutover")).args(words).output().expect("run cutover")
            })
        };
        std::thread::sleep(Duration::from_millis(rng.u64(..150)));
        proxy.kill();
        kills += 1;
        moved.join().expect("the command line ends");
        proxy.start_again();
        eventually("ready", || proxy.http("/readyz").0 == 200);
        std::thread::sleep(Duration::from_millis(rng.u64(..150)));
    }
    crew.end(&format!("{kills} kills"), &proxy, stores);
}

fn until_synced_or_backfilled(proxy: &Proxy, provider: &str) {
    let _ = proxy.cli(&format!("backfill {provider} --rate 0"));
}

const SHORT: &str = "reply_timeout = \"1s\"\npatience = \"500ms\"";

#[test]
fn a_follower_that_is_stopped_and_goes_on_costs_no_client_an_error_in_either_direction() {
    let stores = Stores::start();
    let settings = Settings { stores: SHORT.into(), ..Settings::of(&stores) };
    let proxy = settings.phase("952", "dual-standalone").start().ready();
    let crew = Crew::start(proxy.port, "952", Eviction::No);
    let away = if is_long() { Duration::from_secs(10) } else { Duration::from_millis(1_500) };
    proxy.cli_ok("backfill 952 --rate 0");
    stores.nodes.iter().for_each(|node| node.signal("STOP"));
    std::thread::sleep(away);
    stores.nodes.iter().for_each(|node| node.signal("CONT"));
    eventually("the cluster has everything again", || divergence(&proxy) == 0);
    until_synced(&proxy, "952");
    proxy.cli_ok("move 952 --to dual-cluster");
    stores.standalone.signal("STOP");
    std::thread::sleep(away);
    stores.standalone.signal("CONT");
    eventually("the standalone has everything again", || divergence(&proxy) == 0);
    let errors = crew.end("a follower stopped twice", &proxy, &stores);
    assert!(errors.is_empty(), "{} errors, the first: {}", errors.len(), errors[0]);
}

#[test]
fn a_leader_that_is_killed_and_restarted_with_its_data_loses_nothing() {
    let mut stores = Stores::start();
    let settings = Settings { stores: SHORT.into(), ..Settings::of(&stores) };
    let proxy = settings.phase("953", "dual-standalone").start().ready();
    proxy.cli_ok("backfill 953 --rate 0");
    let crew = Crew::start(proxy.port, "953", Eviction::No);
    let until = Instant::now() + seconds();
    while Instant::now() < until && !crew.is_over() {
        std::thread::sleep(Duration::from_millis(300));
        stores.standalone.signal("KILL");
        std::thread::sleep(Duration::from_millis(200));
        stores.standalone.restart();
    }
    until_synced(&proxy, "953");
    crew.end("a leader killed again and again", &proxy, &stores);
}

/// Has a replica take over. Primaries vote for one of a pair only once in twice the node time-out, and who is not voted for
/// gives up after five seconds; then it is asked again.
fn take_over(replica: &Redis, has_taken_over: impl Fn() -> bool) {
    let mut asked = None;
    eventually("the replica is the primary", || {
        if asked.is_none_or(|at: Instant| at.elapsed() > Duration::from_secs(6))
            && try_run(&mut replica.connect(), "CLUSTER FAILOVER").is_ok()
        {
            asked = Some(Instant::now());
        }
        has_taken_over()
    });
}

#[test]
fn a_cluster_that_fails_over_costs_no_client_an_error() {
    let stores = Stores::start();
    let settings = Settings { stores: "patience = \"15s\"".into(), ..Settings::of(&stores) };
    let proxy = settings.phase("954", "dual-cluster").start().ready();
    proxy.cli_ok("backfill 954 --rate 0");
    let crew = Crew::start(proxy.port, "954", Eviction::No);
    let (until, mut failovers) = (Instant::now() + seconds(), 0);
    while (Instant::now() < until || failovers < 2) && !crew.is_over() {
        let pair = failovers % 3;
        let is_replica = |node: &Redis| {
            run(&mut node.connect(), "ROLE").into_sequence().expect("a role")[0]
                != Value::BulkString(b"master".to_vec())
        };
        let replica = if is_replica(&stores.nodes[pair]) { pair } else { pair + 3 };
        take_over(&stores.nodes[replica], || !is_replica(&stores.nodes[replica]));
        failovers += 1;
        std::thread::sleep(Duration::from_millis(300));
    }
    let errors = crew.end(&format!("{failovers} failovers of the leader"), &proxy, &stores);
    assert!(errors.is_empty(), "{} errors, the first: {}", errors.len(), errors[0]);
}

#[test]
fn a_primary_of_the_follower_that_is_killed_costs_no_client_an_error() {
    let stores = Stores::start();
    let settings = Settings { stores: SHORT.into(), ..Settings::of(&stores) };
    let proxy = settings.phase("955", "dual-standalone").start().ready();
    proxy.cli_ok("backfill 955 --rate 0");
    let crew = Crew::start(proxy.port, "955", Eviction::No);
    std::thread::sleep(seconds() / 4);
    stores.nodes[0].signal("KILL");
    eventually("its replica is the primary", || {
        let role = try_run(&mut stores.nodes[3].connect(), "ROLE").expect("a role");
        role.into_sequence().expect("a role")[0] == Value::BulkString(b"master".to_vec())
    });
    std::thread::sleep(seconds() / 4);
    until_synced(&proxy, "955");
    let errors = crew.end("a primary of the follower killed", &proxy, &stores);
    assert!(errors.is_empty(), "{} errors, the first: {}", errors.len(), errors[0]);
}

#[test]
fn slots_that_move_by_the_hundreds_cost_no_client_an_error() {
    let stores = Stores::start();
    let proxy = Settings::of(&stores).phase("956", "dual-cluster").start().ready();
    proxy.cli_ok("backfill 956 --rate 0");
    let crew = Crew::start(proxy.port, "956", Eviction::No);
    let id = |node: usize| -> String {
        command(&["CLUSTER", "MYID"]).query(&mut stores.nodes[node].connect()).expect("an id")
    };
    let (ids, count) = ([id(0), id(1)], if is_long() { 2_000 } else { 150 });
    let (mut from, mut to) = (stores.nodes[0].connect(), stores.nodes[1].connect());
    // Those of the clients first: they are the ones under traffic.
    let mut slots: Vec<u16> =
        (0..CLIENTS).map(|client| cutover::slot::of(format!("provider:956:{{c{client}}}:x").as_bytes())).collect();
    slots.extend(0..5461);
    slots.retain(|slot| *slot <= 5460);
    let mut seen = std::collections::BTreeSet::new();
    slots.retain(|slot| seen.insert(*slot));
    for slot in &slots[..count] {
        run(&mut to, &format!("CLUSTER SETSLOT {slot} IMPORTING {}", ids[0]));
        run(&mut from, &format!("CLUSTER SETSLOT {slot} MIGRATING {}", ids[1]));
        loop {
            let keys: Vec<String> =
                command(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "50"]).query(&mut from).expect("keys");
            if keys.is_empty() {
                break;
            }
            for key in keys {
                run(&mut from, &format!("MIGRATE 127.0.0.1 {} {key} 0 5000", stores.nodes[1].port));
            }
        }
        run(&mut to, &format!("CLUSTER SETSLOT {slot} NODE {}", ids[1]));
        run(&mut from, &format!("CLUSTER SETSLOT {slot} NODE {}", ids[1]));
    }
    let errors = crew.end(&format!("{count} slots moved"), &proxy, &stores);
    assert!(errors.is_empty(), "{} errors, the first: {}", errors.len(), errors[0]);
}

/// Lets a server have no more memory than an empty one needs, or, where it evicts, little more than it uses.
fn fill(server: &Redis, policy: &str) {
    let info: String = command(&["INFO", "memory"]).query(&mut server.connect()).expect("INFO");
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("used_memory");
    let bytes: u64 = if policy == "noeviction" { 1 } else { used.trim().parse::<u64>().expect("a number") + 20_000 };
    run(&mut server.connect(), &format!("CONFIG SET maxmemory-policy {policy}"));
    run(&mut server.connect(), &format!("CONFIG SET maxmemory {bytes}"));
}

fn relieve(server: &Redis) {
    run(&mut server.connect(), "CONFIG SET maxmemory 0");
    run(&mut server.connect(), "CONFIG SET maxmemory-policy noeviction");
}

#[test]
fn stores_that_are_full_refuse_what_they_refuse_and_end_equal() {
    let stores = Stores::start();
    let proxy = Settings::of(&stores).phase("957", "dual-standalone").start().ready();
    proxy.cli_ok("backfill 957 --rate 0");
    let crew = Crew::start(proxy.port, "957", Eviction::No);
    std::thread::sleep(Duration::from_millis(300));
    let primaries = &stores.nodes[..3];
    primaries.iter().for_each(|node| fill(node, "noeviction"));
    std::thread::sleep(seconds() / 3);
    primaries.iter().for_each(relieve);
    fill(&stores.standalone, "noeviction");
    std::thread::sleep(seconds() / 3);
    primaries.iter().for_each(|node| fill(node, "noeviction"));
    std::thread::sleep(seconds() / 3);
    primaries.iter().for_each(relieve);
    relieve(&stores.standalone);
    let errors = crew.end("both stores full", &proxy, &stores);
    // A client library calls an EXEC that was refused as a whole an invalid response.
    let is_refusal = |error: &&String| error.contains("OOM") || error.contains("multi response");
    let others: Vec<&String> = errors.iter().filter(|error| !is_refusal(error)).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(!errors.is_empty(), "a leader that is full refuses writes");
}

#[test]
fn stores_that_evict_show_nothing_but_what_was_written_and_end_equal() {
    let stores = Stores::start();
    let proxy = Settings::of(&stores).phase("958", "dual-standalone").start().ready();
    proxy.cli_ok("backfill 958 --rate 0");
    let crew = Crew::start(proxy.port, "958", Eviction::Yes);
    for servers in [&stores.nodes[..3], std::slice::from_ref(&stores.standalone)] {
        servers.iter().for_each(|server| fill(server, "allkeys-lru"));
        std::thread::sleep(seconds() / 2);
        servers.iter().for_each(relieve);
    }
    crew.end("both stores evict", &proxy, &stores);
}

/// One connection after the other is cut, each a few bytes later than the one before.
fn cut_again_and_again(wire: &FaultProxy, crew: &Crew) -> u32 {
    let (until, mut cuts, mut bytes) = (Instant::now() + seconds(), 0, 0);
    while (Instant::now() < until || cuts < 40) && !crew.is_over() {
        let way = if cuts % 2 == 0 { Way::Requests } else { Way::Replies };
        wire.inflict(Point::after(way, 200 + bytes), Fault::Cut);
        eventually("it is cut", || wire.has_struck());
        cuts += 1;
        bytes = (bytes + u64::from(cuts % 2 == 0) * 7) % 2_000;
        std::thread::sleep(Duration::from_millis(10));
    }
    wire.pass();
    cuts
}

/// The standalone behind a wire, and a route in that phase.
fn behind(wire: &FaultProxy, stores: &Stores, provider: &str, phase: &str) -> Proxy {
    let standalone = format!("redis://127.0.0.1:{}/0", wire.port);
    let settings = Settings { standalone, stores: SHORT.into(), ..Settings::of(stores) };
    settings.phase(provider, phase).start().ready()
}

#[test]
fn a_connection_to_the_leader_that_is_cut_at_every_byte_loses_and_doubles_nothing() {
    let stores = Stores::start();
    let wire = FaultProxy::before(stores.standalone.port);
    let proxy = behind(&wire, &stores, "959", "dual-standalone");
    let crew = Crew::start(proxy.port, "959", Eviction::No);
    let cuts = cut_again_and_again(&wire, &crew);
    crew.end(&format!("{cuts} cuts to the leader"), &proxy, &stores);
}

#[test]
fn a_connection_to_the_follower_that_is_cut_at_every_byte_costs_no_client_an_error() {
    let stores = Stores::start();
    let wire = FaultProxy::before(stores.standalone.port);
    let proxy = behind(&wire, &stores, "962", "dual-cluster");
    proxy.cli_ok("backfill 962 --rate 0");
    let crew = Crew::start(proxy.port, "962", Eviction::No);
    let cuts = cut_again_and_again(&wire, &crew);
    let errors = crew.end(&format!("{cuts} cuts to the follower"), &proxy, &stores);
    assert!(errors.is_empty(), "{} errors, the first: {}", errors.len(), errors[0]);
}

/// One of the primaries tells everybody to come by the wire.
fn before_a_primary(stores: &Stores) -> FaultProxy {
    let wire = FaultProxy::before(stores.nodes[0].port);
    run(&mut stores.nodes[0].connect(), &format!("CONFIG SET cluster-announce-port {}", wire.port));
    for node in &stores.nodes[1..] {
        eventually("the others tell of it", || {
            let nodes: String = command(&["CLUSTER", "NODES"]).query(&mut node.connect()).expect("a list");
            nodes.contains(&format!("127.0.0.1:{}@", wire.port))
        });
    }
    wire
}

#[test]
fn a_connection_to_a_primary_that_is_cut_at_every_byte_loses_and_doubles_nothing() {
    let stores = Stores::start();
    let wire = before_a_primary(&stores);
    let settings = Settings { stores: SHORT.into(), ..Settings::of(&stores) };
    let proxy = settings.phase("964", "dual-cluster").start().ready();
    let crew = Crew::start(proxy.port, "964", Eviction::No);
    let cuts = cut_again_and_again(&wire, &crew);
    crew.end(&format!("{cuts} cuts to a primary that leads"), &proxy, &stores);
}

#[test]
fn a_connection_to_a_primary_of_the_follower_that_is_cut_at_every_byte_costs_no_client_an_error() {
    let stores = Stores::start();
    let wire = before_a_primary(&stores);
    let settings = Settings { stores: SHORT.into(), ..Settings::of(&stores) };
    let proxy = settings.phase("965", "dual-standalone").start().ready();
    proxy.cli_ok("backfill 965 --rate 0");
    let crew = Crew::start(proxy.port, "965", Eviction::No);
    let cuts = cut_again_and_again(&wire, &crew);
    let errors = crew.end(&format!("{cuts} cuts to a primary that follows"), &proxy, &stores);
    assert!(errors.is_empty(), "{} errors, the first: {}", errors.len(), errors[0]);
}

#[test]
fn a_connection_of_a_client_that_is_cut_at_every_byte_loses_and_doubles_nothing() {
    let stores = Stores::shared();
    let proxy = Settings::of(stores).phase("963", "dual-standalone").start().ready();
    let wire = FaultProxy::before(proxy.port);
    let crew = Crew::start(wire.port, "963", Eviction::No);
    let cuts = cut_again_and_again(&wire, &crew);
    crew.end(&format!("{cuts} cuts to clients"), &proxy, stores);
}
