//! Which node serves which slot. Pure and immutable; a new one replaces it.

use std::sync::Arc;

use crate::slot::SLOTS;

/// The owner of each slot, as an index into the primaries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotMap {
    primaries: Vec<Arc<str>>,
    owners: Vec<u16>,
}

/// In `owners`: nobody serves the slot.
const NOBODY: u16 = u16::MAX;

impl SlotMap {
    /// From ranges of slots (both ends included) and the address of the primary that serves each.
    pub fn new(ranges: impl IntoIterator<Item = (u16, u16, Arc<str>)>) -> Self {
        let mut map = Self { primaries: Vec::new(), owners: vec![NOBODY; usize::from(SLOTS)] };
        for (first, last, address) in ranges {
            let index = map.primaries.iter().position(|known| *known == address).unwrap_or_else(|| {
                map.primaries.push(address);
                map.primaries.len() - 1
            });
            for slot in first..=last.min(SLOTS - 1) {
                map.owners[usize::from(slot)] = index as u16;
            }
        }
        map
    }

    /// The primary that serves a slot.
    pub fn owner(&self, slot: u16) -> Option<&Arc<str>> {
        self.primaries.get(usize::from(*self.owners.get(usize::from(slot))?))
    }

    /// Which of [`SlotMap::primaries`] serves a slot.
    pub fn owner_index(&self, slot: u16) -> Option<usize> {
        self.owners.get(usize::from(slot)).filter(|owner| **owner != NOBODY).map(|owner| usize::from(*owner))
    }

    /// The slots that primary `index` serves here and does not serve in `newer`.
    pub fn slots_lost_by(&self, index: usize, newer: &Self) -> Vec<u16> {
        let address = self.primaries.get(index);
        let still = address.and_then(|address| newer.primaries.iter().position(|known| known == address));
        let owners = self.owners.iter().enumerate().filter(|(_, owner)| usize::from(**owner) == index);
        let lost = owners.filter(|(slot, _)| newer.owner_index(*slot as u16).is_none_or(|owner| Some(owner) != still));
        lost.map(|(slot, _)| slot as u16).collect()
    }

    /// All primaries.
    pub fn primaries(&self) -> &[Arc<str>] {
        &self.primaries
    }

    /// Whether no slot is served: nothing was learnt yet.
    pub fn is_empty(&self) -> bool {
        self.primaries.is_empty()
    }

    /// The same map with one slot elsewhere, as a MOVED says.
    pub fn with_owner(&self, slot: u16, address: &str) -> Self {
        let mut map = self.clone();
        if map.owners.is_empty() {
            map.owners = vec![NOBODY; usize::from(SLOTS)];
        }
        let index = map.primaries.iter().position(|known| **known == *address).unwrap_or_else(|| {
            map.primaries.push(address.into());
            map.primaries.len() - 1
        });
        if let Some(owner) = map.owners.get_mut(usize::from(slot)) {
            *owner = index as u16;
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_slot_has_its_new_owner_and_the_others_keep_theirs() {
        let map = SlotMap::new([(0, 8191, "a:1".into()), (8192, 16383, "b:1".into())]);
        let moved = map.with_owner(5, "c:1");
        assert_eq!(moved.owner(5).map(|address| &**address), Some("c:1"));
        assert_eq!(moved.owner(6).map(|address| &**address), Some("a:1"));
        assert_eq!(moved.owner(16383).map(|address| &**address), Some("b:1"));
        assert!(SlotMap::default().owner(0).is_none());
        assert_eq!(map.slots_lost_by(0, &moved), [5]);
        assert_eq!(moved.slots_lost_by(2, &map), [5]);
        assert_eq!(map.slots_lost_by(1, &SlotMap::default()).len(), 8192);
        assert!(map.slots_lost_by(1, &moved).is_empty());
    }
}
