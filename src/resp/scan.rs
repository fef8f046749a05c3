//! Where a frame ends.
//!
//! Both scanners resume: they keep their position between calls, so that a frame which arrives in a thousand pieces is
//! scanned once. The buffer handed in must begin with the same unfinished frame each time. No recursion, no allocation
//! but for the stack of a nested reply.

use smallvec::SmallVec;

use crate::resp::limits::{Limits, REPLY_BYTES_MAX, REPLY_DEPTH_MAX};

/// One argument: where it stands in its frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArgRange {
    pub start: u32,
    pub end: u32,
}

/// The arguments of a request.
pub type ArgRanges = SmallVec<[ArgRange; 6]>;

/// Bytes that are no frame. The texts of the request side are Redis's own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    #[error("Protocol error: too big mbulk count string")]
    CountTooLong,
    #[error("Protocol error: invalid multibulk length")]
    InvalidCount,
    #[error("Protocol error: too big bulk count string")]
    LengthTooLong,
    #[error("Protocol error: expected '$', got '{}'", .0.escape_ascii())]
    ExpectedBulk(u8),
    #[error("Protocol error: invalid bulk length")]
    InvalidLength,
    #[error("Protocol error: too big inline request")]
    InlineTooLong,
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    #[error("Protocol error: request exceeds the limit of query bytes")]
    RequestTooLong,
    #[error("Protocol error: a bulk string does not end where its length says")]
    MissingTrailer,
    #[error("Protocol error: unknown type byte '{}' in a reply", .0.escape_ascii())]
    UnknownType(u8),
    #[error("Protocol error: a reply is longer than allowed")]
    ReplyTooLong,
    #[error("Protocol error: a reply nests deeper than allowed")]
    TooDeep,
}

/// Finds the end of a request and its arguments.
#[derive(Debug, Default)]
pub struct RequestScanner {
    position: usize,
    args_owed: usize,
    in_array: bool,
    wanted: usize,
    was_inline: bool,
    ranges: ArgRanges,
}

impl RequestScanner {
    /// `Ok(Some(length))`: one whole request stands in `buffer[..length]`, its arguments in [`RequestScanner::args`]
    /// (none for an empty line or an empty array, which Redis skips). `Ok(None)`: more bytes are needed.
    pub fn scan(&mut self, buffer: &[u8], limits: &Limits) -> Result<Option<usize>, ScanError> {
        if !self.in_array {
            self.ranges.clear();
            self.was_inline = false;
            match buffer.first() {
                None => return Ok(None),
                Some(b'*') => {}
                Some(_) => return self.scan_inline(buffer, limits),
            }
            let (count, after) = match short_head(buffer, 0) {
                Some(found) => found,
                None => {
                    let found = line(buffer, 0, limits.inline_bytes_max).map_err(|_| ScanError::CountTooLong)?;
                    let Some((end, after)) = found else { return Ok(None) };
                    (number(&buffer[1..end]).ok_or(ScanError::InvalidCount)?, after)
                }
            };
            if count > limits.args_max as i64 {
                return Err(ScanError::InvalidCount);
            }
            self.position = after;
            self.args_owed = count.max(0) as usize;
            self.in_array = true;
        }
        while self.args_owed > 0 {
            let Some(&first) = buffer.get(self.position) else { return Ok(None) };
            if first != b'$' {
                return Err(ScanError::ExpectedBulk(first));
            }
            let (length, start) = match short_head(buffer, self.position) {
                Some(found) => found,
                None => {
                    let found = line(buffer, self.position, limits.inline_bytes_max);
                    let Some((end, start)) = found.map_err(|_| ScanError::LengthTooLong)? else { return Ok(None) };
                    (number(&buffer[self.position + 1..end]).ok_or(ScanError::InvalidLength)?, start)
                }
            };
            if length < 0 || length > limits.bulk_bytes_max as i64 {
                return Err(ScanError::InvalidLength);
            }
            let stop = start + length as usize;
            if stop + 2 > limits.query_bytes_max.min(u32::MAX as usize) {
                return Err(ScanError::RequestTooLong);
            }
            if buffer.len() < stop + 2 {
                self.wanted = stop + 2;
                return Ok(None);
            }
            if &buffer[stop..stop + 2] != b"\r\n" {
                return Err(ScanError::MissingTrailer);
            }
            self.ranges.push(ArgRange { start: start as u32, end: stop as u32 });
            self.position = stop + 2;
            self.args_owed -= 1;
        }
        self.in_array = false;
        self.wanted = 0;
        Ok(Some(self.position))
    }

