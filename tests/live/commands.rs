//! The command table against the server's own COMMAND INFO.

use redis::Value;

use crate::common::{Redis, command};
use cutover::command::{Access, Keys, Kind, all, lookup};

/// What COMMAND says of one command.
struct Info {
    name: String,
    arity: i64,
    flags: Vec<String>,
    first: i64,
    last: i64,
    step: i64,
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        other => panic!("no text: {other:?}"),
    }
}

fn number(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        other => panic!("no number: {other:?}"),
    }
}

fn commands_of(server: &Redis) -> Vec<Info> {
    let Value::Array(rows) = command(&["COMMAND"]).query(&mut server.connect()).expect("COMMAND") else {
        panic!("no array")
    };
    let info = |row: &Value| {
        let Value::Array(cells) = row else { panic!("no array") };
        let flags = match &cells[2] {
            Value::Array(flags) | Value::Set(flags) => flags.iter().map(text).collect(),
            other => panic!("no flags: {other:?}"),
        };
        Info {
            name: text(&cells[0]).to_uppercase(),
            arity: number(&cells[1]),
            flags,
            first: number(&cells[3]),
            last: number(&cells[4]),
            step: number(&cells[5]),
        }
    };
    rows.iter().map(info).collect()
}

/// Container commands have one row for all their sub-commands, so their flags and keys are those of the sub-commands.
const CONTAINERS: [&str; 18] = [
    "ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DEBUG", "FUNCTION", "LATENCY", "MEMORY", "MODULE", "OBJECT",
    "PUBSUB", "SCRIPT", "SLOWLOG", "XGROUP", "XINFO", "VADD", "SENTINEL",
];

#[test]
fn every_command_of_the_server_stands_in_the_table_with_its_keys_access_and_arity() {
    let server = Redis::start(&[]);
    let mut wrong = Vec::new();
    let known = commands_of(&server);
    assert!(known.len() > 200);
    for info in &known {
        let Some(spec) = lookup(info.name.as_bytes()) else {
            wrong.push(format!("{}: not in the table", info.name));
            continue;
        };
        if CONTAINERS.contains(&spec.name) {
            continue;
        }
        if i64::from(spec.arity) != info.arity {
            wrong.push(format!("{}: arity {} here, {} there", spec.name, spec.arity, info.arity));
        }
        let has = |flag: &str| info.flags.iter().any(|known| known == flag);
        let keyed = info.first > 0 || has("movablekeys");
        if matches!(spec.kind, Kind::Refused(_)) {
            continue;
        }
        let writes = has("write");
        let agrees = match spec.access {
            Access::Write => writes || matches!(spec.name, "EVAL" | "EVALSHA" | "FCALL" | "PFCOUNT"),
            Access::Read => keyed && !has("write"),
            Access::None => !keyed || !has("write"),
        };
        if !agrees {
            wrong.push(format!("{}: {:?} here, flags {:?} there", spec.name, spec.access, info.flags));
        }
        match spec.keys {
            Keys::Range { first, last, step } => {
                let here = (i64::from(first), i64::from(last), i64::from(step));
                if here != (info.first, info.last, info.step) {
                    wrong.push(format!(
                        "{}: keys {here:?} here, {:?} there",
                        spec.name,
                        (info.first, info.last, info.step)
                    ));
                }
            }
            Keys::None if keyed && !matches!(spec.kind, Kind::PubSub | Kind::Publish) => {
                wrong.push(format!("{}: has keys", spec.name))
            }
            Keys::Irregular(_) if !keyed => wrong.push(format!("{}: has no keys", spec.name)),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// COMMAND GETKEYS is the server's own word on where the keys of a request are.
#[test]
fn irregular_keys_are_where_the_server_finds_them() {
    let server = Redis::start(&[]);
    let mut connection = server.connect();
    let requests = [
        "EVAL x 2 a b c",
        "EVALSHA x 1 a c",
        "FCALL f 2 a b c",
        "XREAD COUNT 1 STREAMS a b 0 0",
        "XREADGROUP GROUP g c COUNT 1 STREAMS a b > >",
        "ZUNIONSTORE d 2 a b WEIGHTS 1 2",
        "ZINTERSTORE d 1 a",
        "ZUNION 2 a b",
        "ZDIFF 2 a b WITHSCORES",
        "SINTERCARD 2 a b LIMIT 1",
        "LMPOP 2 a b LEFT",
        "BLMPOP 1 2 a b LEFT",
        "ZMPOP 1 a MIN",
        "BZMPOP 1 2 a b MAX",
        "SORT a BY w STORE d",
        "SORT a LIMIT 0 1",
        "GEORADIUS a 1 1 1 m STORE d",
        "GEORADIUS a 1 1 1 m",
        "MEMORY USAGE k",
        "OBJECT ENCODING k",
        "XGROUP CREATE k g 0",
        "XINFO STREAM k",
        "MSET a 1 b 2",
        "BITOP AND d a b",
        "LCS a b",
        "COPY a b",
        "SMOVE a b m",
        "BLMOVE a b LEFT LEFT 1",
        "PFMERGE d a b",
        "GEOSEARCHSTORE d a FROMLONLAT 1 1 BYRADIUS 1 m",
        "ZRANGESTORE d a 0 1",
        "RENAME a b",
        "SUNIONSTORE d a b",
    ];
    for words in requests {
        let args: Vec<&str> = words.split(' ').collect();
        let wanted: Vec<String> = command(&[&["COMMAND", "GETKEYS"][..], &args].concat())
            .query(&mut connection)
            .unwrap_or_else(|error| panic!("{words}: {error}"));
        let request = cutover::resp::request::Request::from_args(&args);
        let spec = lookup(args[0].as_bytes()).unwrap_or_else(|| panic!("{words}: unknown"));
        let Some(found) = cutover::command::keys_of(spec, &request) else { panic!("{words}: not understood") };
        let mut found: Vec<String> =
            found.iter().map(|index| String::from_utf8_lossy(request.arg(*index)).into_owned()).collect();
        let mut wanted = wanted;
        // Redis names the destination of SORT and GEORADIUS last or first; the set is what counts.
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted, "{words}");
    }
    assert!(all().len() > 240);
}
