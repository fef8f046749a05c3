//! The lane: the order of the writes to a key, and what each answer of a store means for it.
//!
//! Pure: no socket, clock or random. Events come in as method calls, what is to be done goes out as [`Order`]s, which
//! the engine carries out in the order given. A lane remembers a key only while it is *exceptional*: a copy in flight, a
//! divergence, a first touch. All other keys cost one look into an empty map, because the links are FIFOs: what is
//! appended to the leader's link first is answered first, and effects are appended to the follower's link in that order.
//!
//! The lane promises: the follower never gets an effect that builds on a value which it is not known to have (I3); what is
//! uncertain stays diverged until a copy has put it right (I5); in first-touch mode a key is busy from the first touch
//! until both stores have the write, and a diverged key is never fetched from the follower (I4). A mirrored route with
//! `ack = "both"` goes the same way without the fetching, so that what anybody has seen of a key is on both stores or in
//! the journal.

use std::collections::{HashMap, VecDeque};

use crate::dual::presence::Presence;
use crate::routing::{Ack, Coverage, DualState, Key, Phase, Plan};

/// How the stores of a route stand to each other when an operation arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The leader has every key; the follower gets effects. `synced`: the follower has every key too.
    Mirror { synced: bool },
    /// The same, and a write is answered when both stores have it, or the follower has not and the journal says so.
    Both { synced: bool },
    /// The leader may lack keys that the follower still has (`dual-cluster` before it is synced).
    FirstTouch,
}

impl Mode {
    /// The mode of a key whose plan has a follower.
    pub fn of(plan: &Plan) -> Self {
        Self::in_phase(plan.phase, plan.ack, plan.dual.as_deref())
    }

    /// The mode of a dual phase, by what is known of the stores.
    pub fn in_phase(phase: Phase, ack: Ack, dual: Option<&DualState>) -> Self {
        let synced = match dual.map(DualState::coverage) {
            Some(Coverage::StandaloneOnly) if phase == Phase::DualCluster => return Self::FirstTouch,
            Some(Coverage::Both) => !dual.is_some_and(DualState::is_in_doubt),
            _ => false,
        };
        match ack {
            Ack::Leader => Self::Mirror { synced },
            Ack::Both => Self::Both { synced },
        }
    }

    /// Whether a key is busy until both stores have a write to it, and what failed is in the journal before it is shown.
    pub fn is_strict(self) -> bool {
        !matches!(self, Self::Mirror { .. })
    }
}

/// What an operation does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Reads the key, or does nothing to it.
    Read,
    /// Writes it, and neither the answer nor the effect depends on what was there (SET).
    Overwrite,
    /// Writes it by what is there, and the effect makes the follower's value right whatever it was before: the leader's
    /// answer has decided (SET NX, GETSET, INCR, DEL).
    Resolve,
    /// Writes it, and the effect is right only on an equal value (HSET, LPUSH, EXPIRE).
    Update,
    /// Writes it in a way that only a copy repeats.
    Opaque,
    /// Keeps the key from everyone else until `release`, for a command that runs outside of the lane. Strict modes only.
    Hold,
    /// Only brings the key over to the leader (bulk backfill in first-touch mode).
    Touch,
    /// The same, and keeps the key known as brought over until it is given back: a command that runs outside of the lane
    /// changes it while others use it.
    Lend,
}

/// What the lane wants done. `O` names an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order<O> {
    /// Append the operation to the leader's link, report `led`. `follow`: its effect will be wanted if it succeeds.
    Lead {
        op: O,
        follow: bool,
    },
    /// Append the operation's effect to the follower's link, report `followed`.
    Follow {
        op: O,
    },
    /// Append DUMP and PEXPIRETIME of the key to the leader's link, report `dumped`; the engine keeps the payload.
    Dump {
        key: Key,
    },
    /// Append RESTORE … REPLACE, or DEL where the dump said absent, to the follower's link, report `restored`.
    Restore {
        key: Key,
    },
    /// Bring the key from the follower to the leader unless the leader has it, report how it was [`Fetched`].
    Fetch {
        key: Key,
    },
    /// Write the key to the journal and have it on disk, report `journaled`. Nobody is answered before.
    Journal {
        key: Key,
    },
    /// The operation is over and its client may be answered.
    Reply {
        op: O,
    },
    /// The operation is over: the key could not be fetched, so nothing was done.
    Unavailable {
        op: O,
    },
    /// A `Hold` was granted.
    Granted {
        op: O,
    },
    /// The key became diverged, or ceased to be.
    Diverged {
        key: Key,
    },
    Repaired {
        key: Key,
    },
}

/// What became of something that was sent to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The store answered with an error: it did nothing.
    Refused,
    /// Nobody knows whether it ran.
    Doubt,
}

/// What became of a `Fetch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The leader lacked the key and now has what the follower has.
    Brought,
    /// The leader had the key already, or the follower has none. That both have the same is not proved by it: a crash may
    /// have come between the leader's write and the follower's.
    Unproven,
    /// It did not come about.
    Failed,
}

#[derive(Clone, Debug)]
enum Stage<O> {
    /// Nothing in flight; the entry exists because the key is diverged.
    Idle,
    /// A dump is on its way to the follower. `dirty`: a write was sent behind the dump, so another must follow.
    /// `strict`: nobody is served meanwhile, and if the copy fails the key goes into the journal first, for what the
    /// leader has was perhaps never on the follower. `holds`: the copy reads the key more than once, so writes wait.
    Copying {
        dirty: bool,
        strict: bool,
        holds: bool,
    },
    /// First-touch only.
    Fetching,
    /// In the strict modes only, all that follow: the key is busy and later operations wait in the queue.
    /// `is_settled`: the leader is known to have what the follower has.
    Running {
        op: O,
        work: Work,
        is_settled: bool,
    },
    Following {
        op: O,
    },
    /// The copy after a held or opaque operation.
    Settling {
        op: O,
    },
    Journaling {
        op: Option<O>,
    },
    Held {
        op: O,
    },
}

