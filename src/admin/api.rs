//! JSON for the command line, the dashboard and whoever scripts against the proxy.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::admin::{Parts, uptime};
use crate::jobs::{self, JobView, Options};
use crate::metrics;
use crate::routing::{Coverage, Route, RouteName, Table};

/// An error as the API says it.
type Refused = (StatusCode, Json<Value>);

fn refused(status: StatusCode, reason: impl Into<String>) -> Refused {
    (status, Json(json!({ "error": reason.into() })))
}

/// One route, as shown.
#[derive(Debug, Serialize)]
struct RouteView {
    /// A provider's id, a range, a prefix, `new_providers` or `other_keys`.
    id: String,
    kind: &'static str,
    phase: String,
    leader: String,
    follower: Option<String>,
    synced: bool,
    /// `standalone-only`, `cluster-only` or `both`; none in a phase with one store.
    coverage: Option<Coverage>,
    in_doubt: bool,
    open_divergence: u64,
}

fn view(route: &Route) -> RouteView {
    let dual = route.dual.as_deref();
    RouteView {
        id: route.name.to_string(),
        kind: match route.name {
            RouteName::Provider(_) => "provider",
            RouteName::Range(..) => "range",
            RouteName::Prefix(_) => "prefix",
            RouteName::NewProviders | RouteName::OtherKeys => "default",
        },
        phase: route.phase.to_string(),
        leader: route.phase.leader().to_string(),
        follower: route.phase.follower().map(|side| side.to_string()),
        synced: dual.is_some_and(|dual| dual.is_synced()),
        coverage: dual.map(|dual| dual.coverage()),
        in_doubt: dual.is_some_and(|dual| dual.is_in_doubt()),
        open_divergence: dual.map_or(0, |dual| dual.divergence()),
    }
}

/// Every provider that the table names.
pub async fn providers(State(parts): State<Parts>) -> Json<Value> {
    let table = parts.adopter.table();
    let named = table.routes().iter().filter(|route| matches!(route.name, RouteName::Provider(_) | RouteName::Range(..)));
    Json(json!({ "table_version": table.version(), "providers": named.map(view).collect::<Vec<_>>() }))
}

/// The adopted table, why the newest file was refused if it was, and how the stores are.
pub async fn table(State(parts): State<Parts>) -> Json<Value> {
    let table = parts.adopter.table();
    Json(json!({
        "table_version": table.version(),
        "config": parts.config_path,
        "considered_crc": parts.adopter.considered(),
        "refused": parts.adopter.refused(),
        "pubsub": table.pubsub(),
        "routes": table.routes().iter().map(view).collect::<Vec<_>>(),
        "stores": {
            "standalone": { "up": metrics::get(&parts.totals.standalone_up) == 1 },
            "cluster": { "up": metrics::get(&parts.totals.cluster_up) == 1 },
        },
        "clients": metrics::get(&parts.totals.clients),
        "requests_total": metrics::get(&parts.totals.requests),
        "uptime_seconds": uptime(&parts).as_secs(),
    }))
}

/// All jobs of this run.
pub async fn jobs(State(parts): State<Parts>) -> Json<Value> {
    Json(json!({ "jobs": parts.jobs.list().iter().map(|job| job.view()).collect::<Vec<_>>() }))
}

/// One job.
pub async fn job(State(parts): State<Parts>, Path(id): Path<u64>) -> Result<Json<JobView>, Refused> {
    let found = parts.jobs.get(id).ok_or_else(|| refused(StatusCode::NOT_FOUND, format!("there is no job {id}")))?;
    Ok(Json(found.view()))
}

/// Asks a job to end.
pub async fn cancel(State(parts): State<Parts>, Path(id): Path<u64>) -> Result<Json<Value>, Refused> {
    match parts.jobs.cancel(id) {
        true => Ok(Json(json!({ "cancelled": id }))),
        false => Err(refused(StatusCode::NOT_FOUND, format!("there is no job {id}"))),
    }
}

/// What `POST /api/backfill` and `/api/verify` take.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// As proxy.toml names them.
    #[serde(default)]
    routes: Vec<String>,
    /// Every route in a dual phase.
    #[serde(default)]
    all: bool,
    rate: Option<u64>,
    #[serde(default)]
    repair: bool,
}

/// Begins a backfill.
pub async fn backfill(State(parts): State<Parts>, Json(asked): Json<JobRequest>) -> Result<Json<JobView>, Refused> {
    start(&parts, jobs::Kind::Backfill, &asked)
}

/// Begins a verification.
pub async fn verify(State(parts): State<Parts>, Json(asked): Json<JobRequest>) -> Result<Json<JobView>, Refused> {
    start(&parts, jobs::Kind::Verify, &asked)
}

fn start(parts: &Parts, kind: jobs::Kind, asked: &JobRequest) -> Result<Json<JobView>, Refused> {
    let table = parts.adopter.table();
    let routes = match asked.all {
        true => table.routes().iter().filter(|route| route.dual.is_some()).map(|route| route.name.clone()).collect(),
        false => asked.routes.iter().map(|name| named(&table, name)).collect::<Result<Vec<_>, _>>()?,
    };
    if routes.is_empty() {
        let reason = if asked.all { "no route is in a dual phase" } else { "name at least one route" };
        return Err(refused(StatusCode::BAD_REQUEST, reason));
    }
    let options = Options { rate: asked.rate.unwrap_or(jobs::RATE_DEFAULT), repair: asked.repair };
    let job = parts.jobs.start(kind, routes, options).map_err(|reason| refused(StatusCode::CONFLICT, reason))?;
    Ok(Json(job.view()))
}

fn named(table: &Table, name: &str) -> Result<RouteName, Refused> {
    let found = table.routes().iter().find(|route| route.name.to_string() == name);
    found.map(|route| route.name.clone()).ok_or_else(|| {
        let reason = format!("the table has no line for `{name}`; `cutover status` lists the routes");
        refused(StatusCode::NOT_FOUND, reason)
    })
}
