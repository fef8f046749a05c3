//! Flips under everything that waits or keeps state: blocked clients, WATCH, transactions, subscriptions, scripts, pipelines
//! in flight.
//! Each kind of client has a law of its own that any lost, doubled or overtaken command breaks, and checks it as it goes.
//!
//! `CUTOVER_MODEL_SECONDS=30` makes it that long; `--nocapture` shows what was counted.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::{Connection, RedisResult, Value};

use crate::common::{Proxy, Settings, Stores, command, connect, run};
use crate::ordeals::seconds;

/// All keys share a slot, so that the cluster takes what a transaction or BLMOVE names.
const KEY: &str = "provider:961:{t}";

const SUBSCRIBERS: u64 = 2;

/// Ends a subscriber.
const LAST_MESSAGE: u64 = 0;

fn ask(connection: &mut Connection, line: &str) -> Value {
    run(connection, &line.replace('@', KEY))
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Nil => None,
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        other => panic!("no text: {other:?}"),
    }
}

fn number(value: &Value) -> u64 {
    text(value).map_or(0, |text| text.parse().expect("a number"))
}

/// What all of them have done.
#[derive(Default)]
struct Done {
    is_over: AtomicBool,
    /// Elements that were pushed, and those that somebody got.
    pushed: AtomicU64,
    popped: Mutex<Vec<String>>,
    /// Transactions on a watched key that were carried out, and those that were not.
    swapped: AtomicU64,
    conflicts: AtomicU64,
    /// Subscribers that hear, and messages that came.
    listening: AtomicU64,
    heard: AtomicU64,
    /// Steps of the other clients.
    steps: AtomicU64,
}

