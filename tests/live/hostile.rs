//! Stores that break the rules and clients that mean harm: what each costs is bounded, told, and nobody else's.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{Proxy, Redis, Settings, Stores, command, eventually, run};
use crate::fault::{Fault, FaultProxy, Point, Way};
use crate::protocol::Raw;

/// The most memory that the proxy has ever had.
fn peak_bytes(proxy: &Proxy) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).expect("read");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
}

/// A proxy whose standalone stands behind a wire, with one worker, so that one link carries all.
fn behind(wire: &FaultProxy, stores: &str) -> Proxy {
    let settings = Settings {
        standalone: format!("redis://127.0.0.1:{}/0", wire.port),
        workers: 1,
        stores: stores.into(),
        ..Settings::of(Stores::shared())
    };
    settings.start().ready()
}

const UNKNOWN: &str = "-ERR cutover: the store did not answer; whether the command ran is not known, so look before you send it again\r\n";

/// What comes back for one line, up to and with the line end; a bulk's second line too.
fn answer(client: &mut Raw) -> String {
    let mut line = || {
        let mut text = String::new();
        while !text.ends_with("\r\n") {
            let mut byte = [0];
            std::io::Read::read_exact(&mut client.0, &mut byte).expect("an answer");
            text.push(byte[0].into());
        }
        text
    };
    let first = line();
    if first.starts_with('$') && first != "$-1\r\n" { first + &line() } else { first }
}

#[test]
fn a_store_that_answers_garbage_or_too_much_loses_its_link_and_nobody_gets_another_s_reply() {
    let server = Redis::start(&[]);
    let wire = FaultProxy::before(server.port);
    let proxy = behind(&wire, "");
    let values: Vec<String> = (0..8).map(|number| format!("value-of-{number}")).collect();
    let mut direct = server.connect();
    for (number, value) in values.iter().enumerate() {
        run(&mut direct, &format!("SET garbage:{number} {value}"));
    }
    let replace = |from: &'static str, to: &'static str| {
        Fault::Rewrite(Arc::new(move |bytes: &[u8]| {
            let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
            text.replacen(from, to, 1).chars().map(|letter| letter as u8).collect()
        }))
    };
    // Each damages the head of the reply that holds value 3; those before it are whole.
    for (from, to) in [
        ("$10\r\nvalue-of-3", "?10\r\nvalue-of-3"),
        ("$10\r\nvalue-of-3", "$ten\r\nvalue-of-3"),
        ("$10\r\nvalue-of-3", "$99999999999\r\nvalue-of-3"),
        ("$10\r\nvalue-of-3", "$9\r\nvalue-of-3"),
        ("value-of-3\r\n", "value-of-3xx"),
    ] {
        wire.inflict(Point::after(Way::Replies, 0), replace(from, to));
        let mut clients: Vec<Raw> = (0..8).map(|_| Raw::to(proxy.port)).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(format!("GET garbage:{number}\r\n").as_bytes());
        }
        for (number, client) in clients.iter_mut().enumerate() {
            let got = answer(client);
            let own = format!("$10\r\n{}\r\n", values[number]);
            let is_refused = got == UNKNOWN || got.starts_with("-ERR cutover: the store that holds this key");
            assert!(is_refused || (number != 3 && got == own), "{to:?}: client {number} got {got:?}");
        }
        wire.pass();
        let mut after = Raw::to(proxy.port);
        eventually("the link is up again", || {
            after.send(b"GET garbage:3\r\n");
            answer(&mut after) == "$10\r\nvalue-of-3\r\n"
        });
    }
    assert!(proxy.log().contains("link lost; connecting again") && proxy.log().contains("Protocol error"));
    assert!(peak_bytes(&proxy) < 200 << 20, "a promise of 99 GB took {} bytes", peak_bytes(&proxy));
}

