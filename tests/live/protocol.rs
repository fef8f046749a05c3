//! The proxy speaks as Redis does: RESP2, RESP3, inline, pipelines, binary, large values.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::common::{PATIENCE, Proxy, Settings, Stores};

/// A connection on which bytes are written and compared.
pub struct Raw(pub TcpStream);

impl Raw {
    pub fn to(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("set a time-out");
        Self(stream)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("write");
    }

    #[track_caller]
    pub fn expect(&mut self, wanted: &[u8]) {
        let mut got = vec![0; wanted.len()];
        let mut length = 0;
        while length < got.len() {
            match self.0.read(&mut got[length..]) {
                Ok(read) if read > 0 => length += read,
                ended => panic!(
                    "{ended:?} after {:?}, expected {:?}",
                    got[..length].escape_ascii().to_string(),
                    wanted.escape_ascii().to_string()
                ),
            }
        }
        assert_eq!(got.escape_ascii().to_string(), wanted.escape_ascii().to_string());
    }

    /// What comes until the proxy closes.
    pub fn rest(mut self) -> String {
        let mut rest = Vec::new();
        // A reset after the last bytes is a close too.
        let _ = self.0.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

fn proxy() -> Proxy {
    let settings = Settings::of(Stores::shared()).phase("20", "standalone").phase("21", "dual-standalone");
    settings.phase("22", "dual-cluster").phase("23", "cluster").start().ready()
}

const PROVIDERS: [&str; 4] = ["20", "21", "22", "23"];

#[test]
fn resp2_and_resp3_clients_share_links_and_each_gets_its_own_protocol() {
    let proxy = proxy();
    for provider in PROVIDERS {
        let (mut two, mut three) = (Raw::to(proxy.port), Raw::to(proxy.port));
        two.send(format!("DEL provider:{provider}:h\r\nHSET provider:{provider}:h f v\r\n").as_bytes());
        two.expect(b":0\r\n:1\r\n");
        three.send(b"HELLO 3\r\n");
        let mut greeting = [0; 4];
        three.0.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(&greeting, b"%7\r\n");
        three.send(b"PING\r\n");
        let mut rest = Vec::new();
        while !rest.ends_with(b"+PONG\r\n") {
            let mut byte = [0];
            three.0.read_exact(&mut byte).expect("the rest of the greeting");
            rest.push(byte[0]);
        }
        for _ in 0..20 {
            let ask = format!("HGETALL provider:{provider}:h\r\nGET provider:{provider}:none\r\n");
            two.send(ask.as_bytes());
            three.send(ask.as_bytes());
            two.expect(b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n$-1\r\n");
            three.expect(b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n_\r\n");
        }
    }
}

#[test]
fn a_pipeline_of_any_depth_is_answered_in_order_over_all_phases() {
    let proxy = proxy();
    let mut client = Raw::to(proxy.port);
    let (mut asked, mut wanted) = (Vec::new(), Vec::new());
    for provider in PROVIDERS {
        asked.extend_from_slice(format!("DEL provider:{provider}:n\r\n").as_bytes());
    }
    client.send(&asked);
    for _ in PROVIDERS {
        let mut reply = [0; 4];
        client.0.read_exact(&mut reply).expect("a count");
    }
    asked.clear();
    for n in 1..=5000 {
        for provider in PROVIDERS {
            let key = format!("provider:{provider}:n");
            asked.extend_from_slice(format!("*2\r\n$4\r\nINCR\r\n${}\r\n{key}\r\n", key.len()).as_bytes());
            wanted.extend_from_slice(format!(":{n}\r\n").as_bytes());
        }
    }
    let mut writer = client.0.try_clone().expect("clone");
    let writing = std::thread::spawn(move || writer.write_all(&asked).expect("write"));
    client.expect(&wanted);
    writing.join().expect("written");
}

#[test]
fn a_client_reads_what_it_wrote_in_one_pipeline_in_every_phase() {
    let proxy = proxy();
    let mut client = Raw::to(proxy.port);
    for provider in PROVIDERS {
        for n in 0..200 {
            client.send(format!("SET provider:{provider}:x {n:03}\r\nGET provider:{provider}:x\r\nDEL provider:{provider}:x\r\nGET provider:{provider}:x\r\n").as_bytes());
            client.expect(format!("+OK\r\n$3\r\n{n:03}\r\n:1\r\n$-1\r\n").as_bytes());
        }
    }
}

#[test]
fn binary_keys_and_large_values_pass_unchanged_at_any_cut() {
    let proxy = proxy();
    for provider in PROVIDERS {
        let mut client = Raw::to(proxy.port);
        let key = [format!("provider:{provider}:").as_bytes(), b"\x00\xff\r\n$3\r\n"].concat();
        for length in [0usize, 1, 16_383, 16_384, 70_000, 5_000_000] {
            let value: Vec<u8> = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
            let mut set = format!("*3\r\n$3\r\nSET\r\n${}\r\n", key.len()).into_bytes();
            set.extend_from_slice(&key);
            set.extend_from_slice(format!("\r\n${length}\r\n").as_bytes());
            set.extend_from_slice(&value);
            set.extend_from_slice(b"\r\n");
            for piece in set.chunks(set.len() / 7 + 1) {
                client.send(piece);
                std::thread::sleep(Duration::from_millis(1));
            }
            client.expect(b"+OK\r\n");
            let mut get = format!("*2\r\n$3\r\nGET\r\n${}\r\n", key.len()).into_bytes();
            get.extend_from_slice(&key);
            get.extend_from_slice(b"\r\n");
            client.send(&get);
            client.expect(&[format!("${length}\r\n").as_bytes(), &value, b"\r\n"].concat());
        }
    }
}

#[test]
fn commands_over_slots_and_stores_are_split_and_merged_in_order() {
    let proxy = proxy();
    let mut client = Raw::to(proxy.port);
    let keys: Vec<String> = (0..20).map(|n| format!("provider:{}:split{n}", PROVIDERS[n % 4])).collect();
    let pairs: Vec<String> = keys.iter().enumerate().map(|(n, key)| format!("{key} v{n:02}")).collect();
    client.send(format!("MSET {}\r\nMGET {} provider:23:none\r\n", pairs.join(" "), keys.join(" ")).as_bytes());
    client.expect(b"+OK\r\n*21\r\n");
    for n in 0..20 {
        client.expect(format!("$3\r\nv{n:02}\r\n").as_bytes());
    }
    client.expect(b"$-1\r\n");
    client.send(format!("EXISTS {0}\r\nTOUCH {0}\r\nUNLINK {0}\r\nDEL {0}\r\n", keys.join(" ")).as_bytes());
    client.expect(b":20\r\n:20\r\n:20\r\n:0\r\n");
    client.send(b"SUNION provider:20:s provider:23:s\r\nPING\r\n");
    client.expect(b"-CROSSSLOT ");
    client.send(b"QUIT\r\n");
    let rest = client.rest();
    assert!(rest.contains("sunion") && rest.contains("+PONG\r\n") && rest.ends_with("+OK\r\n"), "{rest}");
}

#[test]
fn transactions_blocking_commands_and_messages_pass_in_every_phase() {
    let proxy = proxy();
    for provider in PROVIDERS {
        let (mut one, mut other) = (Raw::to(proxy.port), Raw::to(proxy.port));
        one.send(format!("DEL provider:{provider}:q\r\nMULTI\r\nRPUSH provider:{provider}:q a b\r\nLLEN provider:{provider}:q\r\nEXEC\r\n").as_bytes());
        let mut count = [0; 4];
        one.0.read_exact(&mut count).expect("a count");
        one.expect(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:2\r\n:2\r\n");
        let popped =
            |element: &str| format!("*2\r\n${}\r\nprovider:{provider}:q\r\n$1\r\n{element}\r\n", provider.len() + 11);
        one.send(
            format!(
                "BLPOP provider:{provider}:q 1\r\nBLPOP provider:{provider}:q 1\r\nBLPOP provider:{provider}:q 10\r\n"
            )
            .as_bytes(),
        );
        one.expect(popped("a").as_bytes());
        one.expect(popped("b").as_bytes());
        std::thread::sleep(Duration::from_millis(50));
        other.send(format!("RPUSH provider:{provider}:q c\r\n").as_bytes());
        other.expect(b":1\r\n");
        one.expect(popped("c").as_bytes());
        one.send(format!("BLPOP provider:{provider}:q 0.05\r\n").as_bytes());
        one.expect(b"*-1\r\n");
    }
    let (mut subscriber, mut publisher) = (Raw::to(proxy.port), Raw::to(proxy.port));
    subscriber.send(b"SUBSCRIBE news\r\n");
    subscriber.expect(b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n");
    publisher.send(b"PUBLISH news hello\r\n");
    publisher.expect(b":1\r\n");
    subscriber.expect(b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n");
    subscriber.send(b"UNSUBSCRIBE news\r\nGET provider:20:none\r\n");
    subscriber.expect(b"*3\r\n$11\r\nunsubscribe\r\n$4\r\nnews\r\n:0\r\n$-1\r\n");
}

#[test]
fn a_scan_shows_each_key_once_wherever_it_is() {
    let proxy = proxy();
    let mut client = proxy.connect();
    let keys: std::collections::BTreeSet<String> =
        (0..400).map(|n| format!("provider:{}:scan:{n}", PROVIDERS[n % 4])).collect();
    for key in &keys {
        crate::common::run(&mut client, &format!("SET {key} v"));
    }
    let (mut cursor, mut seen) = (String::from("0"), Vec::new());
    loop {
        let step = ["SCAN", &cursor, "MATCH", "provider:2?:scan:*", "COUNT", "50"];
        let (next, some): (String, Vec<String>) = crate::common::command(&step).query(&mut client).expect("SCAN");
        seen.extend(some);
        cursor = next;
        if cursor == "0" {
            break;
        }
    }
    let found: std::collections::BTreeSet<String> = seen.iter().cloned().collect();
    assert_eq!(found, keys);
    assert_eq!(seen.len(), keys.len(), "none twice");
}
