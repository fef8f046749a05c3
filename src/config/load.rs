//! From a file to a checked configuration: `${NAME}`, TOML, types, then `check` for what types can't say.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use toml::Spanned;

use crate::config::check;
use crate::config::report::{Finding, Report, Reporter, may_be_secret, nearest};
use crate::config::{Admin, Config, Listen, ListenTls, Log, Store};
use crate::secret::Secret;

/// The file as written. Each field's default stands in `check`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub listen: ListenSection,
    #[serde(default)]
    pub admin: AdminSection,
    pub standalone: StandaloneSection,
    pub cluster: Option<ClusterSection>,
    pub routing: RoutingSection,
    #[serde(default)]
    pub databases: BTreeMap<Spanned<String>, Spanned<String>>,
    #[serde(default)]
    pub prefixes: BTreeMap<Spanned<String>, Spanned<String>>,
    #[serde(default, deserialize_with = "in_order")]
    pub providers: Vec<Line>,
    #[serde(default)]
    pub users: BTreeMap<Spanned<String>, UserTable>,
    #[serde(default)]
    pub commands: CommandsSection,
    #[serde(default)]
    pub copying: CopyingSection,
    #[serde(default)]
    pub bypass: BypassSection,
    #[serde(default)]
    pub lease: LeaseSection,
    #[serde(default)]
    pub limits: BTreeMap<Spanned<String>, LimitTable>,
    #[serde(default)]
    pub state: StateSection,
    #[serde(default)]
    pub log: LogSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListenSection {
    pub address: Option<Spanned<SocketAddr>>,
    pub password: Option<Spanned<Secret>>,
    pub protected_mode: Option<bool>,
    pub tls: Option<ListenTlsTable>,
    pub workers: Option<usize>,
    pub max_clients: Option<usize>,
    pub max_query_bytes: Option<ByteSize>,
    pub max_pending_reply_bytes: Option<ByteSize>,
    pub idle_timeout: Option<Spanned<String>>,
    pub drain_timeout: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListenTlsTable {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdminSection {
    pub address: Option<Spanned<SocketAddr>>,
    pub token: Option<Spanned<Secret>>,
    pub protected_mode: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StandaloneSection {
    pub url: Spanned<String>,
    pub tls: Option<Spanned<StoreTlsTable>>,
    pub connect_timeout: Option<Spanned<String>>,
    pub reply_timeout: Option<Spanned<String>>,
    pub patience: Option<Spanned<String>>,
    pub queue_bytes: Option<Spanned<String>>,
    pub queue_time: Option<Spanned<String>>,
    pub private_links: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterSection {
    pub seeds: Spanned<Vec<Spanned<String>>>,
    pub tls: Option<Spanned<StoreTlsTable>>,
    pub connect_timeout: Option<Spanned<String>>,
    pub reply_timeout: Option<Spanned<String>>,
    pub patience: Option<Spanned<String>>,
    pub queue_bytes: Option<Spanned<String>>,
    pub queue_time: Option<Spanned<String>>,
    pub private_links: Option<usize>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreTlsTable {
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub verify: Option<bool>,
    pub server_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RoutingSection {
    pub keys: Vec<Spanned<String>>,
    pub new_providers: Option<Spanned<String>>,
    pub share: Option<BTreeMap<Spanned<String>, Spanned<u8>>>,
    pub other_keys: Option<Spanned<String>>,
    pub pubsub: Option<Spanned<String>>,
    pub ack: Option<Spanned<String>>,
    pub cluster_keys: Option<Spanned<String>>,
    pub flip_timeout: Option<Spanned<String>>,
    pub shadow_reads: Option<Spanned<f64>>,
    #[serde(default)]
    pub force: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UserTable {
    pub password_sha256: Spanned<Secret>,
    pub commands: Option<Spanned<Vec<String>>>,
    pub routes: Option<Vec<Spanned<String>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitTable {
    pub requests_per_second: Option<u64>,
    pub bytes_per_second: Option<ByteSize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CommandsSection {
    #[serde(default)]
    pub refuse: Vec<Spanned<String>>,
    #[serde(default)]
    pub allow: Vec<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CopyingSection {
    pub method: Option<Spanned<String>>,
    pub large_key_bytes: Option<ByteSize>,
    pub bytes_per_second: Option<ByteSize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BypassSection {
    pub look_every: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LeaseSection {
    pub name: Option<Spanned<String>>,
    pub time: Option<Spanned<String>>,
    pub advertise: Option<Spanned<String>>,
    pub user: Option<String>,
    pub password: Option<Spanned<Secret>>,
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StateSection {
    pub directory: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogSection {
    pub level: Option<String>,
    pub format: Option<Spanned<String>>,
    pub slow_command: Option<Spanned<String>>,
    #[serde(default)]
    pub slow_command_keys: bool,
}

/// Reads and judges a file. The report names every finding with its line.
pub fn load(path: &Path) -> Result<Config, Report> {
    let file = path.display().to_string();
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|error| {
        let reporter = Reporter { file: &file, text: "", written: "" };
        let is_missing = error.kind() == std::io::ErrorKind::NotFound;
        let help = is_missing.then(|| "`cutover init` writes one; --config FILE names another".to_string());
        Report { findings: vec![reporter.whole(format!("read {file}: {error}"), help)] }
    })?;
    parse(&file, &text)
}

/// The same for a text; `file` is what the report calls it.
pub fn parse(file: &str, text: &str) -> Result<Config, Report> {
    let written = text;
    let text = substitute(file, written)?;
    let reporter = Reporter { file, text: &text, written };
    let parsed: File = toml::from_str(&text).map_err(|error| Report { findings: vec![explain(&reporter, &error)] })?;
    check::check(parsed, &reporter)
}

/// Puts in what comes from elsewhere: `${NAME}` from the environment, `${file:PATH}` from a file.
fn substitute(file: &str, text: &str) -> Result<String, Report> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        // Of the whole line: an earlier `${` in it is behind us.
        let line = text[..text.len() - rest.len() + at].rsplit('\n').next();
        let is_comment = line.is_some_and(|line| line.trim_start().starts_with('#'));
        let (Some(end), false) = (rest[at..].find('}'), is_comment) else {
            out.push_str(&rest[..at + 2]);
            rest = &rest[at + 2..];
            continue;
        };
        let value = from_elsewhere(&rest[at + 2..at + end]).map_err(|(message, help)| {
            let begin = text.len() - rest.len() + at;
            let reporter = Reporter { file, text, written: text };
            Report { findings: vec![reporter.at(begin..begin + end + 1, message, help)] }
        })?;
        out.push_str(&rest[..at]);
        // It stays inside of its string, and each line in its place.
        out.push_str(&value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\r', "\\r"));
        rest = &rest[at + end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// The value, else what is wrong and a help.
fn from_elsewhere(name: &str) -> Result<String, (String, Option<String>)> {
    match name.strip_prefix("file:") {
        // Editors and `echo` end a file with a newline, which is no part of a secret.
        Some(path) => match std::fs::read_to_string(path) {
            Ok(value) => Ok(value.trim_end_matches(['\r', '\n']).to_string()),
            Err(error) => {
                let help = "the path is taken from where cutover is started; the file must be readable for its user";
                Err((format!("read {path}: {error}"), Some(help.into())))
            }
        },
        None => std::env::var(name).map_err(|_| {
            let help = format!("export {name}=… before starting cutover");
            (format!("`{name}` is not set in the environment"), Some(help))
        }),
    }
}

/// A name and a phase.
type Line = (Spanned<String>, Spanned<String>);

/// The lines of a table of which there may be a million.
fn in_order<'de, D: serde::Deserializer<'de>>(table: D) -> Result<Vec<Line>, D::Error> {
    struct Lines;
    impl<'de> Visitor<'de> for Lines {
        type Value = Vec<Line>;

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Self::Value, A::Error> {
            let mut lines = Vec::with_capacity(table.size_hint().unwrap_or(0));
            while let Some(line) = table.next_entry()? {
                lines.push(line);
            }
            Ok(lines)
        }
    }
    table.deserialize_map(Lines)
}

/// A parser's error with its place and, for an unknown key, the nearest known one.
fn explain(reporter: &Reporter<'_>, error: &toml::de::Error) -> Finding {
    let message = error.message().trim();
    let place = error.span().unwrap_or_default();
    let line = reporter.text[..place.start].rfind('\n').map_or(0, |at| at + 1);
    let line = reporter.text[line..].lines().next().unwrap_or_default();
    // "invalid type: integer `12345`, expected a string" would tell.
    let message = match message.split_once(", expected ") {
        Some((_, expected)) if message.starts_with("invalid ") && may_be_secret(line) => {
            &format!("expected {expected}")
        }
        _ => message,
    };
    let (message, help) = match message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
        Some((word, known)) => {
            let near = nearest(word, known.split('`').skip(1).step_by(2));
            (message, near.map(|near| format!("did you mean `{near}`?")))
        }
        // The library's own words name its types.
        None if message == "invalid socket address syntax" => {
            ("this is no address", Some("write it as an IP address and a port: \"127.0.0.1:6380\"".into()))
        }
        None if message.contains("into a ByteSize") => ("this is no size", Some("write it as \"64MiB\"".into())),
        None => (message, None),
    };
    match error.span() {
        Some(span) => reporter.at(span, message, help),
        None => reporter.whole(message, help),
    }
}

/// Reads a time.
pub(super) fn duration(
    text: &Option<Spanned<String>>,
    default: Duration,
    reporter: &Reporter<'_>,
    findings: &mut Vec<Finding>,
) -> Duration {
    let Some(text) = text else { return default };
    humantime::parse_duration(text.get_ref()).unwrap_or_else(|error| {
        let message = format!("`{}` is no duration: {error}", text.get_ref());
        findings.push(reporter.at(text.span(), message, Some("write it as \"10s\" or \"500ms\"".into())));
        default
    })
}

/// Leaves a thousand of the connections that a Redis takes by default to everybody else.
const PRIVATE_LINKS: usize = 9000;

/// The settings that both store sections have, as written.
pub(super) struct StoreLimits<'f> {
    pub connect_timeout: &'f Option<Spanned<String>>,
    pub reply_timeout: &'f Option<Spanned<String>>,
    pub patience: &'f Option<Spanned<String>>,
    pub queue_bytes: &'f Option<Spanned<String>>,
    pub queue_time: &'f Option<Spanned<String>>,
    pub private_links: Option<usize>,
}

/// Reads them. `patience`: the default, which differs between the sections.
pub(super) fn store(
    limits: &StoreLimits<'_>,
    patience: Duration,
    reporter: &Reporter<'_>,
    findings: &mut Vec<Finding>,
) -> Store {
    let mut duration = |text, default| duration(text, default, reporter, findings);
    let connect_timeout = duration(limits.connect_timeout, Duration::from_secs(2));
    let reply_timeout = duration(limits.reply_timeout, Duration::from_secs(10));
    let patience = duration(limits.patience, patience);
    let queue_time = duration(limits.queue_time, Duration::from_secs(2));
    let mut queue_bytes = 64 << 20;
    if let Some(text) = limits.queue_bytes {
        match text.get_ref().parse::<ByteSize>() {
            Ok(size) => queue_bytes = size.as_u64() as usize,
            Err(_) => {
                let message = format!("`{}` is no size", text.get_ref());
                findings.push(reporter.at(text.span(), message, Some("write it as \"64MiB\"".into())));
            }
        }
    }
    let private_links = limits.private_links.unwrap_or(PRIVATE_LINKS);
    let (urls, tls) = (Vec::new(), None);
    Store { urls, connect_timeout, reply_timeout, patience, queue_bytes, queue_time, private_links, tls }
}

impl Config {
    pub(super) fn listen_of(
        section: &ListenSection,
        default: SocketAddr,
        reporter: &Reporter<'_>,
        findings: &mut Vec<Finding>,
    ) -> Listen {
        Listen {
            address: section.address.as_ref().map_or(default, |address| *address.get_ref()),
            password: section.password.as_ref().map(|password| password.get_ref().clone()),
            tls: section.tls.clone().map(|ListenTlsTable { cert, key, client_ca }| ListenTls { cert, key, client_ca }),
            workers: section.workers.unwrap_or(0),
            max_clients: section.max_clients.unwrap_or(10_000),
            max_query_bytes: section.max_query_bytes.map_or(1 << 30, |size| size.as_u64() as usize),
            max_pending_reply_bytes: section.max_pending_reply_bytes.map_or(1 << 30, |size| size.as_u64() as usize),
            idle_timeout: duration(&section.idle_timeout, Duration::ZERO, reporter, findings),
            drain_timeout: duration(&section.drain_timeout, Duration::from_secs(10), reporter, findings),
        }
    }

    pub(super) fn admin_of(section: AdminSection, default: SocketAddr) -> Admin {
        let address = section.address.map_or(default, Spanned::into_inner);
        Admin { address, token: section.token.map(Spanned::into_inner) }
    }

    pub(super) fn log_of(section: &LogSection, slow_command: Option<Duration>) -> Log {
        let json = section.format.as_ref().is_some_and(|format| format.get_ref() == "json");
        let level = section.level.clone().unwrap_or_else(|| "info".into());
        Log { level, json, slow_command, slow_command_keys: section.slow_command_keys }
    }
}
