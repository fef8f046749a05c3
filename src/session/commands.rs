//! Commands with keys, without keys, and scripts.

use bytes::Bytes;

use crate::audit::Kind as Unlike;
use crate::command::{CommandSpec, Keys, Kind};
use crate::dual::lane::Outcome;
use crate::dual::{Caller, ReplyPort, ReplyTo, Target, refusal_of};
use crate::resp::refusal::Refusal;
use crate::resp::reply;
use crate::resp::request::Request;
use crate::routing::{Key, Places, Side};
use crate::session::away::Way;
use crate::session::session::{Flow, Session, Step, keys_at, views_at};
use crate::store::{LinkError, Reply};

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::oneshot;

/// A port for one awaited reply.
pub(super) struct Once(pub(super) RefCell<Option<oneshot::Sender<Result<Bytes, Refusal>>>>);

impl ReplyPort for Once {
    fn deliver(&self, _seq: u64, outcome: Result<Reply<'_>, Refusal>) {
        if let Some(sender) = self.0.borrow_mut().take() {
            // The awaiting side may be gone with its client.
            let _ = sender.send(outcome.map(|reply| reply.to_bytes()));
        }
    }
}

impl Session {
    /// A command that goes where its keys are.
    pub(super) fn keyed(&mut self, request: Request, spec: &'static CommandSpec) -> Step<'_> {
        let engine = &self.shared.engine;
        let Some(places) = self.places(spec, &request) else {
            // The store says what is wrong with the arguments.
            engine.submit_elsewhere(spec, request.into_bytes(), self.caller());
            return Step::Done(Flow::Continue);
        };
        let is_elsewhere = |(index, db): &(usize, u32)| engine.is_elsewhere(*db, request.arg(*index));
        if !engine.has_closed() && !places.iter().any(is_elsewhere) {
            return self.keyed_here(request, spec, &places);
        }
        Step::waits(async move {
            let Way::Here(request) = self.send_away(request, &places).await else { return Flow::Continue };
            self.wait_open(&request, &places).await;
            self.keyed_here(request, spec, &places).await
        })
    }

    fn keyed_here(&mut self, request: Request, spec: &'static CommandSpec, places: &Places) -> Step<'_> {
        let engine = &self.shared.engine;
        if matches!(spec.name, "SORT" | "SORT_RO")
            && (2..request.len()).any(|index| is_pattern_option(request.arg(index)))
        {
            let route = engine.table().route_of(request.arg(1)).0.name.to_string();
            self.audit(spec.name, Unlike::SortPattern, route, || request.arg(1).escape_ascii().to_string());
        }
        if places.len() > 1 && spec.kind == Kind::Keyed {
            self.audit_together(spec.name, Unlike::CrossSlot, &views_at(&request, places));
        }
        if engine.is_simple(&request, places) {
            engine.submit(request, spec, places, self.caller());
            return Step::Done(Flow::Continue);
        }
        let keys = keys_at(&request, places);
        Step::stays(self.run_whole(request, spec, keys))
    }

    /// Waits while the route of a key flips.
    pub(super) async fn wait_open(&self, request: &Request, places: &[(usize, u32)]) {
        let engine = &self.shared.engine;
        while engine.has_closed() && self.is_gated(request, places) {
            engine.opened().await;
        }
    }

    /// Whether the route of a key flips.
    pub(super) fn is_gated(&self, request: &Request, places: &[(usize, u32)]) -> bool {
        let engine = &self.shared.engine;
        places.iter().any(|(index, db)| engine.is_gated(&engine.plan_of(*db, request.arg(*index))))
    }

    /// A command outside of the lanes, whole on one store, after everything before it was answered.
    pub(super) async fn run_whole(&mut self, request: Request, spec: &'static CommandSpec, keys: Vec<Key>) {
        self.replies.settle(0).await;
        let outcome = self.run_guarded(&request, spec, &keys).await;
        self.answer_with(outcome);
    }

    /// Runs a command on the store that leads all of the keys, and resyncs these.
    pub(super) async fn run_guarded(
        &self,
        request: &Request,
        spec: &'static CommandSpec,
        keys: &[Key],
    ) -> Result<Bytes, Refusal> {
        let engine = &self.shared.engine;
        let (begun, target) = self.place_of(self.begin(keys).await?, spec.name, keys).await?;
        let answer = self.call_healed(&target, spec, request).await;
        begun.finish(outcome_of(&answer)).await;
        self.audit_script_error(spec, keys, &answer);
        answer
            .map(|frame| engine.reply_from(&target, self.db, spec, request, frame))
            .map_err(|error| refusal_of(&error))
    }

    /// One command on a store. A script that this store has not seen is loaded there, if the proxy has.
    pub(super) async fn call_healed(
        &self,
        target: &Target,
        spec: &'static CommandSpec,
        request: &Request,
    ) -> Result<Bytes, LinkError> {
        let engine = &self.shared.engine;
        let bytes = engine.request_for(target, self.db, spec, request);
        let answer = engine.call(target, &bytes, self.protocol).await?;
        if spec.kind != Kind::Script || reply::error_word(&answer) != b"NOSCRIPT" {
            return Ok(answer);
        }
        let Some(body) = self.shared.scripts.find(request.arg(1)) else { return Ok(answer) };
        let load = crate::dual::effect::command(&[b"SCRIPT", b"LOAD", &body]);
        engine.call(target, &load, self.protocol).await?;
        engine.call(target, &bytes, self.protocol).await
    }

    /// The one place where all of these keys are led, else why there is none.
    pub(super) fn target_of(
        &self,
        command: &str,
        keys: &[Key],
        mut leaders: impl Iterator<Item = Side>,
    ) -> Result<Target, Refusal> {
        let refuse = |reason| {
            self.shared.engine.note_refused(&keys[0]);
            Err(Refusal::CrossSlot { command: command.to_lowercase(), reason })
        };
        let Some(leader) = leaders.next() else { return Ok(Target::Standalone { db: self.db }) };
        if leaders.any(|other| other != leader) {
            let stays = keys.iter().any(|key| !self.shared.engine.is_moving(key.db));
            return refuse(match stays {
                true => {
                    "one of its databases stays on the standalone, and the cluster leads a key of the other; send it for one database at a time"
                }
                false => {
                    "its keys are led by different stores while their providers move; send it for the keys of one provider at a time"
                }
            });
        }
        if leader == Side::Standalone {
            return Ok(Target::Standalone { db: self.db });
        }
        let engine = &self.shared.engine;
        let slot = engine.slot_of(&keys[0]);
        if keys.iter().any(|key| engine.slot_of(key) != slot) {
            return refuse("its keys are in different slots of the cluster; give them one hash tag");
        }
        Ok(Target::Slot(slot))
    }

    /// One command, awaited, by the same ways as if it had come alone.
    pub(super) async fn run_alone(&self, request: Request, spec: &'static CommandSpec) -> Result<Bytes, Refusal> {
        let places = self.places(spec, &request).ok_or(Refusal::Syntax)?;
        self.wait_open(&request, &places).await;
        let (sender, receiver) = oneshot::channel();
        let to = ReplyTo { port: Rc::new(Once(RefCell::new(Some(sender)))), seq: 0 };
        self.shared.engine.submit(request, spec, &places, Caller { db: self.db, protocol: self.protocol, to });
        receiver.await.unwrap_or(Err(Refusal::UnknownOutcome))
    }

    /// A command without a key: the standalone answers.
    pub(super) fn keyless(&mut self, request: Request, spec: &'static CommandSpec) -> Step<'_> {
        // WAIT would make every other client of a shared link wait.
        if matches!(spec.name, "WAIT" | "WAITAOF") {
            return Step::stays(self.block(request, spec));
        }
        if spec.name == "CONFIG" && locks_out(&request) {
            let reason = "it would change how the proxy itself reaches the store";
            self.refuse(Refusal::NotSupported { command: "config|set".into(), reason });
        } else {
            self.shared.engine.submit_elsewhere(spec, request.into_bytes(), self.caller());
        }
        Step::Done(Flow::Continue)
    }

    /// SCRIPT and FUNCTION concern every node of the cluster too.
    pub(super) async fn tell_primaries(&self, request: &Request, spec: &CommandSpec) {
        self.shared.scripts.note(spec, request);
        let engine = &self.shared.engine;
        for address in engine.stores().primaries() {
            // A node that fails here answers NOSCRIPT later, and is healed then.
            let _ = engine.call(&Target::Node(address), request.bytes(), self.protocol).await;
        }
    }

    /// Scripts: on the store of their keys; without keys where keys without a provider are. Loaded scripts go to every node.
    pub(super) async fn script(&mut self, request: Request, spec: &'static CommandSpec) {
        let engine = self.shared.engine.clone();
        if !self.is_moving_db() {
            return engine.submit_elsewhere(spec, request.into_bytes(), self.caller());
        }
        self.replies.settle(0).await;
        if matches!(spec.keys, Keys::None) {
            self.tell_primaries(&request, spec).await;
            return engine.submit_elsewhere(spec, request.into_bytes(), self.caller());
        }
        let undeclared = self.shared.scripts.note(spec, &request);
        let Some(places) = self.places(spec, &request) else {
            return engine.submit_elsewhere(spec, request.into_bytes(), self.caller());
        };
        if let Some(undeclared) = undeclared {
            self.note_undeclared(spec, &keys_at(&request, &places), &undeclared);
        }
        if !places.is_empty() {
            self.audit_together(spec.name, Unlike::CrossSlot, &views_at(&request, &places));
            let keys = keys_at(&request, &places);
            return self.run_whole(request, spec, keys).await;
        }
        self.audit(spec.name, Unlike::ScriptWithoutKeys, String::new(), || request.arg(1).escape_ascii().to_string());
        if !engine.is_holder()
            && let Some(outcome) = self.keyless_away(&request, spec).await
        {
            return self.answer_with(outcome);
        }
        // What it touches undeclared is on the store of these, or the store says that it is not.
        let nothing = Key { name: Bytes::new(), db: self.db };
        let target = match engine.plan(&nothing).leader {
            Side::Standalone => Target::Standalone { db: self.db },
            Side::Cluster => Target::Slot(engine.slot_of(&nothing)),
        };
        let answer = self.call_healed(&target, spec, &request).await;
        self.audit_script_error(spec, &[], &answer);
        self.answer_with(answer.map_err(|error| refusal_of(&error)));
    }
}

/// Whether a CONFIG SET could leave the proxy without its store.
fn locks_out(request: &Request) -> bool {
    let is_one = |name: &[u8]| LOCKS_OUT.iter().any(|own| name.eq_ignore_ascii_case(own));
    request.arg(1).eq_ignore_ascii_case(b"SET") && request.args().skip(2).step_by(2).any(is_one)
}

/// Settings of a store that say who may connect to it, and where.
const LOCKS_OUT: [&[u8]; 4] = [b"requirepass", b"port", b"bind", b"tls-port"];

/// Whether an argument of SORT names other keys by a pattern.
fn is_pattern_option(arg: &[u8]) -> bool {
    arg.eq_ignore_ascii_case(b"BY") || arg.eq_ignore_ascii_case(b"GET")
}

/// What an awaited answer says of the keys: an error may come from the middle of a script, so it counts as done.
pub(super) fn outcome_of(answer: &Result<Bytes, crate::store::LinkError>) -> Outcome {
    match answer {
        Ok(frame) if reply::error_word(frame) == b"EXECABORT" || reply::error_word(frame) == b"NOSCRIPT" => {
            Outcome::Refused
        }
        Ok(_) => Outcome::Done,
        Err(error) if !error.may_have_run() => Outcome::Refused,
        Err(_) => Outcome::Doubt,
    }
}
