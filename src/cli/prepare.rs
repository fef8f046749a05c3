//! `cutover prepare`: what a careful person does first. A backup of the standalone and what both stores say of themselves, in
//! one folder, and a judgement of whether the cluster can take what the standalone has.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use serde_json::json;

use crate::cli::output::{say, size, time};
use crate::cli::progress::Progress;
use crate::cli::{DONE, Prepare, REFUSED};
use crate::config::Config;
use crate::jobs::prepare::{self, Server};
use crate::jobs::readiness::{Check, Verdict, judge_cluster, judge_standalone};
use crate::resp::reply::Protocol;
use crate::serve;
use crate::store::PrivateLink;
use crate::store::link::Endpoint;
use crate::store::rdb::{Snapshot, SnapshotError};

/// The backup's name in the folder.
const BACKUP: &str = "standalone.rdb";

/// Reads, judges, and takes the backup.
pub fn run(config: &Config, asked: &Prepare, as_json: bool) -> anyhow::Result<u8> {
    let folder = asked.output.clone().unwrap_or_else(default_folder);
    // It will hold all data: for the owner only.
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.with_context(|| format!("make the folder {}", folder.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut checks = runtime.block_on(look(config, &folder))?;
    let mut backup = None;
    if !asked.no_backup {
        let began = Instant::now();
        match runtime.block_on(back_up(&serve::standalone(config)?, &folder.join(BACKUP), as_json)) {
            Ok(taken) => {
                let again = verified(&folder.join(BACKUP));
                backup = Some(taken);
                checks.push(judge_backup(&taken, &folder, began, again));
            }
            Err(error) => {
                let text = format!(
                    "backup: {:#}; have one made another way (a provider's snapshot, BGSAVE), then go on with --no-backup",
                    anyhow::Error::new(error)
                );
                checks.push(Check { verdict: Verdict::Bad, text });
            }
        }
    }
    let worst = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Good);
    let report = json!({ "folder": folder, "verdict": worst, "checks": checks, "backup_bytes": backup.map(|taken| taken.bytes) });
    write(&folder.join("report.json"), format!("{report:#}\n").as_bytes())?;
    if as_json {
        say!("{report}");
    } else {
        print(&checks, &folder, worst);
    }
    Ok(if worst == Verdict::Bad { REFUSED } else { DONE })
}

fn default_folder() -> PathBuf {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    PathBuf::from(format!("cutover-prepare-{}", now.replace([':', '-'], "").replace('T', "-").trim_end_matches('Z')))
}

/// Both stores: what they say goes into files, and is judged.
async fn look(config: &Config, folder: &Path) -> anyhow::Result<Vec<Check>> {
    let endpoint = serve::standalone(config)?;
    let standalone = match prepare::read(&endpoint).await {
        Ok(server) => server,
        Err(reason) => anyhow::bail!("the standalone at {} cannot be read: {reason}", endpoint.address),
    };
    keep(folder, "standalone", &standalone)?;
    let mut checks = judge_standalone(&standalone, endpoint.db);
    let seeds = serve::seeds(config)?;
    if seeds.is_empty() {
        checks.push(bad("cluster: proxy.toml names none; add [cluster] with its seeds".into()));
        return Ok(checks);
    }
    let mut reasons = Vec::new();
    let mut listed = None;
    for seed in &seeds {
        match prepare::nodes(seed).await {
            Ok(text) => {
                listed = Some((seed, text));
                break;
            }
            Err(reason) => reasons.push(format!("{}: {reason}", seed.address)),
        }
    }
    let Some((seed, text)) = listed else {
        checks.push(bad(format!("cluster: no seed can be asked for its nodes: {}", reasons.join("; "))));
        return Ok(checks);
    };
    write(&folder.join("cluster.nodes"), text.as_bytes())?;
    let members = prepare::members(&text);
    let mut servers = Vec::new();
    for member in members.iter().filter(|member| member.is_reachable()) {
        // A node that never met another does not know its own host.
        let address = if member.address.starts_with(':') { seed.address.to_string() } else { member.address.clone() };
        match prepare::read(&Endpoint { address: address.into(), db: 0, ..seed.clone() }).await {
            Ok(server) => {
                let server = Server { address: member.address.clone(), ..server };
                keep(folder, &format!("node-{}", member.address.replace(':', "-")), &server)?;
                servers.push(server);
            }
            Err(reason) => checks.push(bad(format!("cluster: {} cannot be read: {reason}", member.address))),
        }
    }
    checks.extend(judge_cluster(&standalone, &members, &servers));
    Ok(checks)
}

fn bad(text: String) -> Check {
    Check { verdict: Verdict::Bad, text }
}

fn keep(folder: &Path, name: &str, server: &Server) -> anyhow::Result<()> {
    write(&folder.join(format!("{name}.info")), format!("{}{}", server.info, server.cluster_info).as_bytes())?;
    let config: String = server.config.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
    write(&folder.join(format!("{name}.config")), config.as_bytes())
}

/// For the owner only.
fn create(path: &Path) -> std::io::Result<fs::File> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    create(path).and_then(|mut file| file.write_all(bytes)).with_context(|| format!("write {}", path.display()))
}

