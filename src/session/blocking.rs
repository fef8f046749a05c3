//! Commands that wait for data: each on a connection of its own, which the server is told to drop when the client goes away, so
//! that nothing is popped for nobody, and before the keys are copied, so that nothing is popped behind the copy. A flip of the route wakes them (CLIENT UNBLOCK; the reply says whether it popped) and they
//! are issued again on the new leader with the time that remains.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::audit::Kind as Unlike;
use crate::command::CommandSpec;
use crate::dual::{Target, Wrote, refusal_of};
use crate::resp::refusal::Refusal;
use crate::resp::reply;
use crate::resp::request::Request;
use crate::resp::write;
use crate::routing::Key;
use crate::session::clients::Wish;
use crate::session::commands::outcome_of;
use crate::session::session::{Session, keys_at, views_at};
use crate::store::{LinkError, PrivateLink};

/// The store has the time-out too; the proxy's own clock answers if the store doesn't.
const GRACE: Duration = Duration::from_millis(500);
/// How long a store that does not answer is asked to drop a connection.
const DROP_PATIENCE: Duration = Duration::from_secs(10);

/// How long a store may take to wake a command, and after how long it is told to once more.
const WAKE_PATIENCE: Duration = Duration::from_secs(2);
const WAKE_AGAIN: Duration = Duration::from_millis(20);

enum Ended {
    Answered(Bytes),
    /// The route flips and nothing was taken.
    Woken,
    /// CLIENT UNBLOCK, and nothing was taken.
    Unblocked(Wish),
    ClientGone,
}

impl Session {
    /// A command that may wait.
    pub(super) async fn block(&mut self, request: Request, spec: &'static CommandSpec) {
        self.replies.settle(0).await;
        let Some(places) = self.places(spec, &request) else {
            return self.shared.engine.clone().submit_elsewhere(spec, request.into_bytes(), self.caller());
        };
        self.audit_together(spec.name, Unlike::CrossSlot, &views_at(&request, &places));
        let keys = keys_at(&request, &places);
        let time = time_argument(spec, &request);
        let until = time.and_then(|(_, limit)| limit).map(|limit| Instant::now() + limit);
        loop {
            let request = match (time, until) {
                (Some((index, Some(_))), Some(until)) => with_time(&request, spec, index, until),
                _ => request.clone(),
            };
            match self.block_once(&request, spec, &keys, until).await {
                Ok(Ended::Answered(frame)) => return self.answer_with(Ok(frame)),
                Ok(Ended::Woken) if until.is_some_and(|until| Instant::now() >= until) => {
                    return self.answer_nothing(spec);
                }
                // The program ends: the client connects to its successor and asks again.
                Ok(Ended::Woken) if self.shared.engine.is_stopping() => return self.replies.close(),
                Ok(Ended::Woken) => {}
                Ok(Ended::Unblocked(Wish::UnblockWithError)) => {
                    return self.refuse(Refusal::Verbatim("UNBLOCKED client unblocked via CLIENT UNBLOCK".into()));
                }
                Ok(Ended::Unblocked(_)) => return self.answer_nothing(spec),
                Ok(Ended::ClientGone) => return self.replies.close(),
                Err(refusal) => return self.refuse(refusal),
            }
        }
    }

    fn answer_nothing(&self, spec: &CommandSpec) {
        let mut out = BytesMut::new();
        match spec.name {
            "BLMOVE" | "BRPOPLPUSH" => write::null(&mut out, self.protocol),
            _ => write::null_array(&mut out, self.protocol),
        }
        self.answer(&out);
    }

