//! Links in the documentation lead somewhere: to a file of the project, and to a heading in it. Addresses on the web are not
//! asked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::source::top;

/// All Markdown of the project, in a fixed order.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for folder in [top(), top().join("docs"), top().join("docs/pt-BR")].into_iter().filter(|folder| folder.is_dir()) {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let paths = entries.map(|entry| entry.expect("a folder of the project can be read").path());
        pages.extend(paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    pages.sort();
    pages
}

/// `[text](target)` outside of code, with its line.
fn links(text: &str) -> Vec<(usize, String)> {
    let (mut found, mut is_code) = (Vec::new(), false);
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            is_code = !is_code;
        }
        let mut rest = line;
        while !is_code && let Some((_, after)) = rest.split_once("](") {
            let Some((target, after)) = after.split_once(')') else { break };
            found.push((index + 1, target.to_string()));
            rest = after;
        }
    }
    found
}

/// The anchors of the headings, as the web pages of repositories make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        }
        let title = line.trim_start_matches('#');
        if is_code || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = title
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .collect::<String>();
        found.insert(kept.replace(' ', "-"));
    }
    found
}

fn broken(page: &Path, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    for (line, target) in links(text) {
        let is_elsewhere = target.contains("://") || target.starts_with("crate::") || target.starts_with("mailto:");
        if is_elsewhere {
            continue;
        }
        let (file, anchor) = target.split_once('#').map_or((&*target, None), |(file, anchor)| (file, Some(anchor)));
        let path = if file.is_empty() { page.to_path_buf() } else { page.with_file_name("").join(file) };
        let is_there = path.exists();
        let has_anchor =
            |anchor: &str| std::fs::read_to_string(&path).is_ok_and(|text| anchors(&text).contains(anchor));
        if !is_there || !anchor.is_none_or(has_anchor) {
            broken.push(format!("{}:{line}: {target}", page.display()));
        }
    }
    broken
}

#[test]
fn every_link_in_the_documentation_leads_somewhere() {
    let pages = pages();
    assert!(pages.len() > 8, "the documentation is not where this test looks for it");
    let read = |page: &PathBuf| std::fs::read_to_string(page).expect("a page can be read");
    let all: Vec<String> = pages.iter().flat_map(|page| broken(page, &read(page))).collect();
    assert!(all.is_empty(), "links that lead nowhere:\n{}", all.join("\n"));
}

#[test]
fn a_link_to_a_missing_file_or_heading_is_found() {
    let page = top().join("README.md");
    let text = "[a](docs/guide.md) [b](docs/none.md)\n[c](docs/guide.md#1-prepare) [d](docs/guide.md#none) [e](https://x.y/z)\n```\n[f](nowhere)\n```\n[g](#no-heading)\n";
    let lines: Vec<String> =
        broken(&page, text).iter().filter_map(|line| line.rsplit("README.md:").next().map(str::to_string)).collect();
    assert_eq!(lines, ["1: docs/none.md", "2: docs/guide.md#none", "6: #no-heading"]);
    assert!(anchors("# What is 2 × 2?\n## `cutover move`\n#no\n").contains("cutover-move"));
}
