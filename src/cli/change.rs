//! Phases changed in proxy.toml, in one edit, and the wait for the running proxy. `cutover move` is this and no more.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;

use crate::cli::api_client::ApiClient;
use crate::cli::consent::{self, Given};
use crate::cli::interrupt::Interrupt;
use crate::cli::lines::{self, Missing};
use crate::cli::output::{names, say, time};
use crate::cli::{DONE, Move, REFUSED};
use crate::config::{self, Config, edit};
use crate::routing::Phase;

/// How long the proxy gets beyond `flip_timeout`, which it may use up twice (repairs, then the drain).
const GRACE: Duration = Duration::from_secs(10);

/// Whether the proxy is to judge the flips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Stands,
    /// `--force`: overridden, for this one edit.
    Forced,
}

/// What came of an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The file said so before.
    Already,
    Adopted(Duration),
    /// No proxy runs with this file: whichever starts next judges it.
    Written,
    /// Why; the file is as it was before.
    Refused(String),
}

/// Edits, waits, and puts the file back if it was refused.
pub fn change(
    config: &Config,
    path: &Path,
    changes: &[(String, Phase)],
    judgement: Judgement,
) -> anyhow::Result<Changed> {
    let before = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let after = edit::set_phases(&before, changes).with_context(|| format!("edit {}", path.display()))?;
    if after == before {
        return Ok(Changed::Already);
    }
    let routes: Vec<String> = changes.iter().map(|(route, _)| route.clone()).collect();
    let proposed = match judgement {
        Judgement::Forced => edit::add_force(&after, &routes).context("edit force")?,
        Judgement::Stands => after.clone(),
    };
    let client = ApiClient::new(config);
    let is_running = client.get("/api/adopted").is_ok();
    write(path, &proposed)?;
    if let Err(report) = config::load(path) {
        write(path, &before)?;
        bail!("the edited file would not be usable, so it was put back:\n{report}");
    }
    if !is_running {
        return Ok(Changed::Written);
    }
    match wait(&client, &proposed, config.flip_timeout * 2 + GRACE) {
        Ok(took) => {
            if judgement == Judgement::Forced {
                // The override was for this one flip.
                restore(path, &after, &client)?;
            }
            Ok(Changed::Adopted(took))
        }
        Err(reason) => {
            restore(path, &before, &client)?;
            Ok(Changed::Refused(reason))
        }
    }
}

/// `cutover move`.
pub fn run(config: &Config, path: &Path, asked: &Move, as_json: bool) -> anyhow::Result<u8> {
    let (to, judgement) = (asked.to, if asked.force { Judgement::Forced } else { Judgement::Stands });
    let routes = match asked.all {
        true => {
            let everyone = lines::everyone(config, as_json)?;
            everyone.lines.into_iter().chain(everyone.unnamed).collect()
        }
        false => lines::select(config, &asked.routes, Missing::GetsLine)?,
    };
    if routes.is_empty() {
        bail!(
            "there is no provider: proxy.toml names none, and no key in the stores fits the patterns of routing.keys"
        );
    }
    if asked.force {
        let danger =
            format!("{} to {to} without a judgement: what differs between the stores may be lost", names(&routes));
        consent::ask(&danger, Given::of(asked.yes, asked.all))?;
    }
    // From here on Ctrl-C waits for the proxy's answer, so that a refused edit is put back and a force is taken out.
    let _interrupt = Interrupt::listen()?;
    let changes: Vec<(String, Phase)> = routes.iter().map(|route| (route.clone(), to)).collect();
    let changed = change(config, path, &changes, judgement)?;
    let named = names(&routes);
    if as_json {
        let (adopted_ms, refused) = match &changed {
            Changed::Adopted(took) => (Some(took.as_secs_f64() * 1e3), None),
            Changed::Refused(reason) => (None, Some(reason)),
            Changed::Already | Changed::Written => (None, None),
        };
        say!("{}", json!({ "routes": routes, "to": to, "adopted_ms": adopted_ms, "refused": refused }));
    } else {
        match &changed {
            Changed::Already => say!("{named} {} in phase {to} already", if routes.len() == 1 { "is" } else { "are" }),
            Changed::Adopted(took) => say!("{named} → {to}, adopted in {}", time(*took)),
            Changed::Written => say!(
                "{} now says {to} for {named}; no proxy runs with it, so the flip is judged when one starts",
                path.display()
            ),
            Changed::Refused(reason) => eprintln!("refused: {reason}\n{} is as it was before", path.display()),
        }
    }
    Ok(if matches!(changed, Changed::Refused(_)) { REFUSED } else { DONE })
}

/// Waits until the proxy has judged the file with exactly this text.
fn wait(client: &ApiClient, text: &str, patience: Duration) -> Result<Duration, String> {
    let crc = u64::from(crc32fast::hash(text.as_bytes()));
    let began = Instant::now();
    loop {
        let table = client.get("/api/adopted").map_err(|error| format!("{error:#}"))?;
        if table["considered_crc"].as_u64() == Some(crc) {
            return match table["refused"].as_str() {
                Some(reason) => Err(reason.to_string()),
                None => Ok(began.elapsed()),
            };
        }
        if began.elapsed() > patience {
            return Err(format!(
                "the proxy has not looked at the file within {patience:?}; does it run with another one? `cutover status` says"
            ));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Writes a text that flips nothing, and waits until the proxy goes by it: else whoever asks next is told of the old one.
fn restore(path: &Path, text: &str, client: &ApiClient) -> anyhow::Result<()> {
    write(path, text)?;
    if let Err(reason) = wait(client, text, GRACE) {
        eprintln!("{} is written back; the proxy says: {reason}", path.display());
    }
    Ok(())
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
