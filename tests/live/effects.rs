//! Every write command of the table, from a follower that has the key, lacks it or holds something else, in every way a
//! dual route can stand: both stores must be equal afterwards, value and TTL, and what the leader has and has answered must
//! be what a plain Redis has and answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use redis::{Connection, Value};

use crate::common::{PATIENCE, Proxy, Redis, Settings, Stores, command, eventually, run};
use cutover::command::{Access, Kind, all, lookup};

/// Requests that are sent before their replies are read.
const PIPELINE: usize = 500;

/// A command, what its keys hold before (commands between semicolons), and requests. Each request is also run on keys that
/// do not exist and on keys of another type. `?` in front: what it does is chance or time, so the plain Redis differs.
type Case = (&'static str, &'static str, &'static [&'static str]);

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("APPEND", "SET $a 1 EX 900", &["APPEND $a 23"]),
    ("BITFIELD", "SET $a abcdef", &["BITFIELD $a SET u8 8 66 GET u8 0", "BITFIELD $a OVERFLOW FAIL INCRBY u2 0 9", "BITFIELD $a INCRBY i5 100 1"]),
    ("BITOP", "SET $b abc;SET $c def", &["BITOP OR $a $b $c", "BITOP NOT $a $c"]),
    ("BLMOVE", "RPUSH $a 1 2;RPUSH $b 3", &["BLMOVE $a $b LEFT RIGHT 0.01", "BLMOVE $c $b LEFT RIGHT 0.01"]),
    ("BLMPOP", "RPUSH $a 1 2", &["BLMPOP 0.01 1 $a LEFT COUNT 2", "BLMPOP 0.01 1 $b LEFT"]),
    ("BLPOP", "RPUSH $a 1 2", &["BLPOP $b $a 0.01", "BLPOP $b 0.01"]),
    ("BRPOP", "RPUSH $a 1 2", &["BRPOP $a 0.01", "BRPOP $b 0.01"]),
    ("BRPOPLPUSH", "RPUSH $a 1 2", &["BRPOPLPUSH $a $b 0.01", "BRPOPLPUSH $b $a 0.01"]),
    ("BZMPOP", "ZADD $a 1 x 2 y", &["BZMPOP 0.01 1 $a MAX", "BZMPOP 0.01 1 $b MAX"]),
    ("BZPOPMAX", "ZADD $a 1 x 2 y", &["BZPOPMAX $a 0.01", "BZPOPMAX $b 0.01"]),
    ("BZPOPMIN", "ZADD $a 1 x 2 y", &["BZPOPMIN $a 0.01", "BZPOPMIN $b 0.01"]),
    ("COPY", "SET $a 1 EX 900;SET $b 2", &["COPY $a $c", "COPY $a $b", "COPY $a $b REPLACE"]),
    ("DECR", "SET $a 5 EX 900", &["DECR $a", "DECR $b"]),
    ("DECRBY", "SET $a 5", &["DECRBY $a 7", "DECRBY $a x"]),
    ("DEL", "SET $a 1;SET $b 2", &["DEL $a", "DEL $a $b $c", "DEL $c"]),
    ("EVAL", "SET $a 1", &["EVAL return(redis.call('INCR',KEYS[1])) 1 $a", "EVAL return(redis.call('EXPIRE',KEYS[1],900)) 1 $a", "EVAL return(redis.call('GET',KEYS[1])) 1 $a"]),
    ("EVALSHA", "SET $a 1", &["EVALSHA SHA 1 $a", "EVALSHA 0000000000000000000000000000000000000000 1 $a"]),
    ("EXPIRE", "SET $a 1 EX 900", &["EXPIRE $a 700", "EXPIRE $a 700 NX", "EXPIRE $a 950 GT", "EXPIRE $a -1", "EXPIRE $a x"]),
    ("EXPIREAT", "HSET $a f 1", &["EXPIREAT $a 4000000000", "EXPIREAT $a 4000000000 XX", "EXPIREAT $a 1"]),
    ("FCALL", "SET $a 1", &["FCALL bump 1 $a", "FCALL absent 1 $a"]),
    ("GEOADD", "GEOADD $a 1 1 x", &["GEOADD $a NX 2 2 y", "GEOADD $a XX CH 2 2 x", "GEOADD $a NX 3 3 x"]),
    ("GEORADIUS", "GEOADD $a 1 1 x", &["GEORADIUS $a 1 1 9 km STORE $b", "GEORADIUS $a 1 1 9 km"]),
    ("GEORADIUSBYMEMBER", "GEOADD $a 1 1 x", &["GEORADIUSBYMEMBER $a x 9 km STOREDIST $b", "GEORADIUSBYMEMBER $a x 9 km"]),
    ("GEOSEARCHSTORE", "GEOADD $a 1 1 x", &["GEOSEARCHSTORE $b $a FROMLONLAT 1 1 BYRADIUS 9 km", "GEOSEARCHSTORE $b $c FROMLONLAT 1 1 BYRADIUS 9 km"]),
    ("GETDEL", "SET $a 1", &["GETDEL $a", "GETDEL $b"]),
    ("GETEX", "SET $a 1 EX 900", &["GETEX $a", "GETEX $a PERSIST", "GETEX $a EX 700", "GETEX $a PXAT 4000000000000", "GETEX $a PXAT 1", "GETEX $b PX 5"]),
    ("GETSET", "SET $a 1 EX 900", &["GETSET $a 2", "GETSET $b 3"]),
    ("HDEL", "HSET $a f 1 g 2", &["HDEL $a f", "HDEL $a f g", "HDEL $a x"]),
    ("HINCRBY", "HSET $a f 1;EXPIRE $a 900", &["HINCRBY $a f 3", "HINCRBY $a g -1", "HINCRBY $a f x"]),
    ("HINCRBYFLOAT", "HSET $a f 10.1", &["HINCRBYFLOAT $a f 3.3", "HINCRBYFLOAT $a g 1e5", "HINCRBYFLOAT $a f x"]),
    ("HMSET", "HSET $a f 1", &["HMSET $a f 2 g 3", "HMSET $a f 1"]),
    ("HSET", "HSET $a f 1;EXPIRE $a 900", &["HSET $a f 2 g 3", "HSET $a f 1"]),
    ("HSETNX", "HSET $a f 1", &["HSETNX $a g 3", "HSETNX $a f 4"]),
    ("INCR", "SET $a 5 EX 900", &["INCR $a", "INCR $b"]),
    ("INCRBY", "SET $a 5", &["INCRBY $a 7", "INCRBY $a x"]),
    ("INCRBYFLOAT", "SET $a 10.5 EX 900", &["INCRBYFLOAT $a 0.1", "INCRBYFLOAT $b -3", "INCRBYFLOAT $a x"]),
    ("LINSERT", "RPUSH $a 1 2", &["LINSERT $a AFTER 1 x", "LINSERT $a BEFORE 9 x"]),
    ("LMOVE", "RPUSH $a 1 2", &["LMOVE $a $b LEFT LEFT", "LMOVE $a $a LEFT RIGHT", "LMOVE $c $b LEFT LEFT"]),
    ("LMPOP", "RPUSH $a 1 2 3", &["LMPOP 1 $a LEFT", "LMPOP 1 $a RIGHT COUNT 2", "LMPOP 1 $a LEFT COUNT 9", "LMPOP 2 $b $a LEFT", "LMPOP 1 $b LEFT"]),
    ("LPOP", "RPUSH $a 1 2 3", &["LPOP $a", "LPOP $a 2", "LPOP $a 0", "LPOP $a 9", "LPOP $b"]),
    ("LPUSH", "RPUSH $a 1;EXPIRE $a 900", &["LPUSH $a 2 3", "LPUSH $b 1"]),
    ("LPUSHX", "RPUSH $a 1", &["LPUSHX $a 2", "LPUSHX $b 2"]),
    ("LREM", "RPUSH $a 1 2 1 2", &["LREM $a -1 2", "LREM $a 0 1", "LREM $a 1 x"]),
    ("LSET", "RPUSH $a 1 2", &["LSET $a 1 x", "LSET $a 7 x"]),
    ("LTRIM", "RPUSH $a 1 2 3", &["LTRIM $a 1 1", "LTRIM $a 5 9", "LTRIM $a 0 -1"]),
    ("MSET", "SET $a 1 EX 900", &["MSET $a 2", "MSET $a 2 $b 3", "MSET $a"]),
    ("MSETNX", "SET $a 1", &["MSETNX $a 2", "MSETNX $b 2", "MSETNX $b 2 $c 3", "MSETNX $a 2 $b 3"]),
    ("PERSIST", "SET $a 1 EX 900", &["PERSIST $a", "PERSIST $b"]),
    ("PEXPIRE", "SET $a 1", &["PEXPIRE $a 700000", "PEXPIRE $a 700000 XX", "PEXPIRE $b 500000"]),
    ("PEXPIREAT", "SET $a 1", &["PEXPIREAT $a 4000000000123", "PEXPIREAT $a 4000000000123 LT", "PEXPIREAT $b 5000"]),
    ("PFADD", "PFADD $a x y", &["PFADD $a z", "PFADD $a x", "PFADD $b"]),
    ("PFCOUNT", "PFADD $a x;PFADD $b y", &["PFCOUNT $a", "PFCOUNT $a $b", "PFCOUNT $c"]),
    ("PFDEBUG", "PFADD $a x y", &["PFDEBUG TODENSE $a", "PFDEBUG ENCODING $b"]),
    ("PFMERGE", "PFADD $a x;PFADD $b y", &["PFMERGE $a $b", "PFMERGE $c $a $b"]),
    ("PSETEX", "SET $a 1", &["PSETEX $a 700000 2", "PSETEX $a 0 2"]),
    ("RENAME", "SET $a 1 EX 900;SET $b 2", &["RENAME $a $b", "RENAME $a $c", "RENAME $a $a", "RENAME $c $b"]),
    ("RENAMENX", "SET $a 1;SET $b 2", &["RENAMENX $a $c", "RENAMENX $a $b"]),
    ("RESTORE", "SET $a 1", &["RESTORE $a 900000 DUMPED REPLACE", "RESTORE $b 0 DUMPED", "RESTORE $a 0 DUMPED", "RESTORE $b 0 x"]),
    ("RPOP", "RPUSH $a 1 2 3", &["RPOP $a", "RPOP $a 2", "RPOP $b"]),
    ("RPOPLPUSH", "RPUSH $a 1 2", &["RPOPLPUSH $a $b", "RPOPLPUSH $a $a", "RPOPLPUSH $c $a"]),
    ("RPUSH", "RPUSH $a 1", &["RPUSH $a 2 3", "RPUSH $b 1"]),
    ("RPUSHX", "RPUSH $a 1", &["RPUSHX $a 2", "RPUSHX $b 2"]),
    ("SADD", "SADD $a x;EXPIRE $a 900", &["SADD $a y z", "SADD $a x"]),
    ("SDIFFSTORE", "SADD $a x y;SADD $b y", &["SDIFFSTORE $c $a $b", "SDIFFSTORE $b $b $a", "SDIFFSTORE $c $c"]),
    ("SET", "SET $a 1 EX 900", &[
        "SET $a 2", "SET $a 2 EX 700", "SET $a 2 PX 700000", "SET $a 2 PXAT 4000000000000", "SET $a 2 EXAT 1", "SET $a 2 KEEPTTL", "SET $a 2 NX",
        "SET $a 2 XX", "SET $a 2 GET", "SET $a 2 NX GET", "SET $a 2 XX GET", "SET $a 2 XX KEEPTTL", "SET $a 2 NX EX 700 GET", "SET $b 2 XX",
        "SET $b 2 GET KEEPTTL", "SET $a 2 EX 0", "SET $a 2 NX XX", "SET $a 2 WHAT",
    ]),
    ("SETBIT", "SET $a abc", &["SETBIT $a 3 1", "SETBIT $a 1 1", "SETBIT $a -1 1"]),
    ("SETEX", "SET $a 1", &["SETEX $a 700 2", "SETEX $a 0 2"]),
    ("SETNX", "SET $a 1 EX 900", &["SETNX $a 2", "SETNX $b 2"]),
    ("SETRANGE", "SET $a abc", &["SETRANGE $a 5 xy", "SETRANGE $b 3 x", "SETRANGE $a -1 x"]),
    ("SINTERSTORE", "SADD $a x y;SADD $b y", &["SINTERSTORE $c $a $b", "SINTERSTORE $a $a $c"]),
    ("SMOVE", "SADD $a x y;SADD $b y", &["SMOVE $a $b x", "SMOVE $a $b y", "SMOVE $a $b z"]),
    ("SORT", "RPUSH $a 3 1 2;EXPIRE $a 900", &["SORT $a STORE $b", "SORT $a STORE $a", "SORT $a", "SORT $c STORE $a"]),
    ("SPOP", "SADD $a x y z", &["?SPOP $a", "?SPOP $a 2", "SPOP $a 9", "SPOP $a 0", "SPOP $b", "SPOP $a -1"]),
    ("SREM", "SADD $a x y", &["SREM $a x", "SREM $a x y", "SREM $a z"]),
    ("SUNIONSTORE", "SADD $a x y;SADD $b z", &["SUNIONSTORE $c $a $b", "SUNIONSTORE $a $a"]),
    ("UNLINK", "SET $a 1;SET $b 2", &["UNLINK $a", "UNLINK $a $b", "UNLINK $c"]),
    ("XACK", "XADD $a 1-1 f v;XADD $a 2-1 f v;XGROUP CREATE $a g 0;XREADGROUP GROUP g c STREAMS $a >", &["XACK $a g 1-1", "XACK $a g 9-9", "XACK $a h 1-1"]),
    ("XADD", "XADD $a 1-1 f v;XADD $a 2-1 f v;XADD $a 3-1 f v", &[
        "?XADD $a * f v", "XADD $a 5-1 f v g w", "XADD $a 5-* f v", "XADD $a NOMKSTREAM 6-0 f v", "XADD $b NOMKSTREAM 6-0 f v", "XADD $a MAXLEN 2 7-0 f v",
        "XADD $a MAXLEN ~ 2 7-0 f v", "XADD $a MINID = 2 7-0 f v", "XADD $a MINID ~ 2 LIMIT 10 7-0 f v", "XADD $a MAXLEN = 0 7-0 f v", "XADD $a 1-0 f v",
    ]),
    ("XAUTOCLAIM", "XADD $a 1-1 f v;XGROUP CREATE $a g 0;XREADGROUP GROUP g c STREAMS $a >", &["XAUTOCLAIM $a g d 0 0", "XAUTOCLAIM $a h d 0 0"]),
    ("XCLAIM", "XADD $a 1-1 f v;XGROUP CREATE $a g 0;XREADGROUP GROUP g c STREAMS $a >", &["XCLAIM $a g d 0 1-1", "XCLAIM $a g d 0 9-9 JUSTID", "XCLAIM $a h d 0 1-1"]),
    ("XDEL", "XADD $a 1-1 f v;XADD $a 2-1 f v", &["XDEL $a 1-1", "XDEL $a 1-1 2-1", "XDEL $a 9-9"]),
    ("XGROUP", "XADD $a 1-1 f v;XGROUP CREATE $a g 0;XREADGROUP GROUP g c STREAMS $a >", &[
        "XGROUP CREATE $a h $", "XGROUP CREATE $b h $ MKSTREAM", "XGROUP CREATE $b h $", "XGROUP CREATE $a g 0", "XGROUP SETID $a g 0", "XGROUP DESTROY $a g",
        "XGROUP CREATECONSUMER $a g d", "XGROUP DELCONSUMER $a g c", "XGROUP DESTROY $a x", "XGROUP HELP",
    ]),
    ("XREADGROUP", "XADD $a 1-1 f v;XADD $a 2-1 f v;XGROUP CREATE $a g 0", &[
        "XREADGROUP GROUP g c COUNT 1 STREAMS $a >", "XREADGROUP GROUP g c NOACK STREAMS $a >", "XREADGROUP GROUP g d STREAMS $a 0",
        "XREADGROUP GROUP g c BLOCK 10 STREAMS $a >", "XREADGROUP GROUP x c STREAMS $a >",
    ]),
    ("XSETID", "XADD $a 1-1 f v", &["XSETID $a 9-0", "XSETID $a 0-1"]),
    ("XTRIM", "XADD $a 1-1 f v;XADD $a 2-1 f v;XADD $a 3-1 f v", &["XTRIM $a MAXLEN 1", "XTRIM $a MAXLEN ~ 1", "XTRIM $a MINID ~ 2", "XTRIM $a MAXLEN 9", "XTRIM $a MAXLEN = 0"]),
    ("ZADD", "ZADD $a 1 x 2 y;EXPIRE $a 900", &[
        "ZADD $a 3 z", "ZADD $a XX 3 z", "ZADD $a NX 3 x 4 w", "ZADD $a GT CH 5 x 0 y", "ZADD $a INCR 0.1 x", "ZADD $a NX INCR 1 x", "ZADD $a LT INCR 1 x",
        "ZADD $a +inf x", "ZADD $a 1 INCR", "ZADD $a INCR 1 x 2 y",
    ]),
    ("ZDIFFSTORE", "ZADD $a 1 x 2 y;ZADD $b 1 x", &["ZDIFFSTORE $c 2 $a $b", "ZDIFFSTORE $c 1 $c"]),
    ("ZINCRBY", "ZADD $a 1 x", &["ZINCRBY $a 0.1 x", "ZINCRBY $a -inf y", "ZINCRBY $a nope x"]),
    ("ZINTERSTORE", "ZADD $a 1 x 2 y;ZADD $b 1 x", &["ZINTERSTORE $c 2 $a $b WEIGHTS 2 3", "ZINTERSTORE $c 1 $c"]),
    ("ZMPOP", "ZADD $a 1 x 2.5 y 3 z", &["ZMPOP 1 $a MIN", "ZMPOP 1 $a MAX COUNT 2", "ZMPOP 1 $a MIN COUNT 9", "ZMPOP 2 $b $a MIN", "ZMPOP 1 $b MIN"]),
    ("ZPOPMAX", "ZADD $a 1 x 2.1 y", &["ZPOPMAX $a", "ZPOPMAX $a 5", "ZPOPMAX $b"]),
    ("ZPOPMIN", "ZADD $a 1.1 x 2 y", &["ZPOPMIN $a", "ZPOPMIN $a 5", "ZPOPMIN $b"]),
    ("ZRANGESTORE", "ZADD $a 1 x 2 y", &["ZRANGESTORE $b $a 0 0", "ZRANGESTORE $b $c 0 0"]),
    ("ZREM", "ZADD $a 1 x 2 y", &["ZREM $a x", "ZREM $a x y", "ZREM $a z"]),
    ("ZREMRANGEBYLEX", "ZADD $a 0 x 0 y", &["ZREMRANGEBYLEX $a [x [x", "ZREMRANGEBYLEX $a [a [b"]),
    ("ZREMRANGEBYRANK", "ZADD $a 1 x 2 y", &["ZREMRANGEBYRANK $a 0 0", "ZREMRANGEBYRANK $a 5 9"]),
    ("ZREMRANGEBYSCORE", "ZADD $a 1 x 2 y", &["ZREMRANGEBYSCORE $a 2 3", "ZREMRANGEBYSCORE $a 7 9"]),
    ("ZUNIONSTORE", "ZADD $a 1 x;ZADD $b 2 x 3 y", &["ZUNIONSTORE $c 2 $a $b AGGREGATE MAX", "ZUNIONSTORE $c 1 $c"]),
];

