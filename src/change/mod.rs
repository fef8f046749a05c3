//! A change of phases, whoever asks for it: one edit of proxy.toml, the wait for the running proxy, and the file put back
//! if it is refused. The command line and the admin side both go this way, so that the same is allowed to both.
//!
//! All of it blocks: it is for a program of its own, or a thread that may wait.

mod back;
mod lines;

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::config::{self, Config, edit};
use crate::routing::flip::RouteFacts;
use crate::routing::{Phase, RouteName, Table};

pub use back::{Back, roll_back};
pub use lines::{Missing, Unselected, select};

/// How long the proxy gets beyond `flip_timeout`, which it may use up twice (repairs, then the drain).
const GRACE: Duration = Duration::from_secs(10);
/// How long another edit of the same file is waited for: as long as it may take where no store is slow.
const TURN_PATIENCE: Duration = Duration::from_secs(30);

/// A line of proxy.toml and its new phase.
pub type Change = (String, Phase);

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

/// Why nothing could be changed, beside what the proxy itself refuses.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("{doing} {}", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("edit {}", path.display())]
    Edit {
        path: PathBuf,
        #[source]
        source: edit::EditError,
    },
    #[error("the edited file would not be usable, so it was left as it is:\n{0}")]
    Unusable(config::Report),
    #[error("another change of {} is under way; ask again when it has ended", path.display())]
    Busy { path: PathBuf },
    #[error("`{route}` has no keys of its own that could go back; `cutover move {route} --to standalone` changes it")]
    NothingToGoBack { route: String },
    #[error("proxy.toml as it stands is refused, and so would every edit of it be; mend it first: {reason}")]
    RefusedBefore { reason: String },
    #[error("ask the proxy for its routes: {0}")]
    Facts(String),
}

/// What the proxy looked at last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// How many files it has looked at.
    pub number: u32,
    /// CRC-32 of the file.
    pub crc: u32,
    /// Why it was refused, if it was.
    pub refused: Option<String>,
}

/// A line of the adopted table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub phase: Phase,
    pub facts: RouteFacts,
}

/// The running proxy, as who changes its file sees it.
pub trait Proxy {
    /// The newest file that it has adopted or refused; an error if none runs.
    fn considered(&self) -> Result<Considered, String>;
    /// All lines of the adopted table, by name.
    fn lines(&self) -> Result<HashMap<String, Line>, String>;
    /// Hears what a person should know beside the outcome.
    fn tell(&self, what: &str);
}

/// Edits, waits, and puts the file back if it was refused.
pub fn change(
    config: &Config,
    path: &Path,
    changes: &[Change],
    judgement: Judgement,
    proxy: &impl Proxy,
) -> Result<Changed, ChangeError> {
    let _turn = take_turn(path)?;
    let before = fs::read_to_string(path).map_err(file("read", path))?;
    let edited = |source| ChangeError::Edit { path: path.into(), source };
    let after = edit::set_phases(&before, changes).map_err(edited)?;
    if after == before {
        return again(path, &before, config.flip_timeout * 2 + GRACE, proxy);
    }
    let routes: Vec<String> = changes.iter().map(|(route, _)| route.clone()).collect();
    let proposed = match judgement {
        Judgement::Forced => edit::add_force(&after, &routes).map_err(edited)?,
        Judgement::Stands => after.clone(),
    };
    config::parse(&path.display().to_string(), &proposed).map_err(ChangeError::Unusable)?;
    let is_running = proxy.considered().is_ok();
    write(path, &proposed)?;
    if !is_running {
        return Ok(Changed::Written);
    }
    match wait(proxy, &proposed, None, config.flip_timeout * 2 + GRACE) {
        Ok(took) => {
            if judgement == Judgement::Forced {
                // The override was for this one flip.
                restore(path, &after, proxy)?;
            }
            Ok(Changed::Adopted(took))
        }
        Err(reason) => {
            restore(path, &before, proxy)?;
            Ok(Changed::Refused(reason))
        }
    }
}

