//! Which lines of proxy.toml the words of a person stand for: ids, prefixes, ranges.

use std::collections::{BTreeSet, HashSet};

use crate::config::Config;
use crate::routing::{Phase, RouteName, Table};

/// What happens with a route that has no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It gets one: the command sets its phase.
    GetsLine,
    /// Only lines that are there can be meant.
    IsRefused,
    /// It is only looked at, by the line that covers it.
    IsCovered,
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
    #[error(
        "the share has no line under [providers]; change `share` under [routing] in proxy.toml, one phase at a time, as in {{ dual-standalone = 10 }}"
    )]
    IsShare,
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
        let parts = parts_of(config, word);
        let named = match (lines.contains(word.as_str()), parts.is_empty(), missing) {
            (true, ..) => vec![word.clone()],
            (false, true, _) => lines_of(config, word, missing)?,
            (false, false, Missing::IsRefused) => walked(parts).into_iter().map(|(name, _)| name).collect(),
            (false, false, Missing::IsCovered) => parts.into_iter().map(|(name, _)| name).collect(),
            (false, false, Missing::GetsLine) => return Err(Unselected::IsShare),
        };
        for line in named {
            if known.insert(line.clone()) {
                found.push(line);
            }
        }
    }
    Ok(found)
}

/// `share` stands for all parts that have a phase of their own; one of them is called as the API shows it.
fn parts_of(config: &Config, word: &str) -> Vec<(String, Phase)> {
    if !word.starts_with("share") {
        return Vec::new();
    }
    let names = config.routing.share.iter().map(|(part, phase)| (RouteName::Share(*part).to_string(), *phase));
    names.filter(|(name, _)| word == "share" || word == name).collect()
}

/// Those of them that have two stores to be walked; where there are none, the proxy says why it walks none.
fn walked(parts: Vec<(String, Phase)>) -> Vec<(String, Phase)> {
    let (dual, single): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(_, phase)| phase.is_dual());
    if dual.is_empty() { single } else { dual }
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
            Missing::GetsLine | Missing::IsCovered => Ok(vec![own()]),
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
        (Missing::GetsLine | Missing::IsCovered, _) if has_ranges => {
            return Err(Unselected::NeedsNames { word: own(), lines: lines.join(" ") });
        }
        // Ids without a line get a common one; those that have one keep it and go along.
        (Missing::GetsLine | Missing::IsCovered, _) => lines.push(own()),
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
    fn a_share_is_walked_as_a_whole_and_moved_in_the_file_only() {
        use Missing::{GetsLine, IsCovered, IsRefused};
        let config = config("share = { cluster = 1, dual-standalone = 2 }\n");
        let walked = |words: &[&str]| selected(&config, words, IsRefused);
        assert_eq!(walked(&["share"]).unwrap(), ["share_1", "share_2"], "the first part has one store only");
        assert_eq!(walked(&["share_1"]).unwrap(), ["share_1"]);
        assert_eq!(selected(&config, &["9,share"], IsCovered).unwrap(), ["9", "share_0", "share_1", "share_2"]);
        assert!(selected(&config, &["share"], GetsLine).unwrap_err().contains("[routing]"));
        assert!(walked(&["share_7"]).unwrap_err().contains("no line"));
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