/// Write commands that have no case here, and where they are shown.
const ELSEWHERE: [(&str, &str); 4] = [
    ("FLUSHALL", "keyspace"),
    ("FLUSHDB", "keyspace"),
    ("MOVE", "keyspace"),
    ("SWAPDB", "refused where a route moves"),
];

/// How the two stores stand before a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Written through the proxy.
    Through,
    /// The leader of a mirrored route has it, the follower has never had it.
    LeaderOnly,
    /// Both have been written past the proxy.
    Both,
    /// The follower of a mirrored route, which lacks keys, holds something else.
    OtherOnFollower,
    /// A first touch: the follower has it, the leader not yet.
    FollowerOnly,
}

/// One request on keys of its own.
struct Run {
    command: &'static str,
    provider: String,
    is_led_by_cluster: bool,
    start: Start,
    tag: String,
    seed: String,
    request: String,
    is_chance: bool,
}

impl Run {
    /// `$a` is a key, a `$` with nothing behind it is itself.
    fn words(&self, text: &str) -> Vec<String> {
        let key = |word: &str| match word {
            "$a" | "$b" | "$c" => self.key(&word[1..]),
            "SHA" => SCRIPT_SHA.into(),
            other => other.to_string(),
        };
        text.split(' ').map(key).collect()
    }

