//! Whether the cluster can take what the standalone has: the judgement of a careful person, on facts that were read before.
//! Pure.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::jobs::prepare::{Member, Server};
use crate::slot::SLOTS;

/// The oldest version that the proxy works with: it needs PEXPIRETIME.
const VERSION_MIN: (u32, u32) = (7, 0);
/// Memory that the cluster should have beyond what the data takes on the standalone: every node has tables of its own.
const SPARE: f64 = 1.2;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    /// The move can go on; somebody should know.
    Warning,
    /// Better mended first.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub verdict: Verdict,
    /// What was found, and what to do where that is not good.
    pub text: String,
}

fn check(verdict: Verdict, text: impl Into<String>) -> Check {
    Check { verdict, text: text.into() }
}

/// Judges the standalone.
pub fn judge_standalone(server: &Server, database: u32) -> Vec<Check> {
    use Verdict::{Bad, Good, Warning};
    let version = server.field("redis_version").unwrap_or("unknown");
    let used = bytesize::ByteSize(server.number("used_memory")).display().iec().to_string();
    let mut found = Vec::new();
    found.push(match server.version() >= VERSION_MIN {
        true => check(Good, format!("standalone: Redis {version} at {}, {} keys, {used}", server.address, server.keys)),
        false => check(
            Bad,
            format!("standalone: Redis {version} is too old: the proxy needs 7.0 for PEXPIRETIME; upgrade it first"),
        ),
    });
    if server.is("cluster_enabled", "1") {
        found.push(check(Bad, "standalone: it is a cluster node itself; name the Redis that is being left"));
    }
    if !server.is("role", "master") {
        found.push(check(
            Bad,
            "standalone: it is a replica, and does not take writes; name its primary in [standalone]",
        ));
    }
    if server.is("loading", "1") {
        found.push(check(Bad, "standalone: it is still loading its data; wait for it"));
    }
    if server.evicts() {
        let policy = server.field("maxmemory_policy").unwrap_or_default();
        found.push(check(Warning, format!("standalone: maxmemory-policy {policy} drops keys when memory is short, before and after they were copied; `cutover verify` counts such keys as differing")));
    }
    let database = format!("db{database}:");
    let others = server
        .info
        .lines()
        .filter(|line| line.starts_with("db") && line.contains(":keys=") && !line.starts_with(&database));
    for line in others {
        let name = line.split(':').next().unwrap_or_default();
        found.push(check(
            Warning,
            format!("standalone: {name} has keys too; it does not move, and stays served by the standalone"),
        ));
    }
    let modules: Vec<&str> =
        server.info.lines().filter_map(|line| line.strip_prefix("module:name=")?.split(',').next()).collect();
    if !modules.is_empty() {
        found.push(check(
            Warning,
            format!(
                "standalone: has modules ({}); keys of their types can only be copied to a cluster that has them too",
                modules.join(", ")
            ),
        ));
    }
    found
}

/// Judges the cluster, as the home of what the standalone has.
pub fn judge_cluster(standalone: &Server, members: &[Member], servers: &[Server]) -> Vec<Check> {
    let mut found = judge_layout(members, servers);
    found.extend(judge_versions(standalone, servers));
    found.extend(judge_policies(standalone, servers));
    let is_primary =
        |server: &&Server| members.iter().any(|member| member.address == server.address && member.has("master"));
    let primaries: Vec<&Server> = servers.iter().filter(is_primary).collect();
    found.push(judge_room(standalone, &primaries, servers));
    let keys: u64 = primaries.iter().map(|server| server.keys).sum();
    if keys > 0 {
        found.push(check(
            Verdict::Warning,
            format!("cluster: holds {keys} keys already; those with the names of keys that move are replaced"),
        ));
    }
    found
}

