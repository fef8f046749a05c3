//! Which lines of proxy.toml the words of a command line stand for: ids, prefixes, ranges, and `--all`.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};

use crate::cli::progress::Progress;
use crate::config::Config;
use crate::jobs::inventory;
use crate::routing::{RouteName, Side, Table};
use crate::serve;
use crate::store::link::Endpoint;
use crate::store::{SlotMap, topology};

/// What happens with a route that has no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It gets one: the command sets its phase.
    GetsLine,
    /// Only lines that are there can be meant.
    IsRefused,
}

/// The lines that `words` name, each once, in their order. A range that is no line itself stands for all lines in it.
pub fn select(config: &Config, words: &[String], missing: Missing) -> anyhow::Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    let mut known = BTreeSet::new();
    for word in words {
        for line in lines_of(config, word, missing)? {
            if known.insert(line.clone()) {
                found.push(line);
            }
        }
    }
    Ok(found)
}

fn lines_of(config: &Config, word: &str, missing: Missing) -> anyhow::Result<Vec<String>> {
    let routing = &config.routing;
    let is_default = matches!(word, "new_providers" | "other_keys" | "pubsub");
    if is_default
        || routing.prefixes.iter().any(|(prefix, _)| prefix == word)
        || routing.providers.iter().any(|(id, _)| id == word)
    {
        return Ok(vec![word.to_string()]);
    }
    let Some((first, last)) = range(word) else {
        if word.contains(',') {
            // A list in one word, as in `7,9,100..199`.
            let words: Vec<String> = word.split(',').filter(|part| !part.is_empty()).map(str::to_string).collect();
            return select(config, &words, missing);
        }
        if missing == Missing::IsRefused {
            let line = &Table::build(routing, 1, None).provider_route(word.as_bytes()).name.clone();
            bail!(
                "proxy.toml has no line for `{word}`: as a provider it goes by `{line}`; name that, or give it a line with `cutover move {word} --to PHASE`"
            );
        }
        return Ok(vec![word.to_string()]);
    };
    if routing.ranges.iter().any(|(from, to, _)| (*from, *to) == (first, last)) {
        return Ok(vec![word.to_string()]);
    }
    if first > last {
        bail!("`{word}` is no range: the lower id comes first, as in 100..199");
    }
    let mut inside: Vec<(u64, String)> = routing
        .providers
        .iter()
        .filter_map(|(id, _)| {
            Some((id.parse::<u64>().ok().filter(|number| (first..=last).contains(number))?, id.clone()))
        })
        .collect();
    let mut covered = inside.len() as u64;
    for (from, to, _) in &routing.ranges {
        if first <= *from && *to <= last {
            covered += to - from + 1 - inside.iter().filter(|(id, _)| (from..=to).contains(&id)).count() as u64;
            inside.push((*from, format!("{from}..{to}")));
        } else if first <= *to && *from <= last {
            bail!(
                "`{word}` shares ids with the line `{from}..{to}` of proxy.toml, which moves as a whole; name that line, or split it"
            );
        }
    }
    inside.sort();
    let has_all = covered > last - first;
    let has_ranges = routing.ranges.iter().any(|(from, to, _)| first <= *from && *to <= last);
    let mut lines: Vec<String> = inside.into_iter().map(|(_, line)| line).collect();
    match (missing, has_all) {
        (_, true) => {}
        (Missing::IsRefused, _) if lines.is_empty() => {
            bail!("proxy.toml has no line within `{word}`; `cutover status` lists the routes")
        }
        (Missing::IsRefused, _) => {}
        (Missing::GetsLine, _) if has_ranges => {
            bail!(
                "`{word}` covers lines of proxy.toml and ids without one; ranges cannot overlap, so name the lines: {}",
                lines.join(" ")
            )
        }
        // Ids without a line get a common one; those that have one keep it and go along.
        (Missing::GetsLine, _) => lines.push(word.to_string()),
    }
    Ok(lines)
}

