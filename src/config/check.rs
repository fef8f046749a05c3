//! What types can't say: phases, patterns, ranges, URLs. All findings at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use crate::config::load::{File, LeaseSection, StoreLimits, StoreTlsTable, duration, store};
use crate::config::report::{Finding, Report, Reporter, nearest};
use crate::config::{Config, Copying, Lease, Store, StoreTls, StoreUrl, databases, users};
use crate::routing::{Ack, ClusterKeys, Databases, Pattern, Patterns, Phase, RoutingSpec, SHARES};
use crate::secret::Secret;

/// Judges a parsed file.
pub(super) fn check(file: File, reporter: &Reporter<'_>) -> Result<Config, Report> {
    let mut findings = Vec::new();
    let limits = {
        let section = &file.standalone;
        StoreLimits {
            connect_timeout: &section.connect_timeout,
            reply_timeout: &section.reply_timeout,
            patience: &section.patience,
            queue_bytes: &section.queue_bytes,
            queue_time: &section.queue_time,
            private_links: section.private_links,
        }
    };
    let mut standalone = store(&limits, Duration::from_secs(1), reporter, &mut findings);
    standalone.urls.extend(url(&file.standalone.url, reporter, &mut findings));
    let place = file.standalone.url.span();
    standalone.tls = tls(&standalone, place, file.standalone.tls.as_ref(), reporter, &mut findings);
    let cluster = file.cluster.as_ref().map(|section| {
        let limits = StoreLimits {
            connect_timeout: &section.connect_timeout,
            reply_timeout: &section.reply_timeout,
            patience: &section.patience,
            queue_bytes: &section.queue_bytes,
            queue_time: &section.queue_time,
            private_links: section.private_links,
        };
        let mut cluster = store(&limits, Duration::from_secs(5), reporter, &mut findings);
        for seed in section.seeds.get_ref() {
            cluster.urls.extend(url(seed, reporter, &mut findings));
        }
        if section.seeds.get_ref().is_empty() {
            findings.push(reporter.at(
                section.seeds.span(),
                "a cluster needs at least one seed",
                Some("one node that answers is enough: [\"redis://host:port\"]".into()),
            ));
        }
        if cluster.urls.iter().any(|url| url.db > 0) {
            findings.push(reporter.at(
                section.seeds.span(),
                "a Redis Cluster has database 0 only",
                Some("leave out what stands behind the last / of the URL".into()),
            ));
        }
        cluster.tls = tls(&cluster, section.seeds.span(), section.tls.as_ref(), reporter, &mut findings);
        cluster
    });
    if let Some(format) = &file.log.format
        && !["human", "json"].contains(&format.get_ref().as_str())
    {
        findings.push(reporter.at(
            format.span(),
            format!("`{}` is no log format", format.get_ref()),
            Some("human or json".into()),
        ));
    }
    let slow_command = slow_command(file.log.slow_command.as_ref(), reporter, &mut findings);
    let main = standalone.urls.first().map_or(0, |url| url.db);
    let databases = Databases { main, prefixes: databases::prefixes(&file.databases, main, reporter, &mut findings) };
    let routing = RoutingSpec { databases, ..routing(&file, reporter, &mut findings) };
    let shadow_reads = file.routing.shadow_reads.as_ref().map_or(0.0, |share| {
        if !(0.0..=1.0).contains(share.get_ref()) {
            let message = format!("`{}` is no share of all reads", share.get_ref());
            findings.push(reporter.at(
                share.span(),
                message,
                Some("from 0 (none) to 1 (all): 0.01 is one of a hundred".into()),
            ));
        }
        *share.get_ref()
    });
    let copying = Copying {
        is_by_type: one_of(file.copying.method.as_ref(), ["dump", "by-type"], reporter, &mut findings),
        large_key_bytes: file.copying.large_key_bytes.map_or(4 << 20, |size| size.as_u64()),
        bytes_per_second: file.copying.bytes_per_second.map_or(64 << 20, |size| size.as_u64()),
    };
    if let (None, Some(phase)) = (&cluster, needs_cluster(&file)) {
        findings.push(reporter.at(
            phase.span(),
            "this phase needs the cluster, and there is no [cluster] section",
            Some("add [cluster] with seeds = [\"redis://host:port\"]".into()),
        ));
    }
    let users = users::users(&file, reporter, &mut findings);
    let commands = users::chosen(&file.commands, reporter, &mut findings);
    let limits = users::limits(&file, reporter, &mut findings);
    users::protection(&file, reporter, &mut findings);
    let flip_timeout = duration(&file.routing.flip_timeout, Duration::from_secs(5), reporter, &mut findings);
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listen = Config::listen_of(&file.listen, loopback(6380), reporter, &mut findings);
    let lease = lease(&file.lease, listen.password.as_ref(), reporter, &mut findings);
    let bypass_look_every = duration(&file.bypass.look_every, Duration::from_secs(5), reporter, &mut findings);
    if !findings.is_empty() {
        findings.sort_by_key(|finding| finding.line);
        return Err(Report { findings });
    }
    let log = Config::log_of(&file.log, slow_command);
    Ok(Config {
        listen,
        admin: Config::admin_of(file.admin, loopback(9380)),
        standalone,
        cluster,
        routing,
        users,
        commands,
        copying,
        shadow_reads,
        bypass_look_every,
        lease,
        limits,
        state_directory: file.state.directory.unwrap_or_else(|| "cutover-state".into()),
        log,
        flip_timeout,
    })
}

