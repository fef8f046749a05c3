//! Clients that go away while they wait for data, and waits that cannot be ended.

use std::time::Duration;

use redis::Value;

use crate::common::{Redis, Settings, Stores, connect, eventually, run, try_run};
use crate::fault::{Fault, FaultProxy, Point, Way};
use crate::protocol::Raw;

fn has_blocked(store: &Redis) -> bool {
    let Value::BulkString(list) = run(&mut store.connect(), "CLIENT LIST") else { panic!("no text") };
    String::from_utf8_lossy(&list).contains("cmd=blpop")
}

fn is_in_doubt(proxy: &crate::common::Proxy, provider: &str) -> bool {
    let table = proxy.table();
    let routes = table["routes"].as_array().expect("routes");
    routes.iter().any(|route| route["id"] == provider && route["in_doubt"] == true)
}

/// The wire keeps the news of the closed connection from the server, as a network that loses packets does.
#[test]
fn what_comes_after_a_blocked_client_has_left_is_not_given_to_it_and_the_stores_stay_equal() {
    let stores = Stores::start();
    let wire = FaultProxy::before(stores.standalone.port);
    let settings = Settings { standalone: format!("redis://127.0.0.1:{}/0", wire.port), ..Settings::of(&stores) };
    let proxy = settings.phase("90", "dual-standalone").start().ready();
    proxy.cli_ok("backfill 90");
    let mut other = proxy.connect();
    for round in 0..5 {
        let key = format!("provider:90:q{round}");
        run(&mut other, &format!("RPUSH {key} x"));
        run(&mut other, &format!("LPOP {key}"));
        let mut blocked = Raw::to(proxy.port);
        blocked.send(format!("BLPOP {key} 0\r\n").as_bytes());
        eventually("it waits", || has_blocked(&stores.standalone));
        wire.keep_open();
        drop(blocked);
        eventually("the server has dropped it", || !has_blocked(&stores.standalone));
        assert_eq!(run(&mut other, &format!("RPUSH {key} v")), Value::Int(1));
        let kept = Value::Array(vec![Value::BulkString(b"v".to_vec())]);
        let all = ["LRANGE", &key, "0", "-1"];
        assert_eq!(run(&mut other, &all.join(" ")), kept, "it was popped for nobody");
        eventually("the follower has it too", || stores.on_cluster(&all, &key) == kept);
        wire.pass();
    }
    assert!(!is_in_doubt(&proxy, "90"));
    proxy.cli_ok("verify 90");
}

/// A store whose user may not end connections: what becomes of the wait is not known, and is not taken for nothing.
#[test]
fn a_wait_that_cannot_be_ended_is_of_unknown_outcome_and_puts_its_route_in_doubt() {
    let stores = Stores::start();
    let acl = "ACL SETUSER limited on >pw ~* &* +@all -client|unblock -client|kill";
    run(&mut stores.standalone.connect(), acl);
    let standalone = format!("redis://limited:pw@127.0.0.1:{}/0", stores.standalone.port);
    let settings = Settings { standalone, ..Settings::of(&stores) };
    let proxy = settings.phase("91", "dual-standalone").start().ready();
    proxy.cli_ok("backfill 91");
    let mut blocked = connect(proxy.port);
    let Value::Int(id) = run(&mut blocked, "CLIENT ID") else { panic!("no number") };
    let waiting = std::thread::spawn(move || try_run(&mut blocked, "BLPOP provider:91:q 0"));
    eventually("it waits", || has_blocked(&stores.standalone));
    assert!(!is_in_doubt(&proxy, "91"));
    assert_eq!(run(&mut proxy.connect(), &format!("CLIENT UNBLOCK {id}")), Value::Int(1));
    let error = waiting.join().expect("no panic").expect_err("nobody knows").to_string();
    assert!(error.contains("whether the command ran is not known"), "{error}");
    assert!(is_in_doubt(&proxy, "91"));
    assert!(proxy.log().contains("did not drop a connection that waits for data"));
    proxy.cli_ok("backfill 91");
    assert!(!is_in_doubt(&proxy, "91"));
}

/// The word to wake goes another way than the command, and overtakes it.
#[test]
fn a_wait_that_is_to_end_before_it_has_begun_is_carried_through_a_flip() {
    let stores = Stores::start();
    let wire = FaultProxy::before(stores.standalone.port);
    let settings = Settings { standalone: format!("redis://127.0.0.1:{}/0", wire.port), ..Settings::of(&stores) };
    let proxy = settings.phase("92", "standalone").start().ready();
    wire.inflict(Point::behind(Way::Requests, "BLPOP", 0), Fault::Slow(Duration::from_millis(500)));
    let mut blocked = Raw::to(proxy.port);
    blocked.send(b"BLPOP provider:92:q 0\r\n");
    eventually("it is on its way", || wire.has_struck());
    proxy.cli_ok("move 92 --to dual-standalone");
    wire.pass();
    run(&mut proxy.connect(), "RPUSH provider:92:q v");
    blocked.expect(b"*2\r\n$13\r\nprovider:92:q\r\n$1\r\nv\r\n");
}
