//! The two stores, and the model that says which values a client may see and what the follower may be given.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cutover::dual::lane::Work;
use cutover::routing::Side;

use crate::Key;

/// A value is the list of the writes that made it; none: the key is absent.
pub type Value = Option<Vec<u32>>;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    Read,
    Set(u32),
    /// As APPEND: the answer tells what was there.
    Append(u32),
    /// As HSET: it builds on what is there, and the answer tells nothing of it.
    Put(u32),
    /// As INCR: the leader's answer is the whole value.
    Count(u32),
    /// As a script that appends: only a copy repeats it.
    Script(u32),
    Delete,
}

impl Command {
    pub fn work(self) -> Work {
        match self {
            Self::Read => Work::Read,
            Self::Set(_) => Work::Overwrite,
            Self::Append(_) | Self::Put(_) => Work::Update,
            // What DEL answers depends on what was there.
            Self::Count(_) | Self::Delete => Work::Resolve,
            Self::Script(_) => Work::Opaque,
        }
    }

    pub fn apply(self, before: &Value) -> Value {
        match self {
            Self::Read => before.clone(),
            Self::Set(id) => Some(vec![id]),
            Self::Append(id) | Self::Put(id) | Self::Count(id) | Self::Script(id) => {
                let mut value = before.clone().unwrap_or_default();
                value.push(id);
                Some(value)
            }
            Self::Delete => None,
        }
    }
}

/// What a command that ran on the leader did to one key, for whoever may never hear of it.
#[derive(Clone, Debug)]
pub struct Ran {
    /// What was possible before.
    pub before: Vec<Value>,
    /// Where it stands in the order of all commands on leaders.
    pub number: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Truth {
    stores: HashMap<Side, BTreeMap<Key, Vec<u32>>>,
    possible: BTreeMap<Key, Vec<Value>>,
    /// Every value that a key ever had on the store that led it.
    history: BTreeMap<Key, BTreeSet<Vec<u32>>>,
    /// Commands that ran on leaders, in their order.
    number: u64,
    /// The newest command whose result the follower has been given, for each key.
    followed: BTreeMap<Key, u64>,
    /// The newest command of each client on each key.
    last_of: BTreeMap<(usize, Key), u64>,
}

impl Truth {
    /// `stores`: what is on the standalone and on the cluster before anything happens; no key is on both.
    pub fn new(keys: &[Key], stores: [BTreeMap<Key, Vec<u32>>; 2]) -> Self {
        let all = || stores.iter().flatten();
        let history = all().map(|(key, value)| (key.clone(), BTreeSet::from([value.clone()]))).collect();
        let value = |key: &Key| stores.iter().find_map(|store| store.get(key)).cloned();
        let possible = keys.iter().map(|key| (key.clone(), vec![value(key)])).collect();
        let [standalone, cluster] = stores;
        Self {
            stores: HashMap::from([(Side::Standalone, standalone), (Side::Cluster, cluster)]),
            possible,
            history,
            number: 0,
            followed: BTreeMap::new(),
            last_of: BTreeMap::new(),
        }
    }

    pub fn value(&self, side: Side, key: &Key) -> Value {
        self.stores[&side].get(key).cloned()
    }

    pub fn is_equal(&self, key: &Key) -> bool {
        self.stores[&Side::Standalone].get(key) == self.stores[&Side::Cluster].get(key)
    }

    pub fn possible(&self, key: &Key) -> &[Value] {
        &self.possible[key]
    }

    fn put(&mut self, side: Side, key: &Key, value: Value) {
        let store = self.stores.get_mut(&side).expect("both sides");
        match value {
            Some(value) => drop(store.insert(key.clone(), value)),
            None => drop(store.remove(key)),
        }
    }

    /// A client's command runs on the store that leads (I1: what it finds there must be possible). `order`: of the request
    /// among its client's on this key.
    pub fn lead(&mut self, side: Side, key: &Key, command: Command, order: (usize, u64)) -> Result<Ran, String> {
        let last = self.last_of.entry((order.0, key.clone())).or_default();
        if *last > order.1 {
            return Err(format!("{command:?} of client {} runs on {key:?} behind a later one of its own", order.0));
        }
        *last = order.1;
        let before = self.value(side, key);
        let possible = &self.possible[key];
        // An overwrite does not look at what was there.
        if command.work() != Work::Overwrite && !possible.contains(&before) {
            return Err(format!("{command:?} finds {before:?} in {key:?} on the {side}, possible {possible:?}"));
        }
        let after = command.apply(&before);
        self.number += u64::from(command != Command::Read);
        let is_blind = command.work() == Work::Overwrite;
        Ok(Ran { before: self.settle_value(side, key, before, after, is_blind), number: self.number })
    }

    /// A value as it comes out of a command that runs on the leader, RENAME say.
    pub fn lead_value(&mut self, side: Side, key: &Key, after: Value) -> Result<Ran, String> {
        let before = self.value(side, key);
        if !self.possible[key].contains(&before) {
            return Err(format!("{before:?} is found in {key:?} on the {side}, possible {:?}", self.possible[key]));
        }
        self.number += 1;
        Ok(Ran { before: self.settle_value(side, key, before, after, false), number: self.number })
    }

    fn settle_value(&mut self, side: Side, key: &Key, before: Value, after: Value, is_blind: bool) -> Vec<Value> {
        let earlier = std::mem::replace(self.possible.get_mut(key).expect("every key"), vec![after.clone()]);
        if let Some(value) = &after {
            self.history.entry(key.clone()).or_default().insert(value.clone());
        }
        self.put(side, key, after);
        if is_blind { earlier } else { vec![before] }
    }

    /// Nobody hears of a command whose outcome is not decided by the leader alone: what was possible before is so again.
    pub fn reopen(&mut self, key: &Key, ran: Ran) {
        self.possible.get_mut(key).expect("every key").extend(ran.before);
    }

    /// The follower takes an effect of the command with that number (I2: in the order of the leader's answers).
    pub fn follow(&mut self, side: Side, key: &Key, number: u64, after: Value) -> Result<(), String> {
        let followed = self.followed.entry(key.clone()).or_default();
        if number < *followed {
            return Err(format!("the {side} is given {key:?} of command {number} after that of {followed}"));
        }
        *followed = number;
        self.put(side, key, after);
        Ok(())
    }

    /// Whether the key is absent on a side, or was on a leader once as it is there.
    pub fn is_whole(&self, side: Side, key: &Key) -> bool {
        let value = self.stores[&side].get(key);
        value.is_none_or(|value| self.history.get(key).is_some_and(|known| known.contains(value)))
    }

    /// Whether the follower has been given what came of that command, or of a later one.
    pub fn has_followed(&self, key: &Key, number: u64) -> bool {
        self.followed.get(key).is_some_and(|followed| *followed >= number)
    }

    /// The number of the newest command on leaders.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// RESTORE without REPLACE on the leader; gives what was there.
    pub fn bring_over(&mut self, side: Side, key: &Key, value: Value) -> Value {
        let before = self.value(side, key);
        if before.is_none() {
            self.put(side, key, value);
        }
        before
    }

    pub fn stores(&self) -> String {
        format!("{:?}", self.stores)
    }
}
