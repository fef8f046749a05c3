//! `cutover backfill` and `cutover verify`: begin a job in the proxy and watch it.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::api_client::ApiClient;
use crate::cli::{DONE, REFUSED, Walk};
use crate::config::Config;
use crate::jobs::Kind;

/// Begins and watches until the end.
pub fn run(config: &Config, kind: Kind, walk: &Walk, repair: bool, as_json: bool) -> anyhow::Result<u8> {
    let client = ApiClient::new(config);
    let path = match kind {
        Kind::Backfill => "/api/backfill",
        Kind::Verify => "/api/verify",
    };
    let body = json!({ "routes": walk.routes, "all": walk.all, "rate": walk.rate, "repair": repair });
    let mut job = client.post(path, &body)?;
    let id = job["id"].as_u64().unwrap_or(0);
    let shows = !as_json && std::io::stderr().is_terminal();
    while job["state"] == "running" {
        if shows {
            eprint!("\r\x1b[K{}", progress(&job));
            std::io::stderr().flush()?;
        }
        std::thread::sleep(Duration::from_millis(200));
        job = client.get(&format!("/api/jobs/{id}"))?;
    }
    if shows {
        eprint!("\r\x1b[K");
    }
    if as_json {
        println!("{job}");
    } else {
        print(&job);
    }
    let is_good = job["state"] == "done" && job["differing"] == 0;
    Ok(if is_good { DONE } else { REFUSED })
}

fn progress(job: &Value) -> String {
    let number = |key: &str| job[key].as_f64().unwrap_or(0.0);
    let (scanned, total, rate) = (number("scanned"), number("keys_total").max(1.0), number("keys_per_second"));
    let share = (scanned / total).min(1.0);
    let filled = (share * 30.0) as usize;
    let left = if rate > 0.0 { (total - scanned).max(0.0) / rate } else { 0.0 };
    format!("[{}{}] {:3.0}%  {scanned} of about {total} keys, {rate:.0}/s, {left:.0} s left, {} copied", "#".repeat(filled), " ".repeat(30 - filled), share * 100.0, job["copied"])
}

fn print(job: &Value) {
    let text = |key: &str| job[key].as_str().unwrap_or("").to_string();
    let seconds = job["seconds"].as_f64().unwrap_or(0.0);
    println!("{} {}: {}", text("kind"), text("state"), text("message"));
    println!("{} keys of the routes among {} scanned, {} copied, in {seconds:.1} s", job["matched"], job["scanned"], job["copied"]);
    for difference in job["differences"].as_array().into_iter().flatten() {
        println!("  {}: {}", difference["key"].as_str().unwrap_or(""), difference["what"].as_str().unwrap_or(""));
    }
}