#[test]
fn a_reply_that_nobody_asked_for_ends_the_link_before_it_reaches_anybody() {
    let server = Redis::start(&[]);
    let wire = FaultProxy::before(server.port);
    let proxy = behind(&wire, "");
    let mut client = Raw::to(proxy.port);
    // It comes together with the answer to the only request, behind it.
    let twice = |bytes: &[u8]| [bytes, b"$5\r\nalien\r\n"].concat();
    client.send(b"SET asked 1\r\n");
    client.expect(b"+OK\r\n");
    wire.inflict(Point::behind(Way::Replies, "$8\r\nthe-only", 2), Fault::Rewrite(Arc::new(twice)));
    run(&mut server.connect(), "SET asked the-only");
    client.send(b"GET asked\r\n");
    client.expect(b"$8\r\nthe-only\r\n");
    eventually("the link was closed", || proxy.log().contains("a reply that nobody asked for"));
    wire.pass();
    eventually("nobody gets the alien", || {
        client.send(b"ECHO mine\r\nGET asked\r\n");
        let (echo, got) = (answer(&mut client), answer(&mut client));
        assert_eq!(echo, "$4\r\nmine\r\n");
        assert!(!got.contains("alien"));
        got == "$8\r\nthe-only\r\n"
    });
}

#[test]
fn a_store_that_never_answers_costs_its_clients_the_time_out_and_others_nothing() {
    let server = Redis::start(&[]);
    let wire = FaultProxy::before(server.port);
    let proxy = behind(&wire, "reply_timeout = \"300ms\"\npatience = \"200ms\"");
    let mut others = Settings::of(Stores::shared()).phase("82", "cluster");
    others.standalone = format!("redis://127.0.0.1:{}/0", wire.port);
    let moved = others.start().ready();
    wire.inflict(Point::after(Way::Replies, 0), Fault::Stall);
    let mut waiting = Raw::to(proxy.port);
    waiting.send(b"INCR silent\r\nINCR silent\r\n");
    for _ in 0..2 {
        assert!(answer(&mut waiting).starts_with("-ERR cutover: the store"));
    }
    // A provider on the other store does not notice.
    let mut served = Raw::to(moved.port);
    served.send(b"SET provider:82:a 1\r\nGET provider:82:a\r\n");
    served.expect(b"+OK\r\n$1\r\n1\r\n");
    wire.pass();
    eventually("it is served again", || {
        waiting.send(b"ECHO x\r\nGET silent\r\n");
        waiting.expect(b"$1\r\nx\r\n");
        answer(&mut waiting).starts_with('$')
    });
    // Slow is no fault: the answers come in their order, late.
    wire.inflict(Point::after(Way::Replies, 0), Fault::Slow(Duration::from_millis(20)));
    waiting.send(b"SET slow 1\r\nINCR slow\r\nGET slow\r\n");
    waiting.expect(b"+OK\r\n:2\r\n$1\r\n2\r\n");
}

#[test]
fn what_waits_for_a_store_that_takes_nothing_is_counted_and_refused_beyond_its_bound() {
    let server = Redis::start(&[]);
    let stores = "queue_bytes = \"4MiB\"\nreply_timeout = \"60s\"".into();
    let settings = Settings { standalone: server.url(), workers: 1, stores, ..Settings::of(Stores::shared()) };
    let proxy = settings.start().ready();
    let queued = || {
        let page = proxy.http("/metrics").1;
        let line = page.lines().find_map(|line| line.strip_prefix("cutover_queued_bytes{store=\"standalone\"} "));
        line.unwrap_or_else(|| panic!("not counted: {page}")).parse::<u64>().expect("a number")
    };
    server.signal("STOP");
    // 64 MiB; the system's buffers take some of it.
    let requests = 64;
    let mut client = Raw::to(proxy.port);
    let mut answers = Raw(client.0.try_clone().expect("clone"));
    let mut set = b"*3\r\n$3\r\nSET\r\n$1\r\nq\r\n$1048576\r\n".to_vec();
    set.extend(std::iter::repeat_n(b'x', 1 << 20));
    set.extend(b"\r\n");
    let writing = std::thread::spawn(move || {
        for _ in 0..requests {
            client.send(&set);
        }
    });
    eventually("the queue is full", || queued() > 3 << 20);
    assert!(queued() <= 5 << 20, "{}", queued());
    writing.join().expect("all of it is taken, or refused");
    server.signal("CONT");
    let answers: Vec<String> = (0..requests).map(|_| answer(&mut answers)).collect();
    let done = answers.iter().filter(|answer| *answer == "+OK\r\n").count();
    let refused = answers.iter().filter(|answer| answer.contains("more to do than it can")).count();
    assert!(
        done >= 4 && refused > 0 && done + refused == requests,
        "{done} done, {refused} refused: {:?}",
        answers.last()
    );
    eventually("nothing waits any more", || queued() == 0);
    assert!(peak_bytes(&proxy) < 100 << 20, "{} bytes", peak_bytes(&proxy));
}

