//! Who listens, over all workers: what PUBLISH and PUBSUB answer.
//!
//! A store counts the proxy's own connections, of which each stands for all subscribers of a worker. What the application is
//! told is the number that one Redis would have told it: the proxy's subscribers, and whoever else is subscribed at the store.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::dual::glob;
use crate::dual::push::Family;
use crate::resp::request::Request;
use crate::resp::{reply, write};

/// See the module. Changed when a client subscribes or unsubscribes, read at each PUBLISH; nothing waits inside the lock.
#[derive(Default)]
pub struct Audience(Mutex<[HashMap<Bytes, Heard>; 3]>);

/// By whom a name is heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub members: i64,
    /// Workers that are subscribed to it at the store.
    pub links: i64,
}

/// Whether the node that was asked has the proxy's own connections, so that its number counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    WithLinks,
    WithoutLinks,
}

impl Audience {
    /// A worker's members and links of a name became more or fewer.
    pub(super) fn change(&self, family: Family, name: &Bytes, members: i64, links: i64) {
        let mut all = self.0.lock();
        let names = &mut all[family as usize];
        let heard = names.entry(name.clone()).or_default();
        heard.members += members;
        heard.links += links;
        if *heard == Heard::default() {
            names.remove(name);
        }
    }

    /// How many got a message of which a store says that `count` did.
    fn receivers(&self, family: Family, channel: &[u8], count: i64, counted: Counted) -> i64 {
        let all = self.0.lock();
        let mut heard = all[family as usize].get(channel).copied().unwrap_or_default();
        if family == Family::Channel {
            let patterns = all[Family::Pattern as usize].iter();
            for (_, other) in patterns.filter(|(pattern, _)| glob::matches(pattern, channel)) {
                heard.members += other.members;
                heard.links += other.links;
            }
        }
        heard.among(count, counted)
    }

    /// By whom a name is heard.
    pub(super) fn heard_by(&self, family: Family, name: &[u8]) -> Heard {
        self.0.lock()[family as usize].get(name).copied().unwrap_or_default()
    }

    /// Names to which a worker is subscribed.
    pub(super) fn linked(&self, family: Family) -> Vec<Bytes> {
        let all = self.0.lock();
        all[family as usize].iter().filter(|(_, heard)| heard.links > 0).map(|(name, _)| name.clone()).collect()
    }

    /// A store's answer to PUBLISH, SPUBLISH or PUBSUB as the application is to get it; `None`: as it is.
    pub fn answer(&self, request: &Request, frame: &[u8], counted: Counted) -> Option<Bytes> {
        let mut out = BytesMut::new();
        let is_command = |name: &[u8]| request.arg(0).eq_ignore_ascii_case(name);
        if is_command(b"PUBLISH") || is_command(b"SPUBLISH") {
            let family = if is_command(b"PUBLISH") { Family::Channel } else { Family::Shard };
            let count = reply::integer(frame)?;
            write::integer(&mut out, self.receivers(family, request.arg(1), count, counted));
            return Some(out.freeze());
        }
        let family = [(&b"NUMSUB"[..], Family::Channel), (b"SHARDNUMSUB", Family::Shard)]
            .into_iter()
            .find_map(|(word, family)| request.arg(1).eq_ignore_ascii_case(word).then_some(family))?;
        let cells = reply::elements(frame)?;
        write::array(&mut out, cells.len());
        for pair in cells.chunks_exact(2) {
            let (name, count) = (&frame[pair[0].clone()], reply::integer(&frame[pair[1].clone()])?);
            out.extend_from_slice(name);
            write::integer(&mut out, self.heard_by(family, reply::bulk(name)?).among(count, counted));
        }
        Some(out.freeze())
    }
}

impl Heard {
    fn among(self, count: i64, counted: Counted) -> i64 {
        let others = match counted {
            Counted::WithLinks => (count - self.links).max(0),
            Counted::WithoutLinks => count,
        };
        others + self.members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_application_is_told_what_one_redis_would_have_counted() {
        let audience = Audience::default();
        let asked = |words: &[&str], frame: &[u8], counted| {
            let args: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            audience.answer(&Request::from_args(&args), frame, counted)
        };
        let name = |text: &'static str| Bytes::from_static(text.as_bytes());
        // Two workers, three subscribers of the channel on one of them, and two of a pattern on the other.
        audience.change(Family::Channel, &name("news:1"), 3, 1);
        audience.change(Family::Pattern, &name("news:*"), 2, 1);
        let published = ["PUBLISH", "news:1", "x"];
        assert_eq!(
            asked(&published, b":3\r\n", Counted::WithLinks).as_deref(),
            Some(&b":6\r\n"[..]),
            "one is not ours"
        );
        assert_eq!(asked(&published, b":0\r\n", Counted::WithoutLinks).as_deref(), Some(&b":5\r\n"[..]));
        assert_eq!(asked(&["SPUBLISH", "news:1", "x"], b":0\r\n", Counted::WithLinks).as_deref(), Some(&b":0\r\n"[..]));
        let numbers = asked(&["pubsub", "numsub", "news:1"], b"*2\r\n$6\r\nnews:1\r\n:1\r\n", Counted::WithLinks);
        assert_eq!(numbers.as_deref(), Some(&b"*2\r\n$6\r\nnews:1\r\n:3\r\n"[..]));
        assert_eq!(asked(&["PUBSUB", "NUMPAT"], b":1\r\n", Counted::WithLinks), None);
        assert_eq!(asked(&published, b"-NOPERM\r\n", Counted::WithLinks), None);
        audience.change(Family::Channel, &name("news:1"), -3, -1);
        audience.change(Family::Pattern, &name("news:*"), -2, -1);
        assert!(audience.0.lock().iter().all(HashMap::is_empty));
    }
}
