//! Learns the cluster's layout: CLUSTER SLOTS from any node that answers, on the control thread.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::resp::reply::{self, Protocol};
use crate::store::link::Endpoint;
use crate::store::{Loss, PrivateLink, SlotMap};

/// How often the layout is read without a reason: MOVED and lost links ask for it at once.
const REFRESH: Duration = Duration::from_secs(10);
/// Between two reads at least, however many links ask.
const REFRESH_MIN: Duration = Duration::from_millis(100);

/// Keeps `map` fresh until cancelled. `asked` wakes it early.
pub async fn keep_fresh(seeds: Vec<Endpoint>, map: Arc<ArcSwap<SlotMap>>, asked: Arc<Notify>, loss: Arc<Loss>) {
    let mut was_down = false;
    loop {
        match learn(&seeds, &map.load()).await {
            Ok(learnt) => {
                if was_down || map.load().is_empty() {
                    tracing::info!(primaries = learnt.primaries().len(), "the cluster's layout is known");
                }
                was_down = false;
                let known = map.load_full();
                if learnt != *known {
                    // Slots that move one by one leave their primary in its place; a primary that is gone was replaced.
                    if let Some(gone) = known.primaries().iter().find(|address| !learnt.primaries().contains(address)) {
                        tracing::warn!(node = %gone, "a primary was replaced; what it had acknowledged last may be lost, so dual routes are walked again");
                        loss.tell();
                    }
                    map.store(Arc::new(learnt));
                }
            }
            Err(reason) => {
                if !was_down {
                    tracing::warn!(%reason, "the cluster's layout cannot be read from any node; the known one is used, and the seeds are asked again ten times a second");
                }
                was_down = true;
            }
        }
        tokio::time::sleep(REFRESH_MIN).await;
        let wait = if was_down { Duration::from_millis(300) } else { REFRESH };
        let _ = tokio::time::timeout(wait, asked.notified()).await;
    }
}

/// Asks the known primaries first, then the seeds.
pub async fn learn(seeds: &[Endpoint], known: &SlotMap) -> Result<SlotMap, String> {
    let Some(pattern) = seeds.first() else { return Err("no seeds".into()) };
    let primaries = known.primaries().iter().map(|address| Endpoint { address: address.clone(), ..pattern.clone() });
    let mut reason = String::new();
    for endpoint in primaries.chain(seeds.iter().cloned()) {
        match ask(&endpoint).await {
            Ok(map) if !map.is_empty() => return Ok(map),
            Ok(_) => reason = format!("{}: serves no slots; is it a cluster node?", endpoint.address),
            Err(error) => reason = format!("{}: {error}", endpoint.address),
        }
    }
    Err(reason)
}

async fn ask(endpoint: &Endpoint) -> Result<SlotMap, String> {
    let call = async {
        let mut link = PrivateLink::connect(endpoint, Protocol::Resp2).await.map_err(|error| error.to_string())?;
        link.call(b"*2\r\n$7\r\nCLUSTER\r\n$5\r\nSLOTS\r\n").await.map_err(|error| error.to_string())
    };
    let answer = tokio::time::timeout(endpoint.timeouts.connect, call).await;
    let frame = answer.map_err(|_| "no answer in time".to_string())??;
    if reply::is_error(&frame) {
        return Err(String::from_utf8_lossy(reply::error_text(&frame)).into_owned());
    }
    parse(&frame, &endpoint.address).ok_or_else(|| "CLUSTER SLOTS answered something unknown".into())
}

/// Reads CLUSTER SLOTS: `[[first, last, [host, port, ..], replicas ..], ..]`. An empty host means the answering node's.
fn parse(frame: &[u8], answering: &str) -> Option<SlotMap> {
    let own_host = answering.rsplit_once(':')?.0;
    let mut ranges = Vec::new();
    for row in reply::elements(frame)? {
        let row = &frame[row];
        let cells = reply::elements(row)?;
        let number = |index: usize| reply::integer(&row[cells.get(index)?.clone()]);
        let node = &row[cells.get(2)?.clone()];
        let fields = reply::elements(node)?;
        let host = reply::bulk(&node[fields.first()?.clone()]).unwrap_or_default();
        let port = reply::integer(&node[fields.get(1)?.clone()])?;
        let host = std::str::from_utf8(host).ok()?;
        let host = if host.is_empty() || host == "?" { own_host } else { host };
        ranges.push((number(0)? as u16, number(1)? as u16, Arc::from(format!("{host}:{port}"))));
    }
    Some(SlotMap::new(ranges))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_layouts_are_refused_or_read_and_a_whole_one_is_known() {
        let whole = b"*2\r\n*4\r\n:0\r\n:8191\r\n*4\r\n$9\r\n127.0.0.1\r\n:7000\r\n$2\r\nid\r\n*0\r\n*3\r\n$0\r\n\r\n:7003\r\n$2\r\nid\r\n*3\r\n:8192\r\n:16383\r\n*3\r\n$0\r\n\r\n:7001\r\n$2\r\nid\r\n";
        let map = parse(whole, "10.0.0.1:7001").unwrap();
        assert_eq!(map.owner(8191).map(|node| &**node), Some("127.0.0.1:7000"));
        assert_eq!(map.owner(8192).map(|node| &**node), Some("10.0.0.1:7001"));
        crate::fuzz::fuzz(&[whole], |bytes| {
            // What is handed in is one whole frame.
            if let Ok(Some(length)) = crate::resp::scan::ReplyScanner::default().scan(bytes)
                && let Some(map) = parse(&bytes[..length], "10.0.0.1:7001")
            {
                let _ = (map.owner(0), map.owner(u16::MAX), map.slots_lost_by(0, &SlotMap::default()));
            }
        });
    }
}