#[test]
fn redirects_in_a_circle_end_with_an_error_when_patience_does() {
    let node = Redis::cluster_node(&[]);
    run(&mut node.connect(), "CLUSTER ADDSLOTSRANGE 0 16383");
    let wire = FaultProxy::before(node.port);
    run(&mut node.connect(), &format!("CONFIG SET cluster-announce-port {}", wire.port));
    eventually("the node serves", || {
        let info: String = command(&["CLUSTER", "INFO"]).query(&mut node.connect()).unwrap_or_default();
        info.contains("cluster_state:ok")
    });
    let settings = Settings {
        seeds: vec![format!("redis://127.0.0.1:{}", wire.port)],
        stores: "patience = \"300ms\"".into(),
        ..Settings::of(Stores::shared()).phase("83", "cluster")
    };
    let proxy = settings.start().ready();
    let mut client = Raw::to(proxy.port);
    client.send(b"SET provider:83:round circle\r\nSET provider:83:other fine\r\n");
    client.expect(b"+OK\r\n+OK\r\n");
    let (port, slot) = (wire.port, cutover::slot::of(b"provider:83:round"));
    for kind in ["MOVED", "ASK"] {
        wire.inflict(
            Point::after(Way::Replies, 0),
            Fault::Rewrite(Arc::new(move |bytes| {
                let text = String::from_utf8_lossy(bytes).into_owned();
                text.replace("$6\r\ncircle\r\n", &format!("-{kind} {slot} 127.0.0.1:{port}\r\n")).into_bytes()
            })),
        );
        client.send(b"GET provider:83:round\r\nGET provider:83:other\r\nPING\r\n");
        let told = answer(&mut client);
        assert!(told.starts_with("-ERR cutover: "), "{kind}: {told}");
        client.expect(b"$4\r\nfine\r\n+PONG\r\n");
        wire.pass();
        client.send(b"GET provider:83:round\r\n");
        client.expect(b"$6\r\ncircle\r\n");
    }
}

#[test]
fn a_million_commands_in_one_write_are_answered_in_bounded_memory_beside_others() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let mut flood = Raw::to(proxy.port);
    let mut writer = flood.0.try_clone().expect("clone");
    let many = 1_000_000;
    let writing = std::thread::spawn(move || writer.write_all(&b"PING\r\n".repeat(many)));
    let mut other = Raw::to(proxy.port);
    let pongs = b"+PONG\r\n".repeat(1_000);
    for round in 0..many / 1_000 {
        flood.expect(&pongs);
        if round % 250 == 0 {
            other.send(b"SET beside 1\r\nGET beside\r\n");
            other.expect(b"+OK\r\n$1\r\n1\r\n");
        }
    }
    writing.join().expect("no panic").expect("written");
    assert!(peak_bytes(&proxy) < 200 << 20, "{} bytes", peak_bytes(&proxy));
}

#[test]
fn a_client_that_does_not_read_is_closed_at_its_bound_and_one_that_writes_slowly_is_served() {
    let bound = "max_pending_reply_bytes = \"8MiB\"";
    let proxy = Settings { listen: bound.into(), ..Settings::of(Stores::shared()) }.start().ready();
    let mut slow = Raw::to(proxy.port);
    run(&mut proxy.connect(), &format!("SET unread:value {}", "x".repeat(64 << 10)));
    let mut deaf = Raw::to(proxy.port);
    // 128 MiB of answers; the sockets take some.
    deaf.send(&b"GET unread:value\r\n".repeat(2_000));
    eventually("it is closed", || proxy.log().contains("a client leaves more replies unread"));
    for byte in b"*3\r\n$3\r\nSET\r\n$6\r\nslowly\r\n$2\r\nok\r\n" {
        slow.send(&[*byte]);
    }
    slow.expect(b"+OK\r\n");
    drop(deaf);
    eventually("it is counted out", || proxy.table()["clients"] == 1);
    assert!(peak_bytes(&proxy) < 200 << 20, "{} bytes", peak_bytes(&proxy));
}

