//! `[databases]`: further databases that move. No two keys may have the same name on the cluster.

use std::collections::BTreeMap;

use toml::Spanned;

use crate::config::report::{Finding, Reporter};
use crate::routing::{DATABASES, MARK};

/// The numbers, and what their keys begin with on the cluster.
pub(super) fn prefixes(
    section: &BTreeMap<Spanned<String>, Spanned<String>>,
    main: u32,
    reporter: &Reporter<'_>,
    findings: &mut Vec<Finding>,
) -> Vec<(u32, String)> {
    let mut known: Vec<(u32, String)> = Vec::new();
    for (number, prefix) in section {
        let mut find = |at: &Spanned<String>, message: String, help: &str| {
            let help = (!help.is_empty()).then(|| help.to_string());
            findings.push(reporter.at(at.span(), message, help));
        };
        let text = prefix.get_ref();
        match number.get_ref().parse::<u32>().ok().filter(|db| db.to_string() == *number.get_ref() && *db < DATABASES) {
            None => find(
                number,
                format!("`{}` is no database number", number.get_ref()),
                &format!("a database is a number from 0 to {}", DATABASES - 1),
            ),
            Some(db) if db == main => find(
                number,
                format!("database {db} is the one in the standalone's URL, which moves anyway"),
                "its keys keep their names on the cluster; take this line out",
            ),
            Some(db) => known.push((db, text.clone())),
        }
        if text.is_empty() {
            find(prefix, "an empty prefix would merge this database with the main one".into(), "such as \"db1:\"");
        } else if text.contains(['{', '}']) || text.as_bytes().starts_with(MARK) {
            let mark = String::from_utf8_lossy(MARK);
            let help = format!("braces decide about slots, and `{mark}` stands before keys of the main database");
            find(prefix, format!("a prefix has no brace and does not begin with `{mark}`"), &help);
        }
        let nested = |(other, known): &&(&Spanned<String>, &Spanned<String>)| {
            other.get_ref() < number.get_ref()
                && (known.get_ref().starts_with(text) || text.starts_with(known.get_ref()))
        };
        if let Some((other, known)) = section.iter().collect::<Vec<_>>().iter().find(nested)
            && !(text.is_empty() || known.get_ref().is_empty())
        {
            let message =
                format!("`{text}` and the prefix of database {}, `{}`, begin alike", other.get_ref(), known.get_ref());
            find(
                prefix,
                message,
                "keys of the two databases could then have the same name; no prefix may begin with another",
            );
        }
    }
    known.sort_unstable();
    known
}
