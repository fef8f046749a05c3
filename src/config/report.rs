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
    pub text: &'a str,
}

impl Reporter<'_> {
    /// A finding at a range of bytes.
    pub fn at(&self, span: std::ops::Range<usize>, message: impl Into<String>, help: Option<String>) -> Finding {
        let start = span.start.min(self.text.len());
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_text = self.text[line_start..].lines().next().unwrap_or_default();
        let width = span.end.min(line_start + line_text.len()).saturating_sub(start);
        Finding {
            file: self.file.into(),
            line: self.text[..start].matches('\n').count() + 1,
            column: self.text[line_start..start].chars().count() + 1,
            text: line_text.into(),
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
