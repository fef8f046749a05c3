//! The four phases, the two sides, and what a dual route's stores are known to hold.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One of the two stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The Redis being left.
    Standalone,
    /// The Redis Cluster being moved to.
    Cluster,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Standalone => Self::Cluster,
            Self::Cluster => Self::Standalone,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Standalone => "standalone",
            Self::Cluster => "cluster",
        })
    }
}

/// Which store answers for a route, and whether the other one gets its writes too. In the order of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Standalone,
    DualStandalone,
    DualCluster,
    Cluster,
}

impl Phase {
    /// All of them, in the order of a move.
    pub const ALL: [Self; 4] = [Self::Standalone, Self::DualStandalone, Self::DualCluster, Self::Cluster];

    /// The store that answers.
    pub fn leader(self) -> Side {
        match self {
            Self::Standalone | Self::DualStandalone => Side::Standalone,
            Self::DualCluster | Self::Cluster => Side::Cluster,
        }
    }

    /// The store that gets every write as well.
    pub fn follower(self) -> Option<Side> {
        self.is_dual().then(|| self.leader().other())
    }

    /// As it stands in `proxy.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::DualStandalone => "dual-standalone",
            Self::DualCluster => "dual-cluster",
            Self::Cluster => "cluster",
        }
    }

    /// Whether writes go to both.
    pub fn is_dual(self) -> bool {
        matches!(self, Self::DualStandalone | Self::DualCluster)
    }

    /// Whether a flip between the two is one step of a move.
    pub fn is_neighbour(self, other: Self) -> bool {
        (self as i8 - other as i8).abs() == 1
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|phase| phase.name() == text);
        found.ok_or_else(|| {
            format!("`{text}` is no phase; there are standalone, dual-standalone, dual-cluster and cluster")
        })
    }
}

/// What a dual route's stores are known to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
#[serde(rename_all = "kebab-case")]
pub enum Coverage {
    /// The cluster may lack keys: the route is on its way there.
    StandaloneOnly,
    /// The standalone may lack keys: the route came back from `cluster`.
    ClusterOnly,
    /// Synced.
    Both,
}

impl Coverage {
    /// What is known of keys of two kinds together. Keys that only the one and keys that only the other store has make
    /// nothing that one phase can serve (see [`flip::mixed`](crate::routing::flip::mixed)); then nothing is lost by
    /// fetching.
    pub fn least(self, other: Self) -> Self {
        match (self, other) {
            (Self::Both, other) => other,
            (own, Self::Both) => own,
            (own, other) if own == other => own,
            _ => Self::StandaloneOnly,
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::StandaloneOnly => "standalone-only",
            Self::ClusterOnly => "cluster-only",
            Self::Both => "both",
        })
    }
}