#[derive(Clone, Debug)]
struct Entry<O> {
    stage: Stage<O>,
    /// Of the route when it was last looked at. A strict stage may end after its route has become a mirrored one.
    mode: Mode,
    diverged: bool,
    /// The journal has it on disk, and need not be waited for again.
    is_journaled: bool,
    /// First-touch only: diverged by an overwrite of which nobody knows whether it ran, before the key was brought over. The
    /// old value may be on the follower alone, so it is fetched before anything else is made of it.
    is_unfetched: bool,
    queue: VecDeque<(O, Work)>,
    /// Those who asked for the copy and want to hear of its end.
    waiters: Vec<O>,
    /// How often the key was lent to commands that wait for the copy: given back when it begins.
    returning: u32,
}

impl<O> Entry<O> {
    fn new(stage: Stage<O>, mode: Mode) -> Self {
        Self {
            stage,
            mode,
            diverged: false,
            is_journaled: false,
            is_unfetched: false,
            queue: VecDeque::new(),
            waiters: Vec::new(),
            returning: 0,
        }
    }

    /// Diverged, and the leader has all that there is to be had: a copy from it puts the key right.
    fn is_led(&self) -> bool {
        self.diverged && !self.is_unfetched
    }
}

/// [`Lane::resync`] or [`Lane::give_back_changed`].
pub type AskForCopy<O> = fn(&mut Lane<O>, &Key, O, Mode, u32, &mut Vec<Order<O>>);

/// See the module.
#[derive(Clone, Debug)]
pub struct Lane<O> {
    entries: HashMap<Key, Entry<O>>,
    present: Presence,
    /// Keys that commands outside of the lane may change at any moment, and how many of these there are. The leader has all
    /// there is of them, also where presence is forgotten meanwhile: were such a key fetched between a command that emptied
    /// it and the copy that follows, it would be back from the dead.
    lent: HashMap<Key, u32>,
    diverged_count: usize,
}

impl<O: Clone + PartialEq> Lane<O> {
    /// A lane that remembers up to `present_max` keys as whole on both stores.
    pub fn new(present_max: usize) -> Self {
        Self { entries: HashMap::new(), present: Presence::new(present_max), lent: HashMap::new(), diverged_count: 0 }
    }

    /// How many keys are exceptional, and how many of these diverged.
    pub fn sizes(&self) -> (usize, usize) {
        (self.entries.len(), self.diverged_count)
    }

    /// An operation arrives. `generation` is the route's: what was present under an older one counts for nothing.
    /// True: the operation ends with `Reply` or `Unavailable` (or is `Granted` first); false: with the leader's answer.
    pub fn arrive(
        &mut self,
        key: &Key,
        op: O,
        work: Work,
        mode: Mode,
        generation: u32,
        orders: &mut Vec<Order<O>>,
    ) -> bool {
        let entry = self.entries.get_mut(key);
        let is_busy = entry.is_some_and(|entry| {
            entry.mode = mode;
            !matches!(entry.stage, Stage::Idle)
        });
        match mode {
            Mode::Mirror { synced } => return self.arrive_mirror(key, op, work, synced, generation, orders),
            Mode::Both { .. } | Mode::FirstTouch if is_busy => {
                if let Some(entry) = self.entries.get_mut(key) {
                    entry.queue.push_back((op, work));
                    // A copy that began while answers did not wait for the follower does not show who came before.
                    if let Stage::Copying { strict, .. } = &mut entry.stage {
                        *strict = true;
                    }
                }
            }
            Mode::Both { .. } | Mode::FirstTouch => self.begin(key, op, work, mode, generation, orders),
        }
        work != Work::Read
    }

    fn arrive_mirror(
        &mut self,
        key: &Key,
        op: O,
        work: Work,
        synced: bool,
        generation: u32,
        orders: &mut Vec<Order<O>>,
    ) -> bool {
        let is_free = |entry: &Entry<O>| matches!(entry.stage, Stage::Idle | Stage::Copying { .. });
        if matches!(work, Work::Hold | Work::Touch | Work::Lend) && self.entries.get(key).is_none_or(is_free) {
            // Asked for while the route was in first-touch mode. The leader has every key by now, so there is nothing to
            // fetch, and what a holder does is copied when it releases.
            if work == Work::Lend {
                self.lend(key);
            }
            orders.extend((work == Work::Hold).then(|| Order::Granted { op: op.clone() }));
            orders.push(Order::Reply { op });
            return true;
        }
        if let Some(entry) = self.entries.get_mut(key) {
            // A walk has brought every key over since.
            entry.is_unfetched = false;
            match &mut entry.stage {
                Stage::Idle => orders.push(Order::Lead { op, follow: false }),
                Stage::Copying { dirty, holds, .. } if entry.queue.is_empty() && !(*holds && work != Work::Read) => {
                    *dirty |= work != Work::Read;
                    orders.push(Order::Lead { op, follow: false });
                }
                // The route became synced while the key was busy in first-touch mode, or a copy holds it.
                _ => {
                    entry.queue.push_back((op, work));
                    return work != Work::Read;
                }
            }
            return false;
        }
        let follow = match work {
            Work::Read | Work::Hold | Work::Touch | Work::Lend => false,
            Work::Overwrite | Work::Resolve => true,
            Work::Update => synced || self.present.has(generation, key),
            Work::Opaque => false,
        };
        orders.push(Order::Lead { op, follow });
        if !follow && matches!(work, Work::Update | Work::Opaque) {
            let copying = Stage::Copying { dirty: false, strict: false, holds: false };
            self.entries.insert(owned(key), Entry::new(copying, Mode::Mirror { synced }));
            orders.push(Order::Dump { key: key.clone() });
        }
        false
    }