    fn key(&self, name: &str) -> String {
        format!("provider:{}:{{{}}}:{name}", self.provider, self.tag)
    }

    fn keys(&self) -> [String; 3] {
        ["a", "b", "c"].map(|name| self.key(name))
    }

    /// Commands that make the follower hold something else.
    fn others(&self) -> Vec<(String, Vec<String>)> {
        let texts = ["SADD $a other", "SET $b other EX 77", "SET $c 7"];
        texts.map(|text| (self.key("a"), self.words(text))).into()
    }

    fn seeds(&self) -> Vec<Vec<String>> {
        self.seed.split(';').filter(|text| !text.is_empty()).map(|text| self.words(text)).collect()
    }
}

/// A script and its SHA-1.
const SCRIPT: &str = "return redis.call('APPEND',KEYS[1],1)";
const SCRIPT_SHA: &str = "5b99d1a2420a0b00d7ae693e9efa30ab3e65ad15";

/// A server, or the three primaries of the cluster; there keys may have other names.
struct Store(Vec<Connection>, Names);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Same,
    Tagged,
}

impl Store {
    /// What a word of a command is here.
    fn word(&self, word: &str) -> String {
        match word.strip_prefix("provider:").and_then(|rest| rest.split_once(':')) {
            Some((provider, _)) if self.1 == Names::Tagged => format!("{{{provider}}}{word}"),
            _ => word.to_string(),
        }
    }

