//! What the running proxy says of its routes, as a command needs it to decide what comes next.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::change::{self, Considered, Line};
use crate::cli::api_client::ApiClient;
use crate::config::Config;
use crate::routing::flip::RouteFacts;
use crate::routing::{Coverage, Phase};

/// One route, as `GET /api/table` shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct Fact {
    pub id: String,
    pub phase: Phase,
    pub synced: bool,
    pub coverage: Option<Coverage>,
    pub in_doubt: bool,
    pub open_divergence: u64,
    pub ops_per_second: f64,
    pub refusals: u64,
}

impl Fact {
    /// For [`crate::routing::flip::judge`].
    pub fn route_facts(&self) -> RouteFacts {
        RouteFacts {
            coverage: self.coverage,
            divergence: self.open_divergence,
            in_doubt: self.in_doubt,
            ..RouteFacts::default()
        }
    }
}

/// One store, as shown.
#[derive(Clone, Debug, Deserialize)]
pub struct Store {
    pub up: bool,
}

/// How long a store may be silent before a command gives up on it: a failover takes some seconds.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Since when a store does not answer.
#[derive(Debug, Default)]
pub struct Silence(Option<Instant>);

impl Silence {
    /// Why to give up, if it is time to.
    pub fn look(&mut self, facts: &Facts) -> Option<String> {
        let Some(store) = facts.silent_store() else {
            self.0 = None;
            return None;
        };
        let since = *self.0.get_or_insert_with(Instant::now);
        (since.elapsed() > SILENCE_MAX).then(|| format!("the {store} has not answered for {} s", SILENCE_MAX.as_secs()))
    }
}

/// The adopted table, as shown.
#[derive(Clone, Debug)]
pub struct Facts {
    pub routes: HashMap<String, Fact>,
    pub refused: Option<String>,
    pub standalone: Store,
    pub cluster: Store,
}

impl Facts {
    /// Asks the proxy.
    pub fn read(client: &ApiClient) -> anyhow::Result<Self> {
        let mut table = client.get("/api/table")?;
        let doing = "understand the proxy's table; is it of another version?";
        let routes: Vec<Fact> = serde_json::from_value(table["routes"].take()).context(doing)?;
        let store = |value: Value| serde_json::from_value(value).context(doing);
        Ok(Self {
            routes: routes.into_iter().map(|fact| (fact.id.clone(), fact)).collect(),
            refused: table["refused"].as_str().map(str::to_string),
            standalone: store(table["stores"]["standalone"].take())?,
            cluster: store(table["stores"]["cluster"].take())?,
        })
    }

    /// The same, where the file must be the one that was adopted: an edit of a refused file would be refused as well.
    pub fn of_adopted_file(client: &ApiClient) -> anyhow::Result<Self> {
        let facts = Self::read(client)?;
        if let Some(reason) = &facts.refused {
            bail!("proxy.toml as it stands is refused, and so would every edit of it be; mend it first: {reason}");
        }
        Ok(facts)
    }

    /// The store that does not answer, if one does not.
    pub fn silent_store(&self) -> Option<&'static str> {
        match (self.standalone.up, self.cluster.up) {
            (true, true) => None,
            (false, _) => Some("standalone"),
            (_, false) => Some("cluster"),
        }
    }

    /// The phase of a line, or of the line that covers it.
    pub fn phase(&self, config: &Config, route: &str) -> Option<Phase> {
        change::phase_of(config, |name| self.routes.get(name).map(|fact| fact.phase), route)
    }
}

impl change::Proxy for ApiClient {
    fn considered(&self) -> Result<Considered, String> {
        let adopted = self.get("/api/adopted").map_err(|error| format!("{error:#}"))?;
        let number = |name: &str| {
            let number = adopted[name].as_u64().and_then(|number| u32::try_from(number).ok());
            number.ok_or("the proxy does not say which file it looked at; is it of another version?")
        };
        let (number, crc) = (number("considered")?, number("considered_crc")?);
        Ok(Considered { number, crc, refused: adopted["refused"].as_str().map(str::to_string) })
    }

    fn lines(&self) -> Result<HashMap<String, Line>, String> {
        let facts = Facts::read(self).map_err(|error| format!("{error:#}"))?;
        let line = |fact: &Fact| Line { phase: fact.phase, facts: fact.route_facts() };
        Ok(facts.routes.iter().map(|(name, fact)| (name.clone(), line(fact))).collect())
    }

    fn tell(&self, what: &str) {
        eprintln!("{what}");
    }
}
