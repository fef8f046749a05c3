//! To the phase before, at once. Cheap by design: from a dual phase the other store has everything, so it is one edit and
//! one flip for however many routes. Of many, those that may not do not keep the others.

use std::collections::HashMap;
use std::path::Path;

use crate::change::{Change, ChangeError, Changed, Judgement, Line, Proxy, change, phase_of};
use crate::config::Config;
use crate::routing::flip::{self, Flip};
use crate::routing::{Phase, RouteName};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Back {
    /// All of them are in phase standalone, which has none before it.
    Nowhere,
    /// Nothing was changed.
    Refused { asked: Vec<Change>, reasons: Vec<String> },
    /// `back` went; `refused` says why the others did not.
    Gone { back: Vec<Change>, changed: Changed, refused: Vec<String> },
}

/// Flips each route one phase back.
pub fn roll_back(
    config: &Config,
    path: &Path,
    routes: &[String],
    judgement: Judgement,
    proxy: &impl Proxy,
) -> Result<Back, ChangeError> {
    if let Some(reason) = proxy.considered().map_err(ChangeError::Facts)?.refused {
        return Err(ChangeError::RefusedBefore { reason });
    }
    let lines = proxy.lines().map_err(ChangeError::Facts)?;
    let mut back = Vec::new();
    for route in routes {
        let Some(phase) = phase_in(config, &lines, route) else {
            return Err(ChangeError::NothingToGoBack { route: route.clone() });
        };
        back.extend(before(phase).map(|to| (route.clone(), to)));
    }
    if back.is_empty() {
        return Ok(Back::Nowhere);
    }
    let reason = match change(config, path, &back, judgement, proxy)? {
        Changed::Refused(reason) => reason,
        changed => return Ok(Back::Gone { back, changed, refused: Vec::new() }),
    };
    let lines = proxy.lines().map_err(ChangeError::Facts)?;
    let (may, may_not) = split(config, &lines, &back);
    if may.is_empty() || may_not.is_empty() {
        return Ok(Back::Refused { asked: back, reasons: vec![reason] });
    }
    Ok(match change(config, path, &may, judgement, proxy)? {
        Changed::Refused(reason) => {
            Back::Refused { asked: may, reasons: std::iter::once(reason).chain(may_not).collect() }
        }
        changed => Back::Gone { back: may, changed, refused: may_not },
    })
}

fn phase_in(config: &Config, lines: &HashMap<String, Line>, route: &str) -> Option<Phase> {
    phase_of(config, |name| lines.get(name).map(|line| line.phase), route)
}

/// The phase before; `standalone` has none.
fn before(phase: Phase) -> Option<Phase> {
    Phase::ALL.iter().rev().find(|earlier| **earlier < phase).copied()
}

/// Which of them the facts allow now, and why not the others.
fn split(config: &Config, lines: &HashMap<String, Line>, back: &[Change]) -> (Vec<Change>, Vec<String>) {
    let (mut may, mut may_not) = (Vec::new(), Vec::new());
    for (route, to) in back {
        let name = RouteName::Provider(route.clone());
        let facts = lines.get(route).map(|line| line.facts).unwrap_or_default();
        let from = phase_in(config, lines, route).unwrap_or(*to);
        match flip::judge(&[Flip::of(name, from, *to)], |_| facts, |_| false) {
            Ok(()) => may.push((route.clone(), *to)),
            Err(refused) => may_not.extend(refused.iter().map(ToString::to_string)),
        }
    }
    (may, may_not)
}
