//! What `--all` stands for: the lines of proxy.toml, and the providers that only the stores know.

use std::collections::BTreeSet;

use anyhow::Context as _;

use crate::cli::progress::Progress;
use crate::config::Config;
use crate::jobs::inventory;
use crate::routing::{RouteName, Side, Table, in_order};
use crate::serve;
use crate::store::link::Endpoint;
use crate::store::{SlotMap, topology};

/// All providers: the lines that proxy.toml has, and the ids found in the stores that no line covers.
pub struct Everyone {
    pub lines: Vec<String>,
    pub unnamed: Vec<String>,
}

/// Walks both stores, gently, for providers that no line names.
pub fn everyone(config: &Config, as_json: bool) -> anyhow::Result<Everyone> {
    let table = Table::build(&config.routing, 1, None);
    let is_unnamed =
        |id: &str| matches!(table.provider_route(id.as_bytes()).name, RouteName::NewProviders | RouteName::Share(_));
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

fn in_stores(config: &Config, table: &Table, as_json: bool) -> anyhow::Result<BTreeSet<Vec<u8>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut places: Vec<(Side, Endpoint)> = vec![(Side::Standalone, serve::standalone(config)?)];
    let seeds = serve::seeds(config)?;
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

    #[test]
    fn ids_stand_in_the_order_of_their_numbers() {
        let ids = ["10", "9", "b", "100..199", "a"].map(str::to_string);
        assert_eq!(in_order(ids), ["9", "10", "100..199", "a", "b"]);
    }
}