    fn node(&self, key: &str) -> usize {
        let slot = cutover::slot::of(self.word(key).as_bytes());
        if self.0.len() == 1 { 0 } else { usize::from(slot > 5460) + usize::from(slot > 10922) }
    }

    /// Runs commands, each where its key is, and gives their replies in order.
    fn ask(&mut self, commands: &[(String, Vec<String>)]) -> Vec<Value> {
        let mut replies = vec![Value::Nil; commands.len()];
        for node in 0..self.0.len() {
            let mine: Vec<usize> = (0..commands.len()).filter(|index| self.node(&commands[*index].0) == node).collect();
            for chunk in mine.chunks(PIPELINE) {
                let own = |index: &usize| commands[*index].1.iter().map(|word| self.word(word)).collect();
                let texts: Vec<Vec<String>> = chunk.iter().map(own).collect();
                for (index, reply) in chunk.iter().zip(pipeline(&mut self.0[node], &texts)) {
                    replies[*index] = reply;
                }
            }
        }
        replies
    }

    /// What each key holds and when it expires.
    fn states(&mut self, keys: &[String]) -> Vec<State> {
        let ask = |word: &str| -> Vec<_> {
            keys.iter().map(|key| (key.clone(), vec![word.to_string(), key.clone()])).collect()
        };
        let (kinds, expiries) = (self.ask(&ask("TYPE")), self.ask(&ask("PEXPIRETIME")));
        let mut questions = Vec::new();
        for (key, kind) in keys.iter().zip(&kinds) {
            let words: &[&[&str]] = match text(kind).as_str() {
                "string" => &[&["GET", "$"]],
                "hash" => &[&["HGETALL", "$"]],
                "list" => &[&["LRANGE", "$", "0", "-1"]],
                "set" => &[&["SMEMBERS", "$"]],
                "zset" => &[&["ZRANGE", "$", "0", "-1", "WITHSCORES"]],
                "stream" => &[
                    &["XRANGE", "$", "-", "+"],
                    &["XINFO", "GROUPS", "$"],
                    &["XPENDING", "$", "g"],
                    &["XINFO", "STREAM", "$"],
                ],
                "none" => &[],
                other => panic!("a key of type {other}"),
            };
            let of = |words: &&[&str]| {
                words.iter().map(|word| if *word == "$" { key.clone() } else { word.to_string() }).collect()
            };
            questions.extend(words.iter().map(of).map(|words: Vec<String>| (key.clone(), words)));
        }
        let answers = self.ask(&questions);
        let mut by_key: BTreeMap<&String, String> = BTreeMap::new();
        for ((key, words), answer) in questions.iter().zip(&answers) {
            let told = match answer {
                // Its text names the key, which has another name on the cluster.
                Value::ServerError(error) => error.code().to_string(),
                answer => meaning(if words[1] == "STREAM" { "STREAM" } else { &words[0] }, answer),
            };
            by_key.entry(key).or_default().push_str(&told);
        }
        let expiry = |value: &Value| if let Value::Int(at) = value { *at } else { panic!("no time: {value:?}") };
        keys.iter()
            .zip(&expiries)
            .map(|(key, at)| State { value: by_key.get(key).cloned(), expires_at: expiry(at) })
            .collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    value: Option<String>,
    expires_at: i64,
}

impl State {
    fn agrees(&self, other: &Self, tolerance_ms: i64) -> bool {
        let is_timed = |state: &Self| state.expires_at >= 0;
        self.value == other.value
            && is_timed(self) == is_timed(other)
            && (self.expires_at - other.expires_at).abs() <= tolerance_ms
    }
}

fn pipeline(connection: &mut Connection, commands: &[Vec<String>]) -> Vec<Value> {
    let mut bytes = Vec::new();
    for words in commands {
        let mut one = redis::Cmd::new();
        for word in words {
            one.arg(if word == "DUMPED" { DUMPED } else { word.as_bytes() });
        }
        bytes.extend_from_slice(&one.get_packed_command());
    }
    redis::ConnectionLike::req_packed_commands(connection, &bytes, 0, commands.len()).expect("replies")
}

/// DUMP of the string "5" by Redis 7.0.
const DUMPED: &[u8] = b"\x00\xc0\x05\x0a\x00\x63\x2f\x5f\x66\x83\x2f\xb3\x51";

fn text(value: &Value) -> String {
    match value {
        Value::SimpleString(text) => text.clone(),
        other => panic!("no text: {other:?}"),
    }
}

/// A reply without what differs by chance: the order of sets and hashes, keys' names, times of pending entries.
fn meaning(name: &str, value: &Value) -> String {
    match value {
        Value::Array(elements) | Value::Set(elements) if matches!(name, "SMEMBERS" | "SPOP") => {
            let mut texts: Vec<String> = elements.iter().map(|element| format!("{element:?}")).collect();
            texts.sort();
            format!("{texts:?}")
        }
        Value::Array(elements) if name == "HGETALL" => {
            let mut pairs: Vec<String> = elements.chunks(2).map(|pair| format!("{pair:?}")).collect();
            pairs.sort();
            format!("{pairs:?}")
        }
        Value::Map(pairs) if name == "HGETALL" => {
            let mut pairs: Vec<String> = pairs.iter().map(|pair| format!("{pair:?}")).collect();
            pairs.sort();
            format!("{pairs:?}")
        }
        // The rest tells how it is laid out in memory.
        Value::Array(_) | Value::Map(_) if name == "STREAM" => {
            let cells: Vec<&Value> = match value {
                Value::Map(pairs) => pairs.iter().flat_map(|(name, value)| [name, value]).collect(),
                Value::Array(cells) => cells.iter().collect(),
                _ => Vec::new(),
            };
            let is_told = |name: &Value| {
                ["last-generated-id", "entries-added"].iter().any(|told| format!("{name:?}").contains(told))
            };
            format!("{:?}", cells.chunks(2).filter(|pair| is_told(pair[0])).collect::<Vec<_>>())
        }
        Value::ServerError(error) => format!("error {} {}", error.code(), error.details().unwrap_or_default()),
        other => format!("{other:?}"),
    }
}

/// The requests of all cases for one standing of a route.
fn runs(provider: &str, is_led_by_cluster: bool, starts: &[Start]) -> Vec<Run> {
    let mut found = Vec::new();
    for (name, seed, requests) in CASES {
        let wrong = if seed.contains("SET $a") && !seed.contains("HSET $a") { "RPUSH $a x" } else { "SET $a x" };
        for (number, request) in requests.iter().enumerate() {
            // Keys that do not exist or are of another type are no matter of how they came about. Redis looks ten times a
            // second for who has waited long enough, so what waits is asked for once.
            let waits = lookup(name.as_bytes()).is_some_and(|spec| spec.kind == Kind::Blocking);
            let missing = if waits { &[][..] } else { &starts[starts.len() - 1..] };
            let proper = if waits && number > 0 { &starts[..1] } else { starts };
            let mistaken = if waits && number > 0 { &[][..] } else { &starts[..1] };
            for (seed, starts) in [(*seed, proper), ("", missing), (wrong, mistaken)] {
                for start in starts {
                    found.push(Run {
                        command: name,
                        provider: provider.into(),
                        is_led_by_cluster,
                        start: *start,
                        tag: format!("{start:?}{}", found.len()),
                        seed: seed.into(),
                        request: request.trim_start_matches('?').into(),
                        is_chance: request.starts_with('?'),
                    });
                }
            }
        }
    }
    found
}

/// Says what takes how long.
struct Clock(Instant);

impl Clock {
    fn lap(&mut self, what: &str) {
        println!("{what} in {:?}", self.0.elapsed());
        self.0 = Instant::now();
    }
}

/// What the test talks to.
struct World {
    proxy: Proxy,
    through: Store,
    standalone: Store,
    cluster: Store,
    model: Store,
    _plain: Redis,
}

impl World {
    /// `first` names four providers: mirrored without and with `synced`, cut over with and without it.
    fn start(first: u32, routing: &str, protocol: &str) -> (Self, [String; 4]) {
        let stores = Stores::shared();
        let providers = [0, 1, 2, 3].map(|n| (first + n).to_string());
        let mut settings = Settings { routing: routing.into(), ..Settings::of(stores) };
        for (provider, phase) in
            providers.iter().zip(["dual-standalone", "dual-standalone", "dual-standalone", "dual-cluster"])
        {
            settings = settings.phase(provider, phase);
        }
        let proxy = settings.start().ready();
        proxy.cli_ok(&format!("backfill {} {}", providers[1], providers[2]));
        proxy.cli_ok(&format!("move {} --to dual-cluster", providers[2]));
        let plain = Redis::start(&[]);
        let connect = |port: u16| {
            let client = redis::Client::open(format!("redis://127.0.0.1:{port}/?protocol={protocol}")).expect("a URL");
            let connection = client.get_connection_with_timeout(Duration::from_secs(5)).expect("connect");
            connection.set_read_timeout(Some(PATIENCE)).expect("set a time-out");
            connection
        };
        let cluster: Vec<Connection> = stores.nodes[..3].iter().map(|node| connect(node.port)).collect();
        let world = Self {
            through: Store(vec![connect(proxy.port)], Names::Same),
            standalone: Store(vec![connect(stores.standalone.port)], Names::Same),
            cluster: Store(cluster, if routing.contains("tagged") { Names::Tagged } else { Names::Same }),
            model: Store(vec![connect(plain.port)], Names::Same),
            proxy,
            _plain: plain,
        };
        (world, providers)
    }

