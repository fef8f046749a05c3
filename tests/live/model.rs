//! A provider moves through all phases and back under concurrent clients, each of which checks every reply against a
//! plain Redis that runs the same commands. Both stores must be equal to it at the end of each dual phase.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, RwLock};
use std::time::{Duration, Instant};

use fastrand::Rng;
use redis::{Connection, Value};

use crate::common::{Redis, Settings, Stores, command, connect, run};

const CLIENTS: usize = 12;
/// Keys of each type that a client has for itself.
const KEYS: usize = 4;

/// Everyone who writes, and the plain Redis that knows what is right.
struct World {
    stores: &'static Stores,
    model: Redis,
    provider: String,
    /// In which they are: one, or two whose keys have the same names.
    databases: &'static [u32],
    tag: String,
    /// Writers hold it shared for each command; whoever compares holds it alone.
    quiet: RwLock<()>,
    over: AtomicBool,
    done: AtomicU64,
}

fn select(connection: &mut Connection, db: u32) {
    run(connection, &format!("SELECT {db}"));
}

/// A random command on keys that only this client writes.
fn random_command(rng: &mut Rng, provider: &str, client: usize) -> Vec<String> {
    let n = rng.usize(..KEYS);
    let key = |kind: &str, n: usize| format!("provider:{provider}:{{c{client}}}:{kind}{n}");
    let kinds = ["str", "num", "hash", "list", "set", "zset", "stream"];
    let other = rng.usize(..KEYS);
    let (value, member) = (rng.u32(..1000).to_string(), format!("m{}", rng.u32(..12)));
    let kind = kinds[rng.usize(..kinds.len())];
    let k = &key(kind, n);
    let words = match (kind, rng.usize(..14)) {
        (_, 0) if rng.usize(..3) == 0 => format!("DEL {k}"),
        (_, 0) => format!("EXPIRE {k} {}", 100 + rng.u32(..1000)),
        (_, 1) if rng.bool() => format!("PERSIST {k}"),
        (_, 1) if rng.bool() => format!("COPY {k} {} REPLACE", key(kind, other)),
        (_, 1) if rng.bool() => format!("TYPE {k}"),
        (_, 1) if n != other => format!("RENAME {k} {}", key(kind, other)),
        (_, 1) => format!("UNLINK {k}"),
        // A command of another type: its error must be Redis's too.
        (_, 2) if rng.usize(..4) == 0 => format!("LPUSH {} x", key("hash", n)),
        (_, 2) => format!("EXISTS {k} {} {k}", key(kind, other)),
        ("str", 3) => format!("SET {k} {value} EX {}", 50 + rng.u32(..500)),
        ("str", 4) => format!("SET {k} {value} NX GET"),
        ("str", 5) => format!("SET {k} {value} XX KEEPTTL"),
        ("str", 6) => format!("APPEND {k} {value}"),
        ("str", 7) => format!("SETRANGE {k} {} {value}", rng.u32(..40)),
        ("str", 8) => format!("GETDEL {k}"),
        ("str", 9) => format!("GETEX {k} PX {}", 50_000 + rng.u32(..500_000)),
        ("str", 10) => format!("MSET {k} {value} {} b{value}", key("str", other)),
        ("str", 11) => format!("MGET {k} {} {}", key("str", other), key("num", other)),
        ("str", 12) => format!("GETSET {k} {value}"),
        ("str", _) => format!("GET {k}"),
        ("num", 3..6) => format!("INCR {k}"),
        ("num", 6) => format!("INCRBYFLOAT {k} 0.5"),
        ("num", 7) => format!("DECRBY {k} {value}"),
        ("num", 8) => format!("SETBIT {k} {} 1", rng.u32(..64)),
        ("num", 9) => format!("SETNX {k} {value}"),
        ("num", 10) => format!("SETEX {k} 300 {value}"),
        ("num", 11) => format!("SET {k} {value}"),
        ("num", _) => format!("GET {k}"),
        ("hash", 3..6) => format!("HSET {k} {member} {value} f{value} x"),
        ("hash", 6) => format!("HINCRBY {k} n{member} {value}"),
        ("hash", 7) => format!("HINCRBYFLOAT {k} f{member} 1.25"),
        ("hash", 8) => format!("HDEL {k} {member} n{member}"),
        ("hash", 9) => format!("HSETNX {k} {member} {value}"),
        ("hash", 10) => format!("HLEN {k}"),
        ("hash", _) => format!("HGETALL {k}"),
        ("list", 3) => format!("LPUSH {k} {value} {member}"),
        ("list", 4) => format!("RPUSH {k} {value}"),
        ("list", 5) => format!("LPOP {k}"),
        ("list", 6) => format!("RPOP {k} 2"),
        ("list", 7) => format!("LREM {k} 1 {member}"),
        ("list", 8) => format!("LTRIM {k} 0 15"),
        ("list", 9) => format!("LINSERT {k} BEFORE {member} {value}"),
        ("list", 10) => format!("LMOVE {k} {} LEFT RIGHT", key("list", other)),
        ("list", 11) => format!("RPUSHX {k} {value}"),
        ("list", 12) => format!("LSET {k} 0 {value}"),
        ("list", _) => format!("LRANGE {k} 0 -1"),
        ("set", 3..6) => format!("SADD {k} {member} {value}"),
        ("set", 6) => format!("SREM {k} {member}"),
        ("set", 7) => format!("SMOVE {k} {} {member}", key("set", other)),
        ("set", 8) => format!("SUNIONSTORE {k} {k} {}", key("set", other)),
        ("set", 9) => format!("SCARD {k}"),
        ("set", _) => format!("SMEMBERS {k}"),
        ("zset", 3..5) => format!("ZADD {k} {value} {member}"),
        ("zset", 5) => format!("ZADD {k} GT CH {value} {member}"),
        ("zset", 6) => format!("ZINCRBY {k} 1.5 {member}"),
        ("zset", 7) => format!("ZREM {k} {member}"),
        ("zset", 8) => format!("ZPOPMIN {k}"),
        ("zset", 9) => format!("ZREMRANGEBYRANK {k} 8 -1"),
        ("zset", 10) => format!("ZADD {k} INCR 2 {member}"),
        ("zset", _) => format!("ZRANGE {k} 0 -1 WITHSCORES"),
        (_, 3..7) => format!("XADD {k} {}-1 f {value}", rng.u64(1..1_000_000)),
        (_, 7) => format!("XTRIM {k} MAXLEN 5"),
        (_, 8) => format!("XDEL {k} {value}-1"),
        (_, 9) => format!(
            "EVAL redis.call('RPUSH',KEYS[1],ARGV[1]);return(redis.call('LLEN',KEYS[1])) 1 {} {value}",
            key("list", n)
        ),
        (_, 10) => format!("XLEN {k}"),
        (_, _) => format!("XRANGE {k} - +"),
    };
    words.split(' ').map(str::to_string).collect()
}