    async fn block_once(
        &mut self,
        request: &Request,
        spec: &'static CommandSpec,
        keys: &[Key],
        until: Option<Instant>,
    ) -> Result<Ended, Refusal> {
        let engine = self.shared.engine.clone();
        // Not held in first-touch mode: a held key could not be pushed to, and the command would wait for itself.
        // What comes before and after the wait stands in boxes of its own, so that who waits has no room for it.
        let begun = Box::pin(self.begin_blocking(keys)).await?;
        let (begun, target) = Box::pin(self.place_of(begun, spec.name, keys)).await?;
        let mut link = match Box::pin(self.private_link(&target)).await {
            Ok(link) => link,
            Err(refusal) => {
                begun.finish(crate::dual::lane::Outcome::Refused).await;
                return Err(refusal);
            }
        };
        self.client.is_blocked.store(true, Ordering::Relaxed);
        let unanswered = engine.count_sent(&target, Wrote::of(spec));
        let answer = self.wait_for(request, spec, &target, &mut link, keys, until).await;
        if matches!(answer, Ok(Ended::ClientGone) | Err(_)) && !Box::pin(self.is_over(&mut link, &target)).await {
            self.doubt_blocked(spec, keys);
        } else if let Some(unanswered) = unanswered {
            unanswered.answered();
        }
        drop(link);
        self.note_activity();
        self.client.is_blocked.store(false, Ordering::Relaxed);
        let outcome = match &answer {
            Ok(Ended::Answered(frame)) if reply::is_null(frame) => crate::dual::lane::Outcome::Refused,
            Ok(Ended::Answered(frame)) => outcome_of(&Ok(frame.clone())),
            Ok(Ended::Woken | Ended::Unblocked(_)) => crate::dual::lane::Outcome::Refused,
            Ok(Ended::ClientGone) => crate::dual::lane::Outcome::Doubt,
            Err(error) => outcome_of(&Err(error.clone())),
        };
        begun.finish(outcome).await;
        let own = |frame| engine.reply_from(&target, self.db, spec, request, frame);
        let answer =
            answer.map(|ended| if let Ended::Answered(frame) = ended { Ended::Answered(own(frame)) } else { ended });
        answer.map_err(|error| refusal_of(&error))
    }

