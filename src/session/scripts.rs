//! Bodies of scripts that went through the proxy, so that a store that has not seen one yet can be given it.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;
use sha1_smol::Sha1;

use crate::command::CommandSpec;
use crate::resp::request::Request;

/// Bytes of bodies that are remembered; beyond it the oldest go, and their NOSCRIPT reaches the client, which loads again.
const BODY_BYTES_MAX: usize = 8 << 20;

/// See the module. Shared by all workers; held for a look-up only.
#[derive(Default)]
pub struct Scripts(Mutex<Known>);

#[derive(Default)]
struct Known {
    bodies: HashMap<String, Bytes>,
    /// The oldest first.
    order: VecDeque<String>,
    bytes: usize,
}

impl Scripts {
    /// Remembers the body in an EVAL or a SCRIPT LOAD, and forgets all at a SCRIPT FLUSH.
    pub fn note(&self, spec: &CommandSpec, request: &Request) {
        let is = |word: &str| request.len() > 1 && request.arg(1).eq_ignore_ascii_case(word.as_bytes());
        let body = match spec.name {
            "EVAL" | "EVAL_RO" => 1,
            "SCRIPT" if is("LOAD") && request.len() == 3 => 2,
            "SCRIPT" if is("FLUSH") => return *self.0.lock() = Known::default(),
            _ => return,
        };
        let body = request.arg(body);
        let digest = Sha1::from(body).digest().to_string();
        let mut known = self.0.lock();
        if body.len() > BODY_BYTES_MAX || known.bodies.contains_key(&digest) {
            return;
        }
        known.bytes += body.len();
        known.order.push_back(digest.clone());
        known.bodies.insert(digest, Bytes::copy_from_slice(body));
        while known.bytes > BODY_BYTES_MAX {
            let Some(oldest) = known.order.pop_front() else { return };
            let gone = known.bodies.remove(&oldest).map_or(0, |body| body.len());
            known.bytes -= gone;
        }
    }

    /// The body that has this digest, in either case.
    pub fn find(&self, digest: &[u8]) -> Option<Bytes> {
        let digest = std::str::from_utf8(digest).ok()?.to_ascii_lowercase();
        self.0.lock().bodies.get(&digest).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::lookup;

    #[test]
    fn a_body_is_found_by_the_digest_that_redis_gives_it_until_a_flush() {
        let scripts = Scripts::default();
        scripts.note(lookup(b"EVAL").unwrap(), &Request::from_args(&["EVAL", "return 1", "0"]));
        let digest = b"E0E1F9FABFC9D4800C877A703B823AC0578FF8DB";
        assert_eq!(scripts.find(digest).as_deref(), Some(&b"return 1"[..]));
        scripts.note(lookup(b"SCRIPT").unwrap(), &Request::from_args(&["SCRIPT", "FLUSH"]));
        assert_eq!(scripts.find(digest), None);
    }

    #[test]
    fn the_oldest_bodies_go_when_there_are_too_many_bytes() {
        let scripts = Scripts::default();
        let load =
            |body: &str| scripts.note(lookup(b"SCRIPT").unwrap(), &Request::from_args(&["SCRIPT", "LOAD", body]));
        let bodies: Vec<String> = (0..3).map(|n| n.to_string().repeat(BODY_BYTES_MAX / 2)).collect();
        bodies.iter().for_each(|body| load(body));
        let has = |body: &str| scripts.find(Sha1::from(body).digest().to_string().as_bytes()).is_some();
        assert!(!has(&bodies[0]) && has(&bodies[1]) && has(&bodies[2]));
    }
}
