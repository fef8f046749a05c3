//! What the text of a script tells of keys that it touches without declaring them. A look at the text and no proof: a key that
//! is put together or comes from ARGV is seen where it stands in a call or in a variable; a key that a function of the script
//! is given is not judged.

use std::collections::{HashMap, HashSet};

use crate::command::{Access, Keys, Kind, keys_of, lookup};
use crate::resp::request::Request;

/// Of a longer text only the beginning is looked at.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undeclared {
    /// Whether one of the calls writes.
    pub writes: bool,
    /// The first call, as it stands in the script.
    pub example: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'t> {
    Word(&'t str),
    /// Without its quotes.
    Text(&'t str),
    Number(&'t str),
    /// One character, or `..`.
    Sign(&'t str),
}

/// Where the value of an expression comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Declared,
    Undeclared,
    Unknown,
}

const ENDS: [&str; 13] =
    ["local", "if", "then", "elseif", "else", "end", "for", "while", "do", "repeat", "until", "return", "function"];

/// A token, and where it begins and ends in the text.
type Placed<'t> = (Token<'t>, usize, usize);

/// Looks at a script, or at a library of functions.
pub fn undeclared(body: &[u8]) -> Option<Undeclared> {
    let text = String::from_utf8_lossy(&body[..body.len().min(TEXT_BYTES_MAX)]);
    let head = text.lines().next().filter(|line| line.starts_with("#!")).unwrap_or_default();
    let tokens = tokens(&text, head.len());
    let mut look =
        Look { text: &text, tokens: &tokens, lists: HashSet::from(["KEYS"]), variables: HashMap::new(), found: None };
    if head.contains("name=") {
        look.learn_parameters();
    }
    look.run();
    look.found
}

/// The names that a library of functions registers.
pub fn functions(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(&body[..body.len().min(TEXT_BYTES_MAX)]);
    let head = text.lines().next().map_or(0, str::len);
    let tokens: Vec<Token<'_>> = tokens(&text, head).into_iter().map(|(token, ..)| token).collect();
    let is_word = |at: usize, word| tokens.get(at) == Some(&Token::Word(word));
    let name = |at: usize| {
        // redis.register_function('name', …), or {function_name = 'name', …}
        let rest = &tokens[(at + 1).min(tokens.len())..];
        let by_name = rest.iter().take(64).position(|token| *token == Token::Word("function_name")).map(|at| at + 2);
        let place = if rest.first() == Some(&Token::Sign("{")) || rest.get(1) == Some(&Token::Sign("{")) {
            by_name?
        } else {
            1
        };
        if let Some(Token::Text(name)) = rest.get(place) { Some((*name).to_string()) } else { None }
    };
    (0..tokens.len()).filter(|at| is_word(*at, "register_function")).filter_map(name).collect()
}

struct Look<'t> {
    text: &'t str,
    tokens: &'t [Placed<'t>],
    /// What the declared keys are called.
    lists: HashSet<&'t str>,
    variables: HashMap<&'t str, Origin>,
    found: Option<Undeclared>,
}

