//! Reads many keys of a side at once, beside the traffic: one connection a node, one pipeline a page.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::jobs::scan::{database, node};
use crate::jobs::{Context, JobError};
use crate::resp::reply::{self, Protocol};
use crate::resp::write;
use crate::routing::{Key, Side};
use crate::store::PrivateLink;
use crate::store::link::Endpoint;

/// See the module.
pub struct Reader<'c> {
    context: &'c Context,
    links: HashMap<(Arc<str>, u32), PrivateLink>,
}

impl<'c> Reader<'c> {
    pub fn new(context: &'c Context) -> Self {
        Self { context, links: HashMap::new() }
    }

    /// Asks the same of every key; `args` get the key put in where they are empty. The replies come in the order of the
    /// keys; `None`: the slot is moving, ask again.
    pub async fn ask(&mut self, side: Side, keys: &[Key], args: &[&[u8]]) -> Result<Vec<Option<Bytes>>, JobError> {
        let mut replies = vec![None; keys.len()];
        let table = self.context.table();
        for (endpoint, indices) in self.by_node(side, keys)? {
            let mut out = BytesMut::new();
            for index in &indices {
                let key = &keys[*index];
                let name = match side {
                    Side::Standalone => Cow::Borrowed(&key.name[..]),
                    Side::Cluster => table.cluster_name(key.db, &key.name),
                };
                let filled: Vec<&[u8]> = args.iter().map(|arg| if arg.is_empty() { &*name } else { *arg }).collect();
                write::command(&mut out, &filled);
            }
            let answered = self.pipeline(&endpoint, &out, indices.len()).await;
            let answered = answered.map_err(|reason| JobError::Store { node: endpoint.address.to_string(), reason })?;
            for (index, reply) in indices.into_iter().zip(answered) {
                let word = reply::is_error(&reply).then(|| reply::error_word(&reply).to_vec());
                let moves =
                    matches!(word.as_deref(), Some(b"MOVED" | b"ASK" | b"TRYAGAIN" | b"CLUSTERDOWN" | b"LOADING"));
                if moves {
                    self.context.refresh.notify_one();
                }
                replies[index] = (!moves).then_some(reply);
            }
        }
        Ok(replies)
    }

    fn by_node(&self, side: Side, keys: &[Key]) -> Result<Vec<(Endpoint, Vec<usize>)>, JobError> {
        if side == Side::Standalone {
            let mut databases: HashMap<u32, Vec<usize>> = HashMap::new();
            keys.iter().enumerate().for_each(|(index, key)| databases.entry(key.db).or_default().push(index));
            let places = databases.into_iter().map(|(db, indices)| (database(self.context, db), indices));
            return Ok(places.collect());
        }
        let (map, table) = (self.context.slot_map.load(), self.context.table());
        let mut nodes: HashMap<&Arc<str>, Vec<usize>> = HashMap::new();
        for (index, key) in keys.iter().enumerate() {
            let slot = table.slot_of(key.db, &key.name);
            let owner = map.owner(slot).ok_or_else(|| JobError::Store {
                node: "the cluster".into(),
                reason: format!("nobody serves slot {slot}"),
            })?;
            nodes.entry(owner).or_default().push(index);
        }
        Ok(nodes.into_iter().map(|(address, indices)| (node(self.context, address), indices)).collect())
    }

    /// One pipeline; a link that broke since the last page is opened again once, for reads may be repeated.
    async fn pipeline(&mut self, endpoint: &Endpoint, out: &[u8], replies: usize) -> Result<Vec<Bytes>, String> {
        let place = (endpoint.address.clone(), endpoint.db);
        if let Some(link) = self.links.get_mut(&place)
            && let Ok(Ok(answered)) = tokio::time::timeout(endpoint.timeouts.reply, exchange(link, out, replies)).await
        {
            return Ok(answered);
        }
        self.links.remove(&place);
        let mut link = PrivateLink::connect(endpoint, Protocol::Resp2).await.map_err(|error| error.to_string())?;
        let answered = tokio::time::timeout(endpoint.timeouts.reply, exchange(&mut link, out, replies)).await;
        let answered = answered.map_err(|_| "no reply in time".to_string())??;
        self.links.insert(place, link);
        Ok(answered)
    }
}

async fn exchange(link: &mut PrivateLink, out: &[u8], replies: usize) -> Result<Vec<Bytes>, String> {
    link.send(out).await.map_err(|error| error.to_string())?;
    let mut answered = Vec::with_capacity(replies);
    while answered.len() < replies {
        answered.push(link.receive().await.map_err(|error| error.to_string())?);
    }
    Ok(answered)
}