    /// The arguments of the request that was just found whole.
    pub fn args(&self) -> &ArgRanges {
        &self.ranges
    }

    /// How many bytes, from the start of the frame, the buffer must hold before another scan makes sense; 0 if unknown.
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Whether the request that was just found was an inline one: see [`split_inline`].
    pub fn is_inline(&self) -> bool {
        self.was_inline
    }

    fn scan_inline(&mut self, buffer: &[u8], limits: &Limits) -> Result<Option<usize>, ScanError> {
        match memchr::memchr(b'\n', buffer) {
            Some(end) if end <= limits.inline_bytes_max => {
                self.was_inline = true;
                Ok(Some(end + 1))
            }
            None if buffer.len() <= limits.inline_bytes_max => Ok(None),
            _ => Err(ScanError::InlineTooLong),
        }
    }
}

/// The words of an inline command, by the quoting rules of Redis's `sdssplitargs`.
pub fn split_inline(line: &[u8]) -> Result<Vec<Vec<u8>>, ScanError> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        while let [b' ' | b'\t' | b'\r' | b'\n', tail @ ..] = rest {
            rest = tail;
        }
        if rest.is_empty() {
            return Ok(words);
        }
        let mut word = Vec::new();
        loop {
            match rest {
                [] | [b' ' | b'\t' | b'\r' | b'\n', ..] => break,
                [b'"', tail @ ..] => rest = double_quoted(tail, &mut word)?,
                [b'\'', tail @ ..] => rest = single_quoted(tail, &mut word)?,
                [byte, tail @ ..] => {
                    word.push(*byte);
                    rest = tail;
                }
            }
        }
        words.push(word);
    }
}

