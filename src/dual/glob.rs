//! Redis's own patterns (PSUBSCRIBE, PUBSUB CHANNELS): `*`, `?`, `[a-z]`, `[^ab]`, `\` before a character that means itself.
//!
//! Pure. A pattern of many stars takes time in proportion to text and pattern, not more.

/// Whether `text` fits `pattern`.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Behind the last star: where the pattern goes on, and where in the text it was tried last.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            star = Some((at, from));
            continue;
        }
        if at == pattern.len() && from == text.len() {
            return true;
        }
        let step = text.get(from).and_then(|byte| one(&pattern[at..], *byte));
        match (step, star) {
            (Some(length), _) => (at, from) = (at + length, from + 1),
            (None, Some((behind, tried))) if tried < text.len() => {
                star = Some((behind, tried + 1));
                (at, from) = (behind, tried + 1);
            }
            (None, _) => return false,
        }
    }
}

/// How much of the pattern stands for one character, if it fits `byte`; nothing at the pattern's end.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => set(rest, byte).map(|length| length + 1),
        [b'\\', own, ..] => (*own == byte).then_some(2),
        [own, ..] => (*own == byte).then_some(1),
    }
}

/// A set without its opening bracket; one that is never closed goes to the pattern's end, as in Redis.
fn set(pattern: &[u8], byte: u8) -> Option<usize> {
    let is_negated = pattern.first() == Some(&b'^');
    let mut at = usize::from(is_negated);
    let mut is_in = false;
    let length = loop {
        match pattern[at..] {
            [] => break at,
            [b']', ..] => break at + 1,
            [b'\\', own, ..] => {
                is_in |= own == byte;
                at += 2;
            }
            [first, b'-', last, ..] => {
                is_in |= (first.min(last)..=first.max(last)).contains(&byte);
                at += 3;
            }
            [own, ..] => {
                is_in |= own == byte;
                at += 1;
            }
        }
    };
    (is_in != is_negated).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_what_they_fit_in_redis() {
        let fits = [
            ("*", ""),
            ("news:*", "news:"),
            ("*a*b", "xaxbab"),
            ("h?llo", "hello"),
            ("h[ae]llo", "hallo"),
            ("h[^e]llo", "hbllo"),
            ("h[b-a]llo", "hallo"),
            ("h\\*llo", "h*llo"),
            ("a**b", "ab"),
            ("[\\]]", "]"),
            ("a[bc", "ac"),
            ("", ""),
            ("\\", "\\"),
        ];
        for (pattern, text) in fits {
            assert!(matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        let misses = [
            ("", "a"),
            ("a", ""),
            ("h?llo", "hllo"),
            ("h[^e]llo", "hello"),
            ("news:*", "new"),
            ("h\\?llo", "hello"),
            ("*a", "ab"),
            ("[a-c]", "d"),
            ("a*b", "abc"),
        ];
        for (pattern, text) in misses {
            assert!(!matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        let (pattern, text) = ("a*".repeat(200) + "b", "a".repeat(5000));
        assert!(!matches(pattern.as_bytes(), text.as_bytes()), "without a search through all ways to place the stars");
    }
}
