//! Ctrl-C between two steps rather than in the middle of one: a file that was written is either adopted or put back, and
//! a forced flip leaves no `force` behind. A second Ctrl-C ends at once; the proxy is safe all the same, for it judges
//! whatever stands in the file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Whether the operator wants to stop.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on, on a thread that lives as long as the program.
    pub fn listen() -> anyhow::Result<Self> {
        let interrupt = Self::default();
        let asked = interrupt.0.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut signals = {
            let _entered = runtime.enter();
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?
        };
        std::thread::Builder::new().name("interrupt".into()).spawn(move || {
            runtime.block_on(async {
                while signals.recv().await.is_some() {
                    if asked.swap(true, Ordering::AcqRel) {
                        // As a shell says of a program that Ctrl-C ended.
                        std::process::exit(130);
                    }
                    eprintln!("\nstopping after this step; Ctrl-C again to end at once");
                }
            });
        })?;
        Ok(interrupt)
    }

    /// Whether Ctrl-C was pressed.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Sleeps, but not longer than until Ctrl-C.
    pub fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_asked() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
        }
    }
}