fn double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], ScanError> {
    loop {
        match rest {
            [b'\\', b'x', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |byte: u8| (byte as char).to_digit(16).unwrap_or(0) as u8;
                word.push(digit(*high) * 16 + digit(*low));
                rest = tail;
            }
            [b'\\', escaped, tail @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest = tail;
            }
            [b'"', tail @ ..] => return end_of_quote(tail),
            [byte, tail @ ..] => {
                word.push(*byte);
                rest = tail;
            }
            [] => return Err(ScanError::UnbalancedQuotes),
        }
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], ScanError> {
    loop {
        match rest {
            [b'\\', b'\'', tail @ ..] => {
                word.push(b'\'');
                rest = tail;
            }
            [b'\'', tail @ ..] => return end_of_quote(tail),
            [byte, tail @ ..] => {
                word.push(*byte);
                rest = tail;
            }
            [] => return Err(ScanError::UnbalancedQuotes),
        }
    }
}

/// A closing quote must be followed by a space or nothing.
fn end_of_quote(rest: &[u8]) -> Result<&[u8], ScanError> {
    match rest.first() {
        None | Some(b' ' | b'\t' | b'\r' | b'\n') => Ok(rest),
        Some(_) => Err(ScanError::UnbalancedQuotes),
    }
}

/// Finds the end of a reply, RESP2 or RESP3.
#[derive(Debug, Default)]
pub struct ReplyScanner {
    position: usize,
    /// Elements still owed at each depth.
    owed: SmallVec<[usize; 8]>,
    started: bool,
    wanted: usize,
}

impl ReplyScanner {
    /// `Ok(Some(length))`: one whole reply stands in `buffer[..length]`. `Ok(None)`: more bytes are needed.
    pub fn scan(&mut self, buffer: &[u8]) -> Result<Option<usize>, ScanError> {
        if !self.started {
            if let Some(length) = common_reply(buffer) {
                self.wanted = 0;
                return Ok(Some(length));
            }
            self.position = 0;
            self.owed.clear();
            self.owed.push(1);
            self.started = true;
        }
        self.wanted = 0;
        while let Some(top) = self.owed.last_mut() {
            if *top == 0 {
                self.owed.pop();
                continue;
            }
            if self.position > REPLY_BYTES_MAX {
                return Err(ScanError::ReplyTooLong);
            }
            let Some(&kind) = buffer.get(self.position) else { return Ok(None) };
            if let Some(after) = whole_bulk(buffer, self.position) {
                *top -= 1;
                self.position = after;
                continue;
            }
            // A line of any length may be a simple string; one that is longer than a bulk may be is no Redis.
            let Some((end, after)) = line(buffer, self.position, 512 << 20)? else { return Ok(None) };
            // A line without even its type byte ends where it begins.
            let text = buffer.get(self.position + 1..end).ok_or(ScanError::UnknownType(kind))?;
            match kind {
                b'+' | b'-' | b':' | b',' | b'#' | b'_' | b'(' => {
                    *top -= 1;
                    self.position = after;
                }
                b'$' | b'!' | b'=' => {
                    let length = number(text).ok_or(ScanError::InvalidLength)?;
                    let stop = if length < 0 { after } else { after + length as usize + 2 };
                    if stop > REPLY_BYTES_MAX {
                        return Err(ScanError::ReplyTooLong);
                    }
                    if buffer.len() < stop {
                        self.wanted = stop;
                        return Ok(None);
                    }
                    if length >= 0 && &buffer[stop - 2..stop] != b"\r\n" {
                        return Err(ScanError::MissingTrailer);
                    }
                    *top -= 1;
                    self.position = stop;
                }
                b'*' | b'~' | b'>' | b'%' | b'|' => {
                    let count = number(text).ok_or(ScanError::InvalidCount)?.max(0) as usize;
                    let count = if matches!(kind, b'%' | b'|') { count.saturating_mul(2) } else { count };
                    // An attribute stands in front of its element and is none itself.
                    if kind != b'|' {
                        *top -= 1;
                    }
                    if self.owed.len() > REPLY_DEPTH_MAX {
                        return Err(ScanError::TooDeep);
                    }
                    self.owed.push(count);
                    self.position = after;
                }
                other => return Err(ScanError::UnknownType(other)),
            }
        }
        self.started = false;
        Ok(Some(self.position))
    }

    /// How many bytes, from the start of the frame, the buffer must hold before another scan makes sense; 0 if unknown.
    pub fn wanted(&self) -> usize {
        self.wanted
    }
}

/// The number in the head of a frame at `from`, and what stands after the head: `$64` CR LF. Only where it has up to four
/// digits and is as it should be, which is nearly always; all else is for [`line`] and [`number`], which know every rule.
/// To search for the CR costs more than to look at these few bytes.
#[inline(always)]
fn short_head(buffer: &[u8], from: usize) -> Option<(i64, usize)> {
    let digit = |byte: u8| byte.wrapping_sub(b'0');
    let (digits, length) = match *buffer.get(from + 1..)? {
        [a, b'\r', b'\n', ..] => ([0, 0, 0, digit(a)], 1),
        [b'0', ..] => return None,
        [a, b, b'\r', b'\n', ..] => ([0, 0, digit(a), digit(b)], 2),
        [a, b, c, b'\r', b'\n', ..] => ([0, digit(a), digit(b), digit(c)], 3),
        [a, b, c, d, b'\r', b'\n', ..] => ([digit(a), digit(b), digit(c), digit(d)], 4),
        _ => return None,
    };
    let value = digits.iter().fold(0, |value, digit| value * 10 + i64::from(*digit));
    digits.iter().all(|digit| *digit < 10).then_some((value, from + length + 3))
}

/// The length of a whole reply of the two kinds that most are: `+OK` and a bulk string.
#[inline]
fn common_reply(buffer: &[u8]) -> Option<usize> {
    if buffer.starts_with(b"+OK\r\n") {
        return Some(5);
    }
    whole_bulk(buffer, 0)
}

/// What stands after the bulk string at `from`, if all of it is there and right.
#[inline]
fn whole_bulk(buffer: &[u8], from: usize) -> Option<usize> {
    if buffer.get(from) != Some(&b'$') {
        return None;
    }
    let (length, after) = short_head(buffer, from)?;
    let stop = after + length as usize;
    (buffer.get(stop..stop + 2)? == b"\r\n").then_some(stop + 2)
}

/// The line that begins at `from`: its end before CR LF, and what stands after it.
#[inline]
fn line(buffer: &[u8], from: usize, bytes_max: usize) -> Result<Option<(usize, usize)>, ScanError> {
    match memchr::memchr(b'\r', &buffer[from..]) {
        Some(length) if length > bytes_max => Err(ScanError::InlineTooLong),
        Some(length) => match buffer.get(from + length + 1) {
            None => Ok(None),
            Some(b'\n') => Ok(Some((from + length, from + length + 2))),
            Some(_) => Err(ScanError::MissingTrailer),
        },
        None if buffer.len() - from > bytes_max => Err(ScanError::InlineTooLong),
        None => Ok(None),
    }
}

/// A decimal number as strictly as Redis reads it: no plus sign, no leading zero, no more than 18 digits.
#[inline]
pub fn number(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 18 || (digits.len() > 1 && digits[0] == b'0') {
        return None;
    }
    let mut value = 0i64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i64::from(digit - b'0');
    }
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redis_protocol::resp2;

    use super::*;
    use crate::resp::reply;

    fn scan_pieces(frame: &[u8], cuts: &[usize]) -> Result<Option<usize>, ScanError> {
        let mut scanner = RequestScanner::default();
        for cut in cuts {
            if let found @ Some(_) = scanner.scan(&frame[..(*cut).min(frame.len())], &Limits::default())? {
                return Ok(found);
            }
        }
        scanner.scan(frame, &Limits::default())
    }

    proptest! {
        #[test]
        fn a_request_ends_where_redis_protocol_says_however_it_is_cut(
            args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8),
            mut cuts in prop::collection::vec(0usize..400, 0..6),
        ) {
            let mut frame = bytes::BytesMut::new();
            let views: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            crate::resp::write::command(&mut frame, &views);
            let whole = frame.len();
            frame.extend_from_slice(b"*1\r\n");
            cuts.sort();
            cuts.retain(|cut| *cut < whole);
            let (_, length) = resp2::decode::decode_range(&frame).unwrap().unwrap();
            prop_assert_eq!(length, whole);
            prop_assert_eq!(scan_pieces(&frame, &cuts), Ok(Some(whole)));
        }

        #[test]
        fn a_short_head_says_what_the_rules_say_or_nothing(head in "[$*][0-9+\\-\r\n]{0,7}", tail in "[\r\nx]{0,3}") {
            let frame = [head.as_bytes(), tail.as_bytes()].concat();
            if let Some((value, after)) = short_head(&frame, 0) {
                let (end, start) = line(&frame, 0, 100).unwrap().unwrap();
                prop_assert_eq!((Some(value), after), (number(&frame[1..end]), start));
            }
        }

        #[test]
        fn no_bytes_make_a_scanner_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = RequestScanner::default().scan(&bytes, &Limits::default());
            let _ = ReplyScanner::default().scan(&bytes);
            let _ = split_inline(&bytes);
        }
    }

    #[test]
    fn replies_of_every_kind_end_where_they_should_at_every_cut() {
        let frames: [&[u8]; 14] = [
            b"+OK\r\n",
            b"-ERR x\r\n",
            b":12\r\n",
            b"$3\r\nabc\r\n",
            b"$-1\r\n",
            b"*-1\r\n",
            b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
            b"%1\r\n*1\r\n:1\r\n~2\r\n+a\r\n+b\r\n",
            b"_\r\n",
            b",1.5\r\n",
            b"#t\r\n",
            b"=7\r\ntxt:abc\r\n",
            b">2\r\n+a\r\n:1\r\n",
            b"|1\r\n+k\r\n+v\r\n:5\r\n",
        ];
        for frame in frames {
            for cut in 0..frame.len() {
                let mut scanner = ReplyScanner::default();
                assert_eq!(scanner.scan(&frame[..cut]), Ok(None), "{frame:?} at {cut}");
                let mut longer = frame.to_vec();
                longer.extend_from_slice(b"+next\r\n");
                assert_eq!(scanner.scan(&longer), Ok(Some(frame.len())), "{frame:?} at {cut}");
            }
        }
    }

    #[test]
    fn every_number_is_read_in_a_head_of_any_length() {
        for value in (0..12_000).chain([99_999, 100_000, 999_999, 1_000_000]) {
            let frame = format!("${value}\r\n").into_bytes();
            let short = (value < 10_000).then_some((value, frame.len()));
            assert_eq!(short_head(&frame, 0), short, "{value}");
            let mut request = format!("*1\r\n${value}\r\n").into_bytes();
            request.resize(request.len() + value as usize, b'x');
            request.extend_from_slice(b"\r\n");
            assert_eq!(RequestScanner::default().scan(&request, &Limits::default()), Ok(Some(request.len())));
            assert_eq!(ReplyScanner::default().scan(&request), Ok(Some(request.len())));
        }
        for head in [&b"$007\r\n"[..], b"$0:\r\n", b"$1/2\r\n", b"$-1\r\n", b"$\r\n", b"$1\r", b"$12\rx", b"$"] {
            assert_eq!(short_head(head, 0), None, "{head:?}");
        }
    }

    #[test]
    fn a_reply_that_promises_too_much_is_an_error_before_it_comes() {
        for promise in [&b"$1073741824\r\n"[..], b"*2\r\n$99999999999\r\n", b"=1073741823\r\n"] {
            assert_eq!(ReplyScanner::default().scan(promise), Err(ScanError::ReplyTooLong));
        }
        assert_eq!(ReplyScanner::default().scan(b"$536870912\r\n"), Ok(None));
    }

    const REQUESTS: [&[u8]; 5] = [
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$12\r\n0123456789ab\r\n",
        b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n",
        b"SET k \"a b\\x41\" 'c d'\r\nPING\r\n",
        b"\r\n*0\r\n*-1\r\nPING\n",
        b"*2\r\n$12345\r\nx",
    ];

    /// What has arrived, in one piece or in two, makes the same frames.
    #[test]
    fn damaged_requests_are_judged_alike_however_they_arrive() {
        crate::fuzz::fuzz(&REQUESTS, |bytes| {
            let limits = Limits { bulk_bytes_max: 1 << 20, ..Limits::default() };
            let mut whole = RequestScanner::default();
            let at_once = whole.scan(bytes, &limits);
            for cut in 0..bytes.len().min(48) {
                let mut scanner = RequestScanner::default();
                let first = scanner.scan(&bytes[..cut], &limits);
                let again = if first == Ok(None) { scanner.scan(bytes, &limits) } else { first };
                assert_eq!(again, at_once, "cut at {cut}");
                if matches!(at_once, Ok(Some(_))) {
                    assert_eq!(scanner.args(), whole.args());
                }
            }
            if let Ok(Some(length)) = at_once {
                assert!(length <= bytes.len());
                assert!(whole.args().iter().all(|arg| arg.start <= arg.end && arg.end as usize <= length));
            }
            // Words, or an error in Redis's words.
            let _ = split_inline(bytes);
        });
    }

    #[test]
    fn damaged_replies_are_judged_alike_however_they_arrive() {
        let corpus: [&[u8]; 6] = [
            b"$3\r\nabc\r\n:1\r\n",
            b"*2\r\n$1\r\na\r\n*2\r\n:1\r\n_\r\n",
            b"%2\r\n+a\r\n~1\r\n#t\r\n+b\r\n,1.5\r\n",
            b"|1\r\n+k\r\n+v\r\n>2\r\n+a\r\n=7\r\ntxt:abc\r\n",
            b"-MOVED 3999 127.0.0.1:6381\r\n",
            b"!5\r\nERR x\r\n(12345\r\n$-1\r\n*-1\r\n",
        ];
        crate::fuzz::fuzz(&corpus, |bytes| {
            let at_once = ReplyScanner::default().scan(bytes);
            for cut in 0..bytes.len() {
                let mut scanner = ReplyScanner::default();
                let first = scanner.scan(&bytes[..cut]);
                let again = if first == Ok(None) { scanner.scan(bytes) } else { first };
                assert_eq!(again, at_once, "cut at {cut}");
            }
            let Ok(Some(length)) = at_once else { return };
            let frame = &bytes[..length];
            let _ = (reply::elements(frame), reply::bulk(frame), reply::integer(frame), reply::double(frame));
            let _ = (reply::redirect(frame), reply::error_word(frame), reply::error_text(frame), reply::is_null(frame));
        });
    }

    #[test]
    fn a_nest_that_would_overflow_a_stack_is_an_error() {
        let deep = b"*1\r\n".repeat(100_000);
        assert_eq!(ReplyScanner::default().scan(&deep), Err(ScanError::TooDeep));
        assert_eq!(RequestScanner::default().scan(&deep, &Limits::default()), Err(ScanError::ExpectedBulk(b'*')));
    }

    #[test]
    fn lengths_that_lie_are_errors_in_redis_s_own_words() {
        let refused = |bytes: &[u8]| RequestScanner::default().scan(bytes, &Limits::default()).unwrap_err().to_string();
        assert_eq!(refused(b"*1048577\r\n"), "Protocol error: invalid multibulk length");
        assert_eq!(refused(b"*+1\r\n"), "Protocol error: invalid multibulk length");
        assert_eq!(refused(b"*1\r\n$-1\r\n"), "Protocol error: invalid bulk length");
        assert_eq!(refused(b"*1\r\n:1\r\n"), "Protocol error: expected '$', got ':'");
        assert_eq!(refused(&b"x".repeat(70_000)), "Protocol error: too big inline request");
    }

    #[test]
    fn inline_words_are_quoted_as_in_redis() {
        assert_eq!(split_inline(br#"set k "a b\x41\n" 'c d'"#).unwrap(), [&b"set"[..], b"k", b"a bA\n", b"c d"]);
        assert_eq!(split_inline(br#"set "k"#), Err(ScanError::UnbalancedQuotes));
        assert_eq!(split_inline(br#"set "k"x"#), Err(ScanError::UnbalancedQuotes));
    }
}
