//! docs/configuration.md and docs/commands.md are written from the code: `make docs` writes them, and the test fails when
//! what stands there is not what the code says now.

use std::fmt::Write as _;

use cutover::command::{self, Access, CommandSpec, EffectKind, Keys, Kind, Split, chosen};

/// Compares a committed file with what it should be; with UPDATE_DOCS in the environment it is written instead.
#[track_caller]
fn assert_fresh(file: &str, wanted: &str) {
    let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return std::fs::write(&path, wanted).expect("write the reference");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let line = there.lines().zip(wanted.lines()).position(|(old, new)| old != new);
    assert!(
        there == wanted,
        "{file} is stale (line {}); `make docs` writes it",
        line.unwrap_or_else(|| there.lines().count().min(wanted.lines().count())) + 1
    );
}

fn read(file: &str) -> String {
    std::fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).expect("the file stands in the project")
}

#[test]
fn the_configuration_reference_is_fresh() {
    assert_fresh("docs/configuration.md", &configuration(&read("proxy.toml"), &restarts(&read("src/serve.rs"))));
}

#[test]
fn the_reference_of_commands_is_fresh() {
    assert_fresh("docs/commands.md", &commands());
}

/// A setting as proxy.toml shows it.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    name: String,
    shown: String,
    is_optional: bool,
    text: String,
}

/// A section: its name, what is said of all of it, its settings.
type Section = (String, String, Vec<Setting>);

/// Reads sections, settings and what the comments say of them. A comment that stands alone belongs to the section, one
/// that is indented goes on what the line above says.
fn sections(toml: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in toml.lines() {
        if let Some((name, rest)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let said = rest.trim().trim_start_matches('#').trim().to_string();
            sections.push((name.into(), said, Vec::new()));
            continue;
        }
        let Some((_, said, settings)) = sections.last_mut() else { continue };
        let trimmed = line.trim_start();
        if let (true, Some(text)) = (line.len() - trimmed.len() > 8, trimmed.strip_prefix("# ")) {
            match settings.last_mut() {
                Some(setting) => setting.text = format!("{} {text}", setting.text),
                None => join(said, text),
            }
            continue;
        }
        let (body, is_optional) = line.strip_prefix("# ").map_or((line, false), |body| (body, true));
        match body.split_once(" = ") {
            Some((name, rest)) if is_name(name) => {
                let (shown, text) = value_and_comment(rest);
                settings.push(Setting { name: name.trim().into(), shown, is_optional, text });
            }
            _ if is_optional => join(said, body),
            _ => {}
        }
    }
    sections
}

/// Goes on with what is said: in a new sentence, where one begins.
fn join(said: &mut String, text: &str) {
    let is_sentence = text.starts_with(char::is_uppercase) && !said.is_empty() && !said.ends_with(['.', ':']);
    said.push_str(if is_sentence { ". " } else { " " });
    said.push_str(text);
}

fn is_name(text: &str) -> bool {
    let inner = text.trim().trim_matches('"');
    !inner.is_empty() && (text.starts_with('"') || inner.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
}

/// `"value"   # what it means`; a `#` within quotes is no comment.
fn value_and_comment(rest: &str) -> (String, String) {
    let (mut is_quoted, mut end) = (false, rest.len());
    for (at, letter) in rest.char_indices() {
        match letter {
            '"' => is_quoted = !is_quoted,
            '#' if !is_quoted => {
                end = at;
                break;
            }
            _ => {}
        }
    }
    (rest[..end].trim().to_string(), rest[end..].trim_start_matches('#').trim().to_string())
}

/// The names in `needs_restart`: sections as `[admin]`, single settings as `log.format`, several as `[listen] address or tls`.
fn restarts(serve: &str) -> Vec<String> {
    let body = serve.split("fn needs_restart").nth(1).and_then(|rest| rest.split("\n}\n").next());
    let quoted = body.expect("serve.rs says what needs a restart").split('"').skip(1).step_by(2);
    let expand = |name: &str| match name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        None => vec![name.to_string()],
        Some((section, settings)) => {
            let words = settings.split(|c: char| !c.is_ascii_lowercase() && c != '_');
            words.filter(|word| !word.is_empty() && *word != "or").map(|word| format!("{section}.{word}")).collect()
        }
    };
    quoted.flat_map(expand).collect()
}

