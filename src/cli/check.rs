//! `cutover check`: the file, the stores, and what the next reload would do.

use std::path::Path;

use serde_json::json;

use crate::cli::output::say;
use crate::cli::{DONE, REFUSED};
use crate::config::Config;
use crate::dual::remembered;
use crate::dual::state::{Snapshot, StateFile};
use crate::resp::reply::Protocol;
use crate::routing::{Phase, RouteName, Table, flip};
use crate::store::link::Endpoint;
use crate::store::{PrivateLink, SlotMap, topology};
use crate::{resp, serve};

/// Checks everything and says all of it.
pub fn run(config: &Config, path: &Path, as_json: bool) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    serve::acceptor(config)?;
    let standalone = runtime.block_on(reach(&serve::standalone(config)?));
    let seeds = serve::seeds(config)?;
    let cluster = match seeds.is_empty() {
        true => Ok("not configured".to_string()),
        false => {
            runtime.block_on(topology::learn(&seeds, &SlotMap::default())).map(|map| describe(&map)).and_then(whole)
        }
    };
    let (flips, refused) = judge(config, StateFile::read(&config.state_directory)?);
    let is_good = standalone.is_ok() && cluster.is_ok() && refused.is_empty();
    if as_json {
        let flips: Vec<_> = flips
            .iter()
            .map(|(route, from, to)| json!({ "route": route.to_string(), "from": from, "to": to }))
            .collect();
        say!(
            "{}",
            json!({ "config": path, "standalone": standalone, "cluster": cluster, "flips": flips, "refused": refused })
        );
        return Ok(if is_good { DONE } else { REFUSED });
    }
    say!("{}: usable", path.display());
    for (name, found) in [("standalone", &standalone), ("cluster", &cluster)] {
        match found {
            Ok(what) => say!("{name}: {what}"),
            Err(reason) => say!("{name}: cannot be reached: {reason}"),
        }
    }
    match flips.as_slice() {
        [] => say!("flips: none; the table is the adopted one"),
        flips => flips.iter().for_each(|(route, from, to)| say!("flip: {route} {from} → {to}")),
    }
    refused.iter().for_each(|reason| say!("refused: {reason}"));
    Ok(if is_good { DONE } else { REFUSED })
}

async fn reach(endpoint: &Endpoint) -> Result<String, String> {
    let mut link = PrivateLink::connect(endpoint, Protocol::Resp2).await.map_err(|error| error.to_string())?;
    let info = link.call(b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n").await.map_err(|error| error.to_string())?;
    let text = resp::reply::bulk(&info).map(|body| String::from_utf8_lossy(body).into_owned()).unwrap_or_default();
    let version = text.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("of unknown version");
    Ok(format!("Redis {} at {}, database {}", version.trim(), endpoint.address, endpoint.db))
}

fn describe(map: &SlotMap) -> (usize, usize) {
    let served = (0..crate::slot::SLOTS).filter(|slot| map.owner(*slot).is_some()).count();
    (map.primaries().len(), served)
}

fn whole((primaries, served): (usize, usize)) -> Result<String, String> {
    match served == usize::from(crate::slot::SLOTS) {
        true => Ok(format!("{primaries} primaries serve all slots")),
        false => {
            Err(format!("only {served} of {} slots are served; see `redis-cli --cluster check`", crate::slot::SLOTS))
        }
    }
}

type Flipped = (RouteName, Phase, Phase);

/// What adopting the file would flip, against the last adopted table, and what would be refused.
fn judge(config: &Config, snapshot: Option<Snapshot>) -> (Vec<Flipped>, Vec<String>) {
    let Some(mut snapshot) = snapshot else { return (Vec::new(), Vec::new()) };
    // While the proxy runs the file says "not clean", which is no doubt.
    snapshot.clean = true;
    let old = remembered::last_table(&snapshot, &config.routing);
    let new = Table::build(&config.routing, snapshot.version + 1, Some(&old));
    let flips = flip::flips(&old, &new).into_iter().map(|flip| (flip.route, flip.from, flip.to)).collect();
    let (_, refused) = remembered::first_table(Some(&snapshot), |_| false, &config.routing);
    (flips, refused.map(|refused| refused.0).unwrap_or_default())
}
