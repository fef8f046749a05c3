//! Replies byte for byte as a bare Redis gives them: every command of the table on a key of every type, with plausible and
//! with wrong arguments, and a corpus of documented options, in each phase, in RESP2 and RESP3, with both namings.

use std::io::{Read, Write};
use std::net::TcpStream;

use cutover::command::{CommandSpec, Keys, Kind, all};
use cutover::resp::scan::ReplyScanner;

use crate::common::{PATIENCE, Redis, Settings, Stores};
use crate::corpus::{CORPUS, EXCEPTIONS, FORMS, SERVER, SETUP, TYPES, UNEQUAL};

/// A connection that gives whole replies.
struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    fn to(port: u16, protocol: &str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("set a time-out");
        let mut wire = Self { stream, buffer: Vec::new() };
        let greeting = wire.ask(&["HELLO".into(), protocol.into()]);
        assert!(!greeting.starts_with(b"-"), "{}", greeting.escape_ascii());
        wire
    }

    fn ask(&mut self, args: &[String]) -> Vec<u8> {
        let mut out = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            out.extend_from_slice(format!("${}\r\n{arg}\r\n", arg.len()).as_bytes());
        }
        self.stream.write_all(&out).expect("write");
        let mut scanner = ReplyScanner::default();
        loop {
            if let Some(length) = scanner.scan(&self.buffer).expect("a reply") {
                return self.buffer.drain(..length).collect();
            }
            let mut piece = [0; 16 << 10];
            let read = self.stream.read(&mut piece).unwrap_or_else(|error| panic!("{args:?}: {error}"));
            assert!(read > 0, "{args:?}: closed");
            self.buffer.extend_from_slice(&piece[..read]);
        }
    }
}

/// A request for a command with a key in each key's place and ones elsewhere, as long as its arity asks, and up to two longer.
fn generated(spec: &CommandSpec, key: &str, extra: usize) -> Option<Vec<String>> {
    let Keys::Range { first, last, step } = spec.keys else { return None };
    let length = usize::from(spec.arity.unsigned_abs()) + extra;
    let last = if last < 0 { length as i64 + i64::from(last) } else { i64::from(last) };
    let is_key = |index: usize| {
        let index = index as i64;
        index >= i64::from(first) && index <= last && (index - i64::from(first)) % i64::from(step.max(1)) == 0
    };
    let arg = |index: usize| {
        if index == 0 {
            spec.name.into()
        } else if is_key(index) {
            key.into()
        } else {
            "1".to_string()
        }
    };
    Some((0..length).map(arg).collect())
}

/// What kinds of values a frame has, and which words: an error's first, and the names in a text such as INFO's.
fn form(frame: &[u8], at: &mut usize) -> String {
    let line_end = frame[*at..].windows(2).position(|pair| pair == b"\r\n").expect("a whole line") + *at;
    let line = String::from_utf8_lossy(&frame[*at..line_end]).into_owned();
    *at = line_end + 2;
    let (kind, rest) = line.split_at(1);
    let length: usize = rest.parse().unwrap_or(0);
    match kind {
        "-" => format!("-{}", rest.split(' ').next().unwrap_or_default()),
        "$" | "=" if rest != "-1" => {
            let text = String::from_utf8_lossy(&frame[*at..*at + length]).into_owned();
            *at += length + 2;
            let names = text.split("\r\n").filter_map(|line| line.split_once(':').map(|(name, _)| name.to_string()));
            // Lines of what was used so far.
            let is_fixed =
                |name: &String| !["cmdstat_", "errorstat_", "latency_", "db"].iter().any(|of| name.starts_with(of));
            format!("{kind}{}", names.filter(is_fixed).collect::<Vec<_>>().join(","))
        }
        "*" | "~" | ">" | "%" if rest != "-1" => {
            let count = if kind == "%" { 2 * length } else { length };
            let mut forms: Vec<String> = (0..count).map(|_| form(frame, at)).collect();
            forms.sort();
            forms.dedup();
            format!("{kind}[{}]", forms.join(" "))
        }
        _ => format!("{kind}{}", if rest == "-1" { "nil" } else { "" }),
    }
}