    async fn wait_for(
        &mut self,
        request: &Request,
        spec: &'static CommandSpec,
        target: &Target,
        link: &mut PrivateLink,
        keys: &[Key],
        until: Option<Instant>,
    ) -> Result<Ended, LinkError> {
        let engine = self.shared.engine.clone();
        if !self.may_send(target, keys) {
            return Err(LinkError::Down("the lease has ended".into()));
        }
        link.send(&engine.request_for(target, self.db, spec, request)).await?;
        let late = until.map(|until| tokio::time::Instant::from_std(until + GRACE));
        let client = self.client.clone();
        loop {
            // Asked each time before waiting: a gate that closed while the connection was opened wakes nobody.
            let is_flipping = || keys.iter().any(|key| engine.is_gated(&engine.plan(key)));
            if engine.is_stopping() || (engine.has_closed() && is_flipping()) || self.belongs_elsewhere(target, keys) {
                return Box::pin(self.unblock(spec, target, link)).await;
            }
            let overdue = async {
                match late {
                    Some(late) => tokio::time::sleep_until(late).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                frame = link.receive() => return frame.map(Ended::Answered),
                read = self.read() => if !read { return Ok(Ended::ClientGone) },
                () = client.bell.rung() => match client.take_wish() {
                    _ if self.replies.is_closed() => return Ok(Ended::ClientGone),
                    Wish::Kill => return Ok(Ended::ClientGone),
                    Wish::None => {}
                    wish => {
                        let ended = Box::pin(self.unblock(spec, target, link)).await?;
                        return Ok(if matches!(ended, Ended::Woken) { Ended::Unblocked(wish) } else { ended });
                    }
                },
                () = overdue => return Box::pin(self.unblock(spec, target, link)).await,
                () = engine.closing() => {}
            }
        }
    }

    /// Wakes the command; its reply decides whether it took something. Where it cannot be woken nobody knows.
    async fn unblock(&self, spec: &CommandSpec, target: &Target, link: &mut PrivateLink) -> Result<Ended, LinkError> {
        let id = link.id().to_string();
        let until = Instant::now() + WAKE_PATIENCE;
        let frame = loop {
            let told = self.tell_node_of(link, target, &[b"CLIENT", b"UNBLOCK", id.as_bytes()]).await;
            if told.is_none_or(|answer| reply::is_error(&answer)) {
                return Err(LinkError::Lost);
            }
            // Sent on another connection it may have come before the command, which then waits: it is told again.
            match tokio::time::timeout(WAKE_AGAIN, link.receive()).await {
                Ok(frame) => break frame?,
                Err(_) if Instant::now() >= until => return Err(LinkError::TimedOut),
                Err(_) => {}
            }
        };
        let took_nothing = reply::is_null(&frame) || spec.name.starts_with("WAIT");
        Ok(if took_nothing { Ended::Woken } else { Ended::Answered(frame) })
    }

    /// Has the server drop a connection, so that nothing that comes to its keys from now on is given to it; false: it would
    /// not, or did not say. Closing our end alone tells it some time later.
    async fn is_over(&self, link: &mut PrivateLink, target: &Target) -> bool {
        let id = link.id().to_string();
        let until = Instant::now() + DROP_PATIENCE;
        loop {
            // It has answered, or was closed already.
            if tokio::time::timeout(Duration::ZERO, link.receive()).await.is_ok() {
                return true;
            }
            match self.tell_node_of(link, target, &[b"CLIENT", b"KILL", b"ID", id.as_bytes()]).await {
                Some(answer) => return !reply::is_error(&answer),
                None if Instant::now() >= until => return false,
                None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// A command about a connection, to the node that has it: on another one its number is somebody else's.
    async fn tell_node_of(&self, link: &PrivateLink, target: &Target, words: &[&[u8]]) -> Option<Bytes> {
        let node = match target {
            Target::Standalone { .. } | Target::Peer { .. } => target.clone(),
            Target::Slot(_) | Target::Node(_) => Target::Node(link.address().clone()),
        };
        self.shared.engine.call(&node, &crate::dual::effect::command(words), self.protocol).await.ok()
    }

    /// Its keys are copied, and may be popped behind the copy.
    fn doubt_blocked(&self, spec: &CommandSpec, keys: &[Key]) {
        for route in keys.iter().filter_map(|key| self.shared.engine.doubt_route_of(key)) {
            tracing::warn!(
                %route,
                command = spec.name,
                "a store did not drop a connection that waits for data (CLIENT KILL), and may still give it some: the route is in doubt until a backfill has gone through it"
            );
        }
    }
}

/// Which argument is the time-out, and how long it is (`None`: for ever).
fn time_argument(spec: &CommandSpec, request: &Request) -> Option<(usize, Option<Duration>)> {
    let (index, per_second) = match spec.name {
        "BLMPOP" | "BZMPOP" => (1, 1.0),
        "WAIT" => (2, 1000.0),
        "WAITAOF" => (3, 1000.0),
        "XREAD" | "XREADGROUP" => {
            let at = (1..request.len()).find(|index| request.arg(*index).eq_ignore_ascii_case(b"BLOCK"))? + 1;
            (at, 1000.0)
        }
        _ => (request.len() - 1, 1.0),
    };
    let value: f64 = std::str::from_utf8(request.args().nth(index)?).ok()?.parse().ok()?;
    let limit = (value > 0.0 && value < 1e12).then(|| Duration::from_secs_f64(value / per_second));
    Some((index, limit))
}

/// The same request with the time that remains.
fn with_time(request: &Request, spec: &CommandSpec, index: usize, until: Instant) -> Request {
    let rest = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let text = match spec.name {
        "XREAD" | "XREADGROUP" | "WAIT" | "WAITAOF" => rest.as_millis().max(1).to_string(),
        _ => format!("{:.3}", rest.as_secs_f64()),
    };
    let args: Vec<&[u8]> =
        request.args().enumerate().map(|(at, arg)| if at == index { text.as_bytes() } else { arg }).collect();
    Request::from_args(&args)
}