fn configuration(toml: &str, restarts: &[String]) -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         <!-- Written by `make docs` from proxy.toml, which a test compares with the code. Do not edit. -->\n\n\
         One file, [proxy.toml](../proxy.toml) (`--config FILE`, or `CUTOVER_CONFIG`). `${NAME}` in any string is taken from the\n\
         environment. Unknown names are errors that say which known one is near. The running proxy watches the folder of the file\n\
         and reads it again when it is saved, renamed into place, swapped by a ConfigMap, and on SIGHUP; no client is disconnected.\n\
         `cutover check` says what is wrong with it and what saving it would flip.\n\n\
         A setting shown with its default may be left out; one marked **required** may not, and one marked *none* has no default.\n",
    );
    let mut told: Vec<(String, String)> = Vec::new();
    for (section, said, settings) in sections(toml) {
        let _ = write!(page, "\n## [{section}]\n\n");
        if !said.trim().is_empty() {
            let _ = writeln!(page, "{}\n", sentence(said.trim()));
        }
        if settings.is_empty() {
            continue;
        }
        let is_open = settings.iter().all(|setting| setting.name.starts_with('"'));
        let _ = writeln!(
            page,
            "| {} | {} | what it is | taken |\n| --- | --- | --- | --- |",
            if is_open { "line" } else { "setting" },
            if is_open { "phase" } else { "default" }
        );
        for setting in &settings {
            let needs = restarts
                .iter()
                .any(|name| *name == format!("[{section}]") || *name == format!("{section}.{}", setting.name));
            let has_default = setting.is_optional || DEFAULTED.contains(&(&section, &setting.name)) || is_open;
            let shown = match setting.shown.as_str() {
                shown if shown.contains("${") => "*none*".to_string(),
                shown if shown.starts_with('{') && !is_open => format!("*none*, e.g. `{shown}`"),
                shown if has_default => format!("`{shown}`"),
                shown => format!("**required**, e.g. `{shown}`"),
            };
            let before = told.iter().find(|(name, _)| *name == setting.name).map(|(_, section)| section);
            let text = match (setting.text.trim(), before) {
                ("", Some(section)) => format!("as in [{section}]"),
                (text, _) => text.replace('|', "\\|"),
            };
            if !is_open && !setting.text.is_empty() {
                told.push((setting.name.clone(), section.clone()));
            }
            let taken = if needs { "at the next start" } else { "at once" };
            let _ = writeln!(page, "| `{}` | {shown} | {text} | {taken} |", setting.name);
        }
    }
    page
}

/// Settings that stand in proxy.toml because one sets them, and that have a default all the same.
const DEFAULTED: &[(&str, &str)] = &[
    ("listen", "address"),
    ("admin", "address"),
    ("routing", "new_providers"),
    ("routing", "other_keys"),
    ("routing", "pubsub"),
    ("routing", "ack"),
    ("routing", "cluster_keys"),
    ("state", "directory"),
];

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}

fn commands() -> String {
    let mut page = String::from(
        "# Commands\n\n\
         <!-- Written by `make docs` from src/command/table.rs. Do not edit. -->\n\n\
         What happens with each command, by who leads its keys. The standalone leads in the phases `standalone` and\n\
         `dual-standalone`, the cluster in `dual-cluster` and `cluster`. In the two dual phases the other store follows: it is sent\n\
         an *effect*, computed from the command and the leader's answer, after the client has its answer. The application never waits for an effect\n\
         (but with `ack = \"both\"`, and in a route that was cut over before its backfill ended).\n\n\
         A command that is not in the list is looked up in the standalone's `COMMAND INFO` when it is first used, and served like one with\n\
         the same keys; in a dual phase its keys are copied after each write. \"One slot\" holds for `cluster_keys = \"same\"`; with `\"tagged\"` all keys of a provider\n\
         share a slot, so it means \"one provider\".\n\n\
         The operator may refuse further commands and sub-commands (`refuse` under `[commands]` in proxy.toml), and allow the refused\n\
         ones that *may be allowed*: these go to the standalone as they are, whichever store leads.\n\n\
         ## Effects and their cost\n\n\
         | effect | the follower is sent | cost in a dual phase, beside the command itself |\n| --- | --- | --- |\n",
    );
    for kind in EFFECTS {
        let (name, sent, cost) = told(*kind);
        let _ = writeln!(page, "| {name} | {sent} | {cost} |");
    }
    page.push_str(
        "\nAn effect that builds on the value there (*again*, *taken*, *result*, *entry*) is sent only for a key that the follower is known to have whole; until\n\
         then, and after anything doubtful, the key is copied. Errors of the leader have no effect.\n\n\
         ## What is copied\n\n\
         A copy costs the whole value: DUMP on the leader, RESTORE on the follower, each time the command runs on the key. For most\n\
         keys that is some hundred bytes and nobody notices; a list of a million entries that is popped by BLPOP all day is\n\
         better moved at a quiet hour, and its dual phases kept short.\n\n\
         | commands | why | would something cheaper do? |\n| --- | --- | --- |\n",
    );
    for (why, cheaper, is) in COPIES {
        let names: Vec<_> = copied().filter(|spec| is(spec)).map(|spec| spec.name).collect();
        let _ = writeln!(page, "| {} | {why} | {cheaper} |", names.join(", "));
    }
    page.push_str(
        "\n## All commands\n\n\
         | command | since | keys led by the standalone | keys led by the cluster | effect |\n| --- | --- | --- | --- | --- |\n",
    );
    for spec in command::all() {
        let (standalone, cluster) = support(spec);
        let effect = if spec.access == Access::Write && !matches!(spec.kind, Kind::Refused(_) | Kind::KeyspaceWide) {
            told(spec.effect).0
        } else {
            "–"
        };
        let (major, minor) = spec.since;
        let _ = writeln!(page, "| {} | {major}.{minor} | {standalone} | {cluster} | {effect} |", spec.name);
    }
    page.push_str(
        "\n`SET` with three arguments goes *whole*, as it is; with options it goes as *set*. `ZADD … INCR` goes as *result*. `GETEX`, `SORT`, `BITFIELD` and\n\
         `GEORADIUS` without what makes them writes are reads. `XREAD` and `XREADGROUP` with `BLOCK` wait like the blocking pops.\n\
         Options that are newer than this table are served, and the key is copied.\n",
    );
    page
}