/// How two replies are compared.
#[derive(Clone, Copy)]
enum By {
    Bytes,
    Form,
}

struct Pair {
    bare: Wire,
    proxied: Wire,
    name: String,
    protocol: &'static str,
    wrong: Vec<String>,
    asked: usize,
}

impl Pair {
    fn fill(&self, words: &[String]) -> Vec<String> {
        let place = |word: &String| match word.strip_prefix('{').and_then(|word| word.strip_suffix('}')) {
            Some("proto") => self.protocol.to_string(),
            Some(kind) if !kind.contains(['[', '(']) => format!("{}:{kind}", self.name),
            _ => word.clone(),
        };
        words.iter().map(place).collect()
    }

    fn setup(&mut self) {
        for line in SETUP {
            let words = self.fill(&split(line));
            self.bare.ask(&words);
            self.proxied.ask(&words);
        }
    }

    fn compare(&mut self, words: &[String], by: By) {
        let words = self.fill(words);
        let (wanted, got) = (self.bare.ask(&words), self.proxied.ask(&words));
        self.asked += 1;
        let differs = match by {
            By::Bytes => wanted != got,
            By::Form => form(&wanted, &mut 0) != form(&got, &mut 0),
        };
        if differs {
            let text = |frame: &[u8]| frame[..frame.len().min(300)].escape_ascii().to_string();
            self.wrong.push(format!(
                "{}\n    redis:   {}\n    cutover: {}",
                words.join(" "),
                text(&wanted),
                text(&got)
            ));
        }
    }
}

fn split(line: &str) -> Vec<String> {
    line.split(' ').map(|word| word.replace('␣', " ")).collect()
}