    /// Scripts and functions, on every node.
    fn load_scripts(&mut self) {
        let function = "#!lua name=effects\nredis.register_function('bump', function(keys) return redis.call('INCR', keys[1]) end)";
        for connection in self.standalone.0.iter_mut().chain(&mut self.cluster.0).chain(&mut self.model.0) {
            let sha: String = command(&["SCRIPT", "LOAD", SCRIPT]).query(connection).expect("SCRIPT LOAD");
            assert_eq!(sha, SCRIPT_SHA);
            let _: Value =
                command(&["FUNCTION", "LOAD", "REPLACE", function]).query(connection).expect("FUNCTION LOAD");
        }
    }

    /// Brings the stores to where each run begins.
    fn seed(&mut self, runs: &[Run]) {
        let (mut through, mut model) = (Vec::new(), Vec::new());
        let (mut standalone, mut cluster) = (Vec::new(), Vec::new());
        for run in runs {
            let seeds: Vec<_> = run.seeds().into_iter().map(|words| (run.key("a"), words)).collect();
            if run.start == Start::OtherOnFollower && run.is_led_by_cluster {
                // What the leader lacks is brought over.
                model.extend(
                    run.others()
                        .into_iter()
                        .filter(|(_, words)| !seeds.iter().flat_map(|(_, words)| words).any(|word| *word == words[1])),
                );
            }
            model.extend(seeds.clone());
            let (leader, follower) = match run.is_led_by_cluster {
                true => (&mut cluster, &mut standalone),
                false => (&mut standalone, &mut cluster),
            };
            match run.start {
                Start::Through => through.extend(seeds),
                Start::LeaderOnly => leader.extend(seeds),
                Start::FollowerOnly => follower.extend(seeds),
                Start::Both => {
                    leader.extend(seeds.clone());
                    follower.extend(seeds);
                }
                Start::OtherOnFollower => {
                    leader.extend(seeds);
                    follower.extend(run.others());
                }
            }
        }
        self.standalone.ask(&standalone);
        self.cluster.ask(&cluster);
        self.model.ask(&model);
        self.through.ask(&through);
    }

