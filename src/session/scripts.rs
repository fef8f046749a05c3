//! Bodies of scripts that went through the proxy, so that a store that has not seen one yet can be given it, and what their text
//! tells of keys that they do not declare.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use sha1_smol::Sha1;

use crate::command::CommandSpec;
use crate::command::lua::{self, Undeclared};
use crate::resp::request::Request;

/// Bytes of bodies that are remembered; beyond it the oldest go, and their NOSCRIPT reaches the client, which loads again.
const BODY_BYTES_MAX: usize = 8 << 20;
/// Functions of libraries that are remembered for touching what they do not declare.
const FUNCTIONS_MAX: usize = 10_000;

/// See the module. Shared by all workers; held for a look-up only.
#[derive(Default)]
pub struct Scripts(Mutex<Known>);

struct Script {
    body: Bytes,
    undeclared: Option<Arc<Undeclared>>,
}

#[derive(Default)]
struct Known {
    scripts: HashMap<String, Script>,
    /// Of libraries, by name.
    functions: HashMap<String, Arc<Undeclared>>,
    /// The oldest first.
    order: VecDeque<String>,
    bytes: usize,
}

impl Scripts {
    /// Remembers what an EVAL, a SCRIPT LOAD or a FUNCTION LOAD brings, and forgets all at a SCRIPT FLUSH. Gives what is known
    /// of undeclared keys of the script that a request runs.
    pub fn note(&self, spec: &CommandSpec, request: &Request) -> Option<Arc<Undeclared>> {
        let is = |word: &str| request.len() > 1 && request.arg(1).eq_ignore_ascii_case(word.as_bytes());
        match spec.name {
            "EVAL" | "EVAL_RO" => self.learn(request.arg(1)),
            "EVALSHA" | "EVALSHA_RO" => self.0.lock().scripts.get(&digest_text(request.arg(1))?)?.undeclared.clone(),
            "FCALL" | "FCALL_RO" => self.0.lock().functions.get(std::str::from_utf8(request.arg(1)).ok()?).cloned(),
            "SCRIPT" if is("LOAD") && request.len() == 3 => {
                self.learn(request.arg(2));
                None
            }
            "SCRIPT" if is("FLUSH") => {
                let mut known = self.0.lock();
                let functions = std::mem::take(&mut known.functions);
                *known = Known { functions, ..Known::default() };
                None
            }
            "FUNCTION" if is("LOAD") => {
                self.learn_library(request.arg(request.len() - 1));
                None
            }
            _ => None,
        }
    }

    fn learn(&self, body: &[u8]) -> Option<Arc<Undeclared>> {
        let digest = Sha1::from(body).digest().to_string();
        if let Some(script) = self.0.lock().scripts.get(&digest) {
            return script.undeclared.clone();
        }
        let undeclared = lua::undeclared(body).map(Arc::new);
        if body.len() > BODY_BYTES_MAX {
            return undeclared;
        }
        let mut known = self.0.lock();
        known.bytes += body.len();
        known.order.push_back(digest.clone());
        known.scripts.insert(digest, Script { body: Bytes::copy_from_slice(body), undeclared: undeclared.clone() });
        while known.bytes > BODY_BYTES_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.bytes -= known.scripts.remove(&oldest).map_or(0, |script| script.body.len());
        }
        undeclared
    }

    fn learn_library(&self, body: &[u8]) {
        let (names, undeclared) = (lua::functions(body), lua::undeclared(body).map(Arc::new));
        let mut known = self.0.lock();
        for name in names {
            match &undeclared {
                Some(undeclared) if known.functions.len() < FUNCTIONS_MAX => {
                    known.functions.insert(name, undeclared.clone());
                }
                _ => {
                    known.functions.remove(&name);
                }
            }
        }
    }

    /// The body that has this digest, in either case.
    pub fn find(&self, digest: &[u8]) -> Option<Bytes> {
        self.0.lock().scripts.get(&digest_text(digest)?).map(|script| script.body.clone())
    }
}

fn digest_text(digest: &[u8]) -> Option<String> {
    Some(std::str::from_utf8(digest).ok()?.to_ascii_lowercase())
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
        let load = |body: &str| {
            scripts.note(lookup(b"SCRIPT").unwrap(), &Request::from_args(&["SCRIPT", "LOAD", body]));
        };
        let bodies: Vec<String> = (0..3).map(|n| n.to_string().repeat(BODY_BYTES_MAX / 2)).collect();
        bodies.iter().for_each(|body| load(body));
        let has = |body: &str| scripts.find(Sha1::from(body).digest().to_string().as_bytes()).is_some();
        assert!(!has(&bodies[0]) && has(&bodies[1]) && has(&bodies[2]));
    }

    #[test]
    fn what_a_script_does_not_declare_is_known_however_it_is_called() {
        let scripts = Scripts::default();
        let note = |words: &[&str]| {
            scripts.note(lookup(words[0].as_bytes()).unwrap(), &Request::from_args(words)).map(|found| found.writes)
        };
        let body = "redis.call('SET', KEYS[1] .. 'x', 1)";
        let digest = Sha1::from(body).digest().to_string();
        assert_eq!(note(&["EVALSHA", &digest, "1", "a"]), None, "never seen");
        assert_eq!(note(&["EVAL", body, "1", "a"]), Some(true));
        assert_eq!(note(&["EVALSHA", &digest.to_uppercase(), "1", "a"]), Some(true));
        assert_eq!(note(&["EVAL", "return redis.call('GET', KEYS[1])", "1", "a"]), None);
        let library = |key: &str| {
            format!("#!lua name=l\nredis.register_function('f', function(keys) return redis.call('GET', {key}) end)")
        };
        note(&["FUNCTION", "LOAD", &library("'a'")]);
        assert_eq!(note(&["FCALL", "f", "1", "a"]), Some(false));
        note(&["FUNCTION", "LOAD", "REPLACE", &library("keys[1]")]);
        assert_eq!(note(&["FCALL", "f", "1", "a"]), None);
    }
}