/// The first phase in the file that cannot be without a cluster.
fn needs_cluster(file: &File) -> Option<&Spanned<String>> {
    let section = &file.routing;
    let defaults = [&section.new_providers, &section.other_keys, &section.pubsub].into_iter().flatten();
    let shares = section.share.iter().flatten().filter(|(_, percent)| *percent.get_ref() > 0).map(|(phase, _)| phase);
    let lines = file.prefixes.values().chain(file.providers.iter().map(|(_, phase)| phase));
    let is_beyond =
        |text: &&Spanned<String>| text.get_ref().parse().is_ok_and(|phase: Phase| phase != Phase::Standalone);
    defaults.chain(shares).chain(lines).filter(is_beyond).min_by_key(|text| text.span().start)
}

/// A lease that is shorter ends while a server is busy with one slow command.
const LEASE_LEAST: Duration = Duration::from_millis(500);
/// What the name of a lease is a part of stays a key that nobody minds.
const LEASE_NAME: usize = 64;

/// `password`: the one that this proxy asks its own clients for.
fn lease(
    section: &LeaseSection,
    password: Option<&Secret>,
    reporter: &Reporter<'_>,
    findings: &mut Vec<Finding>,
) -> Lease {
    let lasts = duration(&section.time, Duration::from_secs(10), reporter, findings);
    if let Some(time) = section.time.as_ref().filter(|_| lasts < LEASE_LEAST) {
        let help = Some("a few seconds: so long nobody serves the dual routes when their proxy has died".into());
        findings.push(reporter.at(time.span(), "a lease of less than 500ms ends while a server is busy", help));
    }
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= LEASE_NAME
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    if let Some(name) = section.name.as_ref().filter(|name| !is_name(name.get_ref())) {
        let help = Some("letters, digits, `-`, `_` and `.`, 64 of them at most".into());
        findings.push(reporter.at(name.span(), "no name for a lease", help));
    }
    let advertise = section.advertise.as_ref().and_then(|text| {
        let parsed = url(text, reporter, findings)?;
        if parsed.password.is_some() || parsed.user.is_some() || parsed.db > 0 {
            let help = Some("redis://host:port; the others log in with their own lease.password".into());
            findings.push(reporter.at(
                text.span(),
                "what is advertised stands in both stores: it has no login and no database",
                help,
            ));
        }
        Some(parsed)
    });
    Lease {
        name: section.name.as_ref().map_or_else(|| "default".into(), |name| name.get_ref().clone()),
        lasts,
        advertise,
        user: section.user.clone(),
        password: section.password.as_ref().map(Spanned::get_ref).or(password).cloned(),
        ca: section.ca.clone(),
    }
}