    /// A strict mode: an operation on a key that is not busy.
    fn begin(&mut self, key: &Key, op: O, work: Work, mode: Mode, generation: u32, orders: &mut Vec<Order<O>>) {
        let is_diverged = self.entries.get(key).is_some_and(|entry| entry.diverged);
        let is_led = self.entries.get(key).is_some_and(Entry::is_led);
        // Where the leader has every key there is nothing to bring over.
        let is_settled = mode != Mode::FirstTouch || is_led || self.is_brought_over(generation, key);
        if !is_settled && work != Work::Overwrite {
            let entry = self.entries.entry(owned(key)).or_insert_with(|| Entry::new(Stage::Fetching, mode));
            entry.stage = Stage::Fetching;
            entry.queue.push_front((op, work));
            orders.push(Order::Fetch { key: key.clone() });
            return;
        }
        // Repeated on another value an update would leave one that nobody ever wrote.
        let is_whole = !is_diverged
            && match mode {
                Mode::Mirror { synced } | Mode::Both { synced } => synced || self.present.has(generation, key),
                Mode::FirstTouch => true,
            };
        let work = if work == Work::Update && !is_whole { Work::Opaque } else { work };
        let stage = match work {
            // On a key that nobody is writing a read needs no entry: the link keeps it before any later write.
            Work::Read => return orders.push(Order::Lead { op, follow: false }),
            Work::Touch => return orders.push(Order::Reply { op }),
            Work::Lend => {
                self.lend(key);
                return orders.push(Order::Reply { op });
            }
            Work::Hold => {
                orders.push(Order::Granted { op: op.clone() });
                Stage::Held { op }
            }
            Work::Overwrite | Work::Resolve | Work::Update | Work::Opaque => {
                orders.push(Order::Lead { op: op.clone(), follow: work != Work::Opaque });
                Stage::Running { op, work, is_settled }
            }
        };
        self.entries.entry(owned(key)).or_insert_with(|| Entry::new(Stage::Idle, mode)).stage = stage;
    }

    /// Asks for a copy leader to follower; `op` gets `Reply` when the stores were equal once after this call, or
    /// `Unavailable` if the copy failed (the key is then diverged, or was never fetched).
    pub fn resync(&mut self, key: &Key, op: O, mode: Mode, generation: u32, orders: &mut Vec<Order<O>>) {
        self.ask_for_copy(key, op, 0, mode, generation, orders);
    }

    /// A command to which the key was lent may have changed it: the same, and the key is given back.
    pub fn give_back_changed(&mut self, key: &Key, op: O, mode: Mode, generation: u32, orders: &mut Vec<Order<O>>) {
        self.ask_for_copy(key, op, 1, mode, generation, orders);
    }

    /// The key was lent to so many commands that are over, and nothing remains to be copied but what is asked for already.
    pub fn give_back(&mut self, key: &Key, times: u32) {
        if let Some(count) = self.lent.get_mut(key) {
            *count = count.saturating_sub(times);
            if *count == 0 {
                self.lent.remove(key);
            }
        }
    }

    fn lend(&mut self, key: &Key) {
        *self.lent.entry(owned(key)).or_default() += 1;
    }

    /// First-touch: whether the leader is known to have all there is of a key.
    fn is_brought_over(&self, generation: u32, key: &Key) -> bool {
        self.present.has(generation, key) || (!self.lent.is_empty() && self.lent.contains_key(key))
    }

    fn ask_for_copy(
        &mut self,
        key: &Key,
        op: O,
        returning: u32,
        mode: Mode,
        generation: u32,
        orders: &mut Vec<Order<O>>,
    ) {
        let entry = self.entries.entry(owned(key)).or_insert_with(|| Entry::new(Stage::Idle, mode));
        entry.mode = mode;
        entry.waiters.push(op);
        entry.returning += returning;
        match &mut entry.stage {
            Stage::Idle => self.copy_to_follower(key, mode, generation, orders),
            Stage::Copying { dirty, .. } => {
                *dirty = true;
                let returning = std::mem::take(&mut entry.returning);
                self.give_back(key, returning);
            }
            // Busy in a strict mode: `next` copies before it goes on with the queue.
            _ => {}
        }
    }

    /// Copies a key for which nothing is in flight. What the leader lacks may still be on the follower only, and then a copy
    /// would delete it: in first-touch mode a key that is not settled is fetched first.
    fn copy_to_follower(&mut self, key: &Key, mode: Mode, generation: u32, orders: &mut Vec<Order<O>>) {
        let is_brought_over = self.is_brought_over(generation, key);
        let Some(entry) = self.entries.get_mut(key) else { return };
        let is_settled = if entry.diverged { entry.is_led() } else { is_brought_over };
        if mode == Mode::FirstTouch && !is_settled {
            entry.stage = Stage::Fetching;
            return orders.push(Order::Fetch { key: key.clone() });
        }
        entry.is_unfetched = false;
        entry.stage = Stage::Copying { dirty: false, strict: mode.is_strict(), holds: false };
        let returning = std::mem::take(&mut entry.returning);
        self.give_back(key, returning);
        orders.push(Order::Dump { key: key.clone() });
    }

