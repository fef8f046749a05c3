//! Every setting stands in proxy.toml, and proxy.toml names no setting that is none. The settings are read from the section
//! structs in src/config/load.rs, where serde finds them.

use std::collections::BTreeSet;

use crate::Finding;
use crate::source::Source;

const RULE: &str = "settings";

/// A section, or a section and a key in it, with its line.
type Setting = (usize, String, Option<String>);

/// Compares both, in both directions.
pub fn check(load: &Source, toml: &Source) -> Vec<Finding> {
    let (known, open) = declared(load);
    let written = written(toml);
    let names = |settings: &[Setting]| -> BTreeSet<(String, Option<String>)> {
        settings.iter().map(|(_, section, key)| (section.clone(), key.clone())).collect()
    };
    let (known_names, written_names) = (names(&known), names(&written));
    let mut findings = Vec::new();
    for (line, section, key) in &known {
        if !written_names.contains(&(section.clone(), key.clone())) {
            let setting = show(section, key.as_deref());
            let message = format!("`{setting}` does not stand in {}, not even commented out", toml.file);
            findings.push(Finding::new(RULE, load, *line, &setting, message));
        }
    }
    for (line, section, key) in &written {
        let is_open = key.is_some() && open.contains(section);
        if !is_open && !known_names.contains(&(section.clone(), key.clone())) {
            let setting = show(section, key.as_deref());
            let message = format!("`{setting}` is no setting that {} knows", load.file);
            findings.push(Finding::new(RULE, toml, *line, &setting, message));
        }
    }
    findings
}

fn show(section: &str, key: Option<&str>) -> String {
    key.map_or(format!("[{section}]"), |key| format!("{section}.{key}"))
}

/// What the structs declare, and the sections whose keys are the operator's own (`[providers]`).
fn declared(load: &Source) -> (Vec<Setting>, BTreeSet<String>) {
    let code = load.code();
    let (mut settings, mut open) = (Vec::new(), BTreeSet::new());
    for (line, section, of) in fields(&code, "File") {
        settings.push((line, section.clone(), None));
        let inner = of.trim_start_matches("Option<").trim_end_matches('>');
        if !inner.ends_with("Section") {
            open.insert(section);
            continue;
        }
        settings.extend(fields(&code, inner).into_iter().map(|(line, key, _)| (line, section.clone(), Some(key))));
    }
    (settings, open)
}

/// The public fields of a struct: line, name, type.
fn fields(code: &str, name: &str) -> Vec<(usize, String, String)> {
    let head = format!("struct {name} {{");
    let mut fields = Vec::new();
    let body = code.lines().enumerate().skip_while(|(_, line)| !line.contains(&head)).skip(1);
    for (index, line) in body.take_while(|(_, line)| !line.starts_with('}')) {
        if let Some((field, of)) = line.trim().strip_prefix("pub ").and_then(|rest| rest.split_once(':')) {
            fields.push((index + 1, field.to_string(), of.trim().trim_end_matches(',').to_string()));
        }
    }
    fields
}

/// What the file sets or shows commented out: `[section]`, `key =`, `# key =`.
fn written(toml: &Source) -> Vec<Setting> {
    let (mut settings, mut section) = (Vec::new(), String::new());
    for (index, line) in toml.text.lines().enumerate() {
        if let Some((name, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            section = name.to_string();
            settings.push((index + 1, section.clone(), None));
            continue;
        }
        let Some((key, _)) = line.strip_prefix("# ").unwrap_or(line).split_once('=') else { continue };
        let (key, is_quoted) = (key.trim_end(), key.starts_with('"'));
        // A sentence with a `=` in it is no setting.
        if is_quoted || (!key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')) {
            settings.push((index + 1, section.clone(), Some(key.trim_matches('"').to_string())));
        }
    }
    settings
}

const LOAD: &str = "pub(super) struct File {\n    #[serde(default)]\n    pub listen: ListenSection,\n    pub cluster: Option<ClusterSection>,\n    pub providers: BTreeMap<String, String>,\n}\nstruct ListenSection {\n    pub address: Option<SocketAddr>,\n    pub workers: Option<usize>,\n}\nstruct ClusterSection {\n    pub seeds: Vec<String>,\n}\n";

fn compared(toml: &str) -> Vec<(String, usize, String)> {
    let findings = check(&Source::new("load.rs", LOAD), &Source::new("proxy.toml", toml));
    findings.into_iter().map(|finding| (finding.file, finding.line, finding.subject)).collect()
}

#[test]
fn a_setting_that_stands_there_commented_or_not_is_enough() {
    let toml = "# Here a = b is prose.\n[listen]\naddress = \"x\"\n# workers = 0   # threads\n[cluster]\nseeds = []\n[providers]\n\"7\" = \"cluster\"\n# \"1..9\" = \"x\"\n";
    assert_eq!(compared(toml), []);
}

#[test]
fn a_setting_that_is_not_shown_is_found() {
    let toml = "[listen]\naddress = \"x\"\n[cluster]\nseeds = []\n";
    let expected = [("load.rs", 5, "[providers]"), ("load.rs", 9, "listen.workers")];
    let mut found = compared(toml);
    found.sort_by_key(|finding| finding.1);
    assert_eq!(found, expected.map(|(file, line, what)| (file.to_string(), line, what.to_string())));
}

#[test]
fn a_setting_that_nobody_reads_is_found_in_a_section_too() {
    let toml = "[listen]\naddress = \"x\"\nworkers = 1\n# port = 1\n[cluster]\nseeds = []\n[providers]\n[tls]\n";
    let expected = [("proxy.toml", 4, "listen.port"), ("proxy.toml", 8, "[tls]")];
    assert_eq!(compared(toml), expected.map(|(file, line, what)| (file.to_string(), line, what.to_string())));
}