    /// All requests, and what is wrong afterwards.
    fn check(&mut self, runs: &[Run]) -> Vec<String> {
        let mut clock = Clock(Instant::now());
        self.seed(runs);
        clock.lap("seeded");
        let keys: Vec<String> = runs.iter().flat_map(Run::keys).collect();
        let before = self.model.states(&keys);
        let requests: Vec<_> = runs.iter().map(|run| (run.key("a"), run.words(&run.request))).collect();
        let (replies, wanted) = (self.through.ask(&requests), self.model.ask(&requests));
        clock.lap("asked");
        let (mut standalone, mut cluster) = (self.standalone.states(&keys), self.cluster.states(&keys));
        let until = Instant::now() + Duration::from_secs(5);
        let after = self.model.states(&keys);
        let differ = |number: usize, standalone: &[State], cluster: &[State]| -> Vec<usize> {
            let run = &runs[number];
            let is_due = |index: &usize| {
                // What no request named was not touched, and what none changed is brought over by a backfill only.
                let is_named = run.request.contains(["$a", "$b", "$c"][index % 3]);
                is_named && (run.start == Start::Through || before[*index] != after[*index])
            };
            (3 * number..3 * number + 3)
                .filter(is_due)
                .filter(|index| !standalone[*index].agrees(&cluster[*index], 50))
                .collect()
        };
        while (0..runs.len()).any(|run| !differ(run, &standalone, &cluster).is_empty()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
            (standalone, cluster) = (self.standalone.states(&keys), self.cluster.states(&keys));
        }
        clock.lap("compared");
        let mut wrong = Vec::new();
        for (number, run) in runs.iter().enumerate() {
            let about = format!("{} on {:?} ({:?}, provider {})", run.request, run.seed, run.start, run.provider);
            for index in differ(number, &standalone, &cluster) {
                wrong.push(format!(
                    "{about}: {} is {:?} on the standalone, {:?} on the cluster",
                    keys[index], standalone[index], cluster[index]
                ));
            }
            let (reply, expected) = (meaning(run.command, &replies[number]), meaning(run.command, &wanted[number]));
            if !run.is_chance && reply != expected {
                wrong.push(format!("{about}: answered {reply}, Redis {expected}"));
            }
            let leader = if run.is_led_by_cluster { &cluster } else { &standalone };
            for name in 0..3 {
                let index = 3 * number + name;
                // Brought over by a touch that is not refused; a backfill does it for the rest.
                let is_due = run.request.contains(["$a", "$b", "$c"][name])
                    && (before[index] != after[index] || leader[index].value.is_some());
                // Times are counted from when each of the two ran.
                if is_due && !run.is_chance && !leader[index].agrees(&after[index], PATIENCE.as_millis() as i64) {
                    wrong.push(format!("{about}: the leader has {:?}, Redis {:?}", leader[index], after[index]));
                }
            }
        }
        self.check_power(runs, &before, &after, &mut wrong);
        wrong
    }

