//! `cutover rollback`: to the phase before, at once. Cheap by design: from a dual phase the other store has everything, so
//! it is one edit and one flip for however many routes.

use std::collections::HashMap;
use std::path::Path;

use anyhow::bail;
use serde_json::json;

use crate::cli::api_client::ApiClient;
use crate::cli::change::{self, Changed, Judgement};
use crate::cli::consent::{self, Given};
use crate::cli::facts::Facts;
use crate::cli::interrupt::Interrupt;
use crate::cli::lines::{self, Missing};
use crate::cli::output::{names, say, time};
use crate::cli::{DONE, REFUSED, Rollback};
use crate::config::Config;
use crate::routing::flip::{self, Flip};
use crate::routing::{Phase, RouteName};

type Change = (String, Phase);

/// Flips each route one phase back; of many, those that may not do not keep the others.
pub fn run(config: &Config, path: &Path, asked: &Rollback, as_json: bool) -> anyhow::Result<u8> {
    let client = ApiClient::new(config);
    let facts = Facts::of_adopted_file(&client)?;
    let routes = match asked.all {
        // Who has no line goes by `new_providers`. Where that is `standalone`, nobody needs to be searched for.
        true if facts.phase(config, "new_providers") == Some(Phase::Standalone) => lines::providers(config),
        // Else whoever is to go back gets a line.
        true => {
            let everyone = lines::everyone(config, as_json)?;
            everyone.lines.into_iter().chain(everyone.unnamed).collect()
        }
        false => lines::select(config, &asked.routes, Missing::GetsLine)?,
    };
    let mut back: Vec<Change> = Vec::new();
    for route in &routes {
        match facts.phase(config, route) {
            None => bail!(
                "`{route}` has no keys of its own that could go back; `cutover move {route} --to standalone` changes it"
            ),
            Some(phase) => back.extend(before(phase).map(|to| (route.clone(), to))),
        }
    }
    if back.is_empty() {
        return Ok(say_nothing_to_do(&routes, as_json));
    }
    if asked.force {
        let flipping: Vec<String> = back.iter().map(|(route, _)| route.clone()).collect();
        let danger = format!("{} back without a judgement: what only the cluster has may be lost", names(&flipping));
        consent::ask(&danger, Given::of(asked.yes, asked.all))?;
    }
    let _interrupt = Interrupt::listen()?;
    let judgement = if asked.force { Judgement::Forced } else { Judgement::Stands };
    let mut changed = change::change(config, path, &back, judgement)?;
    let mut refused = Vec::new();
    if let Changed::Refused(reason) = &changed {
        let (may, may_not) = split(config, &Facts::read(&client)?, &back);
        if may.is_empty() || may_not.is_empty() {
            return Ok(say_refused(&back, std::slice::from_ref(reason), as_json));
        }
        (back, refused) = (may, may_not);
        changed = change::change(config, path, &back, judgement)?;
        if let Changed::Refused(reason) = &changed {
            refused.insert(0, reason.clone());
            return Ok(say_refused(&back, &refused, as_json));
        }
    }
    say_done(&back, &changed, &refused, as_json);
    Ok(if refused.is_empty() { DONE } else { REFUSED })
}

/// The phase before; `standalone` has none.
fn before(phase: Phase) -> Option<Phase> {
    Phase::ALL.iter().rev().find(|earlier| **earlier < phase).copied()
}

/// Which of them the facts allow now, and why not the others.
fn split(config: &Config, facts: &Facts, back: &[Change]) -> (Vec<Change>, Vec<String>) {
    let (mut may, mut may_not) = (Vec::new(), Vec::new());
    for (route, to) in back {
        let name = RouteName::Provider(route.clone());
        let known = facts.routes.get(route).map(|fact| fact.route_facts()).unwrap_or_default();
        let from = facts.phase(config, route).unwrap_or(*to);
        match flip::judge(&[Flip { route: name, from, to: *to }], |_| known, |_| false) {
            Ok(()) => may.push((route.clone(), *to)),
            Err(refused) => may_not.extend(refused.iter().map(ToString::to_string)),
        }
    }
    (may, may_not)
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