fn judge_layout(members: &[Member], servers: &[Server]) -> Vec<Check> {
    use Verdict::{Bad, Good, Warning};
    let mut found = Vec::new();
    for server in servers.iter().filter(|server| !server.is("cluster_state", "ok")) {
        let state = server.field("cluster_state").unwrap_or("unknown");
        found.push(check(
            Bad,
            format!(
                "cluster: {} says cluster_state:{state}; `redis-cli --cluster check {}` says why",
                server.address, server.address
            ),
        ));
    }
    for member in members.iter().filter(|member| !member.is_reachable()) {
        found.push(check(
            Bad,
            format!("cluster: node {} ({}) is {}; bring it back or forget it", member.id, member.address, member.flags),
        ));
    }
    let slots = servers.iter().map(|server| server.number("cluster_slots_ok")).min().unwrap_or(0);
    if slots < u64::from(SLOTS) {
        found.push(check(
            Bad,
            format!("cluster: only {slots} of {SLOTS} slots are served; `redis-cli --cluster fix` assigns the rest"),
        ));
    }
    let primaries: Vec<&Member> = members.iter().filter(|member| member.has("master")).collect();
    let in_step = |member: &&Member| {
        servers.iter().any(|server| server.address == member.address && server.is("master_link_status", "up"))
    };
    let with_replica: BTreeSet<&str> =
        members.iter().filter(in_step).filter_map(|member| member.primary.as_deref()).collect();
    let alone: Vec<&str> = primaries
        .iter()
        .filter(|primary| !with_replica.contains(primary.id.as_str()))
        .map(|primary| primary.address.as_str())
        .collect();
    if !alone.is_empty() {
        found.push(check(
            Warning,
            format!(
                "cluster: without a replica in step: {}; if one of them is lost, so are its keys",
                alone.join(", ")
            ),
        ));
    }
    if found.is_empty() {
        found.push(check(
            Good,
            format!("cluster: {} primaries serve all slots, each with a replica in step", primaries.len()),
        ));
    }
    found
}

fn judge_versions(standalone: &Server, servers: &[Server]) -> Vec<Check> {
    let needed = standalone.version().max(VERSION_MIN);
    let old = servers.iter().filter(|server| server.version() < needed);
    let text = |server: &Server| {
        format!(
            "cluster: {} has Redis {}, which may not read what {}.{} writes; upgrade it to {}.{} at least",
            server.address,
            server.field("redis_version").unwrap_or("unknown"),
            needed.0,
            needed.1,
            needed.0,
            needed.1
        )
    };
    let found: Vec<Check> = old.map(|server| check(Verdict::Bad, text(server))).collect();
    match (found.is_empty(), servers.first()) {
        (true, Some(first)) => vec![check(
            Verdict::Good,
            format!(
                "cluster: Redis {} reads what the standalone writes",
                first.field("redis_version").unwrap_or("unknown")
            ),
        )],
        _ => found,
    }
}

fn judge_policies(standalone: &Server, servers: &[Server]) -> Vec<Check> {
    let policy = |server: &Server| server.field("maxmemory_policy").unwrap_or("unknown").to_string();
    let evicting: BTreeSet<String> = servers.iter().filter(|server| server.evicts()).map(policy).collect();
    let mut found: Vec<Check> = evicting
        .into_iter()
        .map(|policy| {
            // A store that was a cache before may be one afterwards.
            let verdict = if standalone.is("maxmemory_policy", &policy) { Verdict::Warning } else { Verdict::Bad };
            check(verdict, format!("cluster: maxmemory-policy {policy} drops keys when memory is short; set noeviction (CONFIG SET maxmemory-policy noeviction on each node) unless all of this is a cache"))
        })
        .collect();
    if found.is_empty() {
        found.push(check(Verdict::Good, "cluster: maxmemory-policy noeviction on every node"));
    }
    let forgetful: Vec<&str> = servers
        .iter()
        .filter(|server| server.is("aof_enabled", "0") && server.config.get("save").is_some_and(String::is_empty))
        .map(|server| server.address.as_str())
        .collect();
    if !forgetful.is_empty() {
        found.push(check(
            Verdict::Warning,
            format!(
                "cluster: neither appendonly nor save is on at {}; a restart there loses its keys",
                forgetful.join(", ")
            ),
        ));
    }
    found
}

