//! Which lines of proxy.toml the words of a person stand for: ids, prefixes, ranges.

use std::collections::{BTreeSet, HashSet};

use crate::config::Config;
use crate::routing::Table;

/// What happens with a route that has no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It gets one: the command sets its phase.
    GetsLine,
    /// Only lines that are there can be meant.
    IsRefused,
}

/// Why words name no lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unselected {
    #[error(
        "proxy.toml has no line for `{word}`: as a provider it goes by `{line}`; name that, or give it a line with `cutover move {word} --to PHASE`"
    )]
    NoLine { word: String, line: String },
    #[error("`{word}` is no range: the lower id comes first, as in 100..199")]
    TurnedRound { word: String },
    #[error(
        "`{word}` shares ids with the line `{line}` of proxy.toml, which moves as a whole; name that line, or split it"
    )]
    SharesIds { word: String, line: String },
    #[error("proxy.toml has no line within `{word}`; `cutover status` lists the routes")]
    NoneWithin { word: String },
    #[error(
        "`{word}` covers lines of proxy.toml and ids without one; ranges cannot overlap, so name the lines: {lines}"
    )]
    NeedsNames { word: String, lines: String },
}

/// The lines that `words` name, each once, in their order. A range that is no line itself stands for all lines in it.
pub fn select(config: &Config, words: &[String], missing: Missing) -> Result<Vec<String>, Unselected> {
    let routing = &config.routing;
    let lines = routing.prefixes.iter().chain(&routing.providers);
    let lines: HashSet<&str> =
        lines.map(|(name, _)| name.as_str()).chain(["new_providers", "other_keys", "pubsub"]).collect();
    let mut found: Vec<String> = Vec::new();
    let mut known = BTreeSet::new();
    for word in words {
        let named = match lines.contains(word.as_str()) {
            true => vec![word.clone()],
            false => lines_of(config, word, missing)?,
        };
        for line in named {
            if known.insert(line.clone()) {
                found.push(line);
            }
        }
    }
    Ok(found)
}

/// Those of a word that is no line itself.
fn lines_of(config: &Config, word: &str, missing: Missing) -> Result<Vec<String>, Unselected> {
    let routing = &config.routing;
    let own = || word.to_string();
    let Some((first, last)) = range(word) else {
        if word.contains(',') {
            // A list in one word, as in `7,9,100..199`.
            let words: Vec<String> = word.split(',').filter(|part| !part.is_empty()).map(str::to_string).collect();
            return select(config, &words, missing);
        }
        return match missing {
            Missing::GetsLine => Ok(vec![own()]),
            Missing::IsRefused => {
                let line = Table::build(routing, 1, None).provider_route(word.as_bytes()).name.to_string();
                Err(Unselected::NoLine { word: own(), line })
            }
        };
    };
    if routing.ranges.iter().any(|(from, to, _)| (*from, *to) == (first, last)) {
        return Ok(vec![own()]);
    }
    if first > last {
        return Err(Unselected::TurnedRound { word: own() });
    }
    let mut inside: Vec<(u64, String)> = routing
        .providers
        .iter()
        .filter_map(|(id, _)| {
            Some((id.parse::<u64>().ok().filter(|number| (first..=last).contains(number))?, id.clone()))
        })
        .collect();
    let mut covered = inside.len() as u64;
    for (from, to, _) in &routing.ranges {
        if first <= *from && *to <= last {
            covered += to - from + 1 - inside.iter().filter(|(id, _)| (from..=to).contains(&id)).count() as u64;
            inside.push((*from, format!("{from}..{to}")));
        } else if first <= *to && *from <= last {
            return Err(Unselected::SharesIds { word: own(), line: format!("{from}..{to}") });
        }
    }
    inside.sort();
    let has_all = covered > last - first;
    let has_ranges = routing.ranges.iter().any(|(from, to, _)| first <= *from && *to <= last);
    let mut lines: Vec<String> = inside.into_iter().map(|(_, line)| line).collect();
    match (missing, has_all) {
        (_, true) => {}
        (Missing::IsRefused, _) if lines.is_empty() => return Err(Unselected::NoneWithin { word: own() }),
        (Missing::IsRefused, _) => {}
        (Missing::GetsLine, _) if has_ranges => {
            return Err(Unselected::NeedsNames { word: own(), lines: lines.join(" ") });
        }
        // Ids without a line get a common one; those that have one keep it and go along.
        (Missing::GetsLine, _) => lines.push(own()),
    }
    Ok(lines)
}

fn range(word: &str) -> Option<(u64, u64)> {
    let (first, last) = word.split_once("..")?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn config(lines: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.toml");
        let text = format!(
            "[standalone]\nurl = \"redis://h:1\"\n[cluster]\nseeds = [\"redis://h:2\"]\n[routing]\nkeys = [\"p:{{provider}}:*\"]\n{lines}"
        );
        std::fs::write(&path, text).unwrap();
        config::load(&path).unwrap()
    }

    fn selected(config: &Config, words: &[&str], missing: Missing) -> Result<Vec<String>, String> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        select(config, &words, missing).map_err(|error| error.to_string())
    }

    #[test]
    fn a_range_is_its_own_line_or_all_lines_in_it() {
        use Missing::{GetsLine, IsRefused};
        let lines = "[prefixes]\n\"asgi:\" = \"standalone\"\n[providers]\n\"7\" = \"cluster\"\n\"8\" = \"cluster\"\n\"100..199\" = \"standalone\"\n\"150\" = \"cluster\"\n";
        let config = config(lines);
        let all = |words: &[&str]| selected(&config, words, GetsLine);
        assert_eq!(all(&["asgi:", "7", "7"]).unwrap(), ["asgi:", "7"]);
        assert_eq!(all(&["100..199"]).unwrap(), ["100..199"], "a line is moved as it stands");
        assert_eq!(all(&["7..8"]).unwrap(), ["7", "8"], "every id has a line");
        assert_eq!(all(&["5..8"]).unwrap(), ["7", "8", "5..8"], "the ids without a line get one");
        assert_eq!(selected(&config, &["5..8"], IsRefused).unwrap(), ["7", "8"]);
        assert_eq!(all(&["7,8", "100..199,9,"]).unwrap(), ["7", "8", "100..199", "9"], "lists in one word");
        assert!(all(&["150..160"]).unwrap_err().contains("shares ids with the line `100..199`"));
        assert!(all(&["90..199"]).unwrap_err().contains("name the lines: 100..199 150"));
        assert!(all(&["9..3"]).unwrap_err().contains("lower id"));
        assert_eq!(all(&["new"]).unwrap(), ["new"]);
        assert!(selected(&config, &["new"], IsRefused).unwrap_err().contains("`new_providers`"));
        assert!(selected(&config, &["120"], IsRefused).unwrap_err().contains("goes by `100..199`"));
    }
}