fn range(word: &str) -> Option<(u64, u64)> {
    let (first, last) = word.split_once("..")?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// All providers: the lines that proxy.toml has, and the ids found in the stores that no line covers.
pub struct Everyone {
    pub lines: Vec<String>,
    pub unnamed: Vec<String>,
}

/// Walks both stores, gently, for providers that no line names.
pub fn everyone(config: &Config, as_json: bool) -> anyhow::Result<Everyone> {
    let table = Table::build(&config.routing, 1, None);
    let is_unnamed = |id: &str| table.provider_route(id.as_bytes()).name == RouteName::NewProviders;
    let mut unnamed = BTreeSet::new();
    let mut unusable = BTreeSet::new();
    for id in in_stores(config, &table, as_json)? {
        match String::from_utf8(id) {
            // `..` would be read as a range.
            Ok(id) if !id.contains("..") => drop(is_unnamed(&id).then(|| unnamed.insert(id))),
            Ok(id) => drop(unusable.insert(id)),
            Err(bytes) => drop(unusable.insert(bytes.as_bytes().escape_ascii().to_string())),
        }
    }
    if !unusable.is_empty() {
        let ids: Vec<String> = unusable.into_iter().collect();
        eprintln!("left out: {}: proxy.toml cannot name these ids, so they go by `new_providers`", ids.join(", "));
    }
    Ok(Everyone { lines: providers(config), unnamed: in_order(unnamed) })
}

/// The lines of all providers and ranges.
pub fn providers(config: &Config) -> Vec<String> {
    let ranges = config.routing.ranges.iter().map(|(first, last, _)| format!("{first}..{last}"));
    in_order(ranges.chain(config.routing.providers.iter().map(|(id, _)| id.clone())))
}

/// Numbers and ranges by their value, the rest behind them.
fn in_order(ids: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut ids: Vec<String> = ids.into_iter().collect();
    let number = |id: &str| id.split("..").next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(u64::MAX);
    ids.sort_by_cached_key(|id| (number(id), id.clone()));
    ids
}

fn in_stores(config: &Config, table: &Table, as_json: bool) -> anyhow::Result<BTreeSet<Vec<u8>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut places: Vec<(Side, Endpoint)> = vec![(Side::Standalone, serve::standalone(config))];
    let seeds = serve::seeds(config);
    if !seeds.is_empty() {
        match runtime.block_on(topology::learn(&seeds, &SlotMap::default())) {
            Ok(map) => places.extend(
                map.primaries()
                    .iter()
                    .map(|address| (Side::Cluster, Endpoint { address: address.clone(), db: 0, ..seeds[0].clone() })),
            ),
            Err(reason) => eprintln!("the cluster is not searched for providers: {reason}"),
        }
    }
    let progress = Progress::new(as_json);
    let mut found = BTreeSet::new();
    for (side, endpoint) in places {
        let tell = |at: inventory::Progress| {
            progress
                .show(at.scanned as f64, at.total as f64, || format!("looking for providers in {}", endpoint.address));
        };
        let ids = runtime.block_on(inventory::providers(&endpoint, side, table, tell)).context("look for providers")?;
        found.extend(ids.into_iter().map(|id| id.to_vec()));
    }
    progress.end();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn config(lines: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.toml");
        let text = format!(
            "[standalone]\nurl = \"redis://h:1\"\n[cluster]\nseeds = [\"redis://h:2\"]\n[routing]\nkeys = [\"p:{{provider}}:*\"]\n{lines}"
        );
        std::fs::write(&path, text).unwrap();
        config::load(&path).unwrap()
    }

    fn selected(config: &Config, words: &[&str], missing: Missing) -> Result<Vec<String>, String> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        select(config, &words, missing).map_err(|error| error.to_string())
    }

    #[test]
    fn a_range_is_its_own_line_or_all_lines_in_it() {
        use Missing::{GetsLine, IsRefused};
        let lines = "[prefixes]\n\"asgi:\" = \"standalone\"\n[providers]\n\"7\" = \"cluster\"\n\"8\" = \"cluster\"\n\"100..199\" = \"standalone\"\n\"150\" = \"cluster\"\n";
        let config = config(lines);
        let all = |words: &[&str]| selected(&config, words, GetsLine);
        assert_eq!(all(&["asgi:", "7", "7"]).unwrap(), ["asgi:", "7"]);
        assert_eq!(all(&["100..199"]).unwrap(), ["100..199"], "a line is moved as it stands");
        assert_eq!(all(&["7..8"]).unwrap(), ["7", "8"], "every id has a line");
        assert_eq!(all(&["5..8"]).unwrap(), ["7", "8", "5..8"], "the ids without a line get one");
        assert_eq!(selected(&config, &["5..8"], IsRefused).unwrap(), ["7", "8"]);
        assert_eq!(all(&["7,8", "100..199,9,"]).unwrap(), ["7", "8", "100..199", "9"], "lists in one word");
        assert!(all(&["150..160"]).unwrap_err().contains("shares ids with the line `100..199`"));
        assert!(all(&["90..199"]).unwrap_err().contains("name the lines: 100..199 150"));
        assert!(all(&["9..3"]).unwrap_err().contains("lower id"));
        assert_eq!(all(&["new"]).unwrap(), ["new"]);
        assert!(selected(&config, &["new"], IsRefused).unwrap_err().contains("`new_providers`"));
        assert!(selected(&config, &["120"], IsRefused).unwrap_err().contains("goes by `100..199`"));
    }

    #[test]
    fn ids_stand_in_the_order_of_their_numbers() {
        let ids = ["10", "9", "b", "100..199", "a"].map(str::to_string);
        assert_eq!(in_order(ids), ["9", "10", "100..199", "a", "b"]);
    }
}
