//! The glob patterns of KEYS and MATCH, as Redis reads them. Pure.

/// Whether a pattern fits a text. A run of stars is one; a set without an end ends with the pattern. What is left to try after
/// a star is remembered for the last one only, so that no pattern costs more than the product of both lengths.
pub fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    let mut last_star: Option<(&[u8], &[u8])> = None;
    loop {
        let step = match (pattern, text) {
            ([b'*', rest @ ..], _) => {
                last_star = Some((rest, text));
                Some((rest, text))
            }
            ([], []) => return true,
            ([], _) | (_, []) => None,
            ([_, ..], [byte, after @ ..]) => {
                let (is_one, rest) = one(pattern, *byte);
                is_one.then_some((rest, after))
            }
        };
        (pattern, text) = match (step, last_star) {
            (Some(next), _) => next,
            (None, Some((rest, [_, after @ ..]))) => {
                last_star = Some((rest, after));
                (rest, after)
            }
            (None, _) => return false,
        };
    }
}

/// Whether what a pattern begins with (not a star) fits a byte, and what follows it.
fn one(pattern: &[u8], byte: u8) -> (bool, &[u8]) {
    match pattern {
        [b'?', rest @ ..] => (true, rest),
        [b'[', rest @ ..] => set(rest, byte),
        [b'\\', escaped, rest @ ..] => (*escaped == byte, rest),
        [own, rest @ ..] => (*own == byte, rest),
        [] => (false, pattern),
    }
}

/// `[abc]`, `[^a-z]`, from behind the bracket.
fn set(pattern: &[u8], byte: u8) -> (bool, &[u8]) {
    let (is_negated, mut rest) = match pattern {
        [b'^', rest @ ..] => (true, rest),
        _ => (false, pattern),
    };
    let mut is_in = false;
    loop {
        rest = match rest {
            [] => return (is_in != is_negated, rest),
            [b']', rest @ ..] => return (is_in != is_negated, rest),
            [b'\\', escaped, rest @ ..] => {
                is_in |= *escaped == byte;
                rest
            }
            [from, b'-', to, rest @ ..] => {
                is_in |= (*from.min(to)..=*from.max(to)).contains(&byte);
                rest
            }
            [own, rest @ ..] => {
                is_in |= *own == byte;
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_what_redis_says_they_fit() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("a*", "abc", true),
            ("a*c", "abcbc", true),
            ("a*cd", "abcbc", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("[\\]]", "]", true),
            ("[ab", "b", true),
            ("a\\", "a\\", true),
            ("**b**", "abc", true),
            ("a", "", false),
            ("", "a", false),
            ("a*", "A", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_cost_no_more_than_the_product_of_the_lengths() {
        assert!(!fits("a*".repeat(500).as_bytes(), format!("{}b", "a".repeat(499)).as_bytes()));
    }
}