impl<'t> Look<'t> {
    fn at(&self, index: usize) -> Option<Token<'t>> {
        self.tokens.get(index).map(|(token, ..)| *token)
    }

    /// A registered function has the keys as its first parameter.
    fn learn_parameters(&mut self) {
        for at in 0..self.tokens.len() {
            if self.at(at) != Some(Token::Word("function")) {
                continue;
            }
            let open = (at + 1..at + 3).find(|at| self.at(*at) == Some(Token::Sign("(")));
            if let Some(Token::Word(name)) = open.and_then(|open| self.at(open + 1)) {
                self.lists.insert(name);
            }
        }
    }

    fn run(&mut self) {
        // What is assigned counts behind the statement, which may use what was there before.
        let mut pending: Vec<(usize, &'t str, Origin)> = Vec::new();
        for at in 0..self.tokens.len() {
            let variables = &mut self.variables;
            pending.retain(|(end, name, origin)| {
                if *end <= at {
                    variables.insert(name, *origin);
                }
                *end > at
            });
            match (self.at(at), self.at(at + 1)) {
                (Some(Token::Word("for")), _) => pending.extend(self.loop_variables(at)),
                (Some(Token::Sign("=")), next) if next != Some(Token::Sign("=")) && self.is_assignment(at) => {
                    pending.extend(self.assigned(at));
                }
                (Some(Token::Word("redis" | "server")), Some(Token::Sign("."))) => self.call(at),
                _ => {}
            }
        }
    }

    /// Not `==`, `~=`, `<=` or `>=`.
    fn is_assignment(&self, at: usize) -> bool {
        !matches!(at.checked_sub(1).and_then(|at| self.at(at)), Some(Token::Sign("=" | "~" | "<" | ">")) | None)
    }

    /// `for a, b in expression do`
    fn loop_variables(&self, at: usize) -> Vec<(usize, &'t str, Origin)> {
        let word = |word| (at..(at + 64).min(self.tokens.len())).find(|at| self.at(*at) == Some(Token::Word(word)));
        let (Some(within), Some(end)) = (word("in"), word("do")) else { return Vec::new() };
        if within > end {
            return Vec::new();
        }
        let walked = within + 1..end;
        let comes_from_elsewhere =
            |at| matches!(self.at(at), Some(Token::Word("redis" | "ARGV"))) || self.variable(at) == Origin::Undeclared;
        let origin = if walked.clone().any(comes_from_elsewhere) {
            Origin::Undeclared
        } else if walked.clone().any(|at| self.is_list(at)) {
            Origin::Declared
        } else {
            Origin::Unknown
        };
        let name = |at: usize| if let Some(Token::Word(name)) = self.at(at) { Some((end, name, origin)) } else { None };
        (at + 1..within).filter_map(name).collect()
    }

    /// `a, b = expression, expression`
    fn assigned(&self, at: usize) -> Vec<(usize, &'t str, Origin)> {
        let mut names = Vec::new();
        let mut place = at;
        while let Some(Token::Word(name)) = place.checked_sub(1).and_then(|at| self.at(at)) {
            names.push(name);
            if place < 2 || self.at(place - 2) != Some(Token::Sign(",")) {
                break;
            }
            place -= 2;
        }
        names.reverse();
        let end = self.end_of_statement(at + 1);
        let mut values = self.split(at + 1, end).into_iter();
        let origin = |name| {
            let value = values.next();
            (end, name, value.map_or(Origin::Unknown, |(from, to)| self.origin(from, to)))
        };
        names.into_iter().map(origin).collect()
    }

    /// Two values side by side, or a word that begins something else, end a statement.
    fn end_of_statement(&self, from: usize) -> usize {
        let mut depth = 0usize;
        for at in from..self.tokens.len() {
            match self.at(at) {
                Some(Token::Sign("(" | "[" | "{")) => depth += 1,
                Some(Token::Sign(")" | "]" | "}")) if depth == 0 => return at,
                Some(Token::Sign(")" | "]" | "}")) => depth -= 1,
                Some(Token::Sign(";")) if depth == 0 => return at,
                Some(Token::Word(word)) if depth == 0 => {
                    let before = at.checked_sub(1).filter(|before| *before >= from).and_then(|at| self.at(at));
                    let is_behind_a_value = match before {
                        Some(Token::Word(word)) => !matches!(word, "and" | "or" | "not"),
                        Some(Token::Text(_) | Token::Number(_) | Token::Sign(")" | "]" | "}")) => true,
                        _ => false,
                    };
                    if ENDS.contains(&word) || (is_behind_a_value && !matches!(word, "and" | "or")) {
                        return at;
                    }
                }
                _ => {}
            }
        }
        self.tokens.len()
    }

    /// The parts between commas.
    fn split(&self, from: usize, to: usize) -> Vec<(usize, usize)> {
        let (mut parts, mut begin, mut depth) = (Vec::new(), from, 0usize);
        for at in from..to {
            match self.at(at) {
                Some(Token::Sign("(" | "[" | "{")) => depth += 1,
                Some(Token::Sign(")" | "]" | "}")) => depth = depth.saturating_sub(1),
                Some(Token::Sign(",")) if depth == 0 => {
                    parts.push((begin, at));
                    begin = at + 1;
                }
                _ => {}
            }
        }
        if begin < to {
            parts.push((begin, to));
        }
        parts
    }

    fn is_list(&self, at: usize) -> bool {
        matches!(self.at(at), Some(Token::Word(word)) if self.lists.contains(word))
    }

    fn variable(&self, at: usize) -> Origin {
        match self.at(at) {
            Some(Token::Word(name)) => self.variables.get(name).copied().unwrap_or(Origin::Unknown),
            _ => Origin::Unknown,
        }
    }

    fn origin(&self, from: usize, to: usize) -> Origin {
        let is_joined = (from..to).any(|at| self.at(at) == Some(Token::Sign("..")));
        match (self.at(from), to.saturating_sub(from)) {
            _ if is_joined => Origin::Undeclared,
            _ if self.is_list(from) => Origin::Declared,
            // unpack(KEYS), unpack(ARGV), a table of them
            (Some(Token::Word("unpack" | "table") | Token::Sign("{")), _) if (from..to).any(|at| self.is_list(at)) => {
                Origin::Declared
            }
            (Some(Token::Word("ARGV")), _) | (Some(Token::Text(_)), 1) => Origin::Undeclared,
            (Some(Token::Word("redis" | "server")), _) => Origin::Undeclared,
            (Some(Token::Word("unpack")), 2..) => match self.at(from + 2) {
                Some(Token::Word("ARGV")) => Origin::Undeclared,
                _ => self.variable(from + 2),
            },
            (Some(Token::Word(_)), 1) => self.variable(from),
            _ => Origin::Unknown,
        }
    }

    /// `redis.call('NAME', …)` or `redis.pcall`
    fn call(&mut self, at: usize) {
        let (Some(Token::Word("call" | "pcall")), Some(Token::Sign("("))) = (self.at(at + 2), self.at(at + 3)) else {
            return;
        };
        let end = self.end_of_statement(at + 4);
        let parts = self.split(at + 4, end);
        let Some(Token::Text(name)) = parts.first().and_then(|(from, _)| self.at(*from)) else { return };
        let Some(spec) = lookup(name.as_bytes()) else { return };
        let arg = |(from, to): &(usize, usize)| match (self.at(*from), to - from) {
            (Some(Token::Text(text) | Token::Number(text)), 1) => text,
            _ => "?",
        };
        let args: Vec<&str> = parts.iter().map(arg).collect();
        let touches = match (spec.kind, spec.keys) {
            (Kind::Scan | Kind::KeyspaceWide, _) => true,
            (_, Keys::None) => false,
            _ => {
                let places = keys_of(spec, &Request::from_args(&args)).unwrap_or_default();
                let of_place = |place: &usize| parts.get(*place).map(|(from, to)| self.origin(*from, *to));
                places.iter().filter_map(of_place).any(|origin| origin == Origin::Undeclared)
            }
        };
        if !touches {
            return;
        }
        let example = || {
            let end = self.tokens.get(end).map_or(self.text.len(), |(_, _, end)| *end);
            self.text[self.tokens[at].1..end].to_string()
        };
        let writes = spec.access == Access::Write;
        match &mut self.found {
            Some(found) => found.writes |= writes,
            None => self.found = Some(Undeclared { writes, example: example() }),
        }
    }
}

