//! Many clients that wait: what they cost, and that each of them is served. What is heavy runs only when asked for; see
//! CONTRIBUTING.md.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::common::{Proxy, Redis, Settings, Stores, command, connect, eventually};

/// How many of each.
struct Crowd {
    subscribers: usize,
    transactions: usize,
    blocked: usize,
}

/// Files that the proxy needs beside those of clients.
const OTHER_FILES: usize = 300;

/// How many files a process may open; the children of this one too.
fn open_files() -> usize {
    let said = Command::new("sh").args(["-c", "ulimit -n"]).output().expect("run sh").stdout;
    String::from_utf8_lossy(&said).trim().parse().expect("a number")
}

/// Memory of a process in KiB, as the kernel counts it.
fn memory(pid: u32) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

fn tell(what: &str, proxy: &Proxy, before: i64, clients: usize, began: Instant) -> i64 {
    let now = memory(proxy.pid());
    if clients > 0 {
        let each = (now - before) as f64 / clients as f64;
        println!("{clients} {what}: {now} KiB, {each:.1} KiB each, after {:?}", began.elapsed());
    }
    now
}

/// A client that has sent something. `from`: the last part of its address, as the ports of one address are soon used up.
fn client(port: u16, from: u8, words: &str) -> TcpStream {
    let socket =
        Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket; is the limit of open files high enough?");
    socket.bind(&SocketAddr::from(([127, 0, 0, from], 0)).into()).expect("bind");
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("connect");
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("set a time-out");
    stream.write_all(words.as_bytes()).expect("write");
    stream
}

fn expect(stream: &mut TcpStream, wanted: &str) {
    let mut got = vec![0; wanted.len()];
    stream.read_exact(&mut got).unwrap_or_else(|error| panic!("{error}, expected {wanted:?}"));
    assert_eq!(String::from_utf8_lossy(&got), wanted);
}

/// A view of the memory that all sessions read into, or a buffer for each one's answers, would be kept: some 30 KiB each.
#[test]
fn what_a_client_has_sent_and_got_leaves_no_memory_behind() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let value = "x".repeat(12_000);
    let (set, get) = (format!("*3\r\n$3\r\nSET\r\n$9\r\ncrowd:big\r\n$12000\r\n{value}\r\n"), "GET crowd:big\r\n");
    let served = |count: usize| -> Vec<TcpStream> {
        let one = |_| {
            let mut stream = client(proxy.port, 1, &set);
            expect(&mut stream, "+OK\r\n");
            stream.write_all(get.as_bytes()).expect("write");
            expect(&mut stream, &format!("$12000\r\n{value}\r\n"));
            stream
        };
        (0..count).map(one).collect()
    };
    let _first = served(50);
    let before = memory(proxy.pid());
    let clients = served(400);
    let each = (memory(proxy.pid()) - before) / clients.len() as i64;
    assert!(each < 10, "{each} KiB");
}

#[test]
#[ignore = "takes some 32,000 open files; with fewer allowed, fewer clients are blocked"]
fn subscribers_transactions_and_blocked_clients_wait_at_once_and_all_are_served() {
    let rest = (open_files() - OTHER_FILES).saturating_sub(11_000) / 2;
    serve(&Crowd { subscribers: 10_000, transactions: 1_000, blocked: rest.min(10_000) });
}

#[test]
#[ignore = "takes some 21,000 open files; with fewer allowed, fewer clients are blocked"]
fn blocked_clients_wait_at_once_and_all_are_served() {
    serve(&Crowd { subscribers: 0, transactions: 0, blocked: ((open_files() - OTHER_FILES) / 2).min(10_000) });
}