/// What a reply means: errors by their text, replies without an order in an order of our own.
fn meaning(name: &str, reply: redis::RedisResult<Value>) -> String {
    match reply {
        Ok(Value::Array(mut elements)) if name == "SMEMBERS" => {
            elements.sort_by_key(|element| format!("{element:?}"));
            format!("{elements:?}")
        }
        Ok(Value::Array(elements)) if name == "HGETALL" => {
            let mut pairs: Vec<String> = elements.chunks(2).map(|pair| format!("{pair:?}")).collect();
            pairs.sort();
            format!("{pairs:?}")
        }
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("error {} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default()),
    }
}

/// One client until the end: each command on both, now and then a transaction.
fn client(world: &World, number: usize, seed: u64, port: u16) {
    let (mut through, mut model) = (connect(port), world.model.connect());
    let (db, name) = (world.databases[number % world.databases.len()], number / world.databases.len());
    select(&mut through, db);
    select(&mut model, db);
    let mut rng = Rng::with_seed(seed + number as u64);
    while !world.over.load(Ordering::Relaxed) {
        let _writing = world.quiet.read().expect("no holder panics");
        let commands =
            (0..if rng.usize(..20) == 0 { 3 } else { 1 }).map(|_| random_command(&mut rng, &world.provider, name));
        let commands: Vec<Vec<String>> = commands.collect();
        let ask = |connection: &mut Connection| -> String {
            if let [one] = commands.as_slice() {
                let words: Vec<&str> = one.iter().map(String::as_str).collect();
                return meaning(words[0], command(&words).query(connection));
            }
            let mut pipe = redis::pipe();
            pipe.atomic();
            for words in &commands {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                pipe.add_command(command(&words));
            }
            // Replies without an order are not asked for in a transaction, where they could not be told apart.
            match commands.iter().any(|words| ["SMEMBERS", "HGETALL"].contains(&words[0].as_str())) {
                true => meaning("EXEC", pipe.query::<Value>(connection).map(|_| Value::Okay)),
                false => meaning("EXEC", pipe.query(connection)),
            }
        };
        let (got, wanted) = (ask(&mut through), ask(&mut model));
        assert_eq!(got, wanted, "seed {seed}, client {number}: {commands:?}");
        world.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Clients that share keys: what each of them does is told by the sum.
fn sharing_client(world: &World, number: usize, port: u16) {
    let mut through = connect(port);
    select(&mut through, world.shared_db());
    let mut added = 0i64;
    let provider = &world.provider;
    while !world.over.load(Ordering::Relaxed) {
        let _writing = world.quiet.read().expect("no holder panics");
        let key = added % 5;
        let _: i64 =
            command(&["INCR", &format!("provider:{provider}:shared:{key}")]).query(&mut through).expect("INCR");
        let _: i64 = command(&["HINCRBY", &format!("provider:{provider}:counts"), &number.to_string(), "1"])
            .query(&mut through)
            .expect("HINCRBY");
        let _: i64 = command(&["RPUSH", &format!("provider:{provider}:log:{key}"), &format!("{number}-{added}")])
            .query(&mut through)
            .expect("RPUSH");
        added += 1;
        let mine: i64 = command(&["HGET", &format!("provider:{provider}:counts"), &number.to_string()])
            .query(&mut through)
            .expect("HGET");
        assert_eq!(mine, added, "client {number} reads what it wrote");
        world.done.fetch_add(1, Ordering::Relaxed);
    }
}

type Contents = std::collections::BTreeMap<String, (String, i64)>;

/// Every key of the provider on a server: name, value and whether it expires.
fn contents(connections: &mut [Connection], pattern: &str) -> Contents {
    let mut found = Contents::new();
    for connection in connections {
        let keys: Vec<String> = command(&["KEYS", pattern]).query(connection).expect("KEYS");
        for key in keys {
            let kind: String = command(&["TYPE", &key]).query(connection).expect("TYPE");
            let question: &[&str] = match kind.as_str() {
                "string" => &["GET", &key],
                "hash" => &["HGETALL", &key],
                "list" => &["LRANGE", &key, "0", "-1"],
                "set" => &["SMEMBERS", &key],
                "zset" => &["ZRANGE", &key, "0", "-1", "WITHSCORES"],
                "stream" => &["XRANGE", &key, "-", "+"],
                // Expired between the two questions.
                "none" => continue,
                other => panic!("a key of type {other}"),
            };
            let value = meaning(question[0], command(question).query(connection));
            let expiry: i64 = command(&["PEXPIRETIME", &key]).query(connection).expect("PEXPIRETIME");
            found.insert(key, (value, expiry));
        }
    }
    found
}

impl World {
    /// That of the clients which share keys.
    fn shared_db(&self) -> u32 {
        self.databases[self.databases.len() - 1]
    }

    fn on_one(&self, redis: &Redis, db: u32) -> Contents {
        let mut connection = redis.connect();
        select(&mut connection, db);
        contents(&mut [connection], &format!("provider:{}:*", self.provider))
    }

    fn cluster(&self, db: u32) -> Contents {
        let mut primaries: Vec<Connection> = self.stores.nodes[..3].iter().map(Redis::connect).collect();
        // What stands before a key's own name.
        let front = format!("{}{}", self.tag, if db == 0 { String::new() } else { format!("db{db}:") });
        let found = contents(&mut primaries, &format!("{front}provider:{}:*", self.provider));
        found.into_iter().map(|(name, value)| (name[front.len()..].to_string(), value)).collect()
    }
}

/// Equal in keys and values, and in TTL within a second; what only the sharing clients wrote is not in the model.
#[track_caller]
fn assert_equal(what: &str, left: &Contents, right: &Contents) {
    for (key, (value, expiry)) in left {
        let Some((other, other_expiry)) = right.get(key) else { panic!("{what}: {key} is only on the first: {value}") };
        assert_eq!(value, other, "{what}: {key}");
        assert!((expiry - other_expiry).abs() <= 1000, "{what}: {key} expires at {expiry} and {other_expiry}");
    }
    for key in right.keys() {
        assert!(left.contains_key(key), "{what}: {key} is only on the second");
    }
}

/// A step of a move, each given a second of traffic.
enum Step {
    To(&'static str),
    Backfill,
    /// Everybody rests; both stores and the model are compared in full.
    Compare,
}

fn travel(provider: &str, naming: &str, databases: &'static [u32], seed: u64, steps: &[Step]) {
    let stores = Stores::shared();
    let further = if databases.len() > 1 { "[databases]\n1 = \"db1:\"" } else { "" };
    let routing = format!("cluster_keys = \"{naming}\"\n{further}");
    let proxy = Settings { routing, ..Settings::of(stores) }.phase(provider, "standalone").start().ready();
    let world = Arc::new(World {
        stores,
        model: Redis::start(&[]),
        provider: provider.to_string(),
        databases,
        tag: if naming == "tagged" { format!("{{{provider}}}") } else { String::new() },
        quiet: RwLock::new(()),
        over: AtomicBool::new(false),
        done: AtomicU64::new(0),
    });
    let (mut through, mut model) = (proxy.connect(), world.model.connect());
    for n in 0..300 {
        let key = format!("provider:{provider}:untouched:{n}");
        let value = format!("value {n}");
        let words: &[&str] = match n % 3 {
            0 => &["SET", &key, &value, "EX", "5000"],
            1 => &["HSET", &key, "field", &value],
            _ => &["RPUSH", &key, &value, "b"],
        };
        for connection in [&mut through, &mut model] {
            select(connection, databases[n % databases.len()]);
            let _: Value = command(words).query(connection).expect("seed");
        }
    }
    let started = Arc::new(Barrier::new(CLIENTS + 1));
    let threads: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (world, started, port) = (world.clone(), started.clone(), proxy.port);
            std::thread::spawn(move || {
                started.wait();
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    if number % 4 == 3 {
                        sharing_client(&world, number, port)
                    } else {
                        client(&world, number, seed, port)
                    }
                }));
                if outcome.is_err() {
                    world.over.store(true, Ordering::Relaxed);
                }
                outcome.expect("a client that saw nothing wrong");
            })
        })
        .collect();
    started.wait();
    for step in steps {
        // A step under traffic means some hundred commands from each.
        let (before, began) = (world.done.load(Ordering::Relaxed), Instant::now());
        while world.done.load(Ordering::Relaxed) < before + 100 * CLIENTS as u64
            && began.elapsed() < Duration::from_secs(20)
        {
            std::thread::sleep(Duration::from_millis(5));
            if world.over.load(Ordering::Relaxed) {
                break;
            }
        }
        if world.over.load(Ordering::Relaxed) {
            break;
        }
        match step {
            Step::To(phase) => drop(proxy.cli_ok(&format!("move {provider} --to {phase}"))),
            Step::Backfill => drop(proxy.cli_ok(&format!("backfill {provider} --rate 0"))),
            Step::Compare => {
                let _resting = world.quiet.write().expect("no writer panicked");
                proxy.cli_ok(&format!("verify {provider} --rate 0"));
                for db in databases {
                    let standalone = world.on_one(&stores.standalone, *db);
                    assert_equal("standalone and cluster", &standalone, &world.cluster(*db));
                    let is_shared = |key: &str| [":shared:", ":counts", ":log:"].iter().any(|part| key.contains(part));
                    let own: Contents = standalone.into_iter().filter(|(key, _)| !is_shared(key)).collect();
                    assert!(own.len() > 100, "{}", own.len());
                    assert_equal("standalone and model", &own, &world.on_one(&world.model, *db));
                }
            }
        }
    }
    world.over.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap_or_else(|_| panic!("a client failed; the proxy's log:\n{}", proxy.log()));
    }
    let mut counts = proxy.connect();
    select(&mut counts, world.shared_db());
    let total: Vec<i64> =
        command(&["HVALS", &format!("provider:{provider}:counts")]).query(&mut counts).expect("HVALS");
    let mut sum = 0;
    for key in 0..5 {
        let incremented: i64 =
            command(&["GET", &format!("provider:{provider}:shared:{key}")]).query(&mut counts).expect("GET");
        let logged: i64 =
            command(&["LLEN", &format!("provider:{provider}:log:{key}")]).query(&mut counts).expect("LLEN");
        assert_eq!(incremented, logged, "key {key}: every increment and every push exactly once");
        sum += incremented;
    }
    assert_eq!(sum, total.iter().sum::<i64>());
    let table = proxy.table();
    let route = table["routes"].as_array().and_then(|routes| routes.iter().find(|route| route["id"] == provider));
    assert_eq!(route.map(|route| route["open_divergence"].clone()), Some(0.into()), "{table}");
}

