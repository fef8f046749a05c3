//! All channels meet on one store, and go over to the other one without a message lost or doubled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::Value;

use crate::common::{Proxy, Settings, Stores, command, connect, eventually, run};
use crate::protocol::Raw;

fn channels(settings: Settings, side: &str) -> Settings {
    Settings { routing: format!("pubsub = \"{side}\""), ..settings }
}

fn go_over(proxy: &mut Proxy, side: &str) {
    let before = proxy.table()["table_version"].as_u64();
    proxy.edit(|settings| channels(settings, side));
    eventually("adopted", || proxy.table()["table_version"].as_u64() > before && proxy.table()["pubsub"] == side);
}

#[test]
fn a_flip_of_the_channels_loses_no_message_and_doubles_none() {
    let stores = Stores::start();
    let mut proxy = Settings::of(&stores).start().ready();
    let over = Arc::new(AtomicBool::new(false));
    let (subscribers, publishers) = (6, 4);
    let (ready, all_ready) = std::sync::mpsc::channel();
    let readers: Vec<_> = (0..subscribers)
        .map(|number| {
            let (port, ready) = (proxy.port, ready.clone());
            std::thread::spawn(move || {
                let mut connection = connect(port);
                let mut pubsub = connection.as_pubsub();
                match number % 2 {
                    0 => (0..publishers)
                        .for_each(|channel| pubsub.subscribe(format!("news:{channel}")).expect("SUBSCRIBE")),
                    _ => pubsub.psubscribe("news:*").expect("PSUBSCRIBE"),
                }
                ready.send(()).expect("the test waits");
                let (mut last, mut ended) = (vec![0u64; publishers], 0);
                while ended < publishers {
                    let message = pubsub.get_message().expect("a message");
                    let channel: usize = message.get_channel_name()["news:".len()..].parse().expect("a number");
                    let text: String = message.get_payload().expect("text");
                    if text == "end" {
                        ended += 1;
                        continue;
                    }
                    let number: u64 = text.parse().expect("a number");
                    assert_eq!(number, last[channel] + 1, "subscriber {number} on channel {channel}");
                    last[channel] = number;
                }
                last
            })
        })
        .collect();
    (0..subscribers).for_each(|_| all_ready.recv().expect("subscribed"));
    let writers: Vec<_> = (0..publishers)
        .map(|channel| {
            let (port, over) = (proxy.port, over.clone());
            std::thread::spawn(move || {
                let (mut client, mut number) = (connect(port), 0u64);
                while !over.load(Ordering::Relaxed) {
                    number += 1;
                    let _: i64 = command(&["PUBLISH", &format!("news:{channel}"), &number.to_string()])
                        .query(&mut client)
                        .expect("PUBLISH");
                }
                let _: i64 =
                    command(&["PUBLISH", &format!("news:{channel}"), "end"]).query(&mut client).expect("PUBLISH");
                number
            })
        })
        .collect();
    for side in ["cluster", "standalone", "cluster"] {
        std::thread::sleep(Duration::from_millis(300));
        go_over(&mut proxy, side);
    }
    std::thread::sleep(Duration::from_millis(300));
    over.store(true, Ordering::Relaxed);
    let published: Vec<u64> = writers.into_iter().map(|writer| writer.join().expect("published")).collect();
    assert!(published.iter().all(|count| *count > 100), "{published:?}");
    for reader in readers {
        assert_eq!(reader.join().expect("in order, once each"), published);
    }
}

#[test]
fn a_transaction_publishes_where_its_subscribers_are() {
    let stores = Stores::shared();
    for side in ["standalone", "cluster"] {
        let proxy =
            channels(Settings::of(stores), side).phase("75", "standalone").phase("76", "cluster").start().ready();
        let (mut subscriber, mut client) = (Raw::to(proxy.port), proxy.connect());
        let channel = format!("done-{side}");
        subscriber.send(format!("SUBSCRIBE {channel}\r\n").as_bytes());
        subscriber.expect(format!("*3\r\n$9\r\nsubscribe\r\n${}\r\n{channel}\r\n:1\r\n", channel.len()).as_bytes());
        for provider in ["75", "76"] {
            let mut pipe = redis::pipe();
            pipe.atomic()
                .cmd("SET")
                .arg(format!("provider:{provider}:result"))
                .arg("1")
                .cmd("PUBLISH")
                .arg(&channel)
                .arg("x");
            let (set, heard): (Value, i64) = pipe.query(&mut client).expect("EXEC");
            assert_eq!(set, Value::Okay);
            assert!(heard <= 1, "on a cluster only the subscribers of the node itself are counted");
            subscriber
                .expect(format!("*3\r\n$7\r\nmessage\r\n${}\r\n{channel}\r\n$1\r\nx\r\n", channel.len()).as_bytes());
        }
    }
}

#[test]
fn channels_do_not_go_where_nobody_can_subscribe() {
    let stores = Stores::start();
    let mut proxy = Settings { routing: "flip_timeout = \"1s\"".into(), ..Settings::of(&stores) }.start().ready();
    let (mut subscriber, mut client) = (Raw::to(proxy.port), proxy.connect());
    subscriber.send(b"SUBSCRIBE c\r\n");
    subscriber.expect(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n");
    stores.nodes.iter().for_each(|node| node.signal("STOP"));
    proxy.edit(|settings| Settings { routing: "flip_timeout = \"1s\"\npubsub = \"cluster\"".into(), ..settings });
    eventually("the file is refused", || {
        proxy.table()["refused"].as_str().is_some_and(|reason| reason.contains("pubsub"))
    });
    assert_eq!(run(&mut client, "PUBLISH c hello"), Value::Int(1));
    subscriber.expect(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\nhello\r\n");
    stores.nodes.iter().for_each(|node| node.signal("CONT"));
}
