//! The operator's side over HTTP: health, metrics, the API that the command line uses, the dashboard.

mod access;
mod api;
mod changes;
mod dashboard;
mod events;
mod feed;
mod health;
mod patience;
mod routes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::middleware;
use axum::routing::{get, post};

use crate::audit::Audit;
use crate::dual::adopt::Adopter;
use crate::dual::traffic::TrafficBook;
use crate::dual::{Copying, Shadowing};
use crate::jobs::Jobs;
use crate::metrics::Totals;
use crate::secret::Secret;

pub use feed::Feed;

/// What the admin side shows and steers.
#[derive(Clone)]
pub struct Parts {
    pub adopter: Arc<Adopter>,
    pub jobs: Arc<Jobs>,
    pub totals: Arc<Totals>,
    pub traffic: Arc<TrafficBook>,
    pub copying: Arc<Copying>,
    pub shadowing: Arc<Shadowing>,
    pub audit: Arc<Audit>,
    /// Calls that change something must carry it, if it is set.
    pub token: Option<Secret>,
    pub config_path: PathBuf,
    pub started: Instant,
    pub feed: Arc<Feed>,
    /// Held by the one change of proxy.toml that is under way here.
    pub changing: Arc<tokio::sync::Mutex<()>>,
}

/// Serves until its task is dropped.
pub async fn serve(listener: std::net::TcpListener, parts: Parts) {
    let listening = listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
    let listener = match listening {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the admin address cannot be served; the proxy itself goes on"),
    };
    let serving = async { axum::serve(patience::Listener(listener), router(parts.clone())).await };
    tokio::select! {
        ended = serving => tracing::error!(?ended, "the admin server ended; the proxy itself goes on"),
        () = feed::run(parts.clone()) => {}
    }
}

fn router(parts: Parts) -> Router {
    let changes = Router::new()
        .route("/api/backfill", post(api::backfill))
        .route("/api/verify", post(api::verify))
        .route("/api/move", post(changes::move_to))
        .route("/api/rollback", post(changes::roll_back))
        .route("/api/jobs/{id}/cancel", post(api::cancel))
        .route_layer(middleware::from_fn_with_state(parts.clone(), access::check));
    Router::new()
        .route("/", get(dashboard::page))
        .route("/dashboard/{name}", get(dashboard::file))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/api/providers", get(api::providers))
        .route("/api/table", get(api::table))
        .route("/api/adopted", get(api::adopted))
        .route("/api/audit", get(api::audit))
        .route("/api/jobs", get(api::jobs))
        .route("/api/jobs/{id}", get(api::job))
        .route("/api/flips", get(api::flips))
        .route("/api/events", get(events::events))
        .merge(changes)
        // A request is a few hundred bytes; a list of 10,000 routes is under a MiB.
        .layer(axum::extract::DefaultBodyLimit::max(1 << 20))
        .with_state(parts)
}

/// How long this proxy has run.
fn uptime(parts: &Parts) -> Duration {
    parts.started.elapsed()
}
