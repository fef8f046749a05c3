//! `cutover backfill` and `cutover verify`: begin a job in the proxy and watch it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::change::{self, Missing};
use crate::cli::api_client::ApiClient;
use crate::cli::output::say;
use crate::cli::progress::Progress;
use crate::cli::{DONE, REFUSED, Walk};
use crate::config::Config;
use crate::jobs::Kind;

/// Between two looks at a job.
const LOOK: Duration = Duration::from_millis(200);

/// Begins and watches until the end.
pub fn run(config: &Config, kind: Kind, walk: &Walk, repair: bool, as_json: bool) -> anyhow::Result<u8> {
    let client = ApiClient::new(config);
    let routes = change::select(config, &walk.routes, Missing::IsRefused)?;
    let body = json!({ "routes": routes, "all": walk.all, "rate": walk.rate, "repair": repair });
    let job = begin(&client, kind, &body)?;
    // Ctrl-C ends the watching as it ends any program: the job is the proxy's.
    let job = watch(&client, job, &Progress::new(as_json), || Ok(Flow::GoOn))?;
    if as_json {
        say!("{job}");
    } else {
        print(&job);
    }
    Ok(if is_good(&job) { DONE } else { REFUSED })
}

/// Begins a job, or joins one that runs for the same routes.
pub fn begin(client: &ApiClient, kind: Kind, body: &Value) -> anyhow::Result<Value> {
    let path = match kind {
        Kind::Backfill => "/api/backfill",
        Kind::Verify => "/api/verify",
    };
    client.post(path, body)
}

/// Whether to go on watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    GoOn,
    Stop,
}

/// Watches a job until it ends, or until `look`, which is called between two looks at the job, says to stop; gives how the
/// job is then.
pub fn watch(
    client: &ApiClient,
    mut job: Value,
    progress: &Progress,
    mut look: impl FnMut() -> anyhow::Result<Flow>,
) -> anyhow::Result<Value> {
    let id = job["id"].as_u64().unwrap_or(0);
    while job["state"] == "running" && look()? == Flow::GoOn {
        show(progress, &job);
        std::thread::sleep(LOOK);
        job = client.get(&format!("/api/jobs/{id}"))?;
    }
    progress.end();
    Ok(job)
}

/// Whether it went through, and found nothing that differs.
pub fn is_good(job: &Value) -> bool {
    job["state"] == "done" && job["differing"] == 0
}

fn show(progress: &Progress, job: &Value) {
    let number = |key: &str| job[key].as_f64().unwrap_or(0.0);
    let (scanned, total, rate) = (number("scanned"), number("keys_total").max(1.0), number("keys_per_second"));
    let left = number("seconds_left");
    let held = if number("restraint") > 0.0 { ", holding back for the leader's latency" } else { "" };
    let kind = job["kind"].as_str().unwrap_or("job");
    progress.show(scanned, total, || {
        format!(
            "{kind}: {scanned} of about {total} keys, {rate:.0}/s, {left:.0} s left, {} copied{held}",
            job["copied"]
        )
    });
}

fn print(job: &Value) {
    let text = |key: &str| job[key].as_str().unwrap_or("").to_string();
    let seconds = job["seconds"].as_f64().unwrap_or(0.0);
    say!("{} {}: {}", text("kind"), text("state"), text("message"));
    say!(
        "{} keys of the routes among {} scanned, {} copied, in {seconds:.1} s",
        job["matched"],
        job["scanned"],
        job["copied"]
    );
    differences(job).iter().for_each(|line| say!("  {line}"));
}

/// The keys that a verification names, and how each differs.
pub fn differences(job: &Value) -> Vec<String> {
    let all = job["differences"].as_array().into_iter().flatten();
    all.map(|found| format!("{}: {}", found["key"].as_str().unwrap_or(""), found["what"].as_str().unwrap_or("")))
        .collect()
}
