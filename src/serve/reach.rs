//! From the configuration to what connections are made of: endpoints of both stores, and certificates with their reload.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;

use crate::config::{self, Config, RouteLimit, StoreUrl};
use crate::dual::tenure::Reach;
use crate::metrics::Totals;
use crate::secret::Digest;
use crate::session::shares::{Limit, Shares};
use crate::session::users::{self, Rights, User, Users};
use crate::store::link::Endpoint;
use crate::store::{Login, StoresConfig, Timeouts};
use crate::wire::{Acceptor, ClientFiles, Connector, Identity, ServerFiles, Verify};

fn endpoint(url: &StoreUrl, store: &config::Store, tls: Option<Arc<Connector>>) -> Endpoint {
    Endpoint {
        address: url.address().into(),
        tls,
        login: Login { user: url.user.clone(), password: url.password.clone() },
        db: url.db,
        timeouts: Timeouts {
            connect: store.connect_timeout,
            reply: store.reply_timeout,
            patience: store.patience,
            queue: store.queue_time,
        },
    }
}

/// How to reach the standalone.
pub fn standalone(config: &Config) -> anyhow::Result<Endpoint> {
    let store = &config.standalone;
    let tls = connector(store).context("[standalone] tls")?;
    // `config::check` refuses a section without a URL.
    Ok(endpoint(&store.urls[0], store, tls))
}

/// How to reach the cluster's seeds; none without a `[cluster]` section.
pub fn seeds(config: &Config) -> anyhow::Result<Vec<Endpoint>> {
    let Some(store) = &config.cluster else { return Ok(Vec::new()) };
    let tls = connector(store).context("[cluster] tls")?;
    Ok(store.urls.iter().map(|url| endpoint(url, store, tls.clone())).collect())
}

fn connector(store: &config::Store) -> anyhow::Result<Option<Arc<Connector>>> {
    let Some(tls) = &store.tls else { return Ok(None) };
    if tls.is_unverified {
        tracing::warn!(
            "tls.verify is false: whoever stands between the proxy and its store can read and change everything"
        );
    }
    let files = ClientFiles {
        ca: tls.ca.clone(),
        identity: tls.identity.clone().map(|(cert, key)| Identity { cert, key }),
        verify: if tls.is_unverified { Verify::No } else { Verify::Yes },
        server_name: tls.server_name.clone(),
    };
    Ok(Some(Arc::new(Connector::open(files)?)))
}

/// What clients are greeted with, where they speak TLS.
pub fn acceptor(config: &Config) -> anyhow::Result<Option<Arc<Acceptor>>> {
    let Some(tls) = &config.listen.tls else { return Ok(None) };
    let identity = Identity { cert: tls.cert.clone(), key: tls.key.clone() };
    let files = ServerFiles { identity, client_ca: tls.client_ca.clone() };
    Ok(Some(Arc::new(Acceptor::open(files).context("[listen] tls")?)))
}

/// Where the other proxies of the lease find this one.
pub(super) fn own_url(config: &Config) -> String {
    let scheme = |is_tls| if is_tls { "rediss" } else { "redis" };
    if let Some(url) = &config.lease.advertise {
        return format!("{}://{}", scheme(url.is_tls), url.address());
    }
    if config.listen.address.ip().is_unspecified() {
        tracing::warn!(
            address = %config.listen.address,
            "other proxies could not reach this one by the address under [listen]; set lease.advertise if there are any"
        );
    }
    format!("{}://{}", scheme(config.listen.tls.is_some()), config.listen.address)
}

