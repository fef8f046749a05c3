//! What PUBSUB answers. Where channels meet on the cluster each node tells of the connections to itself only: the proxy's
//! own, which stand for its clients, and those that go around it. The application is told of all of them, each once, as one
//! Redis would.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::dual::engine::{Engine, Inner, Target, refusal_of};
use crate::dual::push::Family;
use crate::dual::subscriptions::MEETING_SLOT;
use crate::resp::refusal::Refusal;
use crate::resp::reply::{self, Protocol};
use crate::resp::request::Request;
use crate::resp::write;
use crate::routing::Side;

/// Sub-commands whose answers of several nodes make one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Each once.
    Names,
    /// Subscribers of each name that is asked for.
    Numbers(Family),
    /// How many patterns there are.
    Patterns,
}

impl Asked {
    fn of(request: &Request) -> Option<Self> {
        match request.arg(1).to_ascii_uppercase().as_slice() {
            b"CHANNELS" | b"SHARDCHANNELS" => Some(Self::Names),
            b"NUMSUB" => Some(Self::Numbers(Family::Channel)),
            b"SHARDNUMSUB" => Some(Self::Numbers(Family::Shard)),
            b"NUMPAT" => Some(Self::Patterns),
            _ => None,
        }
    }
}

/// A node and what it said.
type Told = (Arc<str>, Bytes);

impl Engine {
    /// Answers PUBSUB.
    pub async fn ask_channels(&self, request: &Request, protocol: Protocol) -> Result<Bytes, Refusal> {
        self.0.subscribed().await;
        let ask = async |target: &Target| {
            self.call(target, request.bytes(), protocol).await.map_err(|error| refusal_of(&error))
        };
        if self.table().pubsub().leader() == Side::Standalone {
            let target = Target::Standalone { db: self.0.db };
            return Ok(self.heard(&target, request, ask(&target).await?));
        }
        let meeting = self.0.stores.slot_endpoint(MEETING_SLOT).ok_or(Refusal::StoreDown)?.address;
        let first = ask(&Target::Node(meeting.clone())).await?;
        let asked = match Asked::of(request) {
            Some(asked) if !reply::is_error(&first) => asked,
            _ => return Ok(first),
        };
        let others = self.0.stores.primaries().into_iter().filter(|node| *node != meeting).collect::<Vec<_>>();
        let mut told = vec![(meeting, first)];
        for node in others {
            let answer = ask(&Target::Node(node.clone())).await?;
            told.push((node, answer));
        }
        self.0.merged(asked, &told).ok_or(Refusal::UnknownOutcome)
    }
}

impl Inner {
    /// One answer of all; `None` where one of them is not in the form that it should be in.
    fn merged(&self, asked: Asked, told: &[Told]) -> Option<Bytes> {
        let mut out = BytesMut::new();
        match asked {
            Asked::Names => names(&mut out, told)?,
            Asked::Numbers(family) => self.numbers(&mut out, family, told)?,
            Asked::Patterns => write::integer(&mut out, self.patterns(told)?),
        }
        Some(out.freeze())
    }

    fn numbers(&self, out: &mut BytesMut, family: Family, told: &[Told]) -> Option<()> {
        let cells = told.iter().map(|(_, frame)| reply::elements(frame)).collect::<Option<Vec<_>>>()?;
        let (first, length) = (&told[0].1, cells[0].len());
        write::array(out, length);
        for at in (0..length).step_by(2) {
            let cell = &first[cells[0][at].clone()];
            let name = reply::bulk(cell)?;
            let heard = self.channels.subscriptions.audience.heard_by(family, name);
            let homes = self.homes(family, name).unwrap_or_default();
            let mut sum = heard.members;
            for ((node, frame), cells) in told.iter().zip(&cells) {
                let count = reply::integer(&frame[cells.get(at + 1)?.clone()])?;
                let own = if homes.contains(node) { heard.links } else { 0 };
                sum += (count - own).max(0);
            }
            out.extend_from_slice(cell);
            write::integer(out, sum);
        }
        Some(())
    }

    /// The patterns of the proxy's clients stand on the node where channels meet, those for notifications of keys on every
    /// node. A pattern of somebody who goes around the proxy is counted on each node on which it is.
    fn patterns(&self, told: &[Told]) -> Option<i64> {
        let mut own: Vec<i64> = vec![0; told.len()];
        for name in self.channels.subscriptions.audience.linked(Family::Pattern) {
            let homes = self.homes(Family::Pattern, &name).unwrap_or_default();
            for (own, (node, _)) in own.iter_mut().zip(told) {
                *own += i64::from(homes.contains(node));
            }
        }
        let counts = told.iter().map(|(_, frame)| reply::integer(frame)).collect::<Option<Vec<_>>>()?;
        Some(counts[0] + counts.iter().zip(&own).skip(1).map(|(count, own)| (count - own).max(0)).sum::<i64>())
    }
}

fn names(out: &mut BytesMut, told: &[Told]) -> Option<()> {
    let (mut names, mut known) = (Vec::new(), HashSet::new());
    for (_, frame) in told {
        let cells = reply::elements(frame)?.into_iter().map(|cell| &frame[cell]);
        names.extend(cells.filter(|name| known.insert(*name)));
    }
    write::array(out, names.len());
    names.iter().for_each(|name| out.extend_from_slice(name));
    Some(())
}
