//! Many clients write one key in every way at once, over shared connections and over their own, and then the next one: whatever
//! order the leader took, the follower has to take it too. One key after the other, because a later write would hide it.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use redis::{Connection, RedisError};

use crate::common::{Proxy, Settings, Stores, command, connect, try_run};
use crate::ordeals::seconds;

const RIVALS: usize = 8;

/// One of the ways to write `key`, and its neighbour in the same slot.
fn write(client: &mut Connection, way: usize, key: &str, value: &str) -> Result<(), RedisError> {
    let other = format!("{key}:b");
    let mut send = |lines: &[&str]| lines.iter().try_for_each(|line| try_run(client, line).map(drop));
    match way % 11 {
        0..=3 => send(&[&format!("SET {key} {value}")]),
        4 => send(&[&format!("APPEND {key} {value}")]),
        5 => send(&[&format!("SET {key} {value} EX 1000")]),
        6 => send(&[&format!("DEL {key}")]),
        7 => send(&[&format!("MSET {key} {value} {other} {value}")]),
        8 => send(&["MULTI", &format!("SET {key} {value}"), &format!("SET {other} {value}"), "EXEC"]),
        9 => send(&[&format!("WATCH {other}:c"), "MULTI", &format!("SET {key} {value}"), "EXEC"]),
        _ => {
            let script = "redis.call('SET',KEYS[1],ARGV[1]) return redis.call('GET',KEYS[2])";
            command(&["EVAL", script, "2", key, &other, value]).query::<Option<String>>(client).map(drop)
        }
    }
}

/// Gives how many keys they wrote.
fn contend(proxy: &Proxy, round_of_first: usize) -> usize {
    let (until, is_over, gate) = (Instant::now() + seconds(), AtomicBool::new(false), Barrier::new(RIVALS));
    let rival = |number: usize| {
        let (mut client, mut round, mut failed) = (connect(proxy.port), round_of_first, None);
        loop {
            if gate.wait().is_leader() {
                is_over.store(Instant::now() >= until, Ordering::Relaxed);
            }
            // All of them see the same, and none waits for one that has left.
            gate.wait();
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            let key = format!("provider:962:{{t}}:{round}");
            let written = write(&mut client, round / 11 * number + round, &key, &number.to_string());
            failed = failed.or(written.err());
            round += 1;
        }
        assert_eq!(failed, None);
        round - round_of_first
    };
    std::thread::scope(|scope| {
        let rivals: Vec<_> = (0..RIVALS)
            .map(|number| {
                scope.spawn({
                    let rival = &rival;
                    move || rival(number)
                })
            })
            .collect();
        rivals.into_iter().map(|rival| rival.join().expect("no rival failed")).max().expect("there are some")
    })
}

#[test]
fn the_follower_takes_the_leaders_order_whoever_writes_and_how() {
    let proxy = Settings::of(Stores::shared()).phase("962", "dual-standalone").start().ready();
    let mut rounds = 0;
    for phase in ["dual-standalone", "dual-cluster"] {
        proxy.cli_ok(&format!("move 962 --to {phase}"));
        proxy.cli_ok("backfill 962 --rate 0");
        let written = contend(&proxy, rounds);
        rounds += written;
        println!("{phase}: {written} keys");
        assert!(written > 100, "{written} keys show nothing");
        proxy.cli_ok("verify 962 --rate 0");
    }
}