    /// A case shows something only if some request changes something, and some request does not.
    fn check_power(&self, runs: &[Run], before: &[State], after: &[State], wrong: &mut Vec<String>) {
        let (mut changing, mut idle) = (BTreeSet::new(), BTreeSet::new());
        for (number, run) in runs.iter().enumerate() {
            let range = 3 * number..3 * number + 3;
            let set = if before[range.clone()] == after[range] { &mut idle } else { &mut changing };
            set.insert(run.command);
        }
        for (name, ..) in CASES {
            // These leave the same value in another encoding, or with another count in its cache.
            if !changing.contains(name) && !matches!(*name, "PFCOUNT" | "PFDEBUG") {
                wrong.push(format!("{name}: no request changes anything"));
            }
            if !idle.contains(name) {
                wrong.push(format!("{name}: every request changes something"));
            }
        }
    }
}

fn every_effect(first: u32, routing: &str, protocol: &str) {
    let (mut world, [unsynced, synced, cut_over, first_touch]) = World::start(first, routing, protocol);
    world.load_scripts();
    let mut all = runs(&unsynced, false, &[Start::Through, Start::LeaderOnly, Start::OtherOnFollower]);
    all.extend(runs(&synced, false, &[Start::Through]));
    all.extend(runs(&cut_over, true, &[Start::Through]));
    all.extend(runs(&first_touch, true, &[Start::Through, Start::FollowerOnly, Start::Both, Start::OtherOnFollower]));
    let wrong = world.check(&all);
    // In a strict mode whatever failed has been in the journal.
    let journal = std::fs::read(world.proxy.directory.path().join("state/journal")).expect("a journal");
    let journal = String::from_utf8_lossy(&journal);
    assert!(
        !journal.contains("provider"),
        "no effect failed, was answered unlike the write, or met another time: {journal}"
    );
    assert!(
        wrong.is_empty(),
        "{} of {} requests:\n{}",
        wrong.len(),
        all.len(),
        wrong.iter().take(60).cloned().collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn every_write_command_has_a_case() {
    let server = Redis::start(&[]);
    let mut connection = server.connect();
    let mut missing = Vec::new();
    for spec in all().iter().filter(|spec| spec.access == Access::Write && !matches!(spec.kind, Kind::Refused(_))) {
        let info = run(&mut connection, &format!("COMMAND INFO {}", spec.name));
        let is_known = !matches!(&info, Value::Array(rows) if rows.first() == Some(&Value::Nil));
        let is_shown =
            CASES.iter().any(|(name, ..)| *name == spec.name) || ELSEWHERE.iter().any(|(name, _)| *name == spec.name);
        if is_known && !is_shown {
            missing.push(spec.name);
        }
    }
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn every_write_command_leaves_both_stores_equal() {
    every_effect(600, "", "resp2");
}

#[test]
fn every_write_command_leaves_both_stores_equal_before_it_is_answered_and_under_tagged_names() {
    every_effect(610, "ack = \"both\"\ncluster_keys = \"tagged\"", "resp3");
}

/// A proxy with one synced route, and a key `k` of it whose primary is `node`.
fn synced(stores: &Stores, provider: &str, routing: &str) -> Proxy {
    let settings =
        Settings { routing: routing.into(), stores: "reply_timeout = \"2s\"".into(), ..Settings::of(stores) };
    let proxy = settings.phase(provider, "dual-standalone").start().ready();
    proxy.cli_ok(&format!("backfill {provider}"));
    proxy
}

fn open_divergence(proxy: &Proxy) -> u64 {
    let table = proxy.table();
    table["routes"].as_array().expect("routes").iter().filter_map(|route| route["open_divergence"].as_u64()).sum()
}

/// The leader runs the write a moment before the key expires, the follower a moment after.
#[test]
fn a_write_that_crosses_the_key_s_expiry_leaves_no_fragment_on_the_follower() {
    let stores = Stores::start();
    let proxy = synced(&stores, "620", "");
    let mut client = proxy.connect();
    let writes = [
        ("HSET K f 1", "HSET K g 2"),
        ("SADD K a", "SADD K b"),
        ("RPUSH K a", "RPUSH K b"),
        ("ZADD K 1 a", "ZADD K 2 b"),
        ("SET K a", "APPEND K b"),
        ("SET K 7", "INCR K"),
        ("HSET K f 1", "EXPIRE K 900"),
        ("XADD K 1-0 f v", "XADD K 2-0 f v"),
        ("ZADD K 1 a", "ZINCRBY K 1 b"),
    ];
    let key = |n: usize| format!("provider:620:{{{n}}}");
    for (n, (first, _)) in writes.iter().enumerate() {
        run(&mut client, &first.replace('K', &key(n)));
        run(&mut client, &format!("PEXPIRE {} 700", key(n)));
    }
    let on_cluster = |n: usize| stores.on_cluster(&["PTTL", &key(n)], &key(n));
    for n in 0..writes.len() {
        eventually("the follower has the time", || matches!(on_cluster(n), Value::Int(left) if left > 0));
    }
    stores.nodes[..3].iter().for_each(|node| node.signal("STOP"));
    for (n, (_, second)) in writes.iter().enumerate() {
        run(&mut client, &second.replace('K', &key(n)));
    }
    std::thread::sleep(Duration::from_millis(800));
    stores.nodes[..3].iter().for_each(|node| node.signal("CONT"));
    eventually("every key is equal again", || {
        (0..writes.len()).all(|n| {
            let ask = |word: &str| {
                (
                    run(&mut stores.standalone.connect(), &format!("{word} {}", key(n))),
                    stores.on_cluster(&[word, &key(n)], &key(n)),
                )
            };
            let ((type_here, type_there), (time_here, time_there)) = (ask("TYPE"), ask("PEXPIRETIME"));
            type_here == type_there && time_here == time_there
        }) && open_divergence(&proxy) == 0
    });
    // The one that lives on was prolonged by the leader in time.
    assert_eq!(run(&mut client, &format!("HGET {} f", key(6))), Value::BulkString(b"1".to_vec()));
    proxy.cli_ok("verify 620");
}

/// The other way round: the leader begins a new key where the follower still has the old one.
#[test]
fn a_key_that_began_anew_on_the_leader_does_not_keep_what_the_follower_had() {
    let stores = Stores::shared();
    let proxy = synced(stores, "621", "");
    let mut client = proxy.connect();
    let key = "provider:621:session";
    run(&mut client, &format!("HSET {key} old 1"));
    run(&mut client, &format!("PEXPIRE {key} 300"));
    eventually(
        "the follower has the time",
        || matches!(stores.on_cluster(&["PTTL", key], key), Value::Int(left) if left > 0),
    );
    // A follower whose clock is late.
    stores.on_cluster(&["PEXPIRE", key, "60000"], key);
    std::thread::sleep(Duration::from_millis(400));
    run(&mut client, &format!("HSET {key} new 1"));
    let fields = || format!("{:?}", stores.on_cluster(&["HGETALL", key], key));
    eventually("the follower has the new one only", || fields().contains("new") && !fields().contains("old"));
    assert_eq!(stores.on_cluster(&["TTL", key], key), Value::Int(-1));
}

/// `ack = "both"`: with the follower stopped a write waits for its reply_timeout, and is in the journal when it is answered.
#[test]
fn with_ack_both_a_write_is_answered_when_both_stores_have_it_or_the_journal_says_so() {
    let stores = Stores::start();
    let proxy = synced(&stores, "622", "ack = \"both\"");
    let mut client = proxy.connect();
    let key = "provider:622:list";
    for n in 0..20 {
        run(&mut client, &format!("RPUSH {key} {n}"));
        assert_eq!(stores.on_cluster(&["LLEN", key], key), Value::Int(n + 1), "answered when both have it");
    }
    run(&mut client, "EVAL return(redis.call('SET',KEYS[1],7)) 1 provider:622:script");
    assert_eq!(
        stores.on_cluster(&["GET", "provider:622:script"], "provider:622:script"),
        Value::BulkString(b"7".to_vec())
    );
    stores.nodes[..3].iter().for_each(|node| node.signal("STOP"));
    let began = Instant::now();
    run(&mut client, &format!("RPUSH {key} last"));
    let took = began.elapsed();
    assert!(
        took > Duration::from_millis(1_500) && took < Duration::from_secs(10),
        "it waits for the follower's time-out: {took:?}"
    );
    let journal = std::fs::read(proxy.directory.path().join("state/journal")).expect("a journal");
    assert!(
        journal.windows(key.len()).any(|bytes| bytes == key.as_bytes()),
        "the journal has the key before the client has its answer"
    );
    assert_eq!(open_divergence(&proxy), 1);
    stores.nodes[..3].iter().for_each(|node| node.signal("CONT"));
    eventually("repaired", || open_divergence(&proxy) == 0);
    assert_eq!(stores.on_cluster(&["LLEN", key], key), Value::Int(21));
    proxy.cli_ok("verify 622");
}
