//! A Rust file as the rules see it: the paths and macros that its code names, with their lines. Comments, literals and
//! what is compiled for tests only are left out; they may name what they like.
//!
//! This is a reader for the code of this project, formatted or not, and no Rust parser: macros are read as plain tokens.

use std::path::{Path, PathBuf};

/// One file.
pub struct Source {
    /// From the project's top, with `/`.
    pub file: String,
    pub text: String,
}

/// A path (`std::fs::File`) or a macro (`println!`) at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub line: usize,
    pub path: Vec<String>,
}

impl Named {
    /// As written in full.
    pub fn text(&self) -> String {
        self.path.join("::")
    }

    /// Whether the path is `prefix` or goes on behind it.
    pub fn is_in(&self, prefix: &str) -> bool {
        prefix.split("::").enumerate().all(|(index, word)| self.path.get(index).is_some_and(|own| own == word))
    }
}

/// The project.
pub fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

impl Source {
    pub fn new(file: &str, text: &str) -> Self {
        Self { file: file.into(), text: text.into() }
    }

    /// All `.rs` files below a folder of the project, in a fixed order.
    pub fn all_below(folder: &str) -> Vec<Self> {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (mut found, mut open) = (Vec::new(), vec![top.join(folder)]);
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(&folder).expect("a folder of the project can be read") {
                let path = entry.expect("a folder of the project can be read").path();
                if path.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let file = path
                        .strip_prefix(top)
                        .expect("it was found below the top")
                        .to_string_lossy()
                        .replace('\\', "/");
                    let text = std::fs::read_to_string(&path).expect("a source file can be read");
                    found.push(Self { file, text });
                }
            }
        }
        found.sort_by(|one, other| one.file.cmp(&other.file));
        found
    }

    /// The text with comments, literals and test code replaced by blanks; lines stay where they are.
    pub fn code(&self) -> String {
        without_tests(&without_literals(&self.text))
    }

    /// Every path of two words or more, every import, one entry for each leaf of a `{…}`, and every macro as `name!`.
    pub fn names(&self) -> Vec<Named> {
        let code = self.code();
        let tokens = tokens(&code);
        let (mut names, mut at) = (Vec::new(), 0);
        while at < tokens.len() {
            let is_capture = tokens.get(at + 1).is_some_and(|next| next.1 == "<");
            if tokens[at].1 == "use" && !is_capture {
                at = imports(&tokens, at + 1, &[], &mut names);
                continue;
            }
            if !is_word(tokens[at].1) {
                at += 1;
                continue;
            }
            let (line, mut path) = (tokens[at].0, vec![tokens[at].1.to_string()]);
            at += 1;
            while let (Some((_, "::")), Some((_, word))) = (tokens.get(at), tokens.get(at + 1))
                && is_word(word)
            {
                path.push((*word).to_string());
                at += 2;
            }
            let is_macro = tokens.get(at).is_some_and(|next| next.1 == "!");
            if is_macro && let Some(last) = path.last_mut() {
                last.push('!');
            }
            if is_macro || path.len() > 1 {
                names.push(Named { line, path });
            }
        }
        names
    }
}

/// Reads one tree of a `use` from `at` on and gives where it ends.
fn imports(tokens: &[(usize, &str)], mut at: usize, before: &[String], names: &mut Vec<Named>) -> usize {
    let mut path = before.to_vec();
    let mut line = None;
    while let Some((here, token)) = tokens.get(at) {
        match *token {
            "::" => at += 1,
            "as" => at += 2,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|next| next.1 != "}") {
                    at = imports(tokens, at, &path, names);
                    at += usize::from(tokens.get(at).is_some_and(|next| next.1 == ","));
                }
                return at + 1;
            }
            "," | "}" | ";" => break,
            word => {
                line.get_or_insert(*here);
                // `{self}` names what stands before it.
                if word != "self" || path.is_empty() {
                    path.push(word.to_string());
                }
                at += 1;
            }
        }
    }
    if let Some(line) = line {
        names.push(Named { line, path });
    }
    at
}

fn is_word(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Words, `::`, and single signs, each with its line.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let (mut tokens, mut line, mut rest) = (Vec::new(), 1, code);
    while let Some(first) = rest.chars().next() {
        let length = if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") || rest.starts_with("!=") {
            2
        } else {
            first.len_utf8()
        };
        line += usize::from(first == '\n');
        if !first.is_whitespace() {
            tokens.push((line, &rest[..length]));
        }
        rest = &rest[length..];
    }
    tokens
}