/// The tokens behind the first `from` bytes, without comments.
fn tokens(text: &str, from: usize) -> Vec<Placed<'_>> {
    let bytes = text.as_bytes();
    let (mut tokens, mut at) = (Vec::new(), from);
    while at < bytes.len() {
        let begin = at;
        let rest = &text[at..];
        let run = |is: fn(&u8) -> bool| bytes[begin..].iter().take_while(|byte| is(byte)).count();
        let token = match bytes[at] {
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'-' if rest.starts_with("--[[") => {
                at += rest.find("]]").map_or(rest.len(), |end| end + 2);
                continue;
            }
            b'-' if rest.starts_with("--") => {
                at += rest.find('\n').unwrap_or(rest.len());
                continue;
            }
            b'[' if rest.starts_with("[[") => {
                let length = rest.find("]]").unwrap_or(rest.len());
                at += (length + 2).min(rest.len());
                Token::Text(&rest[2.min(length)..length])
            }
            quote @ (b'"' | b'\'') => {
                let mut end = 1;
                while end < rest.len() && rest.as_bytes()[end] != quote {
                    end += if rest.as_bytes()[end] == b'\\' { 2 } else { 1 };
                }
                let end = end.min(rest.len());
                at += (end + 1).min(rest.len());
                // A backslash may stand before a character of several bytes.
                Token::Text(rest.get(1..end).unwrap_or_default())
            }
            byte if byte.is_ascii_alphabetic() || byte == b'_' => {
                at += run(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
                Token::Word(&text[begin..at])
            }
            byte if byte.is_ascii_digit() => {
                at += run(|byte| byte.is_ascii_alphanumeric());
                Token::Number(&text[begin..at])
            }
            b'.' if rest.starts_with("..") => {
                at += 2;
                Token::Sign("..")
            }
            _ => {
                at += rest.chars().next().map_or(1, char::len_utf8);
                Token::Sign(&text[begin..at])
            }
        };
        // An escape at the end of a string may have led into a character.
        while !text.is_char_boundary(at) {
            at += 1;
        }
        tokens.push((token, begin, at));
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &str) -> Option<(bool, String)> {
        undeclared(text.as_bytes()).map(|found| (found.writes, found.example))
    }

    #[test]
    fn a_script_that_declares_its_keys_is_clean() {
        for text in [
            "return redis.call('GET', KEYS[1])",
            "local key = KEYS[1] local v = redis.call('get', key) if v == ARGV[1] then return redis.call('del', key) end return 0",
            "for i, k in ipairs(KEYS) do redis.call('SET', k, ARGV[i]) end",
            "redis.call('DEL', unpack(KEYS))",
            "local a, b = KEYS[1], KEYS[2]; redis.call('RENAME', a, b)",
            "-- redis.call('GET', 'x')\n--[[ redis.call('GET', 'x') ]] return redis.call('TIME')[1] .. 'x'",
            "local function get(k) return redis.call('GET', k) end return get(KEYS[1])",
            "redis.call('PUBLISH', 'a' .. ARGV[1], 'x') redis.call('SET', KEYS[1], 'a' .. ARGV[1])",
            "redis.call('ZUNIONSTORE', KEYS[1], 2, KEYS[2], KEYS[3])",
            "local n = redis.call('INCR', KEYS[1]) if n == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end return n",
            "#!lua name=l\nlocal function f(keys, args) return redis.call('SET', keys[1], args[1]) end redis.register_function('f', f)",
            "return 'a\\",
            "",
        ] {
            assert_eq!(look(text), None, "{text}");
        }
    }

    #[test]
    fn keys_that_are_put_together_or_come_from_elsewhere_are_seen() {
        for (text, writes, example) in [
            ("redis.call('GET', 'fixed')", false, "redis.call('GET', 'fixed')"),
            ("redis.call('SET', KEYS[1] .. ':x', 1)", true, "redis.call('SET', KEYS[1] .. ':x', 1)"),
            ("return redis.pcall(\"hget\", ARGV[1], 'f')", false, "redis.pcall(\"hget\", ARGV[1], 'f')"),
            ("local key = ARGV[1] .. ':' .. ARGV[2]\nredis.call('DEL', key)", true, "redis.call('DEL', key)"),
            (
                "for _, k in ipairs(redis.call('SMEMBERS', KEYS[1])) do redis.call('DEL', k) end",
                true,
                "redis.call('DEL', k)",
            ),
            ("return redis.call('keys', ARGV[1])", false, "redis.call('keys', ARGV[1])"),
            ("redis.call('MSET', KEYS[1], 1, 'b', 2)", true, "redis.call('MSET', KEYS[1], 1, 'b', 2)"),
            (
                "#!lua name=l\nredis.register_function('f', function(keys) redis.call('SET', keys[1] .. 'x', 1) end)",
                true,
                "redis.call('SET', keys[1] .. 'x', 1)",
            ),
        ] {
            assert_eq!(look(text), Some((writes, example.to_string())), "{text}");
        }
        let both = "redis.call('GET', 'a') redis.call('SET', 'b', 1)";
        assert_eq!(look(both), Some((true, "redis.call('GET', 'a')".into())));
    }

    #[test]
    fn the_functions_of_a_library_are_found_in_both_forms() {
        let library = b"#!lua name=l\nredis.register_function('one', f)\nredis.register_function{function_name='two', callback=f, flags={}}\nredis.register_function({callback=f, function_name = \"three\"})";
        assert_eq!(functions(library), ["one", "two", "three"]);
    }

    #[test]
    fn no_text_breaks_it() {
        let scripts: [&[u8]; 3] = [
            b"local a, b = KEYS[1], 'x' .. ARGV[1] for _, k in ipairs(KEYS) do redis.call('DEL', k, b) end --[[ x ]]",
            "#!lua name=l\nredis.register_function{function_name='\u{e9}', callback=function(keys) end} [[\u{e9}]]"
                .as_bytes(),
            b"redis.call('ZUNIONSTORE', KEYS[1], 99999999999999999999, 'b\\'",
        ];
        crate::fuzz::fuzz(&scripts, |bytes| {
            let _ = (undeclared(bytes), functions(bytes));
        });
    }
}
