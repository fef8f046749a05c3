//! What a client says of its own connection and does to others', as with one Redis.

use std::time::{Duration, Instant};

use redis::Value;

use crate::common::{Redis, Settings, Stores, command, connect, eventually, run, try_run};
use crate::protocol::Raw;

fn text(value: Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).expect("text"),
        other => panic!("no text: {other:?}"),
    }
}

/// redis-py up to 5 fails where one of a server's numbers is missing.
#[test]
fn a_client_is_described_by_all_that_a_server_says_of_one() {
    let stores = Stores::shared();
    let names = |info: &str| -> Vec<String> {
        let name = |field: &str| field.split_once('=').expect("a name and a value").0.to_string();
        info.trim_end().split(' ').map(name).collect()
    };
    let of_server = names(&text(run(&mut stores.standalone.connect(), "CLIENT INFO")));
    let own = names(&text(run(&mut Settings::of(stores).start().ready().connect(), "CLIENT INFO")));
    // What newer servers have more of, and the number of a file that is the server's own.
    let known = ["fd", "watch", "io-thread", "tot-net-in", "tot-net-out", "tot-cmds"];
    let missing: Vec<_> = of_server.iter().filter(|name| !own.contains(name)).collect();
    assert!(missing.iter().all(|name| known.contains(&name.as_str())), "{missing:?}");
    let mut shared = of_server.iter().filter(|name| own.contains(name));
    assert!(own.iter().filter(|name| of_server.contains(name)).all(|name| shared.next() == Some(name)), "in its order");
}

#[test]
fn clients_are_listed_by_name_and_killed_by_id_address_and_type() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let (mut own, mut other) = (proxy.connect(), proxy.connect());
    run(&mut own, "CLIENT SETNAME own");
    run(&mut other, "CLIENT SETNAME other");
    run(&mut other, "SELECT 3");
    let list = text(run(&mut own, "CLIENT LIST"));
    let line = list.lines().find(|line| line.contains(" name=other ")).expect("the other is listed");
    assert!(line.contains(" db=3 ") && line.contains(" cmd=select ") && line.contains(" flags=N "), "{line}");
    assert!(text(run(&mut own, "CLIENT INFO")).contains(" name=own "));
    let id = line.strip_prefix("id=").and_then(|rest| rest.split(' ').next()).expect("an id");
    assert_eq!(text(run(&mut own, &format!("CLIENT LIST ID {id}"))).lines().count(), 1);
    assert_eq!(run(&mut own, &format!("CLIENT KILL ID {id}")), Value::Int(1));
    eventually("the other is closed", || try_run(&mut other, "PING").is_err());
    eventually("nobody but the caller is left", || run(&mut own, "CLIENT KILL TYPE normal") == Value::Int(0));
    assert!(try_run(&mut own, "CLIENT KILL 127.0.0.1:1").expect_err("nobody").to_string().contains("No such client"));
    let mut subscriber = Raw::to(proxy.port);
    subscriber.send(b"SUBSCRIBE c\r\n");
    subscriber.expect(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n");
    eventually("it is known as one", || text(run(&mut own, "CLIENT LIST TYPE pubsub")).lines().count() == 1);
    assert_eq!(run(&mut own, "CLIENT KILL TYPE pubsub"), Value::Int(1));
    assert_eq!(subscriber.rest(), "");
}

#[test]
fn a_blocked_client_is_unblocked_as_if_its_time_were_over_or_with_an_error() {
    let proxy = Settings::of(Stores::shared()).phase("70", "dual-standalone").start().ready();
    let mut own = proxy.connect();
    for (how, wanted) in [("TIMEOUT", "*-1\r\n"), ("ERROR", "-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n")] {
        let mut blocked = Raw::to(proxy.port);
        let id = text_id(&mut blocked);
        blocked.send(b"BLPOP provider:70:queue 0\r\n");
        let unblock = format!("CLIENT UNBLOCK {id} {how}");
        eventually("it is unblocked", || run(&mut own, &unblock) == Value::Int(1));
        blocked.expect(wanted.as_bytes());
        blocked.send(b"PING\r\n");
        blocked.expect(b"+PONG\r\n");
    }
    let idle = format!(
        "CLIENT UNBLOCK {}",
        match run(&mut own, "CLIENT ID") {
            Value::Int(id) => id,
            other => panic!("{other:?}"),
        }
    );
    assert_eq!(run(&mut own, &idle), Value::Int(0));
}