#[test]
fn a_provider_goes_all_the_way_and_back_and_every_reply_is_redis_s() {
    use Step::{Backfill, Compare, To};
    let up = [To("dual-standalone"), Backfill, Compare, To("dual-cluster"), Compare, To("cluster")];
    let down = [To("dual-cluster"), Backfill, Compare, To("dual-standalone"), Compare, To("standalone")];
    let again = [To("dual-standalone"), Backfill, Compare];
    travel("901", "same", &[0], 1, &up.into_iter().chain(down).chain(again).collect::<Vec<_>>());
}

#[test]
fn a_provider_is_cut_over_before_its_backfill_and_back_again() {
    use Step::{Backfill, Compare, To};
    let early = [To("dual-standalone"), To("dual-cluster"), To("dual-standalone"), To("dual-cluster")];
    let then = [Backfill, Compare, To("cluster"), To("dual-cluster"), Backfill, To("dual-standalone"), Compare];
    travel("902", "same", &[0, 1], 2, &early.into_iter().chain(then).collect::<Vec<_>>());
}

#[test]
fn a_provider_whose_keys_are_tagged_goes_all_the_way_and_back() {
    use Step::{Backfill, Compare, To};
    let up = [To("dual-standalone"), Backfill, Compare, To("dual-cluster"), Compare, To("cluster")];
    let down = [To("dual-cluster"), Backfill, Compare, To("dual-standalone"), Compare, To("standalone")];
    travel("903", "tagged", &[0, 1], 3, &up.into_iter().chain(down).collect::<Vec<_>>());
}

#[test]
fn a_provider_whose_keys_are_tagged_is_cut_over_before_its_backfill() {
    use Step::{Backfill, Compare, To};
    let early = [To("dual-standalone"), To("dual-cluster"), To("dual-standalone"), To("dual-cluster")];
    travel("904", "tagged", &[0], 4, &early.into_iter().chain([Backfill, Compare, To("cluster")]).collect::<Vec<_>>());
}