    /// The leader answered an operation that had been ordered with `Lead`. In mirror mode the client has its reply.
    /// `Order::Follow` comes out if the effect is to be sent.
    pub fn led(
        &mut self,
        key: &Key,
        op: O,
        follow: bool,
        outcome: Outcome,
        generation: u32,
        orders: &mut Vec<Order<O>>,
    ) {
        let Some(entry) = self.entries.get_mut(key) else {
            match outcome {
                Outcome::Done if follow => orders.push(Order::Follow { op }),
                Outcome::Doubt => self.diverge(key, orders),
                _ => {}
            }
            return;
        };
        match &mut entry.stage {
            Stage::Running { op: running, work, is_settled } if *running == op => match outcome {
                Outcome::Done if *work == Work::Opaque => {
                    entry.stage = Stage::Settling { op };
                    orders.push(Order::Dump { key: key.clone() });
                }
                Outcome::Done => {
                    entry.is_unfetched = false;
                    entry.stage = Stage::Following { op: op.clone() };
                    orders.push(Order::Follow { op });
                }
                Outcome::Refused => {
                    orders.push(Order::Reply { op });
                    self.next(key, generation, orders);
                }
                Outcome::Doubt if *is_settled => self.journal(key, Some(op), generation, orders),
                // Nothing to keep in the journal: a crash from here on is a crash before the write.
                Outcome::Doubt => {
                    entry.is_unfetched = true;
                    self.diverge(key, orders);
                    orders.push(Order::Reply { op });
                    self.next(key, generation, orders);
                }
            },
            // A write that was sent before the copy or the divergence began: the next dump stands behind it.
            Stage::Copying { dirty, .. } => *dirty |= outcome == Outcome::Doubt,
            // One that was sent before answers began to wait for the follower.
            Stage::Running { .. } => match outcome {
                Outcome::Done if follow => orders.push(Order::Follow { op }),
                Outcome::Doubt => self.diverge(key, orders),
                _ => {}
            },
            _ => {}
        }
    }

    /// The follower answered an effect. `whole`: the effect leaves a whole value (an overwrite).
    pub fn followed(
        &mut self,
        key: &Key,
        op: O,
        outcome: Outcome,
        whole: bool,
        generation: u32,
        orders: &mut Vec<Order<O>>,
    ) {
        if let Some(entry) = self.entries.get_mut(key)
            && matches!(&entry.stage, Stage::Following { op: following } if *following == op)
        {
            match outcome {
                // Something that was sent before the key became busy has failed since, and this effect was built on it.
                Outcome::Done if entry.diverged && !whole => {
                    entry.stage = Stage::Settling { op };
                    orders.push(Order::Dump { key: key.clone() });
                }
                Outcome::Done => {
                    self.settle(key, generation, orders);
                    orders.push(Order::Reply { op });
                    self.next(key, generation, orders);
                }
                Outcome::Refused | Outcome::Doubt => self.journal(key, Some(op), generation, orders),
            }
            return;
        }
        match outcome {
            Outcome::Done => {}
            Outcome::Refused | Outcome::Doubt => self.diverge(key, orders),
        }
    }

    /// The dump came back (or did not): `Refused` is not possible but for a broken leader, and then counts as doubt.
    pub fn dumped(&mut self, key: &Key, outcome: Outcome, generation: u32, orders: &mut Vec<Order<O>>) {
        match outcome {
            Outcome::Done => orders.push(Order::Restore { key: key.clone() }),
            Outcome::Refused | Outcome::Doubt => self.restored(key, Outcome::Doubt, generation, orders),
        }
    }

    /// The follower took the copy, or did not.
    pub fn restored(&mut self, key: &Key, outcome: Outcome, generation: u32, orders: &mut Vec<Order<O>>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        match &mut entry.stage {
            Stage::Copying { dirty, .. } if outcome == Outcome::Done => {
                if *dirty {
                    *dirty = false;
                    return orders.push(Order::Dump { key: key.clone() });
                }
                orders.extend(entry.waiters.drain(..).map(|op| Order::Reply { op }));
                self.settle(key, generation, orders);
                self.next(key, generation, orders);
            }
            Stage::Copying { strict, .. } => {
                orders.extend(entry.waiters.drain(..).map(|op| Order::Unavailable { op }));
                if *strict {
                    return self.journal(key, None, generation, orders);
                }
                entry.stage = Stage::Idle;
                self.diverge(key, orders);
                self.next(key, generation, orders);
            }
            Stage::Settling { op } => {
                let op = op.clone();
                if outcome == Outcome::Done {
                    self.settle(key, generation, orders);
                    orders.push(Order::Reply { op });
                    self.next(key, generation, orders);
                } else {
                    self.journal(key, Some(op), generation, orders);
                }
            }
            _ => {}
        }
    }

    /// The copy under way reads the key piece by piece from now on: writes wait until it is over, reads do not. What was
    /// sent before stands before the first piece in the leader's link.
    pub fn hold_copy(&mut self, key: &Key) {
        if let Some(Entry { stage: Stage::Copying { dirty, holds, .. }, .. }) = self.entries.get_mut(key) {
            (*dirty, *holds) = (false, true);
        }
    }