/// What a store's connections need for TLS, if its URLs ask for it.
fn tls(
    store: &Store,
    place: Range<usize>,
    table: Option<&Spanned<StoreTlsTable>>,
    reporter: &Reporter<'_>,
    findings: &mut Vec<Finding>,
) -> Option<StoreTls> {
    let with_tls = store.urls.iter().filter(|url| url.is_tls).count();
    if with_tls > 0 && with_tls < store.urls.len() {
        let help = "one layout is learnt from whichever seed answers, so all nodes are reached in the same way";
        findings.push(reporter.at(place, "some seeds are rediss:// and some are redis://", Some(help.into())));
        return None;
    }
    let Some(table) = table else { return (with_tls > 0).then(StoreTls::default) };
    if with_tls == 0 && !store.urls.is_empty() {
        let help = Some("write the URL as rediss://".to_string());
        findings.push(reporter.at(table.span(), "`tls` stands beside a URL that is redis://, without TLS", help));
    }
    let StoreTlsTable { ca, cert, key, verify, server_name } = table.get_ref().clone();
    let is_unverified = verify == Some(false);
    if is_unverified && ca.is_some() {
        findings.push(reporter.at(
            table.span(),
            "`ca` says whom to trust, and `verify = false` to trust anybody",
            Some("keep one of them; `ca` is the safe one".into()),
        ));
    }
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (cert, _) => {
            let missing = if cert.is_some() { "key" } else { "cert" };
            let help = Some(format!("add `{missing}`, or take the other one out"));
            findings.push(reporter.at(table.span(), "a certificate and its key go together: `cert` and `key`", help));
            None
        }
    };
    Some(StoreTls { ca, identity, is_unverified, server_name })
}

/// What a command takes before it is logged as slow; `None` for "off".
fn slow_command(
    text: Option<&Spanned<String>>,
    reporter: &Reporter<'_>,
    findings: &mut Vec<Finding>,
) -> Option<Duration> {
    const DEFAULT: Duration = Duration::from_millis(100);
    let Some(text) = text else { return Some(DEFAULT) };
    if text.get_ref() == "off" {
        return None;
    }
    match humantime::parse_duration(text.get_ref()) {
        Ok(limit) => Some(limit),
        Err(error) => {
            let message = format!("`{}` is no duration: {error}", text.get_ref());
            findings.push(reporter.at(text.span(), message, Some("write it as \"100ms\", or \"off\"".into())));
            None
        }
    }
}

