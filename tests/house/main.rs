//! The rules of the house, read from the sources: who imports whom, what stays pure, what stands where, which settings are
//! documented. A broken rule is named with its file and line. Each check has tests of its own that show that it can fail.

mod links;
mod places;
mod references;
mod rooms;
mod settings;
mod source;

use std::collections::BTreeSet;
use std::fmt;

use source::Source;

/// A broken rule at its place.
#[derive(Debug)]
pub struct Finding {
    rule: &'static str,
    file: String,
    line: usize,
    /// What breaks it, as an exception would name it.
    subject: String,
    message: String,
}

impl Finding {
    fn new(rule: &'static str, source: &Source, line: usize, subject: &str, message: impl Into<String>) -> Self {
        Self { rule, file: source.file.clone(), line, subject: subject.into(), message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}: {}: {}", self.file, self.line, self.rule, self.message)
    }
}

/// A place where a rule is broken on purpose.
struct Exception {
    rule: &'static str,
    file: &'static str,
    subject: &'static str,
    why: &'static str,
}

const EXCEPTIONS: &[Exception] = &[
    Exception {
        rule: "places",
        file: "src/serve.rs",
        subject: "eprintln!",
        why: "the log level that is not understood is told before there is a log",
    },
    Exception {
        rule: "module doc",
        file: "src/lib.rs",
        subject: "//!",
        why: "its doc is ARCHITECTURE.md, included, so that a link to a room that moved fails the doc build",
    },
];

impl Exception {
    fn covers(&self, finding: &Finding) -> bool {
        (self.rule, self.file, self.subject) == (finding.rule, &finding.file, &finding.subject)
    }
}

fn all_of(sources: &[Source], check: impl Fn(&Source) -> Vec<Finding>) -> Vec<Finding> {
    assert!(sources.len() > 10, "the sources are not where this test looks for them");
    sources.iter().flat_map(check).collect()
}

#[track_caller]
fn assert_kept(findings: Vec<Finding>) {
    let broken: Vec<String> = findings
        .iter()
        .filter(|finding| !EXCEPTIONS.iter().any(|exception| exception.covers(finding)))
        .map(ToString::to_string)
        .collect();
    assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
}

fn with_docs() -> Vec<Source> {
    ["src", "tests"].into_iter().flat_map(Source::all_below).collect()
}

#[test]
fn a_room_imports_what_stands_below_it() {
    assert_kept(all_of(&Source::all_below("src"), rooms::check));
}

#[test]
fn a_pure_file_names_nothing_of_the_world_outside() {
    assert_kept(all_of(&Source::all_below("src"), places::purity));
}

#[test]
fn crates_printing_and_files_keep_to_their_places() {
    assert_kept(all_of(&Source::all_below("src"), places::places));
}

#[test]
fn each_file_says_what_it_is() {
    assert_kept(all_of(&with_docs(), places::module_doc));
}

#[test]
fn proxy_toml_documents_the_settings_and_nothing_else() {
    let read = |file: &str| {
        let text = std::fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR")));
        Source::new(file, &text.expect("the file stands in the project"))
    };
    let (documented, top) = (read("src/config/documented.toml"), read("proxy.toml"));
    assert_kept(settings::check(&read("src/config/load.rs"), &documented));
    // Whoever tries a move with `make up` has changed phases in the one at the top.
    let but_for_phases = |source: &Source| -> Vec<String> {
        let is_phase =
            |line: &&str| !line.starts_with('"') && !line.contains("standalone\"") && !line.contains("cluster\"");
        source.text.lines().filter(is_phase).map(str::to_string).collect()
    };
    assert_eq!(but_for_phases(&documented), but_for_phases(&top), "the documented file is src/config/documented.toml");
}

/// A file that is renamed must not slip out of its rule, and an exception must not stay when its reason has gone.
#[test]
fn the_lists_of_this_test_name_what_exists() {
    let sources = with_docs();
    let files: BTreeSet<&str> = sources.iter().map(|source| source.file.as_str()).collect();
    let listed = places::PURE.iter().chain(places::PLACES.iter().flat_map(|(_, places, _)| *places));
    for place in listed {
        assert!(files.iter().any(|file| file.starts_with(place)), "no file stands in {place}");
    }
    let checks = [rooms::check, places::purity, places::places, places::module_doc];
    let findings: Vec<Finding> = checks.iter().flat_map(|check| all_of(&sources, check)).collect();
    for exception in EXCEPTIONS {
        let is_used = findings.iter().any(|finding| exception.covers(finding));
        assert!(
            is_used,
            "the exception for `{}` in {} is not needed any more ({})",
            exception.subject, exception.file, exception.why
        );
    }
}
