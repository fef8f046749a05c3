//! The pieces into which two tables divide all keys: each has one line in the one table and one in the other. What flips and
//! what is known of a line's keys is told piece by piece, because lines come, go and change their ends. Pure.

use std::collections::BTreeSet;

use crate::routing::{Route, RouteName, Table};

/// Keys that one line covers before, and one after.
#[derive(Clone, Debug)]
pub struct Piece<'o, 'n> {
    pub name: RouteName,
    pub before: &'o Route,
    pub after: &'n Route,
}

/// All of them: each id, prefix and range that either table names, cut where the other one has an end, and the rest.
pub fn pieces<'o, 'n>(old: &'o Table, new: &'n Table) -> Vec<Piece<'o, 'n>> {
    let mut names = BTreeSet::from([RouteName::NewProviders, RouteName::OtherKeys]);
    let mut ends = BTreeSet::new();
    for route in old.routes().iter().chain(new.routes()) {
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
    let piece = |name: RouteName| Some(Piece { before: old.covering(&name)?, after: new.covering(&name)?, name });
    names.into_iter().filter_map(piece).collect()
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
            .iter()
            .filter(|piece| matches!(piece.name, RouteName::Range(..)))
            .map(|piece| (piece.name.to_string(), piece.before.name.to_string(), piece.after.name.to_string()))
            .collect();
        let piece = |name: &str, before: &str, after: &str| (name.into(), before.into(), after.into());
        assert_eq!(
            found,
            [
                piece("100..149", "100..199", "new_providers"),
                piece("150..199", "100..199", "150..249"),
                piece("200..249", "new_providers", "150..249"),
                piece("250..299", "new_providers", "new_providers"),
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
        let names: Vec<String> = pieces(&old, &new).iter().map(|piece| piece.name.to_string()).collect();
        assert_eq!(names, ["150", "42", "7", "new_providers", "asgi:", "other_keys"]);
    }
}
