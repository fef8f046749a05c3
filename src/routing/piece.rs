//! The pieces into which two tables divide all keys: each has one line in the one table and one in the other. What flips and
//! what is known of a line's keys is told piece by piece, because lines come, go and change their ends. Pure.

use std::collections::BTreeSet;

use crate::routing::{Route, RouteName, SHARES, Table};

/// Keys that one line covers before, and one after.
#[derive(Clone, Debug)]
pub struct Piece<'o, 'n> {
    /// `None`: one id, which has a line of its own in either table. There may be a million of them.
    cut: Option<RouteName>,
    pub before: &'o Route,
    pub after: &'n Route,
}

impl Piece<'_, '_> {
    /// What the keys are called.
    pub fn name(&self) -> &RouteName {
        match (&self.cut, &self.before.name) {
            (Some(name), _) => name,
            (None, id @ RouteName::Provider(_)) => id,
            (None, _) => &self.after.name,
        }
    }
}

/// All of them: each id, prefix, range and part of the share that either table names, cut where the other one has an end, and
/// the rest. In no order.
pub fn pieces<'o, 'n>(old: &'o Table, new: &'n Table) -> impl Iterator<Item = Piece<'o, 'n>> {
    let (mut in_old, mut in_new) = (old.along(), new.along());
    let left = old.ids().iter().filter_map(move |before| {
        let after = in_new.covering(&before.name)?;
        Some(Piece { cut: None, before, after })
    });
    let come = new.ids().iter().filter_map(move |after| {
        let before = in_old.covering(&after.name)?;
        (before.name != after.name).then_some(Piece { cut: None, before, after })
    });
    left.chain(come).chain(cut(old, new))
}

/// Those of more than one id.
fn cut<'o, 'n>(old: &'o Table, new: &'n Table) -> Vec<Piece<'o, 'n>> {
    let mut names = BTreeSet::from([RouteName::NewProviders, RouteName::OtherKeys]);
    let mut ends = BTreeSet::new();
    let mut pieces = Vec::new();
    for route in old.others().iter().chain(new.others()) {
        match &route.name {
            RouteName::Range(first, last) => ends.extend([u128::from(*first), u128::from(*last) + 1]),
            name => drop(names.insert(name.clone())),
        }
    }
    let ends: Vec<u128> = ends.into_iter().collect();
    let whole = "an end of a range is an id, or the number behind one";
    for pair in ends.windows(2) {
        let (first, last) = (u64::try_from(pair[0]).expect(whole), u64::try_from(pair[1] - 1).expect(whole));
        names.insert(RouteName::Range(first, last));
    }
    // With every part named nobody is left who goes by the default.
    if (0..SHARES).all(|share| names.contains(&RouteName::Share(share))) {
        names.remove(&RouteName::NewProviders);
    }
    for name in names {
        if let RouteName::Range(first, last) = name {
            of_range(first, last, old, new, &mut pieces);
        } else if let (Some(before), Some(after)) = (old.covering(&name), new.covering(&name)) {
            pieces.push(Piece { cut: Some(name), before, after });
        }
    }
    pieces
}

/// Where only one of the tables has a range, its ids are spread over all parts of the share in the other; where neither has,
/// they are of the default's piece and of the parts'.
fn of_range<'o, 'n>(first: u64, last: u64, old: &'o Table, new: &'n Table, pieces: &mut Vec<Piece<'o, 'n>>) {
    let (befores, afters) = match (old.range_of(first), new.range_of(first)) {
        (None, None) => return,
        (Some(before), Some(after)) => (vec![before], vec![after]),
        (Some(before), None) => (vec![before], new.defaults()),
        (None, Some(after)) => (old.defaults(), vec![after]),
    };
    for before in befores {
        pieces.extend(afters.iter().map(|after| Piece { cut: Some(RouteName::Range(first, last)), before, after }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{Phase, sample_spec};

    fn table(ranges: &[(u64, u64, Phase)], previous: Option<&Table>) -> Table {
        Table::build(&crate::routing::RoutingSpec { ranges: ranges.to_vec(), ..sample_spec() }, 1, previous)
    }

    #[test]
    fn a_range_is_cut_where_the_other_table_has_an_end() {
        let old = table(&[(100, 199, Phase::DualCluster), (300, u64::MAX, Phase::Cluster)], None);
        let new = table(&[(150, 249, Phase::DualCluster)], Some(&old));
        let found: Vec<(String, String, String)> = pieces(&old, &new)
            .filter(|piece| matches!(piece.name(), RouteName::Range(..)))
            .map(|piece| (piece.name().to_string(), piece.before.name.to_string(), piece.after.name.to_string()))
            .collect();
        let piece = |name: &str, before: &str, after: &str| (name.into(), before.into(), after.into());
        assert_eq!(
            found,
            [
                piece("100..149", "100..199", "new_providers"),
                piece("150..199", "100..199", "150..249"),
                piece("200..249", "new_providers", "150..249"),
                piece(&format!("300..{}", u64::MAX), &format!("300..{}", u64::MAX), "new_providers"),
            ]
        );
    }

    #[test]
    fn an_id_or_a_prefix_that_either_table_names_is_a_piece() {
        let old = table(&[], None);
        let mut spec = sample_spec();
        (spec.providers, spec.prefixes, spec.ranges) = (vec![("7".into(), Phase::Cluster)], Vec::new(), Vec::new());
        let new = Table::build(&spec, 2, Some(&old));
        let mut names: Vec<String> = pieces(&old, &new).map(|piece| piece.name().to_string()).collect();
        names.sort();
        assert_eq!(names, ["150", "42", "7", "asgi:", "new_providers", "other_keys"]);
    }

    #[test]
    fn ids_of_a_range_are_spread_over_the_parts_and_the_default_has_what_is_left() {
        let share = |parts: std::ops::Range<u8>, ranges: &[(u64, u64, Phase)]| {
            let share = parts.map(|part| (part, Phase::Cluster)).collect();
            let spec = crate::routing::RoutingSpec { share, ranges: ranges.to_vec(), ..sample_spec() };
            Table::build(&spec, 1, None)
        };
        let told = |old: &Table, new: &Table| -> Vec<String> {
            let is_default = |piece: &Piece<'_, '_>| {
                matches!(piece.name(), RouteName::Range(..) | RouteName::Share(_) | RouteName::NewProviders)
            };
            let shown = pieces(old, new).filter(is_default);
            shown.map(|piece| format!("{}: {} {}", piece.name(), piece.before.name, piece.after.name)).collect()
        };
        let (none, two) = (share(0..0, &[]), share(0..2, &[]));
        assert_eq!(
            told(&none, &two),
            [
                "new_providers: new_providers new_providers",
                "share_0: new_providers share_0",
                "share_1: new_providers share_1"
            ]
        );
        let ranges = [(1, 9, Phase::Standalone), (20, 29, Phase::Standalone)];
        let taken = told(&two, &share(0..1, &ranges));
        assert_eq!(taken.iter().filter(|piece| piece.starts_with("1..9: ")).count(), 3, "{taken:?}");
        assert!(!taken.iter().any(|piece| piece.starts_with("10..19")), "{taken:?}");
        let all = told(&share(0..100, &[]), &none);
        assert_eq!((all.len(), all.iter().any(|piece| piece.starts_with("new_providers"))), (100, false));
        let ranged = told(&share(0..100, &ranges[..1]), &share(0..100, &[]));
        assert_eq!(ranged.iter().filter(|piece| piece.starts_with("1..9: 1..9 share_")).count(), 100);
    }
}