const EFFECTS: &[EffectKind] = &[
    EffectKind::Overwrite,
    EffectKind::Set,
    EffectKind::Number,
    EffectKind::Delete,
    EffectKind::Expire,
    EffectKind::Replay,
    EffectKind::Spop,
    EffectKind::Mpop,
    EffectKind::Score,
    EffectKind::Xadd,
    EffectKind::Xtrim,
    EffectKind::Copy,
];

/// An effect's name, what is sent, and what it costs.
fn told(effect: EffectKind) -> (&'static str, &'static str, &'static str) {
    let asked = "PEXPIRETIME on the leader";
    let both = "PEXPIRETIME on both stores";
    match effect {
        EffectKind::None => ("–", "nothing", "nothing"),
        EffectKind::Overwrite => (
            "whole",
            "the command as it is: it leaves the right value whatever was there",
            "one command on the follower",
        ),
        EffectKind::Set => ("set", "`SET` of the value, its condition decided, its time absolute", asked),
        EffectKind::Number => ("number", "`SET` of the number that the leader answered", asked),
        EffectKind::Delete => ("delete", "`DEL`", "one command on the follower"),
        EffectKind::Expire => ("expire", "`PEXPIREAT` of the time that the key has on the leader, or `PERSIST`", asked),
        EffectKind::Replay => ("again", "the command again", both),
        EffectKind::Spop => ("taken", "`SREM` of the members that SPOP answered", both),
        EffectKind::Mpop => (
            "taken",
            "`LPOP`, `RPOP` or `ZREM` of what was taken from one key; from several keys: a copy of each",
            both,
        ),
        EffectKind::Score => ("result", "`ZADD` of the score that the leader answered", both),
        EffectKind::Xadd => (
            "entry",
            "`XADD` with the ID that the leader gave",
            "PEXPIRETIME on both stores; with `~` also XLEN on the leader",
        ),
        EffectKind::Xtrim => (
            "entry",
            "`XTRIM` to the length that the stream then has",
            "PEXPIRETIME on both stores; with `~` also XLEN on the leader",
        ),
        EffectKind::Copy => {
            ("**copy**", "`RESTORE` of the key's `DUMP`, or `DEL` where it has gone", "the whole value, each time")
        }
    }
}

fn copied() -> impl Iterator<Item = &'static CommandSpec> {
    let is_copied = |spec: &&CommandSpec| {
        spec.effect == EffectKind::Copy && !matches!(spec.kind, Kind::Refused(_) | Kind::KeyspaceWide)
    };
    command::all().iter().filter(is_copied)
}

fn is_one_key(spec: &CommandSpec) -> bool {
    matches!(spec.keys, Keys::Range { first, last, .. } if first == last)
}

fn is_of_fields(spec: &CommandSpec) -> bool {
    spec.name.starts_with('H')
}