#[test]
fn a_pause_holds_up_writes_and_not_reads_until_it_ends() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let (mut own, port) = (proxy.connect(), proxy.port);
    run(&mut own, "CLIENT PAUSE 10000 WRITE");
    let began = Instant::now();
    run(&mut own, "GET pause:a");
    assert!(began.elapsed() < Duration::from_secs(5), "reads pass");
    let writing = std::thread::spawn(move || run(&mut connect(port), "SET pause:a 1"));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!writing.is_finished(), "writes wait");
    run(&mut own, "CLIENT UNPAUSE");
    assert_eq!(writing.join().expect("written"), Value::Okay);
    run(&mut own, "CLIENT PAUSE 100");
    let began = Instant::now();
    run(&mut own, "GET pause:a");
    assert!(began.elapsed() >= Duration::from_millis(80), "it held up everything, and ended by itself");
}

#[test]
fn muted_replies_are_those_asked_for_and_no_others() {
    let proxy = Settings::of(Stores::shared()).phase("71", "dual-standalone").start().ready();
    let mut client = Raw::to(proxy.port);
    client.send(b"SET provider:71:m 1\r\nGET provider:71:m\r\nCLIENT REPLY OFF\r\nGET provider:71:m\r\nINCR provider:71:m\r\nCLIENT REPLY ON\r\n");
    client.send(b"GET provider:71:m\r\nCLIENT REPLY SKIP\r\nGET provider:71:m\r\nECHO after\r\n");
    client.expect(b"+OK\r\n$1\r\n1\r\n+OK\r\n$1\r\n2\r\n$5\r\nafter\r\n");
}

#[test]
fn a_subscription_that_follows_the_end_of_the_last_one_stays() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let (mut client, mut publisher) = (Raw::to(proxy.port), proxy.connect());
    client.send(b"SUBSCRIBE a\r\nUNSUBSCRIBE a\r\nSUBSCRIBE b\r\n");
    client.expect(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:1\r\n");
    assert_eq!(command(&["PUBLISH", "b", "x"]).query::<i64>(&mut publisher).expect("PUBLISH"), 1);
    client.expect(b"*3\r\n$7\r\nmessage\r\n$1\r\nb\r\n$1\r\nx\r\n");
    client.send(b"RESET\r\nGET sub:none\r\n");
    client.expect(b"+RESET\r\n$-1\r\n");
}

#[test]
fn a_store_that_is_loading_is_told_in_its_own_words() {
    let stores = Stores::shared();
    let proxy = Settings { stores: "patience = \"200ms\"".into(), ..Settings::of(stores) }.start().ready();
    let mut client = Raw::to(proxy.port);
    client.send(b"EVAL \"return redis.error_reply('LOADING a fake')\" 0\r\nPING\r\n");
    client.expect(b"-LOADING Redis is loading the dataset in memory\r\n+PONG\r\n");
}

#[test]
fn nobody_locks_the_proxy_out_of_its_store() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let mut client = proxy.connect();
    for words in ["CONFIG SET requirepass x", "config set maxmemory-samples 5 port 1"] {
        let error = try_run(&mut client, words).expect_err(words).to_string();
        assert!(error.contains("'config|set' is not available through cutover"), "{error}");
    }
    assert_eq!(run(&mut client, "CONFIG SET maxmemory-samples 5"), Value::Okay);
}

#[test]
fn commands_that_need_a_connection_of_their_own_are_bound_and_say_so() {
    let stores = Stores::shared();
    let proxy = Settings { stores: "private_links = 2".into(), ..Settings::of(stores) }.start().ready();
    let taken = |count: u64| {
        let wanted = format!("cutover_private_links{{store=\"standalone\"}} {count}\n");
        eventually("the metric knows", || proxy.http("/metrics").1.contains(&wanted));
    };
    let mut blocked: Vec<Raw> = (0..2).map(|_| Raw::to(proxy.port)).collect();
    for raw in &mut blocked {
        raw.send(b"BLPOP bound:q 0\r\n");
    }
    taken(2);
    let mut client = proxy.connect();
    for words in ["BLPOP bound:q 1", "WATCH bound:k"] {
        let error = try_run(&mut client, words).expect_err(words).to_string();
        assert!(error.contains("all connections for commands that need one of their own are in use"), "{error}");
    }
    let refused = "cutover_refused_requests_total{reason=\"no_link_free\"} 2\n";
    eventually("both are counted", || proxy.http("/metrics").1.contains(refused));
    run(&mut client, "RPUSH bound:q a b");
    for raw in blocked {
        drop(raw);
    }
    taken(0);
    assert_eq!(run(&mut client, "WATCH bound:k"), Value::Okay);
    taken(1);
}