/// Whether the data fits, the nodes taking equal shares of it.
fn judge_room(standalone: &Server, primaries: &[&Server], servers: &[Server]) -> Check {
    let size = |bytes: f64| bytesize::ByteSize(bytes as u64).display().iec().to_string();
    let data = match standalone.number("used_memory_dataset") {
        0 => standalone.number("used_memory"),
        bytes => bytes,
    };
    let share = data as f64 * SPARE / primaries.len().max(1) as f64;
    let mut is_guessed = false;
    let mut tight = Vec::new();
    for server in primaries {
        let used = server.number("used_memory") as f64;
        let free = match server.number("maxmemory") {
            // Without a limit of its own it has what its machine has, and shares that with the other nodes there.
            0 => {
                is_guessed = true;
                let beside = servers.iter().filter(|other| other.host() == server.host());
                let (taken, nodes) = beside.fold((0.0, 0), |(taken, nodes), other| {
                    (taken + other.number("used_memory_rss") as f64, nodes + 1)
                });
                (server.number("total_system_memory") as f64 - taken) / f64::from(nodes.max(1))
            }
            limit => limit as f64 - used,
        };
        if free < share {
            tight.push(format!("{} has {}", server.address, size(free.max(0.0))));
        }
    }
    let needed =
        format!("{} of data, so about {} for each of {} primaries", size(data as f64), size(share), primaries.len());
    match (tight.is_empty(), is_guessed) {
        (false, _) => check(
            Verdict::Bad,
            format!("cluster: too little room for {needed}: {}; add primaries or memory", tight.join(", ")),
        ),
        (true, true) => check(
            Verdict::Warning,
            format!(
                "cluster: room for {needed}, by the memory of its machines; set maxmemory on each node, for a machine without memory ends a server in its own way"
            ),
        ),
        (true, false) => check(Verdict::Good, format!("cluster: room for {needed}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::prepare::members;

    const GIB: u64 = 1 << 30;

    fn server(address: &str, fields: &str) -> Server {
        // What stands first counts.
        let info = fields.replace(' ', "\n") + "\nredis_version:7.2.4\nmaxmemory_policy:noeviction\n";
        let cluster_info = "cluster_state:ok\ncluster_slots_assigned:16384\ncluster_slots_ok:16384\n".into();
        Server { address: address.into(), info, cluster_info, ..Server::default() }
    }

    fn cluster(fields: &str) -> (Vec<Member>, Vec<Server>) {
        let nodes = "a1 h:1@11 master - 0 0 1 connected 0-16383\nb2 h:2@12,name slave a1 0 0 1 connected\n";
        let primary = server("h:1", &format!("role:master {fields}"));
        (members(nodes), vec![primary, server("h:2", "role:slave master_link_status:up")])
    }

    fn verdicts(standalone: &Server, cluster: &(Vec<Member>, Vec<Server>)) -> Vec<(Verdict, String)> {
        let found = judge_cluster(standalone, &cluster.0, &cluster.1);
        found
            .into_iter()
            .filter(|check| check.verdict != Verdict::Good)
            .map(|check| (check.verdict, check.text))
            .collect()
    }

    #[test]
    fn a_cluster_is_good_or_it_is_said_what_is_not() {
        let standalone = server("s:1", &format!("used_memory_dataset:{GIB}"));
        let roomy = format!("maxmemory:{} used_memory:1000", 2 * GIB);
        let mut good = cluster(&roomy);
        assert_eq!(verdicts(&standalone, &good), []);
        let is = |found: Vec<(Verdict, String)>, verdict, word: &str| {
            assert!(found.len() == 1 && found[0].0 == verdict && found[0].1.contains(word), "{word}: {found:?}");
        };
        is(verdicts(&standalone, &cluster(&format!("maxmemory:{GIB} used_memory:0"))), Verdict::Bad, "too little room");
        is(
            verdicts(&standalone, &cluster(&format!("total_system_memory:{}", 8 * GIB))),
            Verdict::Warning,
            "set maxmemory",
        );
        is(
            verdicts(&standalone, &cluster(&format!("{roomy} redis_version:7.0.15"))),
            Verdict::Bad,
            "upgrade it to 7.2",
        );
        is(
            verdicts(&standalone, &cluster(&format!("{roomy} maxmemory_policy:allkeys-lru"))),
            Verdict::Bad,
            "noeviction",
        );
        is(verdicts(&standalone, &cluster(&format!("{roomy} cluster_state:fail"))), Verdict::Bad, "cluster_state:fail");
        good.1[1].info = good.1[1].info.replace("status:up", "status:down");
        is(verdicts(&standalone, &good), Verdict::Warning, "without a replica");
        good = cluster(&roomy);
        good.1[0].keys = 5;
        is(verdicts(&standalone, &good), Verdict::Warning, "5 keys already");
    }

    #[test]
    fn a_standalone_that_is_none_is_told() {
        let bad = |fields: &str| {
            let found = judge_standalone(&server("s:1", fields), 0);
            found.into_iter().filter(|check| check.verdict != Verdict::Good).map(|check| check.text).collect::<Vec<_>>()
        };
        assert_eq!(bad("role:master db0:keys=5,expires=0"), Vec::<String>::new());
        for (fields, word) in [
            ("role:slave", "replica"),
            ("role:master redis_version:6.2.1", "too old"),
            ("role:master cluster_enabled:1", "cluster node"),
            ("role:master maxmemory_policy:allkeys-lru", "drops keys"),
            ("role:master db3:keys=5,expires=0", "db3 has keys"),
            ("role:master module:name=ReJSON,ver=1", "ReJSON"),
        ] {
            assert!(bad(fields).len() == 1 && bad(fields)[0].contains(word), "{fields}: {:?}", bad(fields));
        }
    }
}