/// Why commands are copied, whether something cheaper would do, and which they are: each command belongs to one line.
type Copies = (&'static str, &'static str, fn(&CommandSpec) -> bool);
const COPIES: &[Copies] = &[
    ("what a script did is not known", "no", |spec| spec.kind == Kind::Script),
    (
        "they wait outside of the lanes, on a connection of their own",
        "yes: LPOP, RPOP, ZREM or an LMOVE of what was taken. The value is copied because the key may have changed between the answer and the effect",
        |spec| spec.kind == Kind::Blocking,
    ),
    (
        "idle times decide what they take, and those differ between the stores",
        "partly: XCLAIM with the IDs and JUSTID that the leader answered",
        |spec| matches!(spec.name, "XCLAIM" | "XAUTOCLAIM"),
    ),
    (
        "times of hash fields; they are newer than most servers",
        "yes: HPEXPIREAT of the same times, where both servers know it",
        |spec| is_of_fields(spec),
    ),
    ("its argument is a dump already", "it is one: the cost is that of the command", |spec| spec.name == "RESTORE"),
    ("vector sets; newer than most servers, and built by chance", "no", |spec| spec.name.starts_with('V')),
    ("seldom used; a debugging command", "no need", |spec| spec.name == "PFDEBUG"),
    (
        "their keys are in several lanes, so no single lane can keep their order",
        "yes for MSETNX (SET), RPOPLPUSH and LMOVE (RPOP and LPUSH), SMOVE (SREM and SADD). The others build one key from others: only the result, one key, is copied",
        |spec| {
            !is_one_key(spec)
                && !matches!(spec.kind, Kind::Script | Kind::Blocking)
                && !matches!(spec.name, "XCLAIM" | "XAUTOCLAIM")
                && !is_of_fields(spec)
        },
    ),
];

#[test]
fn each_command_that_is_copied_has_one_reason() {
    for spec in copied() {
        let reasons = COPIES.iter().filter(|(.., is)| is(spec)).count();
        assert_eq!(reasons, 1, "{}: give it a line in COPIES", spec.name);
    }
}

/// What is done with a command, where the standalone leads and where the cluster does.
fn support(spec: &CommandSpec) -> (String, String) {
    let both = |text: &str| (text.to_string(), text.to_string());
    let one_slot = ("as in Redis".to_string(), "its keys in one slot, else `CROSSSLOT`".to_string());
    match spec.kind {
        Kind::Keyed if is_one_key(spec) => both("as in Redis"),
        Kind::Keyed => one_slot,
        Kind::Split(Split::Mget | Split::Mset | Split::Count) => ("as in Redis".into(), "split over slots".into()),
        Kind::Local => both("answered by the proxy"),
        Kind::Keyless => both("the standalone answers"),
        Kind::PubSub | Kind::Publish => both("on the store that `pubsub` names"),
        Kind::Transaction => {
            ("as in Redis".into(), "keys in one slot; commands of one key each, without WATCH: split".into())
        }
        Kind::Blocking if matches!(spec.keys, Keys::None) => both("the standalone answers"),
        Kind::Blocking => ("as in Redis".into(), "its keys in one slot; waits through flips".into()),
        Kind::Script if matches!(spec.keys, Keys::None) => both("sent to every node of both stores"),
        Kind::Script => ("as in Redis".into(), "its declared keys in one slot".into()),
        Kind::KeyspaceWide if spec.name == "MOVE" => {
            ("as in Redis".into(), "refused: a cluster has one database".into())
        }
        Kind::KeyspaceWide if spec.name == "SWAPDB" => {
            both("as in Redis while all routes are in `standalone`, then refused")
        }
        Kind::KeyspaceWide if spec.access == Access::Write => both("the keys of the caller's database, on both stores"),
        Kind::Scan | Kind::KeyspaceWide => both("over both stores, each key once"),
        Kind::Refused(reason) if chosen::never(spec.name).is_some() => both(&format!("refused: {reason}")),
        Kind::Refused(reason) => both(&format!("refused: {reason} (may be allowed)")),
    }
}

#[test]
fn comments_of_a_configuration_go_to_their_settings() {
    let toml = "# File.\n[a]   # of all\n# one more = word of it\nx = \"#1\"   # first\n           # and on\n# y = 2   # second\n[b]\n# what stands in b\n\"7\" = \"z\"\n";
    let found = sections(toml);
    let setting = |name: &str, shown: &str, is_optional, text: &str| Setting {
        name: name.into(),
        shown: shown.into(),
        is_optional,
        text: text.into(),
    };
    assert_eq!(found[0].1, "of all one more = word of it");
    let mut said = "First".to_string();
    join(&mut said, "goes on");
    join(&mut said, "Second");
    assert_eq!(said, "First goes on. Second");
    assert_eq!(found[0].2, [setting("x", "\"#1\"", false, "first and on"), setting("y", "2", true, "second")]);
    assert_eq!((&*found[1].1, &found[1].2[0]), (" what stands in b", &setting("\"7\"", "\"z\"", false, "")));
    assert_eq!(
        restarts(
            "fn needs_restart() {\n look(a, \"[x]\");\n look(b, \"y.z\");\n look(c, \"[a] b, c or d\");\n}\n\"no\""
        ),
        ["[x]", "y.z", "a.b", "a.c", "a.d"]
    );
}