/// How another proxy is reached by what it calls itself.
pub(super) fn proxies(config: &Config) -> anyhow::Result<Reach> {
    let files = ClientFiles { ca: config.lease.ca.clone(), identity: None, verify: Verify::Yes, server_name: None };
    // A system without any CA serves plain TCP as well as another, and what a CA takes of memory is not needed there.
    let advertises_tls = config.lease.advertise.as_ref().is_some_and(|url| url.is_tls);
    let is_wanted = config.listen.tls.is_some() || advertises_tls || files.ca.is_some();
    let tls = OnceLock::new();
    if is_wanted {
        let connector = Connector::open(files.clone()).context("[lease] ca")?;
        tls.get_or_init(|| Some(Arc::new(connector)));
    }
    let connector = move || {
        let opened = tls.get_or_init(|| {
            let told = |error| tracing::error!(%error, "the proxy that holds the lease speaks TLS, and this one cannot: see [lease] ca");
            Connector::open(files.clone()).map_err(told).ok().map(Arc::new)
        });
        opened.clone()
    };
    let login = Login { user: config.lease.user.clone(), password: config.lease.password.clone() };
    let timeouts = Timeouts {
        connect: config.standalone.connect_timeout,
        // Its stores answer in their own time, and it answers in ours.
        reply: config.standalone.reply_timeout + config.cluster.as_ref().map_or(Duration::ZERO, |store| store.patience),
        patience: config.standalone.patience,
        // It refuses by itself.
        queue: Duration::ZERO,
    };
    Ok(Box::new(move |url| {
        let (scheme, address) = url.split_once("://")?;
        let tls = if scheme == "rediss" { Some(connector()?) } else { None };
        Some(Endpoint { address: address.into(), tls, login: login.clone(), db: 0, timeouts })
    }))
}

/// All that was read from certificate files, to be read again.
pub(super) struct Certificates {
    acceptor: Option<Arc<Acceptor>>,
    connectors: Vec<Arc<Connector>>,
}

impl Certificates {
    pub(super) fn of(acceptor: Option<&Arc<Acceptor>>, stores: &StoresConfig) -> Self {
        // All seeds share one.
        let connectors = [Some(&stores.standalone), stores.cluster.first()];
        let connectors = connectors.into_iter().flatten().filter_map(|endpoint| endpoint.tls.clone()).collect();
        Self { acceptor: acceptor.cloned(), connectors }
    }

    /// The files.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let acceptor = self.acceptor.iter().flat_map(|acceptor| acceptor.paths());
        let connectors = self.connectors.iter().flat_map(|connector| connector.paths());
        acceptor.chain(connectors).map(Path::to_path_buf).collect()
    }

    /// Connections that are opened from now on have the new ones.
    pub(super) fn reload(&self, totals: &Totals) {
        let acceptor = self.acceptor.iter().map(|acceptor| acceptor.reload());
        let connectors = self.connectors.iter().map(|connector| connector.reload());
        let refused: Vec<_> = acceptor.chain(connectors).filter_map(Result::err).collect();
        for error in &refused {
            tracing::error!(%error, "certificates cannot be used; the ones before stay");
        }
        totals.certificates_refused.store(u64::from(!refused.is_empty()), Ordering::Relaxed);
    }
}

/// Who may come in. Without a password and without users anybody may; with users, nobody who names none.
pub(super) fn users(config: &Config) -> Users {
    let named = config.users.iter().map(|user| {
        let is_limited = user.commands.is_some() || user.scope.is_some();
        let rights = || Arc::new(Rights { commands: user.commands.clone(), scope: user.scope.clone() });
        User { name: user.name.clone().into(), password: Some(user.password), rights: is_limited.then(rights) }
    });
    let password = config.listen.password.as_ref().map(|password| Digest::of(password.expose().as_bytes()));
    let default = User { name: users::DEFAULT.into(), password, rights: None };
    let has_default = config.users.is_empty() || config.listen.password.is_some();
    Users::new(named.chain(has_default.then_some(default)))
}

/// What each route may ask for.
pub(super) fn shares(config: &Config) -> Shares {
    let limit = |line: &RouteLimit| Limit {
        requests_per_second: line.requests_per_second,
        bytes_per_second: line.bytes_per_second,
    };
    let named = config.limits.iter().filter_map(|line| Some((line.route.clone()?, limit(line))));
    let each = config.limits.iter().find(|line| line.route.is_none()).map(limit).unwrap_or_default();
    Shares::new(named, each)
}
