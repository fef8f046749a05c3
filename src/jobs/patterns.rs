//! Where the provider stands in keys, guessed from a sample of them. Pure.
//!
//! A provider's id is a segment that has many values, each with many keys of several kinds behind or before it, next to a
//! word that stays the same (`provider:42:cart`). What has one key for each value (`session:9f3c…`) is no provider, and
//! neither is a small set of words (`cache:page`, `cache:user`). A word that people use for tenants counts for more.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

/// What people call a tenant.
const NAMES: &[&str] = &[
    "provider",
    "tenant",
    "account",
    "org",
    "organization",
    "organisation",
    "customer",
    "company",
    "shop",
    "store",
    "merchant",
    "workspace",
    "team",
    "site",
    "client",
    "partner",
    "clinic",
    "school",
    "hotel",
    "project",
    "instance",
];
/// How much more a word from [`NAMES`] counts.
const NAME_BONUS: f64 = 10.0;
/// Ids that are remembered of one word.
const IDS_MAX: usize = 20_000;

/// A word with an id behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub word: String,
    /// As routing.keys takes them.
    pub patterns: Vec<String>,
    /// Of the sample.
    pub keys: usize,
    pub providers: usize,
    /// The ids with the most keys.
    pub examples: Vec<String>,
    score: f64,
}

#[derive(Default)]
struct Word {
    keys: usize,
    ids: BTreeMap<String, Id>,
    /// The patterns that its keys ask for.
    patterns: BTreeSet<String>,
}

#[derive(Default)]
struct Id {
    keys: usize,
    kinds: BTreeSet<String>,
}

/// The likeliest first; nothing where no segment looks like a provider's id.
pub fn guess(keys: &[Bytes]) -> Vec<Candidate> {
    let mut words: BTreeMap<&str, Word> = BTreeMap::new();
    for key in keys {
        let Ok(text) = std::str::from_utf8(key) else { continue };
        let segments: Vec<&str> = text.split(':').collect();
        for (index, pair) in segments.windows(2).enumerate() {
            let [name, id] = [pair[0], pair[1]];
            if is_word(name) && !id.is_empty() && !id.contains("..") {
                let rest = &segments[index + 2..];
                words.entry(name).or_default().add(name, id, index == 0, rest);
            }
        }
    }
    let mut found: Vec<Candidate> = words.into_iter().filter_map(|(word, seen)| seen.judge(word)).collect();
    found.sort_by(|one, other| other.score.total_cmp(&one.score).then_with(|| one.word.cmp(&other.word)));
    found
}

fn is_word(segment: &str) -> bool {
    segment.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && segment.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.'))
        && !looks_like_id(segment)
}

/// Numbers, and texts with figures in them, as ids are.
fn looks_like_id(segment: &str) -> bool {
    segment.bytes().any(|byte| byte.is_ascii_digit())
}

impl Word {
    fn add(&mut self, name: &str, id: &str, is_first: bool, rest: &[&str]) {
        if self.ids.len() >= IDS_MAX && !self.ids.contains_key(id) {
            return;
        }
        self.keys += 1;
        let begin = if is_first { "" } else { "*:" };
        let end = if rest.is_empty() { "" } else { ":*" };
        self.patterns.insert(format!("{begin}{name}:{{provider}}{end}"));
        let kind: Vec<&str> = rest.iter().map(|part| if looks_like_id(part) { "#" } else { part }).collect();
        let entry = self.ids.entry(id.to_string()).or_default();
        entry.keys += 1;
        if entry.kinds.len() < 8 {
            entry.kinds.insert(kind.join(":"));
        }
    }

    fn judge(self, word: &str) -> Option<Candidate> {
        let providers = self.ids.len();
        if providers < 2 {
            return None;
        }
        let each = self.keys as f64 / providers as f64;
        let kinds = self.ids.values().map(|id| id.kinds.len()).sum::<usize>() as f64 / providers as f64;
        let with_figures = self.ids.keys().filter(|id| looks_like_id(id)).count() as f64 / providers as f64;
        let is_named =
            NAMES.iter().any(|name| word.eq_ignore_ascii_case(name) || word.eq_ignore_ascii_case(&format!("{name}s")));
        // One key for each value, or a handful of words: something else than providers, unless its name says so.
        if !is_named && (each < 1.5 || with_figures < 0.5) {
            return None;
        }
        let score = self.keys as f64 * each.min(10.0) * kinds * if is_named { NAME_BONUS } else { 1.0 };
        let mut by_keys: Vec<(&String, usize)> = self.ids.iter().map(|(id, seen)| (id, seen.keys)).collect();
        by_keys.sort_by_key(|(_, keys)| std::cmp::Reverse(*keys));
        let examples = by_keys.into_iter().take(3).map(|(id, _)| id.clone()).collect();
        let patterns = self.patterns.into_iter().collect();
        Some(Candidate { word: word.into(), patterns, keys: self.keys, providers, examples, score })
    }
}

/// How keys begin that no pattern fits, up to the first ':', with how many there are; the most first.
pub fn beginnings<'k>(keys: impl IntoIterator<Item = &'k Bytes>) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for key in keys {
        if let Some(end) = memchr::memchr(b':', key).filter(|end| *end > 0)
            && let Ok(begin) = std::str::from_utf8(&key[..=end])
        {
            *counts.entry(begin.to_string()).or_default() += 1;
        }
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(keys: impl IntoIterator<Item = String>) -> Vec<Bytes> {
        keys.into_iter().map(Bytes::from).collect()
    }

    #[test]
    fn the_segment_that_many_keys_share_is_the_provider() {
        let mut keys = Vec::new();
        for id in 1..=40 {
            for kind in ["cart", "profile", "settings"] {
                keys.push(format!("provider:{id}:{kind}"));
            }
            keys.push(format!(":1:provider:{id}:page:{}", id * 7));
            keys.push(format!("provider:{id}:order:{}", id * 1000));
            keys.push(format!("session:{id:08x}"));
        }
        keys.extend(["celery", "asgi:group:7", "asgi:group:8"].map(String::from));
        let found = guess(&sample(keys));
        assert_eq!(found[0].patterns, ["*:provider:{provider}:*", "provider:{provider}:*"]);
        assert_eq!((found[0].providers, found[0].keys), (40, 200));
    }

    #[test]
    fn a_tenant_of_another_name_is_found_and_what_is_none_is_not() {
        let tenants = (0..300).map(|index| format!("c:{}:{}:{}", index % 10, ["cart", "user"][index % 2], index));
        let found = guess(&sample(tenants));
        assert_eq!(found[0].patterns, ["c:{provider}:*"]);
        let sessions = (0..100).map(|index| format!("session:{index:08x}"));
        let caches = (0..100).map(|index| format!("cache:{}", ["page", "user"][index % 2]));
        assert_eq!(guess(&sample(sessions.chain(caches))), []);
        let last = (0..20).map(|index| format!("tenant:{index}"));
        assert_eq!(guess(&sample(last))[0].patterns, ["tenant:{provider}"]);
    }

    #[test]
    fn the_rest_is_told_by_how_it_begins() {
        let keys = sample(["asgi:a", "asgi:b", "celery", "x:1", ":y"].map(String::from));
        assert_eq!(beginnings(&keys), [("asgi:".to_string(), 2), ("x:".to_string(), 1)]);
    }
}
