//! From a key to the provider in it. Linear in the key, no allocation.

use std::fmt;

use memchr::memmem::Finder;

/// Why a pattern can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("a key pattern needs exactly one {{provider}}")]
    OneProvider,
    #[error("what stands directly before {{provider}} must be text, not '*': else the provider could begin anywhere")]
    NoAnchor,
    #[error("after {{provider}} comes ':' or the end: a provider is one segment up to the next ':'")]
    NoSegmentEnd,
    #[error("at most one '*' before {{provider}}, at the start, and one after it, at the end")]
    TooManyStars,
}

/// How a provider's id is found in a key: `provider:{provider}:*`.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// Whether anything may stand before `before`.
    floats: bool,
    before: Finder<'static>,
    /// What follows the segment; empty, or begins with ':'.
    after: Vec<u8>,
    /// Whether anything may follow `after`.
    open_end: bool,
}

impl Pattern {
    /// Reads `*:provider:{provider}:*`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let (before, after) = text.split_once("{provider}").ok_or(PatternError::OneProvider)?;
        if after.contains("{provider}") {
            return Err(PatternError::OneProvider);
        }
        if !(after.is_empty() || after.starts_with(':')) {
            return Err(PatternError::NoSegmentEnd);
        }
        let (floats, before) = before.strip_prefix('*').map_or((false, before), |rest| (true, rest));
        let (open_end, after) = after.strip_suffix('*').map_or((false, after), |rest| (true, rest));
        if before.contains('*') || after.contains('*') {
            return Err(PatternError::TooManyStars);
        }
        if floats && before.is_empty() {
            return Err(PatternError::NoAnchor);
        }
        Ok(Self { floats, before: Finder::new(before).into_owned(), after: after.into(), open_end })
    }

    fn before(&self) -> &[u8] {
        self.before.needle()
    }

    fn provider_of<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        if !self.floats {
            return self.segment(key.strip_prefix(self.before())?);
        }
        let mut from = 0;
        while let Some(at) = self.before.find(&key[from..]) {
            let start = from + at + self.before().len();
            if let found @ Some(_) = self.segment(&key[start..]) {
                return found;
            }
            from += at + 1;
        }
        None
    }

    fn segment<'k>(&self, rest: &'k [u8]) -> Option<&'k [u8]> {
        let end = memchr::memchr(b':', rest).unwrap_or(rest.len());
        let (segment, tail) = rest.split_at(end);
        let tail = tail.strip_prefix(&self.after[..])?;
        (!segment.is_empty() && (self.open_end || tail.is_empty())).then_some(segment)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        let parts = |pattern: &Self| (pattern.floats, pattern.open_end);
        parts(self) == parts(other) && self.before() == other.before() && self.after == other.after
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = |is_there| if is_there { "*" } else { "" };
        let (before, after) = (String::from_utf8_lossy(self.before()), String::from_utf8_lossy(&self.after));
        write!(out, "{}{before}{{provider}}{after}{}", star(self.floats), star(self.open_end))
    }
}

/// The patterns of a table, tried in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(pub Vec<Pattern>);

impl Patterns {
    /// The provider's id in a key, by the first pattern that fits.
    pub fn provider_of<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        self.0.iter().find_map(|pattern| pattern.provider_of(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(patterns: &[&str], key: &str) -> Option<String> {
        let patterns = Patterns(patterns.iter().map(|text| Pattern::parse(text).unwrap()).collect());
        patterns.provider_of(key.as_bytes()).map(|id| String::from_utf8_lossy(id).into_owned())
    }

    #[test]
    fn providers_are_found_where_the_patterns_say() {
        let both = ["provider:{provider}:*", "*:provider:{provider}:*"];
        assert_eq!(find(&both, "provider:42:session").as_deref(), Some("42"));
        assert_eq!(find(&both, ":1:provider:7:cart:9").as_deref(), Some("7"));
        assert_eq!(find(&both, "dr:1:provider:x-y:tmp").as_deref(), Some("x-y"));
        assert_eq!(find(&both, "provider:42"), None);
        assert_eq!(find(&both, "provider::x"), None);
        assert_eq!(find(&both, "asgi:group:provider_7"), None);
        assert_eq!(find(&["t:{provider}"], "t:9").as_deref(), Some("9"));
        assert_eq!(find(&["t:{provider}"], "t:9:x"), None);
        for text in ["provider:{provider}:*", "*:provider:{provider}:*", "t:{provider}", "a{provider}:b"] {
            assert_eq!(Pattern::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn patterns_without_a_clear_place_are_refused() {
        assert_eq!(Pattern::parse("abc:*"), Err(PatternError::OneProvider));
        assert_eq!(Pattern::parse("*{provider}:*"), Err(PatternError::NoAnchor));
        assert_eq!(Pattern::parse("a:{provider}x"), Err(PatternError::NoSegmentEnd));
        assert_eq!(Pattern::parse("a*b:{provider}:*"), Err(PatternError::TooManyStars));
    }
}
