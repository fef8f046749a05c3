//! `cutover move`: one word of the file, and the wait for the running proxy.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;

use crate::cli::api_client::ApiClient;
use crate::cli::{DONE, REFUSED};
use crate::config::{self, Config, edit};
use crate::routing::Phase;

/// How long the proxy gets beyond `flip_timeout`, which it may use up twice (repairs, then the drain).
const GRACE: Duration = Duration::from_secs(10);

/// Edits, waits, and puts the file back if it was refused.
pub fn run(config: &Config, path: &Path, routes: &[String], to: Phase, force: bool, as_json: bool) -> anyhow::Result<u8> {
    let before = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut after = before.clone();
    for route in routes {
        after = edit::set_phase(&after, route, to).with_context(|| format!("edit {}", path.display()))?;
    }
    if after == before {
        println!("{} {} in phase {to} already", routes.join(", "), if routes.len() == 1 { "is" } else { "are" });
        return Ok(DONE);
    }
    let proposed = if force { edit::add_force(&after, routes).context("edit force")? } else { after.clone() };
    let client = ApiClient::new(config);
    let is_running = client.get("/api/table").is_ok();
    write(path, &proposed)?;
    if let Err(report) = config::load(path) {
        write(path, &before)?;
        bail!("the edited file would not be usable, so it was put back:\n{report}");
    }
    if !is_running {
        println!("{} now says {to} for {}; no proxy runs with it, so the flip is judged when one starts", path.display(), routes.join(", "));
        return Ok(DONE);
    }
    let outcome = wait(&client, &proposed, config.flip_timeout * 2 + GRACE);
    match outcome {
        Ok(took) => {
            if force {
                // The override was for this one flip.
                write(path, &after)?;
            }
            report(routes, to, took, as_json);
            Ok(DONE)
        }
        Err(reason) => {
            write(path, &before)?;
            if as_json {
                println!("{}", json!({ "routes": routes, "to": to, "refused": reason }));
            } else {
                eprintln!("refused: {reason}\n{} is as it was before", path.display());
            }
            Ok(REFUSED)
        }
    }
}

fn report(routes: &[String], to: Phase, took: Duration, as_json: bool) {
    let ms = took.as_secs_f64() * 1e3;
    match as_json {
        true => println!("{}", json!({ "routes": routes, "to": to, "adopted_ms": ms })),
        false => println!("{} → {to}, adopted in {ms:.0} ms", routes.join(", ")),
    }
}

/// Waits until the proxy has judged the file with exactly this text.
fn wait(client: &ApiClient, text: &str, patience: Duration) -> Result<Duration, String> {
    let crc = u64::from(crc32fast::hash(text.as_bytes()));
    let began = Instant::now();
    loop {
        let table = client.get("/api/table").map_err(|error| format!("{error:#}"))?;
        if table["considered_crc"].as_u64() == Some(crc) {
            return match table["refused"].as_str() {
                Some(reason) => Err(reason.to_string()),
                None => Ok(began.elapsed()),
            };
        }
        if began.elapsed() > patience {
            return Err(format!("the proxy has not looked at the file within {patience:?}; does it run with another one? `cutover status` says"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whole or not at all, with the old file's permissions.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().context("the configuration is a file")?;
    let new = folder.join(format!(".{}.new", name.to_string_lossy()));
    let doing = || format!("write {}", path.display());
    let mut file = fs::File::create(&new).with_context(doing)?;
    file.write_all(text.as_bytes()).with_context(doing)?;
    file.set_permissions(fs::metadata(path).with_context(doing)?.permissions()).with_context(doing)?;
    file.sync_all().with_context(doing)?;
    // A link stays a link: what it points at is replaced.
    fs::rename(&new, fs::canonicalize(path).with_context(doing)?).with_context(doing)
}
