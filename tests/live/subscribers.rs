//! Many subscribers share few connections to the stores, and none of them notices.

use std::io::Read;

use redis::Value;

use crate::common::{Proxy, Redis, Settings, Stores, command, connect, eventually, run, try_run};
use crate::protocol::Raw;

fn on_cluster(stores: &Stores) -> Settings {
    Settings { routing: "pubsub = \"cluster\"".into(), ..Settings::of(stores) }
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// A frame of publish and subscribe; `head` is that of the protocol.
fn frame(head: char, words: &[&str], count: Option<i64>) -> Vec<u8> {
    let number = count.map(|count| format!(":{count}\r\n")).unwrap_or_default();
    let length = words.len() + usize::from(count.is_some());
    format!("{head}{length}\r\n{}{number}", words.iter().map(|word| bulk(word)).collect::<String>()).into_bytes()
}

fn subscriber(port: u16, words: &str) -> Raw {
    let mut raw = Raw::to(port);
    raw.send(format!("{words}\r\n").as_bytes());
    let words: Vec<&str> = words.split(' ').collect();
    let kind = words[0].to_lowercase();
    for (number, name) in words[1..].iter().enumerate() {
        raw.expect(&frame('*', &[&kind, name], Some(number as i64 + 1)));
    }
    raw
}

/// HELLO 3, its answer left unread up to its end.
fn resp3(port: u16) -> Raw {
    let mut raw = Raw::to(port);
    raw.send(b"HELLO 3\r\nECHO behind\r\n");
    let mut seen = Vec::new();
    while !seen.ends_with(b"$6\r\nbehind\r\n") {
        let mut byte = [0];
        raw.0.read_exact(&mut byte).expect("a greeting");
        seen.push(byte[0]);
    }
    raw
}

fn metric(proxy: &Proxy, name: &str) -> u64 {
    let page = proxy.http("/metrics").1;
    let line = page.lines().find(|line| line.split(' ').next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("the metric is there")
}

fn count(client: &mut redis::Connection, words: &str) -> i64 {
    match run(client, words) {
        Value::Int(count) => count,
        Value::Array(cells) => match cells.last() {
            Some(Value::Int(count)) => *count,
            other => panic!("{words}: {other:?}"),
        },
        other => panic!("{words}: {other:?}"),
    }
}

#[test]
fn subscribers_share_one_connection_a_worker_and_are_counted_one_by_one() {
    let stores = Stores::start();
    for (side, node) in [("standalone", &stores.standalone), ("cluster", &stores.nodes[0])] {
        let routing = format!("pubsub = \"{side}\"");
        let proxy = Settings { routing, ..Settings::of(&stores) }.start().ready();
        let mut twos: Vec<Raw> = (0..40).map(|_| subscriber(proxy.port, "SUBSCRIBE news:1 other")).collect();
        let mut threes: Vec<Raw> = (0..40).map(|_| resp3(proxy.port)).collect();
        for raw in &mut threes {
            raw.send(b"PSUBSCRIBE news:*\r\n");
            raw.expect(&frame('>', &["psubscribe", "news:*"], Some(1)));
        }
        let links = run(&mut node.connect(), "CLIENT LIST TYPE pubsub");
        let Value::BulkString(links) = links else { panic!("{links:?}") };
        assert!((1..=2).contains(&String::from_utf8_lossy(&links).lines().count()), "one a worker");
        let mut client = proxy.connect();
        assert_eq!(count(&mut client, "PUBLISH news:1 hello"), 80, "{side}");
        for raw in &mut twos {
            raw.expect(&frame('*', &["message", "news:1", "hello"], None));
        }
        for raw in &mut threes {
            raw.expect(&frame('>', &["pmessage", "news:*", "news:1", "hello"], None));
        }
        // Somebody at the store itself is counted too, and hears what the proxy's clients publish.
        let mut outside = subscriber(node.port, "SUBSCRIBE news:1");
        assert_eq!(count(&mut client, "PUBLISH news:1 again"), 81, "{side}");
        outside.expect(&frame('*', &["message", "news:1", "again"], None));
        assert_eq!(count(&mut client, "PUBSUB NUMSUB news:1"), 41);
        assert_eq!(count(&mut client, "PUBSUB NUMPAT"), 1);
        let mut names: Vec<String> = command(&["PUBSUB", "CHANNELS"]).query(&mut client).expect("names");
        names.sort();
        assert_eq!(names, ["news:1", "other"]);
        let (set, heard): (Value, i64) = redis::pipe()
            .atomic()
            .cmd("SET")
            .arg("k")
            .arg("v")
            .cmd("PUBLISH")
            .arg("news:1")
            .arg("x")
            .query(&mut client)
            .expect("EXEC");
        assert_eq!(set, Value::Okay);
        assert!(heard >= 80, "{side}: {heard}");
        eventually("the metrics know", || metric(&proxy, "cutover_subscriptions") == 120);
        assert!((1..=2).contains(&metric(&proxy, "cutover_subscription_links")));
        drop((twos, threes, outside));
        eventually("nobody is left", || {
            count(&mut client, "PUBLISH news:1 x") == 0 && metric(&proxy, "cutover_subscriptions") == 0
        });
        eventually("the store knows", || {
            command(&["PUBSUB", "CHANNELS"]).query::<Vec<String>>(&mut node.connect()).expect("names").is_empty()
        });
    }
}

#[test]
fn subscribe_mode_is_that_of_redis() {
    let plain = Redis::start(&[]);
    let stores = Stores::shared();
    let scripts = [
        "SUBSCRIBE a b a\r\nPSUBSCRIBE x*\r\nSSUBSCRIBE s\r\nUNSUBSCRIBE a\r\nUNSUBSCRIBE nothing\r\nPUNSUBSCRIBE\r\nPUNSUBSCRIBE\r\n",
        "UNSUBSCRIBE\r\nSUNSUBSCRIBE\r\nPUNSUBSCRIBE never had\r\nPING\r\n",
        "SUBSCRIBE a\r\nUNSUBSCRIBE a\r\nSUBSCRIBE b\r\nPING\r\nPING hello\r\nGET k\r\nSUBSCRIBE\r\nNOSUCH x\r\nUNSUBSCRIBE b\r\nGET k\r\nPING\r\n",
        "GET k\r\nSUBSCRIBE a\r\nPUBLISH a x\r\nUNSUBSCRIBE\r\nPUBLISH a x\r\n",
        "SUBSCRIBE a\r\nRESET\r\nPING\r\nPUBLISH a x\r\n",
        "SSUBSCRIBE s\r\nSUBSCRIBE a\r\nSUNSUBSCRIBE s\r\nUNSUBSCRIBE a\r\nGET k\r\n",
        "PSUBSCRIBE p*\r\nQUIT\r\n",
    ];
    for side in ["standalone", "cluster"] {
        let proxy = Settings { routing: format!("pubsub = \"{side}\""), ..Settings::of(stores) }.start().ready();
        for hello in ["", "HELLO 3\r\n"] {
            for script in scripts {
                let said = |port: u16| {
                    let mut raw = Raw::to(port);
                    raw.send(format!("{hello}{script}QUIT\r\n").as_bytes());
                    let said = raw.rest();
                    // The greeting tells the connection's number.
                    said.split_once("modules\r\n*0\r\n").map_or(said.clone(), |(_, rest)| rest.to_string())
                };
                assert_eq!(said(proxy.port), said(plain.port), "{side} {hello}{script}");
            }
        }
    }
}

#[test]
fn what_was_published_before_a_subscribe_is_not_heard_after_it() {
    let stores = Stores::shared();
    for side in ["standalone", "cluster"] {
        let proxy = Settings { routing: format!("pubsub = \"{side}\""), ..Settings::of(stores) }.start().ready();
        let mut first: Vec<Raw> = (0..4).map(|_| subscriber(proxy.port, "SUBSCRIBE c")).collect();
        let mut client = proxy.connect();
        for round in 0..100 {
            let before = format!("before {round} {}", "x".repeat(2000));
            let heard: i64 = command(&["PUBLISH", "c", &before]).query(&mut client).expect("PUBLISH");
            assert_eq!(heard, 4);
            let mut late = subscriber(proxy.port, "SUBSCRIBE c");
            assert_eq!(count(&mut client, "PUBLISH c after"), 5);
            late.expect(&frame('*', &["message", "c", "after"], None));
            for raw in &mut first {
                raw.expect(&frame('*', &["message", "c", &before], None));
                raw.expect(&frame('*', &["message", "c", "after"], None));
            }
            drop(late);
            eventually("it is gone", || count(&mut client, "PUBSUB NUMSUB c") == 4);
        }
    }
}

#[test]
fn shard_channels_of_all_slots_are_heard_and_follow_their_slot() {
    let stores = Stores::start();
    let proxy = on_cluster(&stores).start().ready();
    let names: Vec<String> = (0..12).map(|number| format!("shard:{number}")).collect();
    let mut raw = subscriber(proxy.port, &format!("SSUBSCRIBE {}", names.join(" ")));
    let mut client = proxy.connect();
    let mut publish =
        |name: &str, text: &str| -> i64 { command(&["SPUBLISH", name, text]).query(&mut client).expect("SPUBLISH") };
    for name in &names {
        assert_eq!(publish(name, "one"), 1);
        raw.expect(&frame('*', &["smessage", name, "one"], None));
    }
    let moving = names[0].as_str();
    let slot = cutover::slot::of(moving.as_bytes());
    let owner = usize::from(slot > 5460) + usize::from(slot > 10922);
    let target = (owner + 1) % 3;
    let id: String = command(&["CLUSTER", "MYID"]).query(&mut stores.nodes[target].connect()).expect("an id");
    for node in [target, owner] {
        run(&mut stores.nodes[node].connect(), &format!("CLUSTER SETSLOT {slot} NODE {id}"));
    }
    let at_new = |name: &str| count(&mut stores.nodes[target].connect(), &format!("PUBSUB SHARDNUMSUB {name}"));
    eventually("it is subscribed to where its slot is now", || at_new(moving) == 1);
    for name in &names {
        assert_eq!(publish(name, "two"), 1, "{name}");
        raw.expect(&frame('*', &["smessage", name, "two"], None));
    }
    raw.send(b"SUNSUBSCRIBE shard:0\r\n");
    raw.expect(&frame('*', &["sunsubscribe", moving], Some(11)));
    eventually("nobody is left there", || at_new(moving) == 0);
}

#[test]
fn a_flip_takes_all_subscriptions_along_and_leaves_none_behind() {
    let stores = Stores::start();
    let mut proxy = Settings::of(&stores).start().ready();
    let mut twos: Vec<Raw> = (0..6).map(|_| subscriber(proxy.port, "SUBSCRIBE c d")).collect();
    let mut patterns: Vec<Raw> = (0..6).map(|_| subscriber(proxy.port, "PSUBSCRIBE c*")).collect();
    let mut shards: Vec<Raw> = (0..6).map(|_| subscriber(proxy.port, "SSUBSCRIBE s1 s2 s3")).collect();
    let mut client = proxy.connect();
    for side in ["cluster", "standalone", "cluster"] {
        // Somebody goes while the others go over.
        drop((twos.pop(), shards.pop()));
        proxy.edit(|settings| Settings { routing: format!("pubsub = \"{side}\""), ..settings });
        eventually("adopted", || proxy.table()["pubsub"] == side);
        let left = twos.len() as i64;
        eventually("who has gone is not counted", || count(&mut client, "PUBSUB NUMSUB d") == left);
        assert_eq!(count(&mut client, &format!("PUBLISH c {side}")), left + 6);
        for raw in &mut twos {
            raw.expect(&frame('*', &["message", "c", side], None));
        }
        for raw in &mut patterns {
            raw.expect(&frame('*', &["pmessage", "c*", "c", side], None));
        }
        for name in ["s1", "s2", "s3"] {
            assert_eq!(count(&mut client, &format!("SPUBLISH {name} {side}")), shards.len() as i64);
            for raw in &mut shards {
                raw.expect(&frame('*', &["smessage", name, side], None));
            }
        }
        let old: Vec<&Redis> = match side {
            "cluster" => vec![&stores.standalone],
            _ => stores.nodes.iter().collect(),
        };
        for node in old {
            let mut node = node.connect();
            for words in ["PUBSUB CHANNELS", "PUBSUB SHARDCHANNELS"] {
                eventually("nothing is left on the old side", || run(&mut node, words) == Value::Array(Vec::new()));
            }
            assert_eq!(count(&mut node, "PUBSUB NUMPAT"), 0);
        }
    }
    drop((twos, patterns, shards));
    for node in &stores.nodes {
        let mut node = node.connect();
        for words in ["PUBSUB CHANNELS", "PUBSUB SHARDCHANNELS"] {
            eventually("nothing is left on the new side", || run(&mut node, words) == Value::Array(Vec::new()));
        }
    }
}

#[test]
fn subscribers_of_a_store_that_goes_away_are_closed_and_may_come_back() {
    let mut stores = Stores::start();
    let proxy = Settings::of(&stores).start().ready();
    let (on_channel, on_pattern) = (subscriber(proxy.port, "SUBSCRIBE c"), subscriber(proxy.port, "PSUBSCRIBE c*"));
    let mut other = proxy.connect();
    run(&mut other, "PING");
    stores.standalone.signal("KILL");
    assert_eq!((on_channel.rest(), on_pattern.rest()), (String::new(), String::new()));
    run(&mut other, "PING");
    let mut refused = Raw::to(proxy.port);
    refused.send(b"SUBSCRIBE c\r\n");
    refused.expect(
        b"-ERR cutover: the store that has to answer cannot be reached; nothing was changed, try again later\r\n",
    );
    stores.standalone.restart();
    let mut back = subscriber(proxy.port, "SUBSCRIBE c");
    let mut client = proxy.connect();
    eventually("the store is back for publishers", || try_run(&mut client, "PUBLISH nobody x").is_ok());
    assert_eq!(count(&mut client, "PUBLISH c hello"), 1);
    back.expect(&frame('*', &["message", "c", "hello"], None));
}

#[test]
fn notifications_of_keys_come_from_every_primary() {
    let stores = Stores::start();
    for node in stores.nodes.iter().chain([&stores.standalone]) {
        run(&mut node.connect(), "CONFIG SET notify-keyspace-events K$");
    }
    let proxy = on_cluster(&stores).phase("80", "cluster").start().ready();
    let mut raw = subscriber(proxy.port, "PSUBSCRIBE __keyspace@0__:provider:80:*");
    let mut client = proxy.connect();
    for number in 0..30 {
        let key = format!("provider:80:{number}");
        run(&mut client, &format!("SET {key} v"));
        let (pattern, channel) = ("__keyspace@0__:provider:80:*", format!("__keyspace@0__:{key}"));
        raw.expect(&frame('*', &["pmessage", pattern, &channel, "set"], None));
    }
    raw.send(b"PUNSUBSCRIBE\r\nPING\r\n");
    raw.expect(&frame('*', &["punsubscribe", "__keyspace@0__:provider:80:*"], Some(0)));
    raw.expect(b"+PONG\r\n");
}

#[test]
fn a_subscriber_that_does_not_read_is_closed_and_the_others_hear_everything() {
    let stores = Stores::shared();
    let listen = "max_pending_reply_bytes = \"1MiB\"".into();
    let proxy = Settings { listen, ..Settings::of(stores) }.start().ready();
    let slow = subscriber(proxy.port, "SUBSCRIBE big");
    let mut quick = subscriber(proxy.port, "SUBSCRIBE big");
    let mut client = connect(proxy.port);
    let text = "x".repeat(200_000);
    let mut sent = 0;
    // The kernel's own buffers take some megabytes before anything waits in the proxy.
    while metric(&proxy, "cutover_slow_clients_closed_total") == 0 {
        let _: i64 = command(&["PUBLISH", "big", &text]).query(&mut client).expect("PUBLISH");
        quick.expect(&frame('*', &["message", "big", &text], None));
        sent += 1;
        assert!(sent < 2000, "{}", proxy.log());
    }
    assert_eq!(count(&mut client, "PUBLISH big last"), 1);
    quick.expect(&frame('*', &["message", "big", "last"], None));
    assert!(!slow.rest().contains("last"));
}

/// As in Redis 7: the confirmations are a part of EXEC's reply. A message may come at any moment, and must not come within it.
#[test]
fn a_subscribe_in_a_transaction_is_confirmed_within_exec_and_messages_come_behind() {
    let stores = Stores::shared();
    for routing in ["", "pubsub = \"cluster\""] {
        let settings = Settings { routing: routing.into(), ..Settings::of(stores) };
        let proxy = settings.phase("88", "cluster").start().ready();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut publisher = connect(proxy.port);
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    run(&mut publisher, "PUBLISH busy x");
                }
            });
            for round in 0..40 {
                let mut raw = if round % 2 == 0 { Raw::to(proxy.port) } else { resp3(proxy.port) };
                let head = if round % 2 == 0 { '*' } else { '>' };
                raw.send(b"MULTI\r\nSUBSCRIBE busy\r\nSET provider:88:k 1\r\nPSUBSCRIBE quiet*\r\nCLIENT GETREDIR\r\nSUBSCRIBE last\r\nEXEC\r\n");
                raw.expect(&[&b"+OK\r\n"[..], &b"+QUEUED\r\n".repeat(5), b"*5\r\n"].concat());
                raw.expect(&frame(head, &["subscribe", "busy"], Some(1)));
                raw.expect(b"+OK\r\n");
                raw.expect(&frame(head, &["psubscribe", "quiet*"], Some(2)));
                raw.expect(b":-1\r\n");
                raw.expect(&frame(head, &["subscribe", "last"], Some(3)));
                raw.expect(&frame(head, &["message", "busy", "x"], None));
                raw.expect(&frame(head, &["message", "busy", "x"], None));
            }
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}

