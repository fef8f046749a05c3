//! Which room may import which (ARCHITECTURE.md, "Rooms").

use crate::Finding;
use crate::source::Source;

const RULE: &str = "rooms";

/// Each room with what it may import beside the leaves, which are open to all.
const ROOMS: &[(&str, &[&str])] = &[
    ("resp", &[]),
    ("wire", &[]),
    ("command", &["resp"]),
    ("routing", &["resp", "command"]),
    ("config", &["resp", "command", "routing"]),
    ("store", &["resp", "wire"]),
    ("dual", &["resp", "command", "routing", "store"]),
    ("session", &["resp", "wire", "command", "routing", "store", "dual"]),
    ("jobs", &["resp", "command", "routing", "store", "dual"]),
    ("change", &["resp", "command", "routing", "config"]),
    ("admin", &["resp", "command", "routing", "config", "store", "dual", "jobs", "change"]),
    ("serve", &["resp", "wire", "command", "routing", "config", "store", "dual", "session", "jobs", "change", "admin"]),
    (
        "cli",
        &[
            "resp", "wire", "command", "routing", "config", "store", "dual", "session", "jobs", "change", "admin",
            "serve",
        ],
    ),
    ("main", &["cli"]),
];

/// The imports of a file that its room does not allow. A file that stands directly in `src/` and is no room is a leaf: it
/// imports no room.
pub fn check(source: &Source) -> Vec<Finding> {
    let Some(inside) = source.file.strip_prefix("src/") else { return Vec::new() };
    let modules: Vec<&str> =
        inside.trim_end_matches(".rs").split('/').filter(|name| !matches!(*name, "mod" | "lib")).collect();
    let own = modules.first().copied().unwrap_or("lib");
    let room = ROOMS.iter().find(|(name, _)| *name == own);
    if room.is_none() && inside.contains('/') {
        let message = format!("`{own}` is no room that tests/house/rooms.rs knows; say there what it may import");
        return vec![Finding::new(RULE, source, 1, own, message)];
    }
    let allowed = room.map_or(&[][..], |(_, allowed)| allowed);
    let mut findings = Vec::new();
    for named in source.names() {
        let Some(other) = from_top(&named.path, modules.len()) else { continue };
        if other == own || allowed.contains(&other) || (other != "*" && ROOMS.iter().all(|(name, _)| *name != other)) {
            continue;
        }
        let may = if allowed.is_empty() { "no room".into() } else { allowed.join(", ") };
        let message =
            format!("`{}`: `{own}` may not import `{other}`; it may import {may}, and the leaves", named.text());
        findings.push(Finding::new(RULE, source, named.line, other, message));
    }
    findings
}

/// The first word of a path behind the crate's top; `None` if it does not lead through the top.
fn from_top(path: &[String], depth: usize) -> Option<&str> {
    let supers = path.iter().take_while(|word| *word == "super").count();
    let begin = match path.first()?.as_str() {
        "crate" | "cutover" => 1,
        "super" if supers >= depth => supers,
        _ => return None,
    };
    path.get(begin).map(String::as_str)
}

fn broken(file: &str, code: &str) -> Vec<(usize, String)> {
    check(&Source::new(file, code)).into_iter().map(|finding| (finding.line, finding.subject)).collect()
}

#[test]
fn an_import_of_a_room_above_is_found_in_each_form() {
    assert_eq!(broken("src/resp/scan.rs", "\nuse crate::store::Link;"), [(2, "store".into())]);
    assert_eq!(broken("src/store/link.rs", "use crate::{resp, slot,\n routing::Phase};"), [(2, "routing".into())]);
    assert_eq!(broken("src/routing/plan.rs", "fn f() { crate::dual::f() }"), [(1, "dual".into())]);
    assert_eq!(broken("src/dual/mod.rs", "use super::config;"), [(1, "config".into())]);
    assert_eq!(broken("src/dual/lane.rs", "use super::super::session::Session;"), [(1, "session".into())]);
    assert_eq!(broken("src/jobs/scan.rs", "use crate::*;"), [(1, "*".into())]);
    assert_eq!(broken("src/main.rs", "use cutover::store;"), [(1, "store".into())]);
}

#[test]
fn a_leaf_imports_no_room_and_an_unknown_room_is_named() {
    assert_eq!(broken("src/metrics.rs", "use crate::dual::Lane;"), [(1, "dual".into())]);
    assert_eq!(broken("src/lobby/mod.rs", ""), [(1, "lobby".into())]);
}

#[test]
fn what_stands_below_is_allowed_and_tests_may_import_anything() {
    assert!(
        broken("src/dual/lane.rs", "use super::gate::Gate;\nuse crate::{routing::Plan, slot, metrics};").is_empty()
    );
    assert!(broken("src/resp/scan.rs", "#[cfg(test)]\nmod tests { use crate::session::X; }").is_empty());
}
