//! The routes to which somebody is confined.

use crate::routing::{RouteName, Table};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope(pub Vec<RouteName>);

impl Scope {
    /// Whether a key is inside. A provider is meant by its id, whichever line of the table covers it.
    pub fn has(&self, table: &Table, key: &[u8]) -> bool {
        let provider = table.provider_of(key).map(String::from_utf8_lossy);
        self.0.iter().any(|route| match (route, &provider) {
            (RouteName::Provider(id), Some(provider)) => id == provider,
            (RouteName::Range(first, last), Some(provider)) => {
                provider.parse().is_ok_and(|id: u64| (first..=last).contains(&&id))
            }
            (RouteName::Prefix(prefix), None) => key.starts_with(prefix.as_bytes()),
            // Whoever has no line, whether a share of them is set apart or not.
            (RouteName::NewProviders, Some(_)) => {
                matches!(table.route_of(key).0.name, RouteName::NewProviders | RouteName::Share(_))
            }
            (RouteName::Share(_), Some(_)) | (RouteName::OtherKeys, None) => table.route_of(key).0.name == *route,
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::sample_spec;

    #[test]
    fn a_key_is_inside_where_its_provider_or_its_prefix_is_named() {
        let table = Table::build(&sample_spec(), 1, None);
        let scope =
            Scope(vec![RouteName::Provider("7".into()), RouteName::Range(900, 999), RouteName::Prefix("asgi:".into())]);
        let inside = |key: &str| scope.has(&table, key.as_bytes());
        assert!(inside("provider:7:a") && inside("provider:950:a") && inside("asgi:x"));
        for key in ["provider:8:a", "provider:77:a", "provider:1000:a", "provider:9x:a", "asg:x", "x", "asgi"] {
            assert!(!inside(key), "{key}");
        }
        // A provider whose key begins with the prefix is the provider's.
        assert!(!Scope(vec![RouteName::Prefix("provider:".into())]).has(&table, b"provider:8:a"));
        let spec = crate::routing::RoutingSpec {
            share: (0..50).map(|part| (part, crate::routing::Phase::Cluster)).collect(),
            ..sample_spec()
        };
        let (shared, new) = (Table::build(&spec, 1, None), Scope(vec![RouteName::NewProviders]));
        assert!((1000..1100).all(|id| new.has(&shared, format!("provider:{id}:a").as_bytes())));
        assert!(!new.has(&shared, b"provider:42:a") && !new.has(&shared, b"x"));
        let others = Scope(vec![RouteName::OtherKeys]);
        assert!(others.has(&table, b"x") && !others.has(&table, b"provider:7:a"));
    }
}
