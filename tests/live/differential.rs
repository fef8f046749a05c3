//! Replies byte for byte as a bare Redis gives them: every command of the table on a key of every type, with plausible and
//! with wrong arguments, and a corpus of documented options, in each phase, in RESP2 and RESP3, with both namings.

use std::io::{Read, Write};
use std::net::TcpStream;

use cutover::command::{CommandSpec, Keys, Kind, all};
use cutover::resp::scan::ReplyScanner;

use crate::common::{PATIENCE, Redis, Settings, Stores};

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

/// Keys of every type, made anew before each command that could have changed them. Sets hold numbers and hashes are small, so
/// that their order is the same on every server.
const SETUP: [&str; 9] = [
    "DEL {str} {num} {list} {set} {hash} {zset} {stream} {none} {other}",
    "SET {str} hello",
    "SET {num} 10",
    "RPUSH {list} a b c a",
    "SADD {set} 1 2 3",
    "HSET {hash} f v n 5",
    "ZADD {zset} 1 a 2 b 3 c",
    "XADD {stream} 1-1 f v",
    "XGROUP CREATE {stream} group 0",
];
const TYPES: [&str; 8] = ["{str}", "{num}", "{list}", "{set}", "{hash}", "{zset}", "{stream}", "{none}"];

/// What a test of equality cannot say anything about: answers that depend on the moment, on chance, or on the server itself.
const UNEQUAL: [&str; 14] = [
    "RANDOMKEY",
    "SRANDMEMBER",
    "HRANDFIELD",
    "ZRANDMEMBER",
    "SPOP",
    "XAUTOCLAIM",
    "XCLAIM",
    "XINFO",
    "OBJECT",
    "MEMORY",
    "RESTORE",
    // The bare server is in another state than the stores behind the proxy.
    "SCAN",
    "KEYS",
    "DBSIZE",
];

