//! JSON for the command line, the dashboard and whoever scripts against the proxy.

use std::collections::HashMap;
use std::path::PathBuf;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::routes::{self, Traffic};
use crate::admin::{Parts, uptime};
use crate::jobs::{self, JobView, Options};
use crate::metrics;
use crate::routing::{Route, RouteName, Table};

/// An error as the API says it.
pub type Refused = (StatusCode, Json<Value>);

/// One.
pub fn refused(status: StatusCode, reason: impl Into<String>) -> Refused {
    (status, Json(json!({ "error": reason.into() })))
}

/// Every provider that the table names or that was seen in traffic.
pub async fn providers(State(parts): State<Parts>) -> Json<Value> {
    let table = parts.adopter.table();
    let traffic = Traffic::now(&parts, &table);
    let is_provider = |route: &Route| matches!(route.name, RouteName::Provider(_) | RouteName::Range(..));
    let mut shown = routes::lines(&parts, &table, &traffic, is_provider);
    shown.extend(routes::others(&table, &traffic));
    Json(json!({ "table_version": table.version(), "providers": shown }))
}

/// The adopted table, why the newest file was refused if it was, and how the stores are.
pub async fn table(State(parts): State<Parts>) -> Json<Value> {
    let table = parts.adopter.table();
    let traffic = Traffic::now(&parts, &table);
    let mut document = head(&parts, &table);
    document["routes"] = json!(routes::lines(&parts, &table, &traffic, |_| true));
    Json(document)
}

/// The file that this proxy goes by; whoever asks may have started elsewhere.
fn config(parts: &Parts) -> PathBuf {
    std::path::absolute(&parts.config_path).unwrap_or_else(|_| parts.config_path.clone())
}

/// The same without the routes.
pub fn head(parts: &Parts, table: &Table) -> Value {
    let totals = &parts.totals;
    let store = |store: &metrics::StoreTotals| {
        let micros = metrics::get(&store.latency_us);
        json!({ "up": metrics::get(&store.up) == 1, "latency_ms": (micros > 0).then(|| micros as f64 / 1e3) })
    };
    let refused = metrics::REASONS.iter().zip(&totals.refused).map(|(reason, count)| (*reason, metrics::get(count)));
    let (companions, strangers) = parts.jobs.bypass().proxies();
    json!({
        "table_version": table.version(),
        "config": config(parts),
        "considered": parts.adopter.considered().0,
        "considered_crc": parts.adopter.considered().1,
        "refused": parts.adopter.refused(),
        "pubsub": table.pubsub(),
        "stores": {
            "standalone": store(&totals.standalone),
            "cluster": store(&totals.cluster),
        },
        "bypass": parts.jobs.bypass().writers(),
        "bypass_listening": parts.jobs.bypass().listening(),
        "other_proxies": strangers,
        "lease": parts.adopter.desk().view(),
        "lease_proxies": companions,
        "clients": metrics::get(&totals.clients),
        "requests_total": metrics::get(&totals.requests),
        "refused_requests": refused.collect::<HashMap<_, _>>(),
        "uptime_seconds": uptime(parts).as_secs(),
    })
}

/// The last flips and refused tables of this run, the newest last.
pub async fn flips(State(parts): State<Parts>) -> Json<Value> {
    Json(json!({ "history": parts.adopter.history().after(0) }))
}

/// Only what tells whether a file was adopted: asked for often while somebody waits for it.
pub async fn adopted(State(parts): State<Parts>) -> Json<Value> {
    Json(json!({
        "config": config(&parts),
        "table_version": parts.adopter.table().version(),
        "considered": parts.adopter.considered().0,
        "considered_crc": parts.adopter.considered().1,
        "refused": parts.adopter.refused(),
    }))
}

/// What the application sent that will not work the same on a cluster.
pub async fn audit(State(parts): State<Parts>) -> Json<Value> {
    Json(
        json!({ "findings": parts.audit.findings(), "dropped": parts.audit.dropped(), "seconds": uptime(&parts).as_secs() }),
    )
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
        false => named(&table, &asked.routes)?,
    };
    if routes.is_empty() {
        let reason = if asked.all { "no route is in a dual phase" } else { "name at least one route" };
        return Err(refused(StatusCode::BAD_REQUEST, reason));
    }
    let options = Options { rate: asked.rate.unwrap_or(jobs::RATE_DEFAULT), repair: asked.repair };
    let job = parts.jobs.start(kind, routes, options).map_err(|reason| refused(StatusCode::CONFLICT, reason))?;
    parts.feed.wake();
    Ok(Json(job.view()))
}

/// Routes by the names of their lines.
fn named(table: &Table, names: &[String]) -> Result<Vec<RouteName>, Refused> {
    let known: HashMap<String, &RouteName> =
        table.routes().iter().map(|route| (route.name.to_string(), &route.name)).collect();
    let find = |name: &String| {
        known.get(name).copied().cloned().ok_or_else(|| {
            let line = &table.provider_route(name.as_bytes()).name;
            let reason = format!("the table has no line for `{name}`: as a provider it goes by `{line}`; name that, or give it a line with `cutover move {name} --to PHASE`");
            refused(StatusCode::NOT_FOUND, reason)
        })
    };
    names.iter().map(find).collect()
}