/// The nodes count the proxy's own connections, and some that go around it; the application hears of each subscriber once.
#[test]
fn pubsub_tells_of_the_whole_cluster_what_one_redis_would() {
    let stores = Stores::start();
    let bare = Redis::start(&[]);
    let proxy = on_cluster(&stores).start().ready();
    let shards: Vec<String> = (0..9).map(|number| format!("shard{number}")).collect();
    let owner = |shard: &str| {
        let slot = cutover::slot::of(shard.as_bytes());
        stores.nodes[usize::from(slot > 5460) + usize::from(slot > 10922)].port
    };
    let through: Vec<String> = ["SUBSCRIBE c d", "SUBSCRIBE c", "SUBSCRIBE c", "PSUBSCRIBE c* d*", "PSUBSCRIBE c*"]
        .map(Into::into)
        .into_iter()
        .chain(std::iter::repeat_n("PSUBSCRIBE __keyspace@0__:*".to_string(), 3))
        .chain(["SUBSCRIBE __keyevent@0__:del".to_string()])
        .chain(shards.iter().flat_map(|shard| std::iter::repeat_n(format!("SSUBSCRIBE {shard}"), 2)))
        .collect();
    let around: Vec<(u16, String)> = stores.nodes[..3]
        .iter()
        .enumerate()
        .flat_map(|(number, node)| {
            [(node.port, "SUBSCRIBE c e".to_string()), (node.port, format!("PSUBSCRIBE own{number}*"))]
        })
        .chain(shards[..4].iter().map(|shard| (owner(shard), format!("SSUBSCRIBE {shard}"))))
        .collect();
    let mut subscribed: Vec<Raw> = Vec::new();
    for words in &through {
        subscribed.extend([subscriber(proxy.port, words), subscriber(bare.port, words)]);
    }
    for (port, words) in &around {
        subscribed.extend([subscriber(*port, words), subscriber(bare.port, words)]);
    }
    let (mut client, mut wanted) = (proxy.connect(), bare.connect());
    let sorted = |answer: Value| match answer {
        Value::Array(mut cells) => {
            cells.sort_by_key(|cell| format!("{cell:?}"));
            Value::Array(cells)
        }
        other => other,
    };
    let lists = ["PUBSUB CHANNELS", "PUBSUB CHANNELS c*", "PUBSUB SHARDCHANNELS", "PUBSUB SHARDCHANNELS *1"];
    for words in lists {
        assert_eq!(sorted(run(&mut client, words)), sorted(run(&mut wanted, words)), "{words}");
    }
    let all = format!("PUBSUB SHARDNUMSUB {}", shards.join(" "));
    let numbers =
        ["PUBSUB NUMSUB", "PUBSUB NUMSUB c d e nobody __keyevent@0__:del", "PUBSUB NUMPAT", "PUBSUB SHARDNUMSUB", &all];
    for words in numbers {
        assert_eq!(run(&mut client, words), run(&mut wanted, words), "{words}");
    }
    drop(subscribed);
    eventually("all have gone", || {
        numbers.iter().all(|words| run(&mut client, words) == run(&mut wanted, words))
            && run(&mut client, "PUBSUB NUMPAT") == Value::Int(0)
    });
}