/// Options and forms that no generator would find.
const CORPUS: &[&str] = &[
    "SET {str} v XX",
    "SET {none} v XX",
    "SET {none} v NX",
    "SET {str} v NX GET",
    "SET {str} w GET",
    "SET {str} w KEEPTTL",
    "SET {str} w EX 100 PX 5",
    "SET {str} v EX 0",
    "SET {str} v EX abc",
    "SET {list} v GET",
    "SETEX {str} 0 v",
    "SETEX {str} 100 v",
    "PSETEX {str} 100000 v",
    "GETEX {str} PERSIST",
    "GETEX {str} EX 100",
    "GETEX {list} EX 100",
    "GETDEL {none}",
    "APPEND {none} x",
    "SETRANGE {str} 20 x",
    "SETRANGE {none} 0 ",
    "GETRANGE {str} -3 -1",
    "INCR {str}",
    "INCRBY {num} -20",
    "INCRBYFLOAT {num} 0.1",
    "INCRBYFLOAT {str} 1",
    "DECRBY {num} 9223372036854775807",
    "LCS {str} {num} IDX",
    "LCS {str} {num} LEN",
    "SETBIT {str} 100 1",
    "SETBIT {str} -1 1",
    "BITCOUNT {str} 0 -1 BIT",
    "BITPOS {str} 1 0 -1 BYTE",
    "BITFIELD {num} GET u8 0 INCRBY u8 0 255 OVERFLOW FAIL SET u8 0 1",
    "BITFIELD_RO {num} GET u8 0",
    "BITOP AND {other} {str} {num}",
    "BITOP NOT {other} {str} {num}",
    "EXPIRE {str} 100 NX",
    "EXPIRE {str} 100 XX",
    "EXPIRE {str} 100 GT LT",
    "EXPIRE {none} 100",
    "EXPIRE {str} -1",
    "EXPIREAT {str} 1",
    "PEXPIREAT {str} 99999999999999 GT",
    "EXPIRETIME {str}",
    "TTL {str}",
    "PTTL {none}",
    "PERSIST {str}",
    "TYPE {zset}",
    "TYPE {none}",
    "RENAME {str} {other}",
    "RENAME {none} {other}",
    "RENAMENX {str} {num}",
    "COPY {str} {other}",
    "COPY {str} {num}",
    "COPY {str} {num} REPLACE",
    "EXISTS {str} {str} {none}",
    "TOUCH {str} {none}",
    "DEL {none}",
    "UNLINK {str} {list}",
    "MGET {str} {list} {none} {num}",
    "MSET {str} 1 {num} 2",
    "MSET {str}",
    "MSET {str} 1 {num}",
    "MSETNX {none} 1 {str} 2",
    "MSETNX {none} 1 {other} 2",
    "DUMP {none}",
    "SORT {list}",
    "SORT {list} ALPHA DESC LIMIT 1 2",
    "SORT {set} STORE {other}",
    "SORT_RO {set}",
    "SORT {hash}",
    "LPOP {list} 2",
    "LPOP {list} 0",
    "LPOP {none} 2",
    "LPOP {list} -1",
    "RPOP {list}",
    "LPOS {list} a RANK 2",
    "LPOS {list} a COUNT 0",
    "LPOS {list} a RANK 0",
    "LINSERT {list} AFTER b x",
    "LINSERT {list} NEAR b x",
    "LINSERT {none} AFTER b x",
    "LMOVE {list} {other} LEFT RIGHT",
    "LMOVE {list} {other} UP RIGHT",
    "RPOPLPUSH {none} {other}",
    "LMPOP 2 {none} {list} LEFT COUNT 2",
    "LMPOP 0 {list} LEFT",
    "LMPOP 1 {none} LEFT",
    "LREM {list} -1 a",
    "LTRIM {list} 1 1",
    "LTRIM {list} 5 9",
    "LSET {list} 9 x",
    "LINDEX {list} -1",
    "LRANGE {list} 0 -1",
    "BLPOP {none} {list} 1",
    "BRPOP {list} 1",
    "BLPOP {none} 0.01",
    "BLPOP {list} abc",
    "BLPOP {list} -1",
    "BLMOVE {list} {other} LEFT LEFT 1",
    "BLMOVE {none} {other} LEFT LEFT 0.01",
    "BRPOPLPUSH {none} {other} 0.01",
    "BLMPOP 0.01 1 {none} LEFT",
    "BLMPOP 1 2 {none} {list} RIGHT COUNT 2",
    "BZPOPMIN {zset} 1",
    "BZPOPMAX {none} 0.01",
    "BZMPOP 1 1 {zset} MAX",
    "SADD {set} 3 4",
    "SMISMEMBER {set} 1 9",
    "SINTER {set} {none}",
    "SUNION {set} {none}",
    "SDIFF {set} {none}",
    "SINTERSTORE {other} {set} {none}",
    "SUNIONSTORE {other} {set} {none}",
    "SINTERCARD 1 {set} LIMIT 2",
    "SINTERCARD 1 {set} LIMIT -1",
    "SMOVE {set} {other} 1",
    "SMOVE {set} {other} 9",
    "SSCAN {set} 0 COUNT 10",
    "SSCAN {set} x",
    "HSET {hash} f",
    "HSET {hash} f w g x",
    "HGETALL {hash}",
    "HMGET {hash} f g",
    "HINCRBY {hash} n 2",
    "HINCRBY {hash} f 1",
    "HINCRBYFLOAT {hash} n 0.5",
    "HSETNX {hash} f x",
    "HDEL {hash} f g n",
    "HSCAN {hash} 0 MATCH f",
    "HSTRLEN {hash} f",
    "HKEYS {hash}",
    "HVALS {hash}",
    "HEXISTS {hash} g",
    "HMSET {hash} a 1",
    "ZADD {zset} NX XX 1 a",
    "ZADD {zset} GT CH 5 a 0 b",
    "ZADD {zset} INCR 1 a",
    "ZADD {zset} NX INCR 1 a",
    "ZADD {zset} abc a",
    "ZADD {zset} nan a",
    "ZINCRBY {zset} 1.5 a",
    "ZRANGE {zset} 0 -1 WITHSCORES",
    "ZRANGE {zset} (1 3 BYSCORE LIMIT 0 1",
    "ZRANGE {zset} [a (c BYLEX",
    "ZRANGE {zset} 0 -1 REV",
    "ZRANGE {zset} 0 -1 BYSCORE LIMIT 0",
    "ZRANGEBYSCORE {zset} -inf +inf WITHSCORES",
    "ZREVRANGE {zset} 0 0 WITHSCORES",
    "ZRANGESTORE {other} {zset} 0 1",
    "ZCOUNT {zset} (1 2",
    "ZLEXCOUNT {zset} - +",
    "ZSCORE {zset} a",
    "ZSCORE {zset} z",
    "ZMSCORE {zset} a z",
    "ZRANK {zset} b",
    "ZREVRANK {zset} z",
    "ZPOPMIN {zset} 2",
    "ZPOPMAX {zset}",
    "ZMPOP 1 {zset} MIN COUNT 2",
    "ZMPOP 1 {none} MIN",
    "ZUNION 2 {zset} {set} WITHSCORES",
    "ZINTER 2 {zset} {none}",
    "ZDIFF 2 {zset} {none} WITHSCORES",
    "ZUNIONSTORE {other} 2 {zset} {set} WEIGHTS 2 3 AGGREGATE MAX",
    "ZINTERSTORE {other} 1 {zset} WEIGHTS x",
    "ZDIFFSTORE {other} 1 {zset}",
    "ZINTERCARD 1 {zset}",
    "ZREMRANGEBYSCORE {zset} 1 2",
    "ZREMRANGEBYLEX {zset} - +",
    "ZREMRANGEBYRANK {zset} 0 0",
    "ZSCAN {zset} 0",
    "GEOADD {other} 13.361389 38.115556 P 15.087269 37.502669 C",
    "GEOADD {other} 200 0 x",
    "GEODIST {zset} a b km",
    "GEOPOS {zset} a z",
    "GEOHASH {zset} a",
    "GEOSEARCH {zset} FROMLONLAT 0 0 BYRADIUS 20000 km ASC",
    "GEOSEARCHSTORE {other} {zset} FROMLONLAT 0 0 BYRADIUS 20000 km",
    "GEORADIUS {zset} 0 0 20000 km STORE {other}",
    "GEORADIUS_RO {zset} 0 0 20000 km",
    "PFADD {none} a b",
    "PFCOUNT {none} {other}",
    "PFMERGE {other} {none}",
    "PFCOUNT {str}",
    "XADD {stream} 1-1 f v",
    "XADD {stream} 2-1 f",
    "XADD {stream} MAXLEN = 1 2-1 f v",
    "XADD {none} NOMKSTREAM 2-1 f v",
    "XLEN {stream}",
    "XRANGE {stream} - + COUNT 1",
    "XREVRANGE {stream} + -",
    "XREAD COUNT 1 STREAMS {stream} 0",
    "XREAD STREAMS {stream} {none} 0 0",
    "XREAD STREAMS {stream} $",
    "XREAD BLOCK 10 STREAMS {stream} $",
    "XREAD STREAMS {stream}",
    "XREADGROUP GROUP group c STREAMS {stream} >",
    "XREADGROUP GROUP nogroup c STREAMS {stream} >",
    "XREADGROUP GROUP group c BLOCK 10 STREAMS {stream} >",
    "XACK {stream} group 1-1",
    "XPENDING {stream} group",
    "XPENDING {stream} nogroup",
    "XDEL {stream} 1-1",
    "XTRIM {stream} MAXLEN 0",
    "XSETID {stream} 5-5",
    "XSETID {stream} 0-1",
    "XGROUP CREATE {none} g $",
    "XGROUP CREATE {none} g $ MKSTREAM",
    "XGROUP CREATE {stream} group 0",
    "XGROUP DESTROY {stream} group",
    "XGROUP SETID {stream} group 0",
    "XGROUP DELCONSUMER {stream} group c",
    "XGROUP NOSUCH {stream}",
    "EVAL return{KEYS[1],ARGV[1],1,true,false} 1 {str} a",
    "EVAL return(redis.call('INCR',KEYS[1])) 1 {num}",
    "EVAL return(redis.call('INCR',KEYS[1])) 1 {str}",
    "EVAL return(redis.error_reply('MY_error')) 1 {str}",
    "EVAL syntax( 1 {str}",
    "EVAL_RO return(redis.call('GET',KEYS[1])) 1 {str}",
    "EVAL_RO return(redis.call('SET',KEYS[1],1)) 1 {str}",
    "EVALSHA ffffffffffffffffffffffffffffffffffffffff 1 {str}",
    "EVAL return 1 -1",
    "FCALL nosuch 1 {str}",
    "ECHO x",
    "PING x",
    "PING",
    "PING a b",
    "NOSUCHCOMMAND a b",
    "GET",
    "SELECT abc",
    "CLIENT NOSUCH",
    "CLIENT GETNAME",
    "OBJECT HELP",
    "OBJECT ENCODING {list}",
    "OBJECT ENCODING {none}",
    "OBJECT REFCOUNT {str}",
    "CONFIG GET maxmemory-policy",
    "CONFIG NOSUCH",
    "MULTI",
    "GET {str}",
    "INCR {str}",
    "INCR {num}",
    "NOSUCH",
    "EXEC",
    "MULTI",
    "SET {str} x",
    "LPUSH {str} y",
    "INCR {num}",
    "EXEC",
    "EXEC",
    "DISCARD",
    "MULTI",
    "MULTI",
    "DISCARD",
    "WATCH {str}",
    "UNWATCH",
    "WATCH",
    // What concerns the connection, within a transaction.
    "MULTI",
    "CLIENT SETNAME zed",
    "CLIENT GETNAME",
    "INCR {num}",
    "CLIENT REPLY ON",
    "CLIENT KILL ID 999999",
    "CLIENT UNBLOCK 999999",
    "CLIENT TRACKINGINFO",
    "CLIENT GETREDIR",
    "AUTH x",
    "AUTH a b c",
    "UNWATCH",
    "SCRIPT EXISTS a",
    "EXEC",
    "CLIENT GETNAME",
    "CLIENT SETNAME ",
    "MULTI",
    "CLIENT NOSUCH",
    "CLIENT SETNAME",
    "EXEC",
    "MULTI",
    "EXEC x",
    "EXEC",
    "EXEC x",
    "MULTI",
    "WATCH {str}",
    "MULTI",
    "EXEC",
    "MULTI",
    "DISCARD x",
    "EXEC",
    "MULTI",
    "SUBSCRIBE ch",
    "PSUBSCRIBE ch*",
    "GET {str}",
    "SSUBSCRIBE ch",
    "SUNSUBSCRIBE",
    "EXEC",
    "PING",
    "PING x",
    "GET {str}",
    "PUNSUBSCRIBE",
    "MULTI",
    "UNSUBSCRIBE nosuch",
    "UNSUBSCRIBE",
    "EXEC",
    "UNSUBSCRIBE ch",
    "MULTI",
    "UNSUBSCRIBE",
    "UNSUBSCRIBE",
    "EXEC",
    "GET {str}",
    "PUBLISH nobody x",
    "PUBSUB NUMSUB nobody",
    "PUBSUB CHANNELS nobody*",
    "PUBSUB NOSUCH",
    "WAIT 0 10",
    "DEBUG NOSUCH",
    "SUBSTR {str} 0 1",
];

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

struct Pair {
    bare: Wire,
    proxied: Wire,
    name: String,
    wrong: Vec<String>,
    asked: usize,
}

impl Pair {
    fn fill(&self, words: &[String]) -> Vec<String> {
        let place = |word: &String| match word.strip_prefix('{').and_then(|word| word.strip_suffix('}')) {
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

    fn compare(&mut self, words: &[String]) {
        let words = self.fill(words);
        let (wanted, got) = (self.bare.ask(&words), self.proxied.ask(&words));
        self.asked += 1;
        // Redis words some errors by the version that it is; the rest must be equal to the byte.
        if wanted != got {
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
    line.split(' ').map(str::to_string).collect()
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
        let mut pair = Pair { bare, proxied, name, wrong: Vec::new(), asked: 0 };
        pair.setup();
        for line in CORPUS {
            pair.compare(&split(line));
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
                        pair.compare(&words);
                    }
                }
            }
            pair.setup();
            pair.compare(&[spec.name.to_string()]);
            pair.compare(
                &std::iter::once(spec.name.to_string()).chain((0..9).map(|_| "{str}".to_string())).collect::<Vec<_>>(),
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