fn routing(file: &File, reporter: &Reporter<'_>, findings: &mut Vec<Finding>) -> RoutingSpec {
    let section = &file.routing;
    let mut patterns = Vec::new();
    for text in &section.keys {
        match Pattern::parse(text.get_ref()) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => {
                let help = Some("such as \"provider:{provider}:*\" or \"*:provider:{provider}:*\"".into());
                findings.push(reporter.at(text.span(), error.to_string(), help));
            }
        }
    }
    let mut phase = |text: Option<&Spanned<String>>| {
        let Some(text) = text else { return Phase::Standalone };
        text.get_ref().parse().unwrap_or_else(|message: String| {
            let known: Vec<String> = Phase::ALL.iter().map(ToString::to_string).collect();
            let near = nearest(text.get_ref(), known.iter().map(String::as_str));
            findings.push(reporter.at(text.span(), message, near.map(|near| format!("did you mean `{near}`?"))));
            Phase::Standalone
        })
    };
    let (new_providers, other_keys) = (phase(section.new_providers.as_ref()), phase(section.other_keys.as_ref()));
    let pubsub = phase(section.pubsub.as_ref());
    let shares = section.share.iter().flatten();
    let shares: Vec<_> = shares.map(|(text, percent)| (phase(Some(text)), *percent.get_ref())).collect();
    let prefixes = file.prefixes.iter().map(|(prefix, text)| (prefix.get_ref().clone(), phase(Some(text)))).collect();
    let (mut providers, mut ranges) = (Vec::new(), Vec::new());
    let mut spans: Vec<(u64, u64, std::ops::Range<usize>)> = Vec::new();
    for (id, text) in &file.providers {
        let phase = phase(Some(text));
        match id.get_ref().split_once("..") {
            None => providers.push((id.get_ref().clone(), phase)),
            Some((first, last)) => match (first.parse::<u64>(), last.parse::<u64>()) {
                (Ok(first), Ok(last)) if first <= last => {
                    ranges.push((first, last, phase));
                    spans.push((first, last, id.span()));
                }
                _ => spans.push((1, 0, id.span())),
            },
        }
    }
    spans.sort_by_key(|span| span.0);
    for pair in spans.windows(2) {
        if pair[1].0 <= pair[0].1 && pair[0].0 <= pair[0].1 && pair[1].0 <= pair[1].1 {
            let message = format!("this range shares ids with {}..{}", pair[0].0, pair[0].1);
            findings.push(reporter.at(
                pair[1].2.clone(),
                message,
                Some("ranges must not overlap; an exact id may lie in one".into()),
            ));
        }
    }
    for (.., span) in spans.iter().filter(|span| span.0 > span.1) {
        let help = Some("an id with `..` in it cannot be named; it goes by new_providers".into());
        findings.push(reporter.at(span.clone(), "a range is two numbers, the lower one first: \"100..199\"", help));
    }
    if let Some(text) = section.pubsub.as_ref().filter(|_| pubsub.is_dual()) {
        let help = Some("standalone or cluster; channels flip in one step, and no message is lost".into());
        findings.push(reporter.at(text.span(), "the channels live on one store", help));
    }
    let sum: u32 = shares.iter().map(|(_, percent)| u32::from(*percent)).sum();
    if let Some((_, last)) = section.share.iter().flatten().last()
        && sum > u32::from(SHARES)
    {
        let help = "new_providers says what the rest does".to_string();
        findings.push(reporter.at(last.span(), format!("the shares are {sum} of 100 providers"), Some(help)));
    }
    let is_both = one_of(section.ack.as_ref(), ["leader", "both"], reporter, findings);
    let is_tagged = one_of(section.cluster_keys.as_ref(), ["same", "tagged"], reporter, findings);
    RoutingSpec {
        keys: Patterns(patterns),
        new_providers,
        other_keys,
        pubsub,
        ack: if is_both { Ack::Both } else { Ack::Leader },
        cluster_keys: if is_tagged { ClusterKeys::Tagged } else { ClusterKeys::Same },
        databases: Databases::default(),
        prefixes,
        providers,
        ranges,
        share: parts(shares, new_providers),
        force: section.force.clone(),
    }
}

/// The parts that are set apart, each with its phase. The furthest phase has the first ones, and those that go by
/// `new_providers` stand in its place: so whoever goes further with a share that grows, or back with one that shrinks, was in
/// the phase beside it, and `new_providers` may take the place of a share that has become all.
fn parts(mut shares: Vec<(Phase, u8)>, new_providers: Phase) -> Vec<(u8, Phase)> {
    let set_apart: u8 = shares.iter().fold(0, |sum, (_, percent)| sum.saturating_add(*percent));
    shares.sort_by_key(|(phase, _)| std::cmp::Reverse(*phase));
    let further = shares.partition_point(|(phase, _)| *phase > new_providers);
    let further = shares[..further].iter().fold(0u8, |sum, (_, percent)| sum.saturating_add(*percent)).min(SHARES);
    let rest = SHARES.saturating_sub(set_apart);
    let places = (0..further).chain(further.saturating_add(rest)..SHARES);
    let phases = shares.into_iter().flat_map(|(phase, percent)| std::iter::repeat_n(phase, usize::from(percent)));
    places.zip(phases).collect()
}

/// Whether the second word was written; the first is the default.
fn one_of(
    text: Option<&Spanned<String>>,
    words: [&str; 2],
    reporter: &Reporter<'_>,
    findings: &mut Vec<Finding>,
) -> bool {
    let Some(text) = text else { return false };
    if !words.contains(&text.get_ref().as_str()) {
        let message = format!("`{}` is neither `{}` nor `{}`", text.get_ref(), words[0], words[1]);
        findings.push(reporter.at(text.span(), message, None));
    }
    text.get_ref() == words[1]
}

/// `redis[s]://[[user]:password@]host[:port][/db]`
fn url(text: &Spanned<String>, reporter: &Reporter<'_>, findings: &mut Vec<Finding>) -> Option<StoreUrl> {
    let parsed = parse_url(text.get_ref());
    if let Err(message) = &parsed {
        let help = Some("a store is written redis://user:password@host:port/0".to_string());
        findings.push(reporter.at(text.span(), *message, help));
    }
    parsed.ok()
}

