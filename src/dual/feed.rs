//! One connection to a node on which all of a worker's subscriptions there are.
//!
//! The node answers in the order of what was sent, between the messages: whoever subscribed to a name hears what comes behind
//! the answer to its own SUBSCRIBE, also where the name was subscribed to before. A feed that breaks, or whose node answers
//! nothing for as long as a reply may take, is given up, and everybody who heard something by it is told.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::dual::engine::Inner;
use crate::dual::push::{Family, Said, Verb, said};
use crate::dual::subscriptions::Change;
use crate::resp::reply::{self, Protocol};
use crate::resp::write;
use crate::store::link::Endpoint;
use crate::store::{LinkError, PrivateLink};

/// How often a feed looks whether its node is alive.
const TICK: Duration = Duration::from_millis(250);
/// Between two tries to connect.
const CONNECT_AGAIN: Duration = Duration::from_millis(50);
/// Frames given to subscribers before other tasks get a turn.
const TURN: usize = 4096;

/// See the module.
pub(super) struct Feed {
    /// The node's address.
    pub home: Arc<str>,
    endpoint: Endpoint,
    out: RefCell<BytesMut>,
    /// What was asked and is not answered, the oldest first. Bound by what sessions may have open.
    owed: RefCell<VecDeque<Owed>>,
    wake: Notify,
    is_closed: Cell<bool>,
}

struct Owed {
    step: Step,
    answer: Answer,
    since: Instant,
}

/// Who waits for an answer.
pub(super) enum Step {
    Change(Rc<Change>),
    /// A subscription that goes over to another store; whether it was refused is noted.
    Carried(Rc<Cell<bool>>),
    /// Everything before it was answered.
    Mark(oneshot::Sender<()>),
    Alive,
}

/// What answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Confirmed(Family, Verb),
    Pong,
}

impl Feed {
    /// Begins to connect.
    pub fn start(engine: &Rc<Inner>, endpoint: Endpoint) -> Rc<Self> {
        let feed = Rc::new(Self {
            home: endpoint.address.clone(),
            endpoint,
            out: RefCell::default(),
            owed: RefCell::default(),
            wake: Notify::new(),
            is_closed: Cell::new(false),
        });
        let (running, engine) = (feed.clone(), engine.clone());
        tokio::task::spawn_local(async move {
            let ended = running.run(&engine).await;
            if let (Err(error), false) = (ended, running.is_closed.replace(true)) {
                engine.lost_feed(&running, &error);
            }
        });
        feed
    }

    /// Subscribes to a name, or ends that.
    pub fn change(&self, family: Family, verb: Verb, name: &[u8], step: Step) {
        self.ask(&[family.command(verb).as_bytes(), name], Answer::Confirmed(family, verb), step);
    }

    /// Is answered when all that was sent before is.
    pub fn mark(&self, step: Step) {
        self.ask(&[b"PING"], Answer::Pong, step);
    }

    fn ask(&self, words: &[&[u8]], answer: Answer, step: Step) {
        write::command(&mut self.out.borrow_mut(), words);
        self.owed.borrow_mut().push_back(Owed { step, answer, since: Instant::now() });
        self.wake.notify_one();
    }

    /// Ends without telling anybody.
    pub fn close(&self) {
        self.is_closed.set(true);
        self.wake.notify_one();
    }

    /// Who still waits; for a feed that was given up.
    pub fn take_owed(&self) -> Vec<Step> {
        self.owed.borrow_mut().drain(..).map(|owed| owed.step).collect()
    }

    async fn run(&self, engine: &Rc<Inner>) -> Result<(), LinkError> {
        let mut link = self.connect().await?;
        let limit = self.endpoint.timeouts.reply;
        let mut ticks = tokio::time::interval(TICK);
        let (mut heard, mut told) = (Instant::now(), 0);
        while !self.is_closed.get() {
            let out = self.out.take();
            if !out.is_empty() {
                let sent = tokio::time::timeout(limit, link.send(&out)).await;
                sent.map_err(|_| LinkError::TimedOut)??;
            }
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                frame = link.receive() => {
                    told += self.take(engine, frame?)?;
                    heard = Instant::now();
                    if told >= TURN {
                        told = 0;
                        tokio::task::yield_now().await;
                    }
                }
                _ = ticks.tick() => {
                    let is_overdue = self.owed.borrow().front().is_some_and(|owed| owed.since.elapsed() > limit);
                    if is_overdue && heard.elapsed() > limit / 2 {
                        return Err(LinkError::TimedOut);
                    }
                    // A node that is gone without a word would leave its subscribers waiting for ever.
                    if heard.elapsed() > limit / 2 && self.owed.borrow().is_empty() {
                        self.mark(Step::Alive);
                    }
                }
            }
        }
        Ok(())
    }

    /// Connects, for as long as the store's patience lasts.
    async fn connect(&self) -> Result<PrivateLink, LinkError> {
        let until = Instant::now() + self.endpoint.timeouts.patience;
        loop {
            match PrivateLink::connect(&self.endpoint, Protocol::Resp3).await {
                Err(error) if Instant::now() >= until || self.is_closed.get() => return Err(error),
                Err(_) => tokio::time::sleep(CONNECT_AGAIN).await,
                connected => return connected,
            }
        }
    }

    /// Gives a frame to whom it belongs; how many that were.
    fn take(&self, engine: &Rc<Inner>, frame: Bytes) -> Result<usize, LinkError> {
        if reply::is_error(&frame) {
            let owed = self.owed.borrow_mut().pop_front();
            if let Some(owed) = owed {
                engine.refused_step(owed.step, &frame);
            }
            return Ok(1);
        }
        if !reply::is_push(&frame) {
            return self.answered(engine, Answer::Pong);
        }
        match said(&frame) {
            Said::Message(family, name) => {
                let name = frame.slice_ref(name);
                Ok(engine.deliver(family, &name, frame))
            }
            Said::Confirmed(family, verb, name) => {
                let is_asked = self.owed.borrow().front().is_some_and(|owed| owed.answers(family, verb, name));
                if !is_asked {
                    // A slot has left the node, and its channels with it.
                    engine.unseated(self, family, &frame.slice_ref(name));
                    return Ok(1);
                }
                self.answered(engine, Answer::Confirmed(family, verb))
            }
            Said::Other => Ok(0),
        }
    }

    fn answered(&self, engine: &Rc<Inner>, answer: Answer) -> Result<usize, LinkError> {
        let is_asked = self.owed.borrow().front().is_some_and(|owed| owed.answer == answer);
        let owed = if is_asked { self.owed.borrow_mut().pop_front() } else { None };
        match owed.ok_or(LinkError::Lost)?.step {
            Step::Change(change) => engine.confirmed(&change),
            // Whoever waited may have given up.
            Step::Mark(told) => drop(told.send(())),
            Step::Carried(_) | Step::Alive => {}
        }
        Ok(1)
    }
}

impl Owed {
    fn answers(&self, family: Family, verb: Verb, name: &[u8]) -> bool {
        let is_named = match &self.step {
            Step::Change(change) => change.name == name,
            _ => true,
        };
        is_named && self.answer == Answer::Confirmed(family, verb)
    }
}