/// Blanks for comments, strings and characters.
fn without_literals(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let before = out.chars().next_back();
        let length = literal(rest, before.is_some_and(|c| c.is_alphanumeric() || c == '_'));
        match length {
            Some(length) => {
                out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
                rest = &rest[length..];
            }
            None => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

/// The length of the comment or literal that begins here, if one does.
fn literal(rest: &str, is_inside_word: bool) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        let (mut depth, mut at) = (0, 0);
        while at < rest.len() {
            match rest.as_bytes().get(at..at + 2) {
                Some(b"/*") => (depth, at) = (depth + 1, at + 2),
                Some(b"*/") => (depth, at) = (depth - 1, at + 2),
                _ => at += 1,
            }
            if depth == 0 {
                return Some(at);
            }
        }
        return Some(rest.len());
    }
    if rest.starts_with('"') {
        return Some(quoted(rest, '"'));
    }
    let raw = rest.trim_start_matches(['b', 'c']);
    if !is_inside_word
        && rest.len() - raw.len() <= 1
        && let Some(hashes) = raw.strip_prefix('r')
    {
        let count = hashes.len() - hashes.trim_start_matches('#').len();
        if hashes[count..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(count));
            let body = rest.len() - hashes.len() + count + 1;
            return Some(rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len()));
        }
    }
    let body = rest.strip_prefix('\'')?;
    if body.starts_with('\\') {
        return Some(quoted(rest, '\''));
    }
    // A lifetime has no second quote behind its first letter.
    let letter = body.chars().next()?.len_utf8();
    body[letter..].starts_with('\'').then_some(letter + 2)
}

/// From one quote to the next that no backslash takes away.
fn quoted(rest: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if c == quote && !is_escaped {
            return at + 1;
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    rest.len()
}

/// Blanks for each item behind `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let (mut out, mut rest) = (String::with_capacity(code.len()), code);
    while let Some(at) = rest.find(MARK) {
        out.push_str(&rest[..at]);
        let item = &rest[at..];
        let (mut depth, mut end) = (0, item.len());
        for (index, c) in item.char_indices().skip(MARK.len()) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(c, ';' | '}') {
                end = index + 1;
                break;
            }
        }
        out.extend(item[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &item[end..];
    }
    out.push_str(rest);
    out
}

fn texts(code: &str) -> Vec<(usize, String)> {
    Source::new("src/x.rs", code).names().iter().map(|named| (named.line, named.text())).collect()
}

#[test]
fn every_leaf_of_an_import_and_every_inline_path_is_seen_with_its_line() {
    let code = "use std::{fs, io::{self, Read as _}};\npub(crate) use crate::{resp,\n    store::link::Link};\nfn f() { crate::slot::of(k); a.b(); }\n";
    let expected = [
        (1, "std::fs"),
        (1, "std::io"),
        (1, "std::io::Read"),
        (2, "crate::resp"),
        (3, "crate::store::link::Link"),
        (4, "crate::slot::of"),
    ];
    assert_eq!(texts(code), expected.map(|(line, path)| (line, path.to_string())));
}

#[test]
fn macros_are_seen_and_what_only_looks_like_one_is_not() {
    assert_eq!(
        texts("fn f() { println!(\"{}\", a != b); std::dbg!(x); }"),
        [(1, "println!".into()), (1, "std::dbg!".into())]
    );
}

#[test]
fn comments_and_literals_name_nothing() {
    let code = "//! use a::b;\n/* c::d /* e::f */ g::h */\nconst X: &str = \"i::j \\\" k::l\";\nconst Y: &[u8] = br#\"m::n \" o::p\"#;\nfn f<'a>(x: &'a str) { g('\"', '\\'', 'é'); q::r(x) }\n";
    assert_eq!(texts(code), [(5, "q::r".into())]);
}

#[test]
fn what_is_compiled_for_tests_names_nothing_and_what_follows_it_does() {
    let code = "#[cfg(test)]\nuse a::b;\n#[cfg(test)]\nmod tests {\n    use c::d;\n    fn f() { e::g() }\n}\nfn h() { i::j() }\n";
    assert_eq!(texts(code), [(8, "i::j".into())]);
}
