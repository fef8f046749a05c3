//! A first proxy.toml: the documented one with the answers of `cutover init` put in, so that what is said of a setting is
//! said once.

use std::fmt::Write as _;

/// The documented file. The one at the top is a copy, which `tests/house` compares: that one is edited by whoever tries a move,
/// and an edit must neither build the program anew nor stand in the files that it writes.
const DOCUMENTED: &str = include_str!("documented.toml");

/// What is known before the first start.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    pub listen: String,
    pub standalone: String,
    /// None: there is no cluster yet.
    pub seeds: Vec<String>,
    pub keys: Vec<String>,
    /// Why these patterns, and what else there was; a comment line each.
    pub reasons: Vec<String>,
    /// Beginnings of keys without a provider, with what is known of each.
    pub prefixes: Vec<(String, String)>,
}

/// The text of the file.
pub fn fill(answers: &Answers) -> String {
    let mut out = String::with_capacity(DOCUMENTED.len());
    let mut section = "";
    for line in DOCUMENTED.lines() {
        if let Some((name, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            section = name;
        }
        let has_cluster = !answers.seeds.is_empty();
        match (section, key_of(line)) {
            ("", _) if line.contains("`make up`") => {
                out.push_str("# cutover: written by `cutover init`; every setting with its default.");
            }
            ("listen", "address") => put(&mut out, line, &quoted(&answers.listen)),
            ("standalone", "url") => put(&mut out, line, &quoted(&answers.standalone)),
            ("cluster", "seeds") if has_cluster => put(&mut out, line, &list(&answers.seeds)),
            ("cluster", "seeds") => out.push_str("# seeds = [\"redis://host:port\"]"),
            ("cluster", _) if !has_cluster && line == "[cluster]" => out.push_str("# [cluster]                       # nothing can move before it is there"),
            ("routing", "keys") => {
                for reason in &answers.reasons {
                    let _ = writeln!(out, "# {}", one_line(reason));
                }
                let _ = write!(out, "keys = {}", list(&answers.keys));
            }
            ("prefixes", "\"asgi:\"") => {
                for (prefix, what) in &answers.prefixes {
                    let _ = writeln!(out, "# {} = \"standalone\"   # {}", quoted(prefix), one_line(what));
                }
                continue;
            }
            // No provider has a line yet: all go by new_providers.
            ("providers", "\"7\"" | "\"8\"" | "\"9\"") => {
                if key_of(line) == "\"7\"" {
                    out.push_str("# \"7\" = \"standalone\"");
                } else {
                    continue;
                }
            }
            ("state", "directory") => out.push_str("directory = \"cutover-state\"         # what must survive a restart: phases, the journal of diverged keys"),
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

fn key_of(line: &str) -> &str {
    let line = line.strip_prefix("# ").unwrap_or(line);
    line.split_once('=').map_or("", |(key, _)| key.trim_end())
}

/// Another value, and the comment stays.
fn put(out: &mut String, line: &str, value: &str) {
    let key = key_of(line);
    let comment = line.split_once("  #").map_or("", |(_, comment)| comment);
    let _ = match comment {
        "" => write!(out, "{key} = {value}"),
        comment => write!(out, "{:<36}#{comment}", format!("{key} = {value}")),
    };
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_string()).to_string()
}

fn list(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", "))
}

fn one_line(text: &str) -> String {
    text.replace(|letter: char| letter.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::parse;

    fn answers() -> Answers {
        Answers {
            listen: "127.0.0.1:7380".into(),
            standalone: "redis://h:1/3".into(),
            seeds: vec!["redis://c:7000".into(), "redis://c:7001".into()],
            keys: vec!["t:{provider}:*".into()],
            reasons: vec!["12 of 15 keys\nfit".into()],
            prefixes: vec![("a\"b:".into(), "3 keys".into())],
        }
    }

    #[test]
    fn a_first_file_says_what_was_answered_and_documents_the_rest() {
        let text = fill(&answers());
        let config = parse("proxy.toml", &text).unwrap_or_else(|report| panic!("{report}\n{text}"));
        assert_eq!(config.listen.address.to_string(), "127.0.0.1:7380");
        assert_eq!((config.standalone.urls[0].address().as_str(), config.standalone.urls[0].db), ("h:1", 3));
        assert_eq!(config.cluster.unwrap().urls.len(), 2);
        assert_eq!(config.routing.keys.0[0].to_string(), "t:{provider}:*");
        assert!(config.routing.providers.is_empty() && config.routing.prefixes.is_empty());
        assert_eq!(config.state_directory.to_str(), Some("cutover-state"));
        assert!(
            text.contains("# 12 of 15 keys fit\n") && !text.contains("make up") && !text.contains("Django"),
            "{text}"
        );
        let kept = DOCUMENTED.lines().filter(|line| text.lines().any(|own| own == *line)).count();
        assert!(kept * 10 > DOCUMENTED.lines().count() * 7, "{kept} lines of the documented file are there");
    }

    #[test]
    fn without_a_cluster_the_section_waits_as_a_comment() {
        let text = fill(&Answers { seeds: Vec::new(), ..answers() });
        assert!(parse("proxy.toml", &text).unwrap_or_else(|report| panic!("{report}\n{text}")).cluster.is_none());
    }
}