#[test]
fn a_flood_of_connections_is_turned_away_and_those_inside_go_on() {
    let proxy = Settings { listen: "max_clients = 20".into(), ..Settings::of(Stores::shared()) }.start().ready();
    let mut inside = Raw::to(proxy.port);
    inside.send(b"PING\r\n");
    inside.expect(b"+PONG\r\n");
    for _ in 0..5 {
        let flood: Vec<Raw> = (0..100).map(|_| Raw::to(proxy.port)).collect();
        inside.send(b"SET in 1\r\n");
        inside.expect(b"+OK\r\n");
        let mut refused = 0;
        for client in flood.into_iter().skip(40) {
            client.0.set_read_timeout(Some(Duration::from_millis(200))).expect("set a time-out");
            refused += usize::from(client.rest().contains("max number of clients reached"));
        }
        assert!(refused >= 40, "{refused} of 60 were told");
        eventually("the flood has gone", || proxy.table()["clients"] == 1);
    }
    let rejected = proxy.http("/metrics").1;
    let rejected =
        rejected.lines().find_map(|line| line.strip_prefix("cutover_clients_rejected_total ")).expect("a metric");
    assert!(rejected.parse::<u64>().expect("a number") >= 200);
    // Half-open ones are found by the system: every socket has the keepalive timer of `tcp-keepalive`.
    let (own, _kept) = (format!("0100007F:{:04X}", proxy.port), &inside);
    // Until its last answer is acknowledged a socket shows another timer.
    eventually("the one socket has the timer", || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").expect("read");
        let fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let timers: Vec<String> = fields
            .filter(|fields| fields.len() > 5 && fields[1] == own && fields[3] == "01")
            .map(|fields| fields[5].split(':').next().expect("a timer").to_string())
            .collect();
        timers == ["02"]
    });
}

#[test]
fn bytes_that_are_no_text_in_any_place_of_any_command_get_one_answer_each() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let mut other = Raw::to(proxy.port);
    let odd: &[u8] = b"\xff\x00\r\n\xc3";
    let rare = |name: &str| {
        // These end the connection, wait, or answer in several frames.
        matches!(name, "QUIT" | "RESET" | "MULTI" | "EXEC" | "MONITOR" | "SHUTDOWN" | "DEBUG")
            || name.contains("SUBSCRIBE")
            || name.starts_with('B') && name.contains("POP")
            || name.starts_with("BLM")
            || name == "BRPOPLPUSH"
            || name.starts_with("WAIT")
    };
    for spec in cutover::command::all().iter().filter(|spec| !rare(spec.name)) {
        for count in [1, 2, 3, 5] {
            let mut client = Raw::to(proxy.port);
            let mut request = format!("*{}\r\n${}\r\n{}\r\n", count + 1, spec.name.len(), spec.name).into_bytes();
            for _ in 0..count {
                request.extend(format!("${}\r\n", odd.len()).bytes());
                request.extend([odd, b"\r\n"].concat());
            }
            request.extend(b"PING\r\nQUIT\r\n");
            client.send(&request);
            let told = client.rest();
            assert!(told.ends_with("+PONG\r\n+OK\r\n"), "{} with {count}: {told:?}", spec.name);
        }
    }
    other.send(b"*2\r\n$2\r\n\xff\xfe\r\n$1\r\n\xff\r\nPING\r\n");
    assert!(answer(&mut other).starts_with("-ERR unknown command"));
    other.expect(b"+PONG\r\n");
    assert!(proxy.http("/metrics").1.contains("\ncutover_panics_total 0\n"));
}