fn parse_url(text: &str) -> Result<StoreUrl, &'static str> {
    let (is_tls, rest) = match text.strip_prefix("rediss://") {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix("redis://").ok_or("a store's URL begins with redis:// or rediss://")?),
    };
    let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
    let (place, db) = rest.split_once('/').unwrap_or((rest, ""));
    let db = if db.is_empty() { 0 } else { db.parse().map_err(|_| "the part after / is a database number")? };
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| "the port is no number")?),
        _ => (place, 6379),
    };
    let host = host.trim_matches(['[', ']']);
    if host.is_empty() {
        return Err("a store's URL names a host");
    }
    let (user, password) = match login.map(|login| login.split_once(':').unwrap_or(("", login))) {
        Some((user, password)) => ((!user.is_empty()).then(|| user.to_string()), Some(Secret::from(password))),
        None => (None, None),
    };
    Ok(StoreUrl { host: host.to_string(), port, user, password, db, is_tls })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_urls_are_refused_or_read() {
        let corpus: [&[u8]; 3] = [b"redis://user:pa:ss@host:6379/3", b"rediss://[::1]:7000", b"redis://:p@h/0"];
        let url = parse_url("redis://user:pa@ss@host:1/3").expect("a URL");
        assert_eq!((url.host.as_str(), url.port, url.db), ("host", 1, 3));
        crate::fuzz::fuzz(&corpus, |bytes| {
            if let Ok(url) = parse_url(&String::from_utf8_lossy(bytes)) {
                assert!(!url.host.is_empty());
                let _ = url.address();
            }
        });
    }

    /// Whatever stands in the file, there is a configuration or a report that can be shown.
    #[test]
    fn damaged_files_get_a_report() {
        let corpus: [&[u8]; 2] = [
            include_bytes!("../../tests/config/good/everything.toml"),
            include_bytes!("../../tests/config/good/smallest.toml"),
        ];
        crate::fuzz::fuzz(&corpus, |bytes| {
            if let Err(report) = crate::config::load::parse("proxy.toml", &String::from_utf8_lossy(bytes)) {
                assert!(!report.to_string().is_empty());
            }
        });
    }

    #[test]
    fn a_share_that_goes_on_step_by_step_flips_neighbours_only_to_the_end_and_back() {
        use Phase::{Cluster, DualCluster, DualStandalone, Standalone};
        let steps: [(&[(Phase, u8)], Phase); 12] = [
            (&[], Standalone),
            (&[(DualStandalone, 10)], Standalone),
            (&[(DualCluster, 10)], Standalone),
            (&[(Cluster, 10)], Standalone),
            (&[(DualStandalone, 20), (Cluster, 10)], Standalone),
            (&[(DualCluster, 20), (Cluster, 10)], Standalone),
            (&[(Cluster, 30)], Standalone),
            (&[(Standalone, 70)], Cluster),
            (&[(DualStandalone, 70)], Cluster),
            (&[(DualCluster, 70)], Cluster),
            (&[(Cluster, 100)], Standalone),
            (&[], Cluster),
        ];
        let phases = |(shares, new_providers): (&[(Phase, u8)], Phase)| {
            let mut phases = [new_providers; SHARES as usize];
            parts(shares.to_vec(), new_providers)
                .into_iter()
                .for_each(|(part, phase)| phases[usize::from(part)] = phase);
            phases
        };
        let flips: Vec<usize> = steps
            .windows(2)
            .map(|pair| {
                let (old, new) = (phases(pair[0]), phases(pair[1]));
                let changed: Vec<_> = old.iter().zip(&new).filter(|(old, new)| old != new).collect();
                assert!(changed.iter().all(|(old, new)| old.is_neighbour(**new)), "{pair:?}");
                changed.len()
            })
            .collect();
        assert_eq!(flips, [10, 10, 10, 20, 20, 20, 0, 70, 70, 70, 0]);
        assert_eq!(
            parts(vec![(Cluster, 255), (DualCluster, 255)], Standalone).len(),
            100,
            "it is refused, and no panic"
        );
    }
}
