//! Says when the file may have changed: its folder is watched (a watch on the file goes deaf after an atomic rename), SIGHUP
//! asks, and a slow look at the content catches what the watch does not see (network file systems).

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Editors write in several steps; one reading after the last is enough.
const SETTLE: Duration = Duration::from_millis(40);
const POLL: Duration = Duration::from_secs(5);

/// Sends a message for each change of the file's content and each SIGHUP, until the receiver is gone.
pub async fn watch(path: PathBuf, changed: mpsc::Sender<()>) -> notify::Result<()> {
    let (seen, mut events) = mpsc::channel::<()>(1);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut watcher = notify::recommended_watcher(move |_| {
        // Full: a look is due anyway.
        let _ = seen.try_send(());
    })?;
    watcher.watch(&folder, RecursiveMode::NonRecursive)?;
    let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
    let mut known = fingerprint(&path);
    loop {
        let is_asked = tokio::select! {
            _ = events.recv() => false,
            _ = hangup.recv() => true,
            () = tokio::time::sleep(POLL) => false,
        };
        if !is_asked {
            tokio::time::sleep(SETTLE).await;
        }
        let now = fingerprint(&path);
        if now == known && !is_asked {
            continue;
        }
        known = now;
        if changed.send(()).await.is_err() {
            return Ok(());
        }
    }
}

/// Of the content; `None` while the file is away.
fn fingerprint(path: &Path) -> Option<(u32, usize)> {
    let bytes = std::fs::read(path).ok()?;
    Some((crc32fast::hash(&bytes), bytes.len()))
}