/// Between the rounds of the busy ones the idle ones come back.
#[test]
#[ignore = "takes some 56,000 open files; with fewer allowed, fewer are idle"]
fn idle_clients_are_served_beside_busy_ones() {
    /// Clients of one address, of which each has some 28,000 ports.
    const OF_ONE_ADDRESS: usize = 20_000;
    const ROUNDS: usize = 20;
    let busy = 5_000.min(open_files() / 4);
    let idle = (open_files() - OTHER_FILES - busy).min(50_000);
    let listen = "max_clients = 60000".into();
    let proxy = Settings { listen, ..Settings::of(Stores::shared()) }.start().ready();
    let mut setup = connect(proxy.port);
    let () = command(&["SET", "crowd:one", "value"]).query(&mut setup).expect("SET");
    let (get, value) = ("GET crowd:one\r\n", "$5\r\nvalue\r\n");

    let (began, before) = (Instant::now(), memory(proxy.pid()));
    let served = |number: usize, from: u8| {
        let mut stream = client(proxy.port, from + (number / OF_ONE_ADDRESS) as u8, get);
        expect(&mut stream, value);
        stream
    };
    let mut resting: Vec<TcpStream> = (0..idle).map(|number| served(number, 2)).collect();
    let rested = tell("idle", &proxy, before, idle, began);
    let mut working: Vec<TcpStream> = (0..busy).map(|number| served(number, 9)).collect();
    tell("busy", &proxy, rested, busy, began);

    let at = Instant::now();
    for round in 0..ROUNDS {
        for (number, stream) in working.iter_mut().enumerate() {
            stream
                .write_all(format!("SET crowd:{number} {round}\r\nGET crowd:{number}\r\n").as_bytes())
                .expect("write");
        }
        let answer = round.to_string();
        for stream in &mut working {
            expect(stream, &format!("+OK\r\n${}\r\n{answer}\r\n", answer.len()));
        }
    }
    println!("{} requests of {busy} clients at once: {:?}", 2 * ROUNDS * busy, at.elapsed());
    let at = Instant::now();
    for stream in &mut resting {
        stream.write_all(get.as_bytes()).expect("write");
    }
    for stream in &mut resting {
        expect(stream, value);
    }
    println!("the idle ones come back: {:?}", at.elapsed());
    tell("in all", &proxy, before, idle + busy, began);
}

fn serve(crowd: &Crowd) {
    let standalone = Redis::start(&["--maxclients", "20000"]);
    let settings = Settings { standalone: standalone.url(), ..Settings::of(Stores::shared()) };
    let listen = "max_clients = 30000".into();
    let proxy = Settings { listen, stores: "private_links = 12000\nconnect_timeout = \"20s\"".into(), ..settings }
        .start()
        .ready();
    let began = Instant::now();
    let idle = memory(proxy.pid());
    println!("nobody: {idle} KiB");

    let mut subscribers: Vec<TcpStream> =
        (0..crowd.subscribers).map(|_| client(proxy.port, 2, "SUBSCRIBE news\r\n")).collect();
    for stream in &mut subscribers {
        expect(stream, "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n");
    }
    let subscribed = tell("subscribers", &proxy, idle, crowd.subscribers, began);

    let mut transactions: Vec<TcpStream> = (0..crowd.transactions)
        .map(|number| client(proxy.port, 3, &format!("MULTI\r\nSET t:{number} v\r\nINCR n:{number}\r\n")))
        .collect();
    for stream in &mut transactions {
        expect(stream, "+OK\r\n+QUEUED\r\n+QUEUED\r\n");
    }
    let queued = tell("open transactions", &proxy, subscribed, crowd.transactions, began);

    let mut blocked: Vec<TcpStream> =
        (0..crowd.blocked).map(|number| client(proxy.port, 3, &format!("BLPOP q:{number} 0\r\n"))).collect();
    let mut store = standalone.connect();
    eventually("all of them are blocked at the store", || {
        let info: String = command(&["INFO", "clients"]).query(&mut store).expect("INFO");
        info.contains(&format!("blocked_clients:{}\r\n", crowd.blocked))
    });
    tell("blocked", &proxy, queued, crowd.blocked, began);
    let info: String = command(&["INFO", "clients"]).query(&mut store).expect("INFO");
    println!("the store: {}", info.lines().find(|line| line.starts_with("connected_clients")).expect("a line"));

    let mut publisher = connect(proxy.port);
    let at = Instant::now();
    let heard: usize = command(&["PUBLISH", "news", "hello"]).query(&mut publisher).expect("PUBLISH");
    assert_eq!(heard, crowd.subscribers);
    for stream in &mut subscribers {
        expect(stream, "*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n");
    }
    println!("a message to all subscribers: {:?}", at.elapsed());
    for stream in &mut transactions {
        stream.write_all(b"EXEC\r\n").expect("write");
        expect(stream, "*2\r\n+OK\r\n:1\r\n");
    }
    let at = Instant::now();
    let mut push = redis::pipe();
    (0..crowd.blocked).for_each(|number| {
        push.cmd("RPUSH").arg(format!("q:{number}")).arg("x").ignore();
    });
    let () = push.query(&mut publisher).expect("RPUSH");
    for (number, stream) in blocked.iter_mut().enumerate() {
        let key = format!("q:{number}");
        expect(stream, &format!("*2\r\n${}\r\n{key}\r\n$1\r\nx\r\n", key.len()));
    }
    println!("an element for each blocked client: {:?}; all of it in {:?}", at.elapsed(), began.elapsed());
}
