//! What is wrong with a file: line, caret, and what was meant.

use std::fmt;

/// One or more findings, each with its place. Displays as cargo does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub file: String,
    /// From 1; 0 where the finding has no place in the file.
    pub line: usize,
    pub column: usize,
    pub text: String,
    pub message: String,
    pub width: usize,
    pub help: Option<String>,
}

impl std::error::Error for Report {}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.findings.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            finding.fmt(out)?;
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "error: {}", self.message)?;
        if self.line == 0 {
            write!(out, "\n --> {}", self.file)?;
        } else {
            let gutter = " ".repeat(self.line.to_string().len());
            write!(
                out,
                "\n{gutter}--> {}:{}:{}\n{gutter} |\n{} | {}",
                self.file, self.line, self.column, self.line, self.text
            )?;
            write!(out, "\n{gutter} | {}{}", " ".repeat(self.column - 1), "^".repeat(self.width.max(1)))?;
        }
        match &self.help {
            Some(help) => write!(out, "\n  = help: {help}"),
            None => Ok(()),
        }
    }
}

/// Builds findings for one file.
pub struct Reporter<'a> {
    pub file: &'a str,
    /// With what came from elsewhere in its place.
    pub text: &'a str,
    /// As it was written, line for line.
    pub written: &'a str,
}

impl Reporter<'_> {
    /// A finding at a range of bytes.
    pub fn at(&self, span: std::ops::Range<usize>, message: impl Into<String>, help: Option<String>) -> Finding {
        let start = span.start.min(self.text.len());
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_text = self.text[line_start..].lines().next().unwrap_or_default();
        let line = self.text[..start].matches('\n').count();
        let written = self.written.lines().nth(line).unwrap_or_default();
        // What came from the environment or a file is not shown: the line stands as it was written, whole.
        let (column, width) = match written == line_text {
            true => {
                let width = span.end.min(line_start + line_text.len()).saturating_sub(start);
                (self.text[line_start..start].chars().count() + 1, width)
            }
            false => {
                let shown = written.trim_start();
                (written.chars().count() - shown.chars().count() + 1, shown.chars().count())
            }
        };
        Finding {
            file: self.file.into(),
            line: line + 1,
            column,
            text: mask(written),
            message: message.into(),
            width,
            help,
        }
    }

    /// A finding about the file as a whole.
    pub fn whole(&self, message: impl Into<String>, help: Option<String>) -> Finding {
        let message = message.into();
        Finding { file: self.file.into(), line: 0, column: 0, text: String::new(), message, width: 0, help }
    }
}

/// Puts an asterisk in the place of each character of a secret: of what stands between `://` and `@`, and of the text behind
/// `password`, `token` and the like.
fn mask(line: &str) -> String {
    let mut secrets: Vec<std::ops::Range<usize>> = Vec::new();
    for (at, _) in line.match_indices("://") {
        let begin = at + 3;
        let url = line[begin..].split('"').next().unwrap_or_default();
        secrets.extend(url.rfind('@').map(|end| begin..begin + end));
    }
    for word in SECRET_KEYS {
        for (at, _) in line.match_indices(word) {
            let rest = &line[at..];
            let value = rest.find('=').map(|equals| at + equals + 1);
            let Some(value) = value.filter(|value| !line[at..*value].contains('"')) else { continue };
            let end = line[value..].find([',', '}']).filter(|_| !line[value..].trim_start().starts_with('"'));
            let text = line[value..].trim_start();
            let begin = line.len() - text.len();
            let end = match text.strip_prefix('"') {
                Some(inner) => inner.find('"').map_or(line.len(), |close| begin + 1 + close),
                None => end.map_or(line.len(), |end| value + end),
            };
            secrets.push(begin + usize::from(text.starts_with('"'))..end);
        }
    }
    // The name of what is put in from elsewhere tells nothing.
    let names: Vec<std::ops::Range<usize>> =
        line.match_indices("${").filter_map(|(at, _)| line[at..].find('}').map(|end| at..at + end + 1)).collect();
    let is_in = |ranges: &[std::ops::Range<usize>], at| ranges.iter().any(|range| range.contains(&at));
    let is_secret = |at: usize| is_in(&secrets, at) && !is_in(&names, at);
    line.char_indices().map(|(at, letter)| if is_secret(at) && letter != ':' { '*' } else { letter }).collect()
}

/// Keys whose values are not shown; what merely contains one of them is not either.
const SECRET_KEYS: [&str; 2] = ["password", "token"];

/// Whether a value that does not fit could be a secret, so that no message may repeat it.
pub fn may_be_secret(line: &str) -> bool {
    SECRET_KEYS.iter().any(|word| line.contains(word))
}

/// The known word nearest to `word`, if one is near enough to have been meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.into_iter().map(|known| (distance(word, known), known)).min()?;
    (near.0 <= (word.len() / 3).max(2)).then_some(near.1)
}

/// Levenshtein's distance, in one row.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, from) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, to) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shown_without_its_secrets() {
        for (line, shown) in [
            ("url = \"redis://user:pa@ss@host:1/0\" # x@y", "url = \"redis://****:*****@host:1/0\" # x@y"),
            ("seeds = [\"redis://:p@a\", \"redis://b\"]", "seeds = [\"redis://:*@a\", \"redis://b\"]"),
            ("password = \"abc\"  # why", "password = \"***\"  # why"),
            ("url = \"redis://u:${P}x@h\"", "url = \"redis://*:${P}*@h\""),
            ("token = 12345", "token = *****"),
            (
                "\"a\" = { password_sha256 = \"ff\", routes = [\"7\"] }",
                "\"a\" = { password_sha256 = \"**\", routes = [\"7\"] }",
            ),
            ("password = \"open", "password = \"****"),
            ("\"7\" = \"standalone\"", "\"7\" = \"standalone\""),
        ] {
            assert_eq!(mask(line), shown);
        }
    }

    #[test]
    fn what_was_put_in_is_not_shown() {
        let written = "a = 1\nb = \"${SECRET}\"\n";
        let text = "a = 1\nb = \"hidden\"\n";
        let finding = Reporter { file: "f", text, written }.at(11..17, "bad", None);
        assert_eq!((finding.line, finding.column, finding.width), (2, 1, 15));
        assert_eq!(finding.text, "b = \"${SECRET}\"");
    }
}
