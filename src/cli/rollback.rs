//! `cutover rollback`: to the phase before, at once.

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;

use crate::change::{Back, Change, Changed, Judgement, Missing, roll_back, select};
use crate::cli::api_client::ApiClient;
use crate::cli::consent::{self, Given};
use crate::cli::facts::Facts;
use crate::cli::interrupt::Interrupt;
use crate::cli::lines;
use crate::cli::output::{names, say, time};
use crate::cli::{DONE, REFUSED, Rollback};
use crate::config::Config;
use crate::routing::Phase;

/// Flips each route one phase back; of many, those that may not do not keep the others.
pub fn run(config: &Config, path: &Path, asked: &Rollback, as_json: bool) -> anyhow::Result<u8> {
    let client = ApiClient::new(config);
    let facts = Facts::of_adopted_file(&client)?;
    let routes = match asked.all {
        // Who has no line goes by `new_providers` or `share`. Where that is `standalone`, nobody needs to be searched for.
        true if facts.phase(config, "new_providers") == Some(Phase::Standalone)
            && config.routing.share.iter().all(|(_, phase)| *phase == Phase::Standalone) =>
        {
            lines::providers(config)
        }
        // Else whoever is to go back gets a line.
        true => {
            let everyone = lines::everyone(config, as_json)?;
            everyone.lines.into_iter().chain(everyone.unnamed).collect()
        }
        false => select(config, &asked.routes, Missing::GetsLine)?,
    };
    if asked.force {
        let goes = |route: &&String| facts.phase(config, route).is_some_and(|phase| phase != Phase::Standalone);
        let flipping: Vec<String> = routes.iter().filter(goes).cloned().collect();
        if !flipping.is_empty() {
            let danger =
                format!("{} back without a judgement: what only the cluster has may be lost", names(&flipping));
            consent::ask(&danger, Given::of(asked.yes, asked.all))?;
        }
    }
    let _interrupt = Interrupt::listen()?;
    let judgement = if asked.force { Judgement::Forced } else { Judgement::Stands };
    Ok(match roll_back(config, path, &routes, judgement, &client)? {
        Back::Nowhere => say_nothing_to_do(&routes, as_json),
        Back::Refused { asked, reasons } => say_refused(&asked, &reasons, as_json),
        Back::Gone { back, changed, refused } => {
            say_done(&back, &changed, &refused, as_json);
            if refused.is_empty() { DONE } else { REFUSED }
        }
    })
}

fn say_nothing_to_do(routes: &[String], as_json: bool) -> u8 {
    match as_json {
        true => say!("{}", json!({ "routes": [], "adopted_ms": null, "refused": [] })),
        false => say!("{}: in phase standalone, which has none before it", names(routes)),
    }
    DONE
}

fn say_refused(back: &[Change], reasons: &[String], as_json: bool) -> u8 {
    if as_json {
        say!("{}", json!({ "routes": [], "adopted_ms": null, "refused": reasons }));
    } else {
        let routes: Vec<String> = back.iter().map(|(route, _)| route.clone()).collect();
        eprintln!("refused: {}", reasons.join("\nrefused: "));
        eprintln!(
            "{}: nothing was changed. --force goes back all the same; what only the cluster has is then lost",
            names(&routes)
        );
    }
    REFUSED
}

fn say_done(back: &[Change], changed: &Changed, refused: &[String], as_json: bool) {
    let took = if let Changed::Adopted(took) = changed { Some(*took) } else { None };
    if as_json {
        let flips: Vec<_> = back.iter().map(|(route, to)| json!({ "route": route, "to": to })).collect();
        say!(
            "{}",
            json!({ "routes": flips, "adopted_ms": took.map(|took| took.as_secs_f64() * 1e3), "refused": refused })
        );
        return;
    }
    let mut by_phase: HashMap<Phase, Vec<String>> = HashMap::new();
    for (route, to) in back {
        by_phase.entry(*to).or_default().push(route.clone());
    }
    for to in Phase::ALL.into_iter().rev() {
        let Some(routes) = by_phase.get(&to) else { continue };
        match took {
            Some(took) => say!("{} → {to}, adopted in {}", names(routes), time(took)),
            None => say!("{} → {to}, written; no proxy runs with this file", names(routes)),
        }
        if to == Phase::DualCluster {
            say!(
                "  the standalone is being given what it lacks; when `cutover status` says synced, `cutover rollback` goes on to dual-standalone"
            );
        }
    }
    refused.iter().for_each(|reason| eprintln!("refused: {reason}"));
}