    /// The first touch ended.
    pub fn fetched(&mut self, key: &Key, fetched: Fetched, generation: u32, orders: &mut Vec<Order<O>>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        match fetched {
            Fetched::Brought => {
                self.settle(key, generation, orders);
                self.next(key, generation, orders);
            }
            Fetched::Unproven => {
                entry.is_unfetched = false;
                entry.stage = Stage::Copying { dirty: false, strict: true, holds: false };
                orders.push(Order::Dump { key: key.clone() });
            }
            Fetched::Failed => {
                orders.extend(entry.queue.drain(..).map(|(op, _)| Order::Unavailable { op }));
                orders.extend(entry.waiters.drain(..).map(|op| Order::Unavailable { op }));
                let returning = std::mem::take(&mut entry.returning);
                self.give_back(key, returning);
                self.next(key, generation, orders);
            }
        }
    }

    /// The journal has the key on disk.
    pub fn journaled(&mut self, key: &Key, generation: u32, orders: &mut Vec<Order<O>>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if let Stage::Journaling { op } = &mut entry.stage {
            entry.is_journaled = entry.diverged;
            orders.extend(op.take().map(|op| Order::Reply { op }));
            self.next(key, generation, orders);
        }
    }

    /// The holder of a key is done. `Done`: it may have changed the key, so it is copied; `Refused`: it surely did not;
    /// `Doubt`: nobody knows. `Reply` follows when the key is free again.
    pub fn release(&mut self, key: &Key, outcome: Outcome, generation: u32, orders: &mut Vec<Order<O>>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Stage::Held { op } = &entry.stage else { return };
        let op = op.clone();
        match outcome {
            Outcome::Refused => {
                orders.push(Order::Reply { op });
                self.next(key, generation, orders);
            }
            Outcome::Done => {
                entry.stage = Stage::Settling { op };
                orders.push(Order::Dump { key: key.clone() });
            }
            Outcome::Doubt => self.journal(key, Some(op), generation, orders),
        }
    }

    /// Begins to repair up to `max` diverged keys for which nothing is in flight; the engine calls it from time to time.
    /// `mode`: of the key's route; `None` where it has no follower.
    pub fn repair(&mut self, max: usize, mode: impl Fn(&Key) -> Option<Mode>, orders: &mut Vec<Order<O>>) {
        if self.diverged_count == 0 {
            return;
        }
        let idle = self.entries.iter().filter(|(_, entry)| entry.diverged && matches!(entry.stage, Stage::Idle));
        let some: Vec<(Key, Mode)> = idle.filter_map(|(key, _)| Some((key.clone(), mode(key)?))).take(max).collect();
        for (key, mode) in some {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.mode = mode;
            }
            // Of a diverged key the generation is not asked.
            self.copy_to_follower(&key, mode, 0, orders);
        }
    }

    /// Takes a key for diverged from outside: the journal of an earlier run.
    pub fn recover(&mut self, key: &Key, orders: &mut Vec<Order<O>>) {
        self.diverge(key, orders);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.is_journaled = true;
        }
    }

    /// Whether a key is exceptional. Of another an operation of a mirrored route that reads it or overwrites it is led, and
    /// repeated if it succeeds, without a trace in the lane: nobody needs to tell it of one.
    pub fn remembers(&self, key: impl FnOnce() -> Key) -> bool {
        !self.entries.is_empty() && self.entries.contains_key(&key())
    }

    /// Whether nothing is in flight or known to differ: of this key, or, diverged, of any.
    pub fn is_quiet(&self, key: &Key) -> bool {
        self.diverged_count == 0 && !self.entries.contains_key(key)
    }

    /// Takes a key for diverged that somebody found to differ. One that is busy is put right by whatever is in flight.
    pub fn suspect(&mut self, key: &Key, orders: &mut Vec<Order<O>>) {
        if !self.entries.contains_key(key) {
            self.diverge(key, orders);
        }
    }

    /// The operation that holds the key, if one does.
    pub fn holder(&self, key: &Key) -> Option<O> {
        match &self.entries.get(key)?.stage {
            Stage::Held { op } => Some(op.clone()),
            _ => None,
        }
    }

    /// Forgets a key for which nothing more can be done: its route lost its follower.
    pub fn abandon(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.diverged_count -= usize::from(entry.diverged);
            self.give_back(key, entry.returning);
        }
    }

    /// Forgets the diverged keys that `of` names: their route has no follower any more, or is in doubt as a whole.
    pub fn forget(&mut self, of: impl Fn(&Key) -> bool) -> Vec<Key> {
        let gone = self.entries.extract_if(|key, entry| matches!(entry.stage, Stage::Idle) && of(key));
        let gone: Vec<(Key, bool)> = gone.map(|(key, entry)| (key, entry.diverged)).collect();
        self.diverged_count -= gone.iter().filter(|(_, diverged)| *diverged).count();
        gone.into_iter().map(|(key, _)| key).collect()
    }

    /// The diverged keys.
    pub fn diverged(&self) -> impl Iterator<Item = &Key> {
        let count = self.diverged_count;
        self.entries.iter().filter(move |(_, entry)| count > 0 && entry.diverged).map(|(key, _)| key)
    }

    /// Whether anything is in flight for a key that `of` names.
    pub fn is_busy(&self, of: impl Fn(&Key) -> bool) -> bool {
        self.entries.iter().any(|(key, entry)| !matches!(entry.stage, Stage::Idle) && of(key))
    }

    fn diverge(&mut self, key: &Key, orders: &mut Vec<Order<O>>) {
        // Whoever comes to an idle key says which mode it is in.
        let unknown = Mode::Mirror { synced: false };
        let entry = self.entries.entry(owned(key)).or_insert_with(|| Entry::new(Stage::Idle, unknown));
        if !entry.diverged {
            entry.diverged = true;
            self.diverged_count += 1;
            orders.push(Order::Diverged { key: key.clone() });
        }
        // A copy whose dump stands before the doubtful write does not prove it right.
        if let Stage::Copying { dirty, .. } = &mut entry.stage {
            *dirty = true;
        }
    }

    fn journal(&mut self, key: &Key, op: Option<O>, generation: u32, orders: &mut Vec<Order<O>>) {
        self.diverge(key, orders);
        let Some(entry) = self.entries.get_mut(key) else { return };
        if entry.is_journaled {
            orders.extend(op.map(|op| Order::Reply { op }));
            return self.next(key, generation, orders);
        }
        entry.stage = Stage::Journaling { op };
        orders.push(Order::Journal { key: key.clone() });
    }

    /// Both stores are known to hold the same for this key.
    fn settle(&mut self, key: &Key, generation: u32, orders: &mut Vec<Order<O>>) {
        self.present.add(generation, key);
        if let Some(entry) = self.entries.get_mut(key)
            && std::mem::take(&mut entry.diverged)
        {
            (entry.is_unfetched, entry.is_journaled) = (false, false);
            self.diverged_count -= 1;
            orders.push(Order::Repaired { key: key.clone() });
        }
    }

    /// Nothing is in flight for the key: takes what waits, or forgets the entry.
    fn next(&mut self, key: &Key, generation: u32, orders: &mut Vec<Order<O>>) {
        loop {
            let Some(entry) = self.entries.get_mut(key) else { return };
            let mode = entry.mode;
            if !entry.waiters.is_empty() {
                return self.copy_to_follower(key, mode, generation, orders);
            }
            entry.stage = Stage::Idle;
            let Some((op, work)) = entry.queue.pop_front() else {
                if !entry.diverged {
                    self.entries.remove(key);
                }
                return;
            };
            self.begin(key, op, work, mode, generation, orders);
            match self.entries.get(key) {
                Some(entry) if matches!(entry.stage, Stage::Idle) => {}
                _ => return,
            }
        }
    }
}