/// Under another name until it is whole and on disk.
async fn back_up(endpoint: &Endpoint, path: &Path, as_json: bool) -> Result<Snapshot, SnapshotError> {
    let link = PrivateLink::connect(endpoint, Protocol::Resp2)
        .await
        .map_err(|error| SnapshotError::Refused(error.to_string()))?;
    let part = path.with_extension("rdb.part");
    let mut file = create(&part).map_err(SnapshotError::Write)?;
    let (progress, mut bytes) = (Progress::new(as_json), 0);
    let taken = link
        .snapshot(|piece, total| {
            bytes += piece.len() as u64;
            progress.show(if total.is_some() { bytes as f64 } else { 0.0 }, total.unwrap_or(1) as f64, || {
                format!("backup: {}", size(bytes))
            });
            file.write_all(piece)
        })
        .await;
    progress.end();
    let kept = taken.and_then(|taken| {
        file.sync_all().and_then(|()| fs::rename(&part, path)).map_err(SnapshotError::Write)?;
        Ok(taken)
    });
    if kept.is_err() {
        // Half a backup is worse than none: somebody may trust it.
        let _ = fs::remove_file(&part);
    }
    kept
}

/// What redis-check-rdb says of it, where that is installed.
fn verified(path: &Path) -> Option<Result<(), String>> {
    let out = Command::new("redis-check-rdb").arg(path).output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout);
    let last = text.lines().last().unwrap_or_default().to_string();
    Some(if out.status.success() { Ok(()) } else { Err(last) })
}

fn judge_backup(taken: &Snapshot, folder: &Path, began: Instant, again: Option<Result<(), String>>) -> Check {
    if let Some(Err(reason)) = again {
        return bad(format!("backup: redis-check-rdb does not accept it: {reason}; take it again"));
    }
    let by = match (taken.is_checksummed, again.is_some()) {
        (true, true) => "its checksum and redis-check-rdb agree",
        (true, false) => "its checksum agrees",
        (false, true) => "redis-check-rdb accepts it; the server computes no checksum",
        (false, false) => "the server computes no checksum",
    };
    Check {
        verdict: Verdict::Good,
        text: format!(
            "backup: {} in {}; {by}; `redis-server --dir {} --dbfilename {BACKUP}` serves it",
            size(taken.bytes),
            time(began.elapsed()),
            folder.display()
        ),
    }
}

fn print(checks: &[Check], folder: &Path, worst: Verdict) {
    for check in checks {
        let word = match check.verdict {
            Verdict::Good => "ok     ",
            Verdict::Warning => "warning",
            Verdict::Bad => "BAD    ",
        };
        say!("{word}  {}", check.text);
    }
    say!("all of it is in {}, for its owner only", folder.display());
    match worst {
        Verdict::Bad => say!("next: mend what is BAD, and run this again"),
        Verdict::Warning | Verdict::Good => {
            say!("next: `cutover serve`, point the application at it, and look at `cutover audit` after a day")
        }
    }
}