/// What is asked for stands in the file already. Where the proxy has refused that, it is asked once more: what was in the way
/// may be gone.
fn again(path: &Path, text: &str, patience: Duration, proxy: &impl Proxy) -> Result<Changed, ChangeError> {
    let Ok(Considered { number, crc, refused: Some(_) }) = proxy.considered() else { return Ok(Changed::Already) };
    if crc != crc32fast::hash(text.as_bytes()) {
        return Ok(Changed::Already);
    }
    write(path, text)?;
    Ok(match wait(proxy, text, Some(number), patience) {
        Ok(took) => Changed::Adopted(took),
        Err(reason) => Changed::Refused(reason),
    })
}

/// The phase of a line, or of the line that covers it; the channels have no keys.
pub fn phase_of(config: &Config, adopted: impl Fn(&str) -> Option<Phase>, route: &str) -> Option<Phase> {
    if let Some(phase) = adopted(route) {
        return Some(phase);
    }
    if route == "pubsub" {
        return None;
    }
    let name = match route.split_once("..").map(|(first, last)| (first.parse(), last.parse())) {
        Some((Ok(first), Ok(last))) => RouteName::Range(first, last),
        _ => RouteName::Provider(route.to_string()),
    };
    let table = Table::build(&config.routing, 1, None);
    adopted(&table.covering(&name)?.name.to_string())
}

/// Waits until the proxy has judged the file with exactly this text, and once more than it had where that is given.
fn wait(proxy: &impl Proxy, text: &str, behind: Option<u32>, patience: Duration) -> Result<Duration, String> {
    let crc = crc32fast::hash(text.as_bytes());
    let began = Instant::now();
    loop {
        let considered = proxy.considered()?;
        if considered.crc == crc && behind != Some(considered.number) {
            return match considered.refused {
                Some(reason) => Err(reason),
                None => Ok(began.elapsed()),
            };
        }
        if began.elapsed() > patience {
            return Err(format!(
                "the proxy has not looked at the file within {patience:?}; does it run with another one? `cutover status` says"
            ));
        }
        sleep(Duration::from_millis(10));
    }
}

/// Writes a text that flips nothing, and waits until the proxy goes by it: else whoever asks next is told of the old one.
fn restore(path: &Path, text: &str, proxy: &impl Proxy) -> Result<(), ChangeError> {
    write(path, text)?;
    if let Err(reason) = wait(proxy, text, None, GRACE) {
        proxy.tell(&format!("{} is written back; the proxy says: {reason}", path.display()));
    }
    Ok(())
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ChangeError {
    let path = path.to_path_buf();
    move |source| ChangeError::File { doing, path, source }
}

/// One edit at a time, whoever makes it: two that began with the same text would take back each other's words. The lock is
/// on the folder, because the file itself is replaced; it ends when it is dropped, and with the process.
fn take_turn(path: &Path) -> Result<Option<File>, ChangeError> {
    let folder = File::open(folder(path)).map_err(file("open the folder of", path))?;
    let began = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(Some(folder)),
            Err(TryLockError::WouldBlock) if began.elapsed() < TURN_PATIENCE => sleep(Duration::from_millis(10)),
            Err(TryLockError::WouldBlock) => return Err(ChangeError::Busy { path: path.into() }),
            // A file system without locks: whoever edits by hand takes no turn either.
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whole or not at all, with the old file's permissions.
fn write(path: &Path, text: &str) -> Result<(), ChangeError> {
    let replace = || {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let new = folder(path).join(format!(".{}.new", name.to_string_lossy()));
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::metadata(path)?.permissions())?;
        file.sync_all()?;
        // A link stays a link: what it points at is replaced.
        fs::rename(&new, fs::canonicalize(path)?)
    };
    replace().map_err(file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_changes_of_one_file_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.toml");
        let first = take_turn(&path).unwrap().expect("this file system has locks");
        let second = std::thread::spawn({
            let path = path.clone();
            move || take_turn(&path).unwrap().is_some()
        });
        assert!(File::open(folder.path()).unwrap().try_lock().is_err(), "the first has it");
        drop(first);
        assert!(second.join().unwrap(), "then the second gets it");
    }
}
