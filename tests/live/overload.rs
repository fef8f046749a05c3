//! A store that is asked for more than it can do: what is taken is answered in time, the rest is refused at once.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Redis, Settings, Stores, command, eventually, run, try_run};

const REFUSED: &str =
    "-ERR cutover: the store that has to answer has more to do than it can; the command did not run, try again later";

/// What one client saw.
#[derive(Default)]
struct Seen {
    answered: u64,
    refused: u64,
    longest: Duration,
}

/// Asks again and again, with so many requests on their way at a time.
fn ask(port: u16, request: &str, depth: usize, is_over: &AtomicBool) -> Seen {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a time-out");
    let mut answers = BufReader::new(stream.try_clone().expect("clone"));
    let mut seen = Seen::default();
    while !is_over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        stream.write_all(request.repeat(depth).as_bytes()).expect("write");
        for _ in 0..depth {
            let mut line = String::new();
            answers.read_line(&mut line).expect("an answer");
            match line.trim_end() {
                REFUSED => seen.refused += 1,
                other => {
                    assert!(other.starts_with(':'), "{other}");
                    seen.answered += 1;
                    seen.longest = seen.longest.max(asked.elapsed());
                }
            }
        }
        // A client that is refused does not ask again at once, or it would do nothing but that.
        std::thread::sleep(Duration::from_millis(20));
    }
    seen
}

#[test]
fn what_an_overloaded_store_cannot_answer_in_time_is_refused_before_it_runs() {
    const CLIENTS: usize = 40;
    const DEPTH: usize = 400;
    let server = Redis::start(&[]);
    let (limit, reply_timeout) = (Duration::from_millis(150), Duration::from_secs(60));
    let stores = format!("queue_time = \"{}ms\"\nreply_timeout = \"{}s\"", limit.as_millis(), reply_timeout.as_secs());
    let proxy =
        Settings { stores, standalone: server.url(), workers: 1, ..Settings::of(Stores::shared()) }.start().ready();
    let mut client = proxy.connect();
    run(&mut client, "SETBIT heavy 3200000 1");
    let began = Instant::now();
    (0..200).for_each(|_| drop(run(&mut client, "BITCOUNT heavy")));
    let service = began.elapsed() / 200;
    // What the last of them would wait for if all were taken.
    let whole_queue = service * (CLIENTS * DEPTH) as u32;
    assert!(whole_queue > 6 * limit, "this machine is too fast for it: {service:?} each");

    let is_over = AtomicBool::new(false);
    let (seen, probed) = std::thread::scope(|scope| {
        let (port, is_over) = (proxy.port, &is_over);
        // One after the other, so that more and more is asked, and each twice what the store can do in that time.
        let clients = (0..CLIENTS).map(|_| {
            std::thread::sleep(service * (DEPTH / 2) as u32);
            scope.spawn(move || ask(port, "BITCOUNT heavy\r\n", DEPTH, is_over))
        });
        let clients: Vec<_> = clients.collect();
        let (mut probed, until) = (0, Instant::now() + Duration::from_secs(2));
        while Instant::now() < until {
            // Whatever is refused has not run.
            match try_run(&mut client, "INCR counter") {
                Ok(_) => probed += 1,
                Err(error) => assert!(error.to_string().contains("more to do than it can"), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        is_over.store(true, Ordering::Relaxed);
        let seen: Vec<Seen> = clients.into_iter().map(|client| client.join().expect("a client")).collect();
        (seen, probed)
    });
    let answered: u64 = seen.iter().map(|seen| seen.answered).sum();
    let refused: u64 = seen.iter().map(|seen| seen.refused).sum();
    let longest = seen.iter().map(|seen| seen.longest).max().expect("clients");
    assert!(longest < whole_queue / 2, "{longest:?} of {whole_queue:?}");
    println!("{service:?} each: {answered} answered, {refused} refused, longest {longest:?} of {whole_queue:?}");
    assert!(refused > 0 && answered > 0, "{answered} answered, {refused} refused");
    eventually("the rest is answered again", || {
        try_run(&mut client, "PING").is_ok() && try_run(&mut client, "GET counter").is_ok()
    });
    assert_eq!(redis::from_redis_value::<u64>(run(&mut client, "GET counter")).expect("a number"), probed);
    let metrics = proxy.http("/metrics").1;
    let count =
        metrics.lines().find_map(|line| line.strip_prefix("cutover_refused_requests_total{reason=\"overloaded\"} "));
    assert!(count.expect("a count").parse::<u64>().expect("a number") >= refused, "{metrics}");
    let log = proxy.log();
    assert!(log.contains("has more to do than it can"), "{log}");
    // Nobody was cut off, and nothing is of unknown outcome.
    assert!(!log.contains("link lost"), "{log}");
    let _ = command(&["DEL", "heavy"]).query::<()>(&mut client);
}
