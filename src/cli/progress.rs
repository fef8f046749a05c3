//! How far something is: a bar on a terminal, a plain line from time to time where there is none.

use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two plain lines: a log of an hour's copying has 360 of them.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Steps of the bar, however large the work is.
const STEPS: u64 = 1_000;

/// Standard error, so that what is printed stays clean.
#[derive(Debug)]
pub struct Progress(Shown);

#[derive(Debug)]
enum Shown {
    /// Programs that read JSON get none.
    Nothing,
    /// Made by the first look, wiped out at the end.
    Bar(RefCell<Option<ProgressBar>>),
    /// When the last line was written, or the work began.
    Lines(Cell<Instant>),
}

impl Progress {
    /// Nothing is shown yet.
    pub fn new(as_json: bool) -> Self {
        Self(match (as_json, std::io::stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, true) => Shown::Bar(RefCell::new(None)),
            (false, false) => Shown::Lines(Cell::new(Instant::now())),
        })
    }

    /// Shows how much of `total` is done, and a text. Where the total is not known, `done` is 0.
    pub fn show(&self, done: f64, total: f64, text: impl FnOnce() -> String) {
        let share = (done / total.max(1.0)).clamp(0.0, 1.0);
        match &self.0 {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                let mut bar = bar.borrow_mut();
                let bar = bar.get_or_insert_with(new_bar);
                bar.set_position((share * STEPS as f64) as u64);
                bar.set_message(text());
            }
            Shown::Lines(last) if last.get().elapsed() >= LINE_EVERY => {
                last.set(Instant::now());
                eprintln!("{:3.0}% {}", share * 100.0, text());
            }
            Shown::Lines(_) => {}
        }
    }

    /// Wipes the bar out.
    pub fn end(&self) {
        if let Shown::Bar(bar) = &self.0
            && let Some(bar) = bar.borrow_mut().take()
        {
            bar.finish_and_clear();
        }
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new(STEPS);
    // A style that does not parse would be the default one; the text here does.
    if let Ok(style) = ProgressStyle::with_template("[{bar:30}] {percent:>3}% {wide_msg}") {
        bar.set_style(style.progress_chars("##-"));
    }
    bar
}
