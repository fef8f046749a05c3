//! Which commands somebody may run: rules in the order in which they are written, the last one that fits decides.

use crate::command::{Access, CommandSpec, all, lookup};

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    allows: bool,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    All,
    Read,
    Write,
    /// Upper case.
    Name(String),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permitted(Vec<Rule>);

/// What every client has to be able to say, and what only speaks of the connection.
const ALWAYS: [&str; 11] =
    ["AUTH", "HELLO", "QUIT", "RESET", "PING", "ECHO", "SELECT", "MULTI", "EXEC", "DISCARD", "UNWATCH"];

impl Permitted {
    /// From `@all`, `@read`, `@write` and names, each with a `-` before it where it takes away. Gives the wrong word else.
    pub fn parse<'w>(words: impl IntoIterator<Item = &'w str>) -> Result<Self, String> {
        let rule = |word: &'w str| {
            let (allows, name) = word.strip_prefix('-').map_or((true, word), |name| (false, name));
            let what = match name {
                "@all" => What::All,
                "@read" => What::Read,
                "@write" => What::Write,
                _ if name.starts_with('@') || name.is_empty() => return Err(word.to_string()),
                _ => What::Name(name.to_ascii_uppercase()),
            };
            Ok(Rule { allows, what })
        };
        words.into_iter().map(rule).collect::<Result<_, _>>().map(Self)
    }

    /// The first name that no command has. A module may bring it, so it is no error.
    pub fn unknown(&self) -> Option<&str> {
        self.0.iter().find_map(|rule| match &rule.what {
            What::Name(name) if lookup(name.as_bytes()).is_none() => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether a command may be run.
    pub fn has(&self, spec: &CommandSpec) -> bool {
        let fits = |rule: &&Rule| match &rule.what {
            What::All => true,
            What::Read => spec.access == Access::Read,
            What::Write => spec.access == Access::Write,
            What::Name(name) => name == spec.name,
        };
        ALWAYS.contains(&spec.name) || self.0.iter().rev().find(fits).is_some_and(|rule| rule.allows)
    }

    /// The names of all known commands, for whoever misspelt one.
    pub fn names() -> impl Iterator<Item = &'static str> {
        all().iter().map(|spec| spec.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(rules: &[&str], name: &str) -> bool {
        Permitted::parse(rules.iter().copied()).unwrap().has(lookup(name.as_bytes()).unwrap())
    }

    #[test]
    fn the_last_rule_that_fits_decides() {
        let rules = ["@read", "SET", "-get", "-@write", "incr"];
        assert_eq!(
            ["GET", "MGET", "SET", "INCR", "PUBLISH"].map(|name| may(&rules, name)),
            [false, true, false, true, false]
        );
        assert!(may(&["@all", "-FLUSHALL"], "PUBLISH") && !may(&["@all", "-FLUSHALL"], "FLUSHALL"));
        assert!(may(&[], "PING") && !may(&[], "GET"));
        assert!(may(&["-@all"], "AUTH"), "who may nothing may still become somebody else");
    }

    #[test]
    fn a_category_that_does_not_exist_is_named() {
        assert_eq!(Permitted::parse(["@read", "-@admin"]), Err("-@admin".into()));
        assert_eq!(Permitted::parse(["GTE"]).unwrap().unknown(), Some("GTE"));
    }
}
