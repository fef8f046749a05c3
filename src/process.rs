//! What the operating system knows of this process, as the Prometheus client libraries name it. Read where /proc is.

use std::path::Path;
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::metrics::{Kind, Page};

/// Linux counts CPU time for programs in hundredths of a second, whatever its own clock does (USER_HZ).
const TICKS_A_SECOND: f64 = 100.0;

static STARTED: LazyLock<f64> =
    LazyLock::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |passed| passed.as_secs_f64()));

/// Remembers the time of the start.
pub fn started() {
    LazyLock::force(&STARTED);
}

/// Lets this process open as many files as the system allows it: of the 1,024 that most shells give, a thousand clients would
/// leave none.
pub fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` is no limit, in both.
    let is_lower = current.is_some_and(|current| maximum.is_none_or(|maximum| current < maximum));
    if is_lower && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, ?current, ?maximum, "the limit of open files cannot be raised");
    }
}

/// How many files may be open; `None`: no limit.
pub fn open_files_max() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Adds what can be read; elsewhere than on Linux that is the time of the start.
pub fn metrics(page: &mut Page) {
    use Kind::{Counter, Gauge};
    let started = format!("{:.3}", *STARTED);
    page.add_plain("process_start_time_seconds", Gauge, "Start of the process, in seconds since 1970.", started);
    let process = Path::new("/proc/self");
    let read = |name: &str| std::fs::read_to_string(process.join(name)).ok();
    if let Some(seconds) = read("stat").as_deref().and_then(cpu_seconds) {
        page.add_plain("process_cpu_seconds_total", Counter, "CPU time of all threads.", seconds);
    }
    let status = read("status");
    let memory = |name| status.as_deref().and_then(|status| kib(status, name)).map(|kib| kib * 1024);
    if let Some(bytes) = memory("VmRSS:") {
        page.add_plain("process_resident_memory_bytes", Gauge, "Memory that the process has in RAM.", bytes);
    }
    if let Some(bytes) = memory("VmSize:") {
        page.add_plain("process_virtual_memory_bytes", Gauge, "Address space of the process.", bytes);
    }
    if let Ok(open) = std::fs::read_dir(process.join("fd")) {
        // One of them is the folder that is being read.
        let open = open.count().saturating_sub(1);
        page.add_plain("process_open_fds", Gauge, "Open files and connections.", open);
    }
    if let Some(most) = open_files_max() {
        page.add_plain("process_max_fds", Gauge, "Files and connections that may be open.", most);
    }
}

/// utime and stime of /proc/PID/stat; the name of the process, in brackets, may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) as f64 / TICKS_A_SECOND)
}

fn kib(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_writes_is_understood() {
        let stat = "7 (a) name) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 3 0 100 1000 200";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(kib("Name:\tcutover\nVmRSS:\t    1234 kB\n", "VmRSS:"), Some(1234));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_read() {
        let mut page = Page::default();
        metrics(&mut page);
        let text = page.finish();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_default()
        };
        assert!(value("process_resident_memory_bytes") > 1e5 && value("process_open_fds") >= 3.0, "{text}");
        assert!(value("process_max_fds") >= value("process_open_fds"), "{text}");
        assert!(value("process_start_time_seconds") > 1.7e9, "{text}");
    }
}
