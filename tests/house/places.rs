//! What may be named only in its place: the world outside in no pure file, some crates in one room, printing in the
//! command line, files where files are kept. And each file says what it is.

use crate::Finding;
use crate::source::{Named, Source};

/// Files that know bytes and rules only, so that a test or a simulation can drive them through every order of events.
pub const PURE: &[&str] = &[
    "src/resp/",
    "src/command/",
    "src/routing/",
    "src/slot.rs",
    "src/dual/lane.rs",
    "src/dual/lease.rs",
    "src/dual/gate.rs",
    "src/dual/install.rs",
    "src/dual/effect.rs",
];

/// Sockets, files, clocks, chance, locks. One word stands for itself anywhere in a path.
const IMPURE: &[&str] = &[
    "tokio",
    "std::fs",
    "std::net",
    "std::env",
    "std::thread",
    "std::process",
    "Instant",
    "SystemTime",
    "fastrand",
    "parking_lot",
    "Mutex",
    "RwLock",
];

/// What is named, the places where it may be, and why.
pub const PLACES: &[(&[&str], &[&str], &str)] = &[
    (&["toml", "toml_edit"], &["src/config/"], "the form of proxy.toml is config's alone"),
    (&["axum"], &["src/admin/"], "HTTP is admin's alone"),
    (&["clap", "ureq"], &["src/cli/"], "arguments, and calls of the running proxy, are the command line's alone"),
    (
        &["anyhow"],
        &["src/cli/", "src/main.rs", "src/serve.rs", "src/serve/"],
        "a room has an error type of its own, so that each error can be answered",
    ),
    (
        &[
            "println!",
            "print!",
            "eprintln!",
            "eprint!",
            "dbg!",
            "std::process::exit",
            "process::exit",
            "std::process::abort",
        ],
        &["src/cli/", "src/main.rs"],
        "printing and exiting is the command line's; rooms log, and return",
    ),
    (
        &["std::fs", "tokio::fs"],
        &[
            "src/config/",
            "src/change/",
            "src/dual/journal.rs",
            "src/dual/state.rs",
            "src/jobs/checkpoint.rs",
            "src/serve.rs",
            "src/serve/",
            "src/cli/",
            "src/process.rs",
        ],
        "files are read and written where their crash safety is thought about, and /proc is read where its form is known",
    ),
];

/// What a pure file names of the world outside.
pub fn purity(source: &Source) -> Vec<Finding> {
    if !PURE.iter().any(|place| source.file.starts_with(place)) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for named in source.names() {
        if let Some(word) = IMPURE.iter().find(|word| is_named(&named, word)) {
            let message = format!(
                "`{}`: a pure file names no socket, file, clock, chance or lock; time comes in as an argument",
                named.text()
            );
            findings.push(Finding::new("pure", source, named.line, word, message));
        }
    }
    findings
}

fn is_named(named: &Named, word: &str) -> bool {
    match word.starts_with(char::is_uppercase) {
        true => named.path.iter().any(|own| own == word),
        false => named.is_in(word),
    }
}

/// What a file names that belongs elsewhere.
pub fn places(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for named in source.names() {
        for (words, places, why) in PLACES {
            let Some(word) = words.iter().find(|word| named.is_in(word)) else { continue };
            if !places.iter().any(|place| source.file.starts_with(place)) {
                let message = format!("`{}` belongs in {}: {why}", named.text(), places.join(", "));
                findings.push(Finding::new("places", source, named.line, word, message));
            }
        }
    }
    findings
}

/// Whether a file begins with what it owns and promises.
pub fn module_doc(source: &Source) -> Vec<Finding> {
    let is_there =
        source.text.lines().next().and_then(|line| line.strip_prefix("//! ")).is_some_and(|doc| !doc.trim().is_empty());
    let message = "the file does not begin with a `//!` doc that says what it owns";
    if is_there { Vec::new() } else { vec![Finding::new("module doc", source, 1, "//!", message)] }
}

fn subjects(findings: Vec<Finding>) -> Vec<(usize, String)> {
    findings.into_iter().map(|finding| (finding.line, finding.subject)).collect()
}

#[test]
fn a_pure_file_with_a_clock_a_socket_or_a_lock_is_found() {
    let pure = |file, code| subjects(purity(&Source::new(file, code)));
    assert_eq!(
        pure("src/dual/lane.rs", "use bytes::Bytes;\nuse std::time::{Duration, Instant};"),
        [(2, "Instant".into())]
    );
    assert_eq!(pure("src/routing/table.rs", "fn f() { std::sync::Mutex::new(1); }"), [(1, "Mutex".into())]);
    assert_eq!(
        pure("src/resp/scan.rs", "use tokio::io;\nuse std::net::TcpStream;"),
        [(1, "tokio".into()), (2, "std::net".into())]
    );
    assert_eq!(pure("src/command/keys.rs", "fn f() -> u8 { fastrand::u8(..) }"), [(1, "fastrand".into())]);
    assert_eq!(
        pure("src/slot.rs", "use parking_lot as p;\nuse std::fs;"),
        [(1, "parking_lot".into()), (2, "std::fs".into())]
    );
    assert!(pure("src/dual/engine.rs", "use tokio::sync::mpsc;").is_empty());
    assert!(pure("src/dual/lane.rs", "use std::time::Duration; // not Instant").is_empty());
}

#[test]
fn what_stands_in_the_wrong_place_is_found() {
    let misplaced = |file, code| subjects(places(&Source::new(file, code)));
    assert_eq!(misplaced("src/cli/change.rs", "fn f() { toml::from_str(x); }"), [(1, "toml".into())]);
    assert_eq!(misplaced("src/jobs/mod.rs", "\nuse axum::Json;"), [(2, "axum".into())]);
    assert_eq!(
        misplaced("src/admin/api.rs", "use clap::Parser;\nuse anyhow::Result;"),
        [(1, "clap".into()), (2, "anyhow".into())]
    );
    assert_eq!(misplaced("src/store/link.rs", "fn f() {\n  eprintln!(\"x\");\n}"), [(2, "eprintln!".into())]);
    assert_eq!(misplaced("src/serve.rs", "fn f() { std::process::exit(1) }"), [(1, "std::process::exit".into())]);
    assert_eq!(misplaced("src/jobs/scan.rs", "use std::{fs::File, io};"), [(1, "std::fs".into())]);
    assert_eq!(
        misplaced("src/session/worker.rs", "async fn f() { tokio::fs::read(p).await; }"),
        [(1, "tokio::fs".into())]
    );
    assert!(misplaced("src/cli/status.rs", "use std::fs;\nfn f() { println!(\"x\") }").is_empty());
    assert!(misplaced("src/config/load.rs", "use toml::Spanned;\nuse std::fs;").is_empty());
}

#[test]
fn a_file_without_its_doc_is_found() {
    let is_missed = |text| !module_doc(&Source::new("src/x.rs", text)).is_empty();
    assert!(is_missed("use a;\n//! Late."));
    assert!(is_missed("//!\n"));
    assert!(is_missed(""));
    assert!(!is_missed("//! What it owns.\n"));
}