/// A copy that keeps nothing else alive: a key is a part of its request, which may be large and came in one piece with others.
fn owned(key: &Key) -> Key {
    Key::copied(key.db, &key.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::copied(0, b"provider:7:cart")
    }

    const UNSYNCED: Mode = Mode::Mirror { synced: false };

    #[test]
    fn an_update_of_a_key_that_the_follower_may_lack_is_copied_and_later_ones_are_repeated() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.arrive(&key(), 1, Work::Update, UNSYNCED, 0, &mut orders);
        assert_eq!(orders, [Order::Lead { op: 1, follow: false }, Order::Dump { key: key() }]);
        orders.clear();
        lane.led(&key(), 1, false, Outcome::Done, 0, &mut orders);
        lane.dumped(&key(), Outcome::Done, 0, &mut orders);
        lane.restored(&key(), Outcome::Done, 0, &mut orders);
        assert_eq!(orders, [Order::Restore { key: key() }]);
        assert_eq!(lane.sizes(), (0, 0));
        orders.clear();
        lane.arrive(&key(), 2, Work::Update, UNSYNCED, 0, &mut orders);
        lane.led(&key(), 2, true, Outcome::Done, 0, &mut orders);
        assert_eq!(orders, [Order::Lead { op: 2, follow: true }, Order::Follow { op: 2 }]);
    }

    #[test]
    fn presence_of_an_older_generation_counts_for_nothing() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.followed(&key(), 1, Outcome::Done, true, 0, &mut orders);
        lane.arrive(&key(), 2, Work::Update, UNSYNCED, 1, &mut orders);
        assert_eq!(orders, [Order::Lead { op: 2, follow: false }, Order::Dump { key: key() }]);
    }

    #[test]
    fn a_write_behind_the_dump_makes_the_copy_be_taken_again() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.arrive(&key(), 1, Work::Update, UNSYNCED, 0, &mut orders);
        lane.arrive(&key(), 2, Work::Overwrite, UNSYNCED, 0, &mut orders);
        orders.clear();
        lane.dumped(&key(), Outcome::Done, 0, &mut orders);
        lane.restored(&key(), Outcome::Done, 0, &mut orders);
        assert_eq!(orders, [Order::Restore { key: key() }, Order::Dump { key: key() }]);
    }

    #[test]
    fn a_failed_effect_is_divergence_until_a_copy_succeeded() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.followed(&key(), 1, Outcome::Doubt, false, 0, &mut orders);
        assert_eq!(orders, [Order::Diverged { key: key() }]);
        orders.clear();
        lane.repair(10, |_| Some(UNSYNCED), &mut orders);
        lane.dumped(&key(), Outcome::Done, 0, &mut orders);
        lane.restored(&key(), Outcome::Done, 0, &mut orders);
        assert_eq!(orders, [Order::Dump { key: key() }, Order::Restore { key: key() }, Order::Repaired { key: key() }]);
        assert_eq!(lane.sizes(), (0, 0));
    }

    #[test]
    fn in_first_touch_mode_a_key_is_fetched_once_and_a_write_is_answered_when_both_have_it() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.arrive(&key(), 1, Work::Read, Mode::FirstTouch, 0, &mut orders);
        lane.arrive(&key(), 2, Work::Update, Mode::FirstTouch, 0, &mut orders);
        lane.arrive(&key(), 3, Work::Read, Mode::FirstTouch, 0, &mut orders);
        assert_eq!(orders, [Order::Fetch { key: key() }]);
        orders.clear();
        lane.fetched(&key(), Fetched::Brought, 0, &mut orders);
        assert_eq!(orders, [Order::Lead { op: 1, follow: false }, Order::Lead { op: 2, follow: true }]);
        orders.clear();
        lane.led(&key(), 2, true, Outcome::Done, 0, &mut orders);
        assert_eq!(orders, [Order::Follow { op: 2 }]);
        orders.clear();
        lane.followed(&key(), 2, Outcome::Done, false, 0, &mut orders);
        assert_eq!(orders, [Order::Reply { op: 2 }, Order::Lead { op: 3, follow: false }]);
        assert_eq!(lane.sizes(), (0, 0));
    }

    #[test]
    fn an_overwrite_in_doubt_of_a_key_that_was_not_brought_over_loses_neither_value() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.arrive(&key(), 1, Work::Overwrite, Mode::FirstTouch, 0, &mut orders);
        orders.clear();
        lane.led(&key(), 1, true, Outcome::Doubt, 0, &mut orders);
        assert_eq!(orders, [Order::Diverged { key: key() }, Order::Reply { op: 1 }]);
        orders.clear();
        lane.repair(10, |_| Some(Mode::FirstTouch), &mut orders);
        assert_eq!(orders, [Order::Fetch { key: key() }], "a copy from the leader could delete the only value");
        orders.clear();
        lane.fetched(&key(), Fetched::Unproven, 0, &mut orders);
        lane.repair(10, |_| Some(Mode::FirstTouch), &mut orders);
        assert_eq!(orders, [Order::Dump { key: key() }], "the leader may have the new value, which the follower lacks");
    }

    #[test]
    fn a_key_that_the_leader_had_already_is_copied_before_the_follower_gets_effects() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.arrive(&key(), 1, Work::Update, Mode::FirstTouch, 0, &mut orders);
        orders.clear();
        lane.fetched(&key(), Fetched::Unproven, 0, &mut orders);
        lane.dumped(&key(), Outcome::Done, 0, &mut orders);
        lane.restored(&key(), Outcome::Done, 0, &mut orders);
        assert_eq!(
            orders,
            [Order::Dump { key: key() }, Order::Restore { key: key() }, Order::Lead { op: 1, follow: true }]
        );
    }

    #[test]
    fn what_the_follower_may_never_have_had_is_shown_to_nobody_before_the_journal_has_it() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.arrive(&key(), 1, Work::Read, Mode::FirstTouch, 0, &mut orders);
        lane.fetched(&key(), Fetched::Unproven, 0, &mut orders);
        orders.clear();
        lane.restored(&key(), Outcome::Doubt, 0, &mut orders);
        assert_eq!(orders, [Order::Diverged { key: key() }, Order::Journal { key: key() }]);
        orders.clear();
        lane.journaled(&key(), 0, &mut orders);
        assert_eq!(orders, [Order::Lead { op: 1, follow: false }]);
    }

    #[test]
    fn a_copy_asked_for_in_first_touch_mode_never_deletes_what_was_not_yet_fetched() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.resync(&key(), 1, Mode::FirstTouch, 0, &mut orders);
        assert_eq!(orders, [Order::Fetch { key: key() }]);
        orders.clear();
        lane.fetched(&key(), Fetched::Brought, 0, &mut orders);
        assert_eq!(orders, [Order::Dump { key: key() }]);
        orders.clear();
        lane.dumped(&key(), Outcome::Done, 0, &mut orders);
        lane.restored(&key(), Outcome::Done, 0, &mut orders);
        assert_eq!(orders, [Order::Restore { key: key() }, Order::Reply { op: 1 }]);
        assert_eq!(lane.sizes(), (0, 0));
    }

    #[test]
    fn a_lent_key_is_not_fetched_before_the_copy_that_follows_whatever_is_forgotten_meanwhile() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.arrive(&key(), 1, Work::Lend, Mode::FirstTouch, 0, &mut orders);
        lane.fetched(&key(), Fetched::Brought, 0, &mut orders);
        assert_eq!(orders, [Order::Fetch { key: key() }, Order::Reply { op: 1 }]);
        // A doubt: another generation. What the command has deleted must not come back with this read.
        orders.clear();
        lane.arrive(&key(), 2, Work::Read, Mode::FirstTouch, 1, &mut orders);
        lane.give_back_changed(&key(), 3, Mode::FirstTouch, 1, &mut orders);
        assert_eq!(orders, [Order::Lead { op: 2, follow: false }, Order::Dump { key: key() }]);
        orders.clear();
        lane.restored(&key(), Outcome::Done, 1, &mut orders);
        lane.arrive(&key(), 4, Work::Read, Mode::FirstTouch, 2, &mut orders);
        assert_eq!(orders, [Order::Reply { op: 3 }, Order::Fetch { key: key() }], "it is given back");
    }

    #[test]
    fn a_copy_asked_for_while_a_key_is_busy_comes_before_what_waits() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.arrive(&key(), 1, Work::Overwrite, Mode::FirstTouch, 0, &mut orders);
        lane.arrive(&key(), 2, Work::Overwrite, Mode::FirstTouch, 0, &mut orders);
        lane.resync(&key(), 3, Mode::FirstTouch, 0, &mut orders);
        lane.led(&key(), 1, true, Outcome::Done, 0, &mut orders);
        orders.clear();
        lane.followed(&key(), 1, Outcome::Done, true, 0, &mut orders);
        assert_eq!(orders, [Order::Reply { op: 1 }, Order::Dump { key: key() }]);
        orders.clear();
        lane.restored(&key(), Outcome::Done, 0, &mut orders);
        assert_eq!(orders, [Order::Reply { op: 3 }, Order::Lead { op: 2, follow: true }]);
    }

    #[test]
    fn a_delete_that_did_not_reach_the_follower_is_journaled_before_the_reply_and_never_fetched_back() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.arrive(&key(), 1, Work::Overwrite, Mode::FirstTouch, 0, &mut orders);
        lane.led(&key(), 1, true, Outcome::Done, 0, &mut orders);
        orders.clear();
        lane.followed(&key(), 1, Outcome::Doubt, true, 0, &mut orders);
        assert_eq!(orders, [Order::Diverged { key: key() }, Order::Journal { key: key() }]);
        orders.clear();
        lane.journaled(&key(), 0, &mut orders);
        lane.arrive(&key(), 2, Work::Read, Mode::FirstTouch, 0, &mut orders);
        assert_eq!(orders, [Order::Reply { op: 1 }, Order::Lead { op: 2, follow: false }]);
    }

    const BOTH: Mode = Mode::Both { synced: true };

    #[test]
    fn with_ack_both_a_write_is_answered_when_the_follower_has_it_and_nobody_sees_it_before() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        assert!(lane.arrive(&key(), 1, Work::Update, BOTH, 0, &mut orders), "it ends with Reply");
        lane.arrive(&key(), 2, Work::Read, BOTH, 0, &mut orders);
        lane.led(&key(), 1, true, Outcome::Done, 0, &mut orders);
        assert_eq!(orders, [Order::Lead { op: 1, follow: true }, Order::Follow { op: 1 }]);
        orders.clear();
        lane.followed(&key(), 1, Outcome::Done, false, 0, &mut orders);
        assert_eq!(orders, [Order::Reply { op: 1 }, Order::Lead { op: 2, follow: false }]);
        assert_eq!(lane.sizes(), (0, 0));
    }

    #[test]
    fn with_ack_both_and_a_follower_that_fails_the_journal_comes_before_the_answer_and_is_waited_for_once() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.arrive(&key(), 1, Work::Update, BOTH, 0, &mut orders);
        lane.led(&key(), 1, true, Outcome::Done, 0, &mut orders);
        orders.clear();
        lane.followed(&key(), 1, Outcome::Doubt, false, 0, &mut orders);
        assert_eq!(orders, [Order::Diverged { key: key() }, Order::Journal { key: key() }]);
        orders.clear();
        lane.journaled(&key(), 0, &mut orders);
        assert_eq!(orders, [Order::Reply { op: 1 }]);
        orders.clear();
        // On a diverged key an update is not repeated but copied; the journal has the key already.
        lane.arrive(&key(), 2, Work::Update, BOTH, 0, &mut orders);
        lane.led(&key(), 2, false, Outcome::Done, 0, &mut orders);
        lane.dumped(&key(), Outcome::Done, 0, &mut orders);
        lane.restored(&key(), Outcome::Doubt, 0, &mut orders);
        let copied = [Order::Lead { op: 2, follow: false }, Order::Dump { key: key() }, Order::Restore { key: key() }];
        assert_eq!(orders, [&copied[..], &[Order::Reply { op: 2 }]].concat());
        assert_eq!(lane.sizes(), (1, 1));
    }

    #[test]
    fn an_earlier_effect_that_fails_is_not_covered_by_one_that_built_on_it() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.arrive(&key(), 1, Work::Update, Mode::Mirror { synced: true }, 0, &mut orders);
        // From here on `ack = "both"`.
        lane.arrive(&key(), 2, Work::Update, BOTH, 0, &mut orders);
        lane.led(&key(), 1, true, Outcome::Done, 0, &mut orders);
        lane.led(&key(), 2, true, Outcome::Done, 0, &mut orders);
        orders.clear();
        lane.followed(&key(), 1, Outcome::Doubt, false, 0, &mut orders);
        lane.followed(&key(), 2, Outcome::Done, false, 0, &mut orders);
        assert_eq!(orders, [Order::Diverged { key: key() }, Order::Dump { key: key() }]);
    }

    #[test]
    fn a_copy_in_pieces_holds_writes_back_and_lets_reads_through() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.resync(&key(), 1, UNSYNCED, 0, &mut orders);
        assert!(!lane.arrive(&key(), 2, Work::Update, UNSYNCED, 0, &mut orders), "before the first piece nobody waits");
        lane.hold_copy(&key());
        orders.clear();
        assert!(!lane.arrive(&key(), 3, Work::Read, UNSYNCED, 0, &mut orders));
        assert_eq!(orders, [Order::Lead { op: 3, follow: false }]);
        orders.clear();
        assert!(lane.arrive(&key(), 4, Work::Update, UNSYNCED, 0, &mut orders));
        lane.arrive(&key(), 5, Work::Read, UNSYNCED, 0, &mut orders);
        assert_eq!(orders, [], "nor may a read overtake a write that waits");
        lane.dumped(&key(), Outcome::Done, 0, &mut orders);
        lane.restored(&key(), Outcome::Done, 0, &mut orders);
        let copied = [Order::Restore { key: key() }, Order::Reply { op: 1 }, Order::Lead { op: 4, follow: true }];
        assert_eq!(orders, copied);
    }

    #[test]
    fn what_the_answer_resolves_needs_no_copy_of_a_key_that_the_follower_may_lack() {
        let (mut lane, mut orders) = (Lane::new(10), Vec::new());
        lane.arrive(&key(), 1, Work::Resolve, UNSYNCED, 0, &mut orders);
        lane.led(&key(), 1, true, Outcome::Done, 0, &mut orders);
        assert_eq!(orders, [Order::Lead { op: 1, follow: true }, Order::Follow { op: 1 }]);
        orders.clear();
        // Where the leader may lack the key its answer would be wrong.
        lane.arrive(&key(), 2, Work::Resolve, Mode::FirstTouch, 0, &mut orders);
        assert_eq!(orders, [Order::Fetch { key: key() }]);
    }
}
