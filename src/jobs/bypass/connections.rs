//! What CLIENT LIST says: who is connected to a node beside the proxy, and which of these have just written.

use std::time::Duration;

use crate::command::{self, Access, Kind};
use crate::jobs::bypass::{FoundBy, Writer};
use crate::routing::Side;
use crate::store::client_list::field;
use crate::store::link::Endpoint;
use crate::store::private_link::{self, CONNECTION_NAME, own_name};

/// Name and host of the proxies in a CLIENT LIST that are not this one.
pub(super) fn other_proxies(list: &str) -> impl Iterator<Item = (String, String)> {
    list.lines().filter_map(|line| {
        let name = private_link::proxy_of(field(line, "name")?)?;
        let host = field(line, "addr")?.rsplit_once(':')?.0;
        (name != own_name()).then(|| (name.to_string(), host.to_string()))
    })
}

/// Those of a CLIENT LIST that have written since the last look.
pub(super) fn writers(
    list: &str,
    side: Side,
    endpoint: &Endpoint,
    every: Duration,
    is_moving: impl Fn(u32) -> bool,
) -> Vec<Writer> {
    let writer = |line: &str| {
        let field = |wanted: &str| field(line, wanted);
        let command = field("cmd")?;
        let is_ours = field("name").is_some_and(|name| {
            name == CONNECTION_NAME
                || private_link::proxy_of(name) == Some(own_name())
                || private_link::companion_of(name).is_some()
        });
        // S: a replica, M: the primary of one, O: a monitor.
        let is_server = field("flags")?.contains(['S', 'M', 'O']);
        let is_elsewhere = !field("db")?.parse().is_ok_and(&is_moving);
        // The server counts idle time in whole seconds.
        let is_old = field("idle")?.parse::<u64>().ok()? > every.as_secs();
        // A slot that moves: between nodes, and whoever moves it.
        let is_move = command == "restore-asking" || (side == Side::Cluster && command == "migrate");
        if is_ours || is_server || is_move || is_elsewhere || is_old || !may_write(command) {
            return None;
        }
        Some(Writer {
            node: endpoint.address.to_string(),
            address: field("addr")?.to_string(),
            name: field("name").unwrap_or_default().to_string(),
            command: command.to_string(),
            ..Writer::new(FoundBy::Connection, side)
        })
    };
    list.lines().filter_map(writer).collect()
}

/// Whether somebody is connected in another database than those that move.
pub(super) fn is_elsewhere(list: &str, is_moving: impl Fn(u32) -> bool) -> bool {
    // A connection begins in database 0 and often only asks what no database has; what counts is what it did there.
    let is_so = |line: &str| {
        let db = field(line, "db")?.parse().ok()?;
        Some(!is_moving(db) && field(line, "cmd").is_some_and(may_write))
    };
    list.lines().any(|line| is_so(line) == Some(true))
}

/// Whether a command, as CLIENT LIST calls it (`set`, `xgroup|create`), may change keys. What a transaction or a script did is
/// not told.
fn may_write(command: &str) -> bool {
    let name = command.split('|').next().unwrap_or_default();
    let Some(spec) = command::lookup(name.as_bytes()) else { return false };
    let is_script =
        spec.kind == Kind::Script && !matches!(spec.name, "SCRIPT" | "FUNCTION") && !spec.name.ends_with("_RO");
    spec.access == Access::Write || is_script || spec.name == "EXEC"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Login, Timeouts};

    #[test]
    fn only_a_stranger_that_has_just_written_to_the_database_that_moves_is_a_writer() {
        let second = Duration::from_secs(1);
        let timeouts = Timeouts { connect: second, reply: second, patience: second, queue: second };
        let endpoint =
            Endpoint { address: "10.0.0.1:6379".into(), tls: None, login: Login::default(), db: 2, timeouts };
        let line = |name: &str, flags: &str, db: u32, idle: u32, command: &str| {
            format!(
                "id=7 addr=10.0.0.9:4711 laddr=10.0.0.1:6379 fd=8 name={name} age=60 idle={idle} flags={flags} db={db} sub=0 cmd={command} user=default redir=-1 resp=2\n"
            )
        };
        let is_found = |line: String| writers(&line, Side::Standalone, &endpoint, Duration::from_secs(5), |db| db == 2);
        let found = is_found(line("shop", "N", 2, 1, "hset"));
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].address.as_str(), found[0].name.as_str(), found[0].command.as_str()),
            ("10.0.0.9:4711", "shop", "hset")
        );
        for command in ["xgroup|create", "exec", "evalsha", "del", "restore"] {
            assert_eq!(is_found(line("", "N", 2, 0, command)).len(), 1, "{command}");
        }
        for command in
            ["get", "client|list", "info", "ping", "config|get", "eval_ro", "psync", "publish", "scan", "NULL"]
        {
            assert_eq!(is_found(line("", "N", 2, 0, command)), [], "{command}");
        }
        assert_eq!(is_found(line(own_name(), "N", 2, 0, "set")), [], "the proxy itself");
        assert_eq!(is_found(line("", "N", 2, 0, "restore-asking")), [], "a node that a slot moves away from");
        assert_eq!(is_found(line("", "N", 2, 0, "migrate")).len(), 1, "on the standalone it takes keys away");
        assert_eq!(is_found(line("cutover:00000001", "N", 2, 0, "set")).len(), 1, "another proxy");
        assert_eq!(is_found(line("", "S", 2, 0, "set")), [], "a replica");
        assert_eq!(is_found(line("", "O", 2, 0, "set")), [], "a monitor");
        assert_eq!(is_found(line("", "N", 0, 0, "set")), [], "another database does not move");
        assert_eq!(is_found(line("", "N", 2, 60, "set")), [], "before the last look");
    }
}