fn compare_all(provider: &str, phase: &str, naming: &str, db: u32) {
    let bare = Redis::start(&[]);
    let settings = Settings {
        routing: format!("cluster_keys = \"{naming}\"\n[databases]\n7 = \"seven:\""),
        ..Settings::of(Stores::shared())
    };
    let proxy = settings.phase(provider, phase).start().ready();
    let mut wrong = Vec::new();
    for protocol in ["2", "3"] {
        let (mut bare, mut proxied) = (Wire::to(bare.port, protocol), Wire::to(proxy.port, protocol));
        for wire in [&mut bare, &mut proxied] {
            assert_eq!(wire.ask(&["SELECT".into(), db.to_string()]), b"+OK\r\n");
        }
        // One slot with either naming: what a cluster cannot do is told by other tests.
        let name = format!("provider:{provider}:{{x}}{protocol}");
        let mut pair = Pair { bare, proxied, name, protocol, wrong: Vec::new(), asked: 0 };
        pair.setup();
        for line in CORPUS {
            pair.compare(&split(line), By::Bytes);
            if !line.starts_with("MULTI") && !matches!(*line, "EXEC" | "DISCARD" | "NOSUCH") {
                pair.setup_unless_queueing();
            }
        }
        pair.setup();
        for spec in all().iter().filter(|spec| {
            matches!(spec.kind, Kind::Keyed | Kind::Split(_)) && spec.since <= (7, 0) && !UNEQUAL.contains(&spec.name)
        }) {
            for key in TYPES {
                for extra in 0..2 {
                    if let Some(words) = generated(spec, key, extra) {
                        pair.compare(&words, By::Bytes);
                    }
                }
            }
            pair.setup();
            pair.compare(&[spec.name.to_string()], By::Bytes);
            pair.compare(
                &std::iter::once(spec.name.to_string()).chain((0..9).map(|_| "{str}".to_string())).collect::<Vec<_>>(),
                By::Bytes,
            );
            pair.setup();
        }
        assert!(pair.asked > 2_000, "{}", pair.asked);
        wrong.extend(pair.wrong.iter().map(|text| format!("RESP{protocol} {text}")));
    }
    assert!(
        wrong.is_empty(),
        "{phase}, {naming}, database {db}: {} replies differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

impl Pair {
    /// In a transaction the keys are left as they are.
    fn setup_unless_queueing(&mut self) {
        let probe = self.proxied.ask(&["PING".into()]);
        let same = self.bare.ask(&["PING".into()]);
        if probe == b"+PONG\r\n" && same == probe {
            self.setup();
        }
    }
}

#[test]
fn every_reply_is_redis_s_in_standalone() {
    compare_all("110", "standalone", "same", 0);
}

#[test]
fn every_reply_is_redis_s_in_dual_standalone() {
    compare_all("111", "dual-standalone", "same", 0);
}

#[test]
fn every_reply_is_redis_s_in_dual_cluster() {
    compare_all("112", "dual-cluster", "same", 0);
}

#[test]
fn every_reply_is_redis_s_in_cluster() {
    compare_all("113", "cluster", "same", 0);
}

#[test]
fn every_reply_is_redis_s_in_cluster_with_tags() {
    compare_all("114", "cluster", "tagged", 0);
}

#[test]
fn every_reply_is_redis_s_in_a_further_database_that_moved() {
    compare_all("115", "cluster", "same", 7);
}

#[test]
fn every_reply_is_redis_s_in_a_further_database_that_moves() {
    compare_all("116", "dual-cluster", "tagged", 7);
}

/// On stores of its own: it loads and flushes functions and scripts, resets statistics and asks for DEBUG.
#[test]
fn what_concerns_the_server_is_answered_as_redis_does_in_every_phase() {
    let debugged = || vec!["--enable-debug-command".to_string(), "yes".to_string()];
    let (stores, bare) = (Stores::start_with(debugged), Redis::start(&["--enable-debug-command", "yes"]));
    let phases = ["standalone", "dual-standalone", "dual-cluster", "cluster"];
    let mut wrong = Vec::new();
    for (naming, phases) in [("same", &phases[..]), ("tagged", &phases[2..])] {
        let settings = Settings { routing: format!("cluster_keys = \"{naming}\""), ..Settings::of(&stores) };
        let providers: Vec<(String, &str)> = (140..).map(|id| id.to_string()).zip(phases.iter().copied()).collect();
        let phased = providers.iter().fold(settings, |settings, (id, phase)| settings.phase(id, phase));
        let proxy = phased.start().ready();
        for ((id, phase), protocol) in
            providers.iter().flat_map(|provider| ["2", "3"].map(|protocol| (provider, protocol)))
        {
            let (bare, proxied) = (Wire::to(bare.port, protocol), Wire::to(proxy.port, protocol));
            let name = format!("provider:{id}:{{x}}{protocol}");
            let mut pair = Pair { bare, proxied, name, protocol, wrong: Vec::new(), asked: 0 };
            for (line, by) in
                SERVER.iter().map(|line| (line, By::Bytes)).chain(FORMS.iter().map(|line| (line, By::Form)))
            {
                pair.setup();
                pair.compare(&split(line), by);
            }
            assert!(pair.asked > 200, "{}", pair.asked);
            wrong.extend(pair.wrong.iter().map(|text| format!("{phase}, {naming}, RESP{protocol}: {text}")));
        }
    }
    assert!(wrong.is_empty(), "{} replies differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn each_exception_is_one() {
    let (bare, proxy) = (Redis::start(&[]), Settings::of(Stores::shared()).phase("144", "cluster").start().ready());
    for protocol in ["2", "3"] {
        let (bare, proxied) = (Wire::to(bare.port, protocol), Wire::to(proxy.port, protocol));
        let name = format!("provider:144:{{x}}{protocol}");
        let mut pair = Pair { bare, proxied, name, protocol, wrong: Vec::new(), asked: 0 };
        for (line, why) in EXCEPTIONS {
            pair.setup();
            let words = pair.fill(&split(line));
            assert_ne!(
                pair.bare.ask(&words),
                pair.proxied.ask(&words),
                "{line} is as on one Redis now; it was not, for {why}"
            );
        }
    }
}