impl Done {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    fn push(&self, port: u16, producer: usize) {
        let (mut client, mut count) = (connect(port), 0);
        while self.goes_on() {
            count += 1;
            let side = if count % 3 == 0 { "zadd" } else { "list" };
            match side {
                "list" => ask(&mut client, &format!("RPUSH @:queue {producer}.{count}")),
                _ => ask(&mut client, &format!("ZADD @:ranked {count} {producer}.{count}")),
            };
            self.pushed.fetch_add(1, Ordering::Relaxed);
            // Consumers are to wait more often than not.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// `wait`: the blocking command; it ends when nothing has come for a second after the work is over.
    fn pop(&self, port: u16, wait: &str) {
        let mut client = connect(port);
        loop {
            let was_over = !self.goes_on();
            let got = match ask(&mut client, wait) {
                Value::Nil if was_over => return,
                Value::Nil => continue,
                Value::Array(parts) => text(&parts[1]),
                moved => text(&moved),
            };
            self.popped.lock().expect("nobody panicked").extend(got);
        }
    }

    fn swap(&self, port: u16) {
        let mut client = connect(port);
        while self.goes_on() {
            ask(&mut client, "WATCH @:watched");
            let next = number(&ask(&mut client, "GET @:watched")) + 1;
            ask(&mut client, "MULTI");
            ask(&mut client, &format!("SET @:watched {next}"));
            let counter = match ask(&mut client, "EXEC") {
                Value::Nil => &self.conflicts,
                Value::Array(_) => &self.swapped,
                other => panic!("{other:?}"),
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Both of a pair stand next to each other, whoever else counts.
    fn count_in_pairs(&self, port: u16) {
        let mut client = connect(port);
        while self.goes_on() {
            for line in ["MULTI", "INCR @:pairs", "INCR @:pairs"] {
                ask(&mut client, line);
            }
            match ask(&mut client, "EXEC") {
                Value::Array(both) => match both[..] {
                    [Value::Int(one), Value::Int(two)] => assert_eq!((one % 2, two), (1, one + 1)),
                    _ => panic!("{both:?}"),
                },
                other => panic!("{other:?}"),
            }
            self.steps.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every message comes once, in order.
    fn hear(&self, port: u16, pattern: bool) {
        let mut client = connect(port);
        let mut subscription = client.as_pubsub();
        match pattern {
            true => subscription.psubscribe("tog?ther").expect("PSUBSCRIBE"),
            false => subscription.subscribe("together").expect("SUBSCRIBE"),
        }
        self.listening.fetch_add(1, Ordering::Relaxed);
        let mut last = 0;
        loop {
            let number: u64 = subscription.get_message().expect("a message").get_payload().expect("a number");
            if number == LAST_MESSAGE {
                return;
            }
            assert_eq!(number, last + 1, "a message was lost, doubled or overtaken");
            last = number;
            self.heard.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn publish(&self, port: u16) {
        let (mut client, mut number) = (connect(port), 0);
        while self.goes_on() {
            if self.listening.load(Ordering::Relaxed) < SUBSCRIBERS {
                std::thread::yield_now();
                continue;
            }
            number += 1;
            ask(&mut client, &format!("PUBLISH together {number}"));
            self.steps.fetch_add(1, Ordering::Relaxed);
        }
        ask(&mut client, &format!("PUBLISH together {LAST_MESSAGE}"));
    }

    fn count_by_script(&self, port: u16, number: usize) {
        let (mut client, mut count) = (connect(port), 0);
        let script = "local n=redis.call('INCR',KEYS[1]);redis.call('APPEND',KEYS[2],'x');return{n,redis.call('STRLEN',KEYS[2])}";
        while self.goes_on() {
            count += 1;
            let reply: RedisResult<(i64, i64)> =
                command(&["EVAL", script, "2", &format!("{KEY}:s{number}"), &format!("{KEY}:l{number}")])
                    .query(&mut client);
            assert_eq!(reply, Ok((count, count)));
            self.steps.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn count_in_a_pipeline(&self, port: u16, number: usize) {
        let (mut client, mut count) = (connect(port), 0);
        while self.goes_on() {
            let mut pipeline = redis::pipe();
            for _ in 0..50 {
                pipeline.cmd("INCR").arg(format!("{KEY}:p{number}"));
            }
            let replies: Vec<i64> = pipeline.query(&mut client).expect("fifty answers");
            assert_eq!(replies, (count + 1..=count + 50).collect::<Vec<i64>>());
            count += 50;
            self.steps.fetch_add(50, Ordering::Relaxed);
        }
    }
}

/// What a thread does.
type Work = Box<dyn FnOnce(&Done) + Send>;

/// A thread that panics ends the work of all, so that what it said is seen.
struct Last<'d>(&'d Done);

impl Drop for Last<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.is_over.store(true, Ordering::Relaxed);
        }
    }
}

fn flip_up_and_down(proxy: &Proxy, done: &Done) -> u32 {
    let (until, mut flips) = (Instant::now() + seconds(), 0);
    while Instant::now() < until && done.goes_on() {
        for step in [
            "961 --to dual-standalone",
            "961 --to dual-cluster",
            "pubsub --to cluster",
            "961 --to cluster",
            "961 --to dual-cluster",
            "pubsub --to standalone",
            "961 --to dual-standalone",
            "961 --to standalone",
        ] {
            let line = format!("move {step}");
            if !proxy.cli(&line).status.success() {
                proxy.cli_ok("backfill 961 --rate 0");
                proxy.cli_ok(&line);
            }
            flips += 1;
        }
    }
    flips
}

#[test]
fn what_waits_or_keeps_state_is_carried_through_flips_whole() {
    let proxy = Settings::of(Stores::shared()).phase("961", "standalone").start().ready();
    let (done, port) = (Done::default(), proxy.port);
    let waits =
        ["BLPOP @:queue 1", "BLMOVE @:queue @:taken LEFT RIGHT 1", "BZPOPMIN @:ranked 1", "BLPOP @:none @:queue 1"];
    let mut works: Vec<Work> = Vec::new();
    for wait in waits {
        works.push(Box::new(move |done| done.pop(port, wait)));
    }
    works.push(Box::new(move |done| done.publish(port)));
    for number in 0..2 {
        works.push(Box::new(move |done| done.hear(port, number == 1)));
        works.push(Box::new(move |done| done.push(port, number)));
        works.push(Box::new(move |done| done.swap(port)));
        works.push(Box::new(move |done| done.count_in_pairs(port)));
        works.push(Box::new(move |done| done.count_by_script(port, number)));
        works.push(Box::new(move |done| done.count_in_a_pipeline(port, number)));
    }
    let flips = std::thread::scope(|scope| {
        let done = &done;
        for work in works {
            scope.spawn(move || {
                let _last = Last(done);
                work(done);
            });
        }
        let _last = Last(done);
        let flips = flip_up_and_down(&proxy, done);
        done.is_over.store(true, Ordering::Relaxed);
        flips
    });
    let popped = done.popped.into_inner().expect("nobody panicked");
    let [pushed, swapped, conflicts, heard, steps] =
        [done.pushed, done.swapped, done.conflicts, done.heard, done.steps].map(AtomicU64::into_inner);
    println!(
        "{flips} flips: {pushed} pushed, {} popped, {swapped} swapped with {conflicts} conflicts, {heard} messages heard, {steps} other steps",
        popped.len()
    );
    assert!(flips > 5 && swapped > 0 && heard > 0 && steps > 0);
    assert_eq!(popped.iter().collect::<BTreeSet<_>>().len(), popped.len(), "an element came twice");
    assert_eq!(popped.len() as u64, pushed, "an element was lost");
    let mut client = proxy.connect();
    assert_eq!(number(&ask(&mut client, "GET @:watched")), swapped);
    proxy.cli_ok("move 961 --to dual-standalone");
    proxy.cli_ok("backfill 961 --rate 0");
    proxy.cli_ok("verify 961");
}