/// What others see of a client that does much, beside what they see of it on one Redis.
#[test]
fn a_client_is_described_as_redis_does() {
    let (proxy, bare) = (Settings::of(Stores::shared()).start().ready(), Redis::start(&[]));
    let seen = |port: u16| {
        let (mut client, mut other) = (Raw::to(port), connect(port));
        let mut line_of = |word: &str| {
            let mut found = String::new();
            eventually(word, || {
                let list = text(run(&mut other, "CLIENT LIST"));
                let line = list.lines().find(|line| line.contains(" name=zed ") && line.contains(word));
                found = line.unwrap_or_default().to_string();
                !found.is_empty()
            });
            let fields =
                ["name=", "flags=", "db=", "sub=", "psub=", "ssub=", "multi=", "cmd=", "user=", "redir=", "resp="];
            let is_known = |word: &&str| fields.iter().any(|field| word.starts_with(field));
            found.split(' ').filter(is_known).collect::<Vec<_>>().join(" ")
        };
        client.send(b"HELLO 3\r\nCLIENT SETNAME zed\r\nSELECT 3\r\nCLIENT GETNAME\r\n");
        let mut lines = vec![line_of("cmd=client|getname")];
        client.send(b"SUBSCRIBE a b\r\nPSUBSCRIBE c*\r\nSSUBSCRIBE s\r\nPING\r\n");
        lines.push(line_of("cmd=ping"));
        client.send(b"UNSUBSCRIBE\r\nPUNSUBSCRIBE\r\nSUNSUBSCRIBE\r\nMULTI\r\nINCR x\r\n");
        lines.push(line_of("cmd=incr"));
        client.send(b"DISCARD\r\nRESET\r\nCLIENT SETNAME zed\r\nCLIENT INFO\r\n");
        lines.push(line_of("cmd=client|info"));
        lines
    };
    assert_eq!(seen(proxy.port), seen(bare.port));
}

/// One stream of commands, and every byte of what comes back until the end.
#[test]
fn a_connection_goes_through_its_modes_as_on_one_redis() {
    let (proxy, bare) = (Settings::of(Stores::shared()).start().ready(), Redis::start(&[]));
    let talk = [
        "PING",
        "CLIENT REPLY SKIP",
        "PING x",
        "PING y",
        "CLIENT REPLY OFF",
        "PING z",
        "CLIENT REPLY SKIP",
        "PING z",
        "GET k",
        "NOSUCH",
        "CLIENT REPLY ON",
        "PING on",
        "CLIENT REPLY SKIP",
        "CLIENT REPLY SKIP",
        "PING 1",
        "PING 2",
        "CLIENT REPLY NOSUCH",
        "PING",
        "SUBSCRIBE a b",
        "PING",
        "PING x",
        "PING x y",
        "GET k",
        "MULTI",
        "UNSUBSCRIBE b",
        "PSUBSCRIBE a*",
        "RESET",
        "GET k",
        "CLIENT SETNAME q",
        "SELECT 5",
        "MULTI",
        "SET k 1",
        "RESET",
        "EXEC",
        "CLIENT GETNAME",
        "WATCH k",
        "RESET",
        "MULTI",
        "PING",
        "EXEC",
        "CLIENT REPLY SKIP",
        "HELLO 3 SETNAME w",
        "CLIENT GETNAME",
        "SUBSCRIBE a",
        "GET k",
        "PUBLISH a x",
        "PING",
        "MULTI",
        "PING",
        "EXEC",
        "UNSUBSCRIBE",
        "PUNSUBSCRIBE",
        "CLIENT TRACKINGINFO",
        "RESET",
        "CLIENT TRACKINGINFO",
        "CLIENT KILL ID 999999",
        "CLIENT PAUSE 5",
        "GET k",
        "CLIENT UNPAUSE",
        "ECHO x",
        "CLIENT REPLY OFF",
        "PING",
        "SELECT 99",
        "CLIENT REPLY ON",
        "QUIT",
        "PING",
    ];
    let heard = |port: u16| {
        let mut client = Raw::to(port);
        client.send(format!("{}\r\n", talk.join("\r\n")).as_bytes());
        client.rest()
    };
    assert_eq!(heard(proxy.port), heard(bare.port));
    let killed = |port: u16| {
        let mut client = Raw::to(port);
        let id = text_id(&mut client);
        client.send(format!("MULTI\r\nCLIENT KILL ID {id} SKIPME no\r\nPING\r\nEXEC\r\nPING\r\n").as_bytes());
        client.rest()
    };
    assert_eq!(killed(proxy.port), killed(bare.port));
}

fn text_id(client: &mut Raw) -> String {
    client.send(b"CLIENT ID\r\n");
    let mut id = String::new();
    while !id.ends_with("\r\n") {
        let mut byte = [0];
        std::io::Read::read_exact(&mut client.0, &mut byte).expect("an id");
        id.push(byte[0].into());
    }
    id.trim().trim_start_matches(':').to_string()
}
