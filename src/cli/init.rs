//! `cutover init`: asks the two addresses, looks at both stores, guesses where the provider stands in keys, and writes a
//! first proxy.toml, commented. Nothing in the stores is changed.

use std::fs;
use std::io::{BufRead, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde_json::json;

use crate::cli::consent::{self, Given};
use crate::cli::output::say;
use crate::cli::progress::Progress;
use crate::cli::{DONE, Init};
use crate::config::template::{self, Answers};
use crate::config::{self, Config};
use crate::jobs::{inventory, patterns, prepare};
use crate::routing::Table;
use crate::serve;
use crate::store::link::Endpoint;
use crate::store::{SlotMap, topology};

/// What the file says where nothing was found.
const PATTERN_UNKNOWN: &str = "provider:{provider}:*";
/// Beginnings of keys without a provider that the file shows.
const PREFIXES_SHOWN: usize = 8;
/// Seeds that are written: one would do, and three outlive the loss of two.
const SEEDS: usize = 3;

/// Asks, looks, writes.
pub fn run(path: &Path, asked: &Init, as_json: bool) -> anyhow::Result<u8> {
    if path.exists() {
        let given = if asked.yes { Given::Yes } else { Given::Nothing };
        consent::ask(&format!("{} is there already and would be replaced", path.display()), given)?;
    }
    let mut answers = Answers { listen: asked.listen.to_string(), ..Answers::default() };
    answers.standalone = match &asked.standalone {
        Some(url) => url.clone(),
        None => ask_for(
            "The standalone that is being left (redis://user:password@host:port/0)",
            "redis://127.0.0.1:6379/0",
        )?,
    };
    answers.seeds = match &asked.cluster {
        Some(seeds) => seeds.iter().filter(|seed| *seed != "-").cloned().collect(),
        None => words(&ask_for("Nodes of the cluster, separated by commas (- where there is none yet)", "-")?),
    };
    answers.keys = asked.keys.clone();
    let config = config_of(path, &answers)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let standalone = serve::standalone(&config)?;
    let server = runtime
        .block_on(prepare::read(&standalone))
        .map_err(|reason| unreachable_store("standalone", &standalone, &reason))?;
    if let Some(first) = serve::seeds(&config)?.first() {
        answers.seeds = runtime
            .block_on(seeds(&serve::seeds(&config)?, &answers.seeds))
            .map_err(|reason| unreachable_store("cluster", first, &reason))?;
    }
    let progress = Progress::new(as_json);
    let total = server.keys.min(asked.sample as u64) as f64;
    let tell =
        |at: inventory::Progress| progress.show(at.scanned as f64, total, || format!("{} keys sampled", at.scanned));
    let sampled = runtime.block_on(inventory::sample(&standalone, asked.sample, tell));
    progress.end();
    let sampled = sampled.context("sample the standalone's keys")?;
    let found = explain(&mut answers, &sampled, path)?;
    write(path, &template::fill(&answers))?;
    config::load(path)?;
    let others = other_databases(&server.info, standalone.db);
    if as_json {
        say!(
            "{}",
            json!({
                "config": path, "keys": answers.keys, "guessed": found, "sampled": sampled.len(), "databases_that_stay": others,
            })
        );
        return Ok(DONE);
    }
    say!(
        "standalone: Redis {} at {}, {} keys in database {}",
        server.field("redis_version").unwrap_or("unknown"),
        standalone.address,
        server.keys,
        standalone.db
    );
    others.iter().for_each(|name| say!("  {name} has keys too: it stays on the standalone"));
    match answers.seeds.as_slice() {
        [] => say!("cluster: none yet; nothing can move before the file names it"),
        seeds => say!("cluster: {}", seeds.join(", ")),
    }
    answers.reasons.iter().for_each(|reason| say!("keys: {reason}"));
    say!("written: {}", path.display());
    say!(
        "next: read it; then `cutover check`, `cutover prepare` for a backup and a look at the cluster, and `cutover serve`"
    );
    Ok(DONE)
}

/// A line from whoever sits there, or from a pipe.
fn ask_for(question: &str, default: &str) -> anyhow::Result<String> {
    let mut error = std::io::stderr();
    write!(error, "{question} [{default}]: ")?;
    error.flush()?;
    let mut line = String::new();
    if std::io::stdin().lock().read_line(&mut line)? == 0 {
        bail!("nobody answers; say it with --standalone and --cluster");
    }
    let answer = line.trim();
    Ok(if answer.is_empty() { default } else { answer }.to_string())
}

/// Also as they are written without a scheme.
fn words(line: &str) -> Vec<String> {
    let parts = line.split([',', ' ']).filter(|part| !part.is_empty() && *part != "-");
    parts.map(with_scheme).collect()
}

/// `host:port` is enough for a node.
pub fn seed(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(with_scheme(text.trim()))
}

fn with_scheme(text: &str) -> String {
    if text.contains("://") || text == "-" { text.to_string() } else { format!("redis://{text}") }
}

fn config_of(path: &Path, answers: &Answers) -> anyhow::Result<Config> {
    let mut answers = answers.clone();
    if answers.keys.is_empty() {
        answers.keys.push(PATTERN_UNKNOWN.into());
    }
    Ok(config::parse(&path.display().to_string(), &template::fill(&answers))?)
}

fn unreachable_store(name: &str, endpoint: &Endpoint, reason: &str) -> anyhow::Error {
    anyhow::anyhow!("the {name} at {} cannot be looked at: {reason}; nothing was written", endpoint.address)
}

/// Some primaries of the cluster, with the login that was given.
async fn seeds(given: &[Endpoint], urls: &[String]) -> Result<Vec<String>, String> {
    let map = topology::learn(given, &SlotMap::default()).await?;
    let (Some(first), Some(address)) = (urls.first(), given.first().map(|seed| seed.address.to_string())) else {
        return Ok(urls.to_vec());
    };
    if urls.len() >= SEEDS || !first.contains(&address) {
        return Ok(urls.to_vec());
    }
    let mut all = urls.to_vec();
    for primary in map.primaries() {
        let url = first.replace(&address, primary);
        if all.len() < SEEDS && !all.contains(&url) {
            all.push(url);
        }
    }
    Ok(all)
}

/// Decides on the patterns, and says why. True: they were guessed.
fn explain(answers: &mut Answers, sampled: &[Bytes], path: &Path) -> anyhow::Result<bool> {
    let found = patterns::guess(sampled);
    let is_guessed = answers.keys.is_empty() && !found.is_empty();
    if let (true, Some(best)) = (is_guessed, found.first()) {
        answers.keys = best.patterns.clone();
        answers.reasons.push(format!(
            "{} providers in {} of {} sampled keys, such as {}",
            best.providers,
            best.keys,
            sampled.len(),
            best.examples.join(", ")
        ));
        for other in found.iter().skip(1).take(3) {
            answers.reasons.push(format!(
                "also looked like ids: {} ({} in {} keys, such as {})",
                other.patterns.join(" "),
                other.providers,
                other.keys,
                other.examples.join(", ")
            ));
        }
    } else if answers.keys.is_empty() {
        answers.keys.push(PATTERN_UNKNOWN.into());
        answers.reasons.push(format!(
            "nothing in {} sampled keys looks like a provider's id: put your own pattern here",
            sampled.len()
        ));
    }
    let table = Table::build(&config_of(path, answers)?.routing, 1, None);
    let rest: Vec<&Bytes> = sampled.iter().filter(|key| table.provider_of(key).is_none()).collect();
    let share = rest.len() * 100 / sampled.len().max(1);
    answers.reasons.push(format!(
        "{share} of 100 sampled keys have no provider and go by other_keys, or by a line under [prefixes]"
    ));
    let begins = patterns::beginnings(rest).into_iter().take(PREFIXES_SHOWN);
    answers.prefixes =
        begins.map(|(begin, count)| (begin, format!("{count} of {} sampled keys", sampled.len()))).collect();
    Ok(is_guessed)
}

fn other_databases(info: &str, own: u32) -> Vec<String> {
    let names = info.lines().filter(|line| line.starts_with("db") && line.contains(":keys="));
    names
        .filter_map(|line| line.split(':').next())
        .filter(|name| *name != format!("db{own}"))
        .map(str::to_string)
        .collect()
}

/// For the owner only, for a URL may hold a password.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let doing = || format!("write {}", path.display());
    let new = path.with_extension("toml.new");
    let mut file = fs::File::create(&new).with_context(doing)?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).with_context(doing)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(doing)?;
    fs::rename(&new, path).with_context(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_be_written_short_and_none_is_none() {
        assert_eq!(words("h:1, redis://:p@h:2"), ["redis://h:1", "redis://:p@h:2"]);
        assert!(words("-").is_empty() && words("").is_empty());
    }
}
