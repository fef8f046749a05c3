//! Says when files may have changed: their folders are watched (a watch on a file goes deaf after an atomic rename), SIGHUP
//! asks, and a slow look at the files catches what the watch does not see (network file systems).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Editors write in several steps; one reading after the last is enough.
const SETTLE: Duration = Duration::from_millis(40);
const POLL: Duration = Duration::from_secs(5);

/// Sends a message each time one of the files was saved and for each SIGHUP, until the receiver is gone. `loaded`: what the first
/// of them was when it was read, so that one who saves it while the program begins is heard.
pub async fn watch(paths: Vec<PathBuf>, loaded: Option<Fingerprint>, changed: mpsc::Sender<()>) -> notify::Result<()> {
    let (seen, mut events) = mpsc::channel::<()>(1);
    let folder = |path: &PathBuf| match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let folders: BTreeSet<PathBuf> = paths.iter().map(folder).collect();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // To read them is an event too, and would have them read again.
        if event.is_ok_and(|event| is_reading(event.kind)) {
            return;
        }
        // Full: a look is due anyway.
        let _ = seen.try_send(());
    })?;
    for folder in &folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
    let look = || paths.iter().map(|path| fingerprint(path)).collect::<Vec<_>>();
    let mut known = look();
    if let Some(first) = known.first_mut() {
        *first = loaded;
    }
    let mut is_first = true;
    loop {
        let is_asked = tokio::select! {
            () = std::future::ready(()), if std::mem::take(&mut is_first) => false,
            _ = events.recv() => false,
            _ = hangup.recv() => true,
            () = tokio::time::sleep(POLL) => false,
        };
        if !is_asked {
            tokio::time::sleep(SETTLE).await;
        }
        let now = look();
        if now == known && !is_asked {
            continue;
        }
        known = now;
        if changed.send(()).await.is_err() {
            return Ok(());
        }
    }
}

fn is_reading(kind: EventKind) -> bool {
    kind.is_access() && kind != EventKind::Access(AccessKind::Close(AccessMode::Write))
}

/// CRC-32 and length of a file's content, and when it was saved.
pub type Fingerprint = (u32, usize, SystemTime);

/// Of the content, and of when it was saved: who was refused saves the same text once more. `None` while the file is away.
pub fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let bytes = std::fs::read(path).ok()?;
    let saved = std::fs::metadata(path).and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    Some((crc32fast::hash(&bytes), bytes.len(), saved))
}
