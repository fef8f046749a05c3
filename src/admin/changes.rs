//! Moves and rollbacks by HTTP: what `cutover move` and `cutover rollback` do, with the same rules, on the file that this
//! proxy watches. There is no force here: what could lose data is asked for on the command line, where the file is.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::Parts;
use crate::admin::api::{Refused, refused};
use crate::change::{self, Back, Change, ChangeError, Changed, Considered, Judgement, Line, Missing, Proxy};
use crate::config::{self, Config};
use crate::dual::adopt::Adopter;
use crate::dual::verdict;
use crate::routing::Phase;

/// What `POST /api/move` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    /// Providers, ranges, prefixes, or `new_providers`, `other_keys`, `pubsub`.
    routes: Vec<String>,
    to: Phase,
}

/// What `POST /api/rollback` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    routes: Vec<String>,
}

/// Changes the phase of routes: all of them, or none.
pub async fn move_to(State(parts): State<Parts>, Json(asked): Json<MoveRequest>) -> Result<Json<Value>, Refused> {
    let MoveRequest { routes, to } = asked;
    alone(parts, routes, move |parts, config, routes| {
        let changes: Vec<Change> = routes.iter().map(|route| (route.clone(), to)).collect();
        let changed = change::change(config, &parts.config_path, &changes, Judgement::Stands, &*parts.adopter);
        match changed.map_err(failed)? {
            Changed::Refused(reason) => Err(refused(StatusCode::CONFLICT, reason)),
            changed => Ok(json!({ "routes": routes, "to": to, "adopted_ms": adopted_ms(&changed) })),
        }
    })
    .await
}

/// Takes routes to the phase before. Those that may not go do not keep the others; `refused` says why they did not.
pub async fn roll_back(State(parts): State<Parts>, Json(asked): Json<RollbackRequest>) -> Result<Json<Value>, Refused> {
    alone(parts, asked.routes, |parts, config, routes| {
        let back = change::roll_back(config, &parts.config_path, routes, Judgement::Stands, &*parts.adopter);
        match back.map_err(failed)? {
            Back::Nowhere => Err(refused(StatusCode::CONFLICT, "phase standalone has none before it")),
            Back::Refused { reasons, .. } => Err(refused(StatusCode::CONFLICT, reasons.join("; "))),
            Back::Gone { back, changed, refused } => {
                let flips: Vec<_> = back.iter().map(|(route, to)| json!({ "route": route, "to": to })).collect();
                Ok(json!({ "routes": flips, "adopted_ms": adopted_ms(&changed), "refused": refused }))
            }
        }
    })
    .await
}

/// Does the work on a thread that may wait, one change at a time. Once begun it goes through, also when the caller has gone.
async fn alone(
    parts: Parts,
    words: Vec<String>,
    work: impl FnOnce(&Parts, &Config, &[String]) -> Result<Value, Refused> + Send + 'static,
) -> Result<Json<Value>, Refused> {
    if words.is_empty() {
        return Err(refused(StatusCode::BAD_REQUEST, "name at least one route"));
    }
    let turn = parts.changing.clone().lock_owned().await;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let config = config::load(&parts.config_path).map_err(|report| {
            refused(StatusCode::CONFLICT, format!("proxy.toml cannot be used as it stands; mend it first:\n{report}"))
        })?;
        let routes = change::select(&config, &words, Missing::GetsLine)
            .map_err(|reason| refused(StatusCode::UNPROCESSABLE_ENTITY, reason.to_string()))?;
        let done = work(&parts, &config, &routes);
        parts.feed.wake();
        done
    });
    match done.await {
        Ok(answer) => answer.map(Json),
        Err(error) => Err(refused(StatusCode::INTERNAL_SERVER_ERROR, format!("the change ended early: {error}"))),
    }
}

fn failed(error: ChangeError) -> Refused {
    use ChangeError::{Busy, Edit, Facts, File, NothingToGoBack, RefusedBefore, Unusable};
    let status = match &error {
        Busy { .. } | RefusedBefore { .. } => StatusCode::CONFLICT,
        Edit { .. } | Unusable(_) | NothingToGoBack { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        File { .. } | Facts(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    refused(status, format!("{error}{cause}"))
}

fn adopted_ms(changed: &Changed) -> Option<f64> {
    if let Changed::Adopted(took) = changed { Some(took.as_secs_f64() * 1e3) } else { None }
}

impl Proxy for Adopter {
    fn considered(&self) -> Result<Considered, String> {
        // The number last: it is set after the refusal that belongs to it.
        let (number, crc) = Adopter::considered(self);
        Ok(Considered { number, crc, refused: self.refused() })
    }

    fn lines(&self) -> Result<HashMap<String, Line>, String> {
        let table = self.table();
        let line =
            |route: &crate::routing::Route| Line { phase: route.phase, facts: verdict::facts(&table, &route.name) };
        Ok(table.routes().iter().map(|route| (route.name.to_string(), line(route))).collect())
    }

    fn tell(&self, what: &str) {
        tracing::warn!("{what}");
    }
}
