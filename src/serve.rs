//! The program's table of contents: builds every part from a configuration, joins them, and drains them at the end.
//!
//! Threads: one for each worker, one for the journal, and the one that calls [`run`], on which the control side lives
//! (adoption of new tables, jobs, the admin server, the cluster's layout).

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::admin;
use crate::audit::Audit;
use crate::config::{self, Config, StoreUrl};
use crate::dual::adopt::{self, Adopter};
use crate::dual::journal::Journal;
use crate::dual::state::{Snapshot, StateFile};
use crate::dual::traffic::TrafficBook;
use crate::dual::{Message, Peers, Subscribing};
use crate::jobs::{self, Jobs};
use crate::metrics::Totals;
use crate::resp::limits::Limits;
use crate::routing::{Phase, RouteName, Table};
use crate::session::worker::{self, WorkerParts};
use crate::session::{Clients, Scripts, SessionLimits};
use crate::store::link::Endpoint;
use crate::store::{Login, Loss, SlotMap, StoresConfig, Timeouts, topology};

/// The same number on every Linux but MIPS.
const SIGXFSZ: i32 = 25;

/// Runs the proxy until SIGTERM or SIGINT, and drains it. `path` is watched for changes.
pub fn run(config: &Config, path: &Path) -> anyhow::Result<()> {
    let level = start_logging(config);
    let _lock = lock(&config.state_directory)?;
    let directory = config.state_directory.display();
    let (state, snapshot) =
        StateFile::open(&config.state_directory).with_context(|| format!("open state file in {directory}"))?;
    let totals = Arc::new(Totals::default());
    let (journal, found) = Journal::open(&config.state_directory, totals.clone())
        .with_context(|| format!("open journal in {directory}"))?;
    if let Some(damage) = &found.damage {
        tracing::error!(%damage, "the journal of diverged keys is unusable: every dual route is in doubt until a backfill has gone through it, which begins now; a key that the cluster deleted while the standalone could not be reached may come back in a route whose keys are still being brought over");
    }
    // A journal without a state file: what was known of the routes was removed, not never there.
    let is_lost = found.damage.is_some() || (snapshot.is_none() && !found.is_new);
    // Also for the judgement of what was flipped in the file meanwhile.
    let snapshot = snapshot.map(|snapshot| Snapshot { clean: snapshot.clean && !is_lost, ..snapshot });
    match &snapshot {
        None if is_lost => tracing::warn!(
            "there is a journal and no state file: the table is taken as it stands in the file, and every dual route is in doubt"
        ),
        None => tracing::info!(directory = %directory, "first start: the table is taken as it stands in the file"),
        Some(snapshot) if !snapshot.clean => {
            tracing::warn!(
                "the last run did not end cleanly: every dual route is in doubt until a backfill has gone through it, which begins now"
            );
        }
        Some(_) => {}
    }
    let (table, refused) = adopt::first_table(snapshot.as_ref(), &config.routing);
    if is_lost {
        table.routes().iter().filter_map(|route| route.dual.as_ref()).for_each(|dual| dual.set_in_doubt(true));
    }
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    control.block_on(async {
        let program = Program::start(config, path, table, state, journal, totals)?;
        if let Some(refused) = refused {
            tracing::error!(reason = %refused, "proxy.toml was changed while the proxy was down in a way that could lose data; going on with the last adopted table");
            program.adopter.note_refusal(refused.to_string(), file_crc(path));
        } else {
            program.adopter.save(&program.adopter.table(), false).context("write state file")?;
        }
        program.recover(found.open);
        program.serve(path, level).await
    })
}

/// Keeps a second proxy away from the same state: two would break the order of writes. Held until the file is dropped.
fn lock(directory: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(directory).with_context(|| format!("create state directory {}", directory.display()))?;
    let path = directory.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            anyhow::bail!(
                "another cutover runs with the state directory {}; stop it, or give this one a [state] directory of its own",
                directory.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

type LevelHandle = reload::Handle<EnvFilter, tracing_subscriber::Registry>;

fn start_logging(config: &Config) -> LevelHandle {
    let (filter, handle) = reload::Layer::new(filter(&config.log.level));
    let registry = tracing_subscriber::registry().with(filter);
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    // A test may start several in one process; the first one's subscriber stays.
    let _ = match config.log.json {
        true => registry.with(format.json()).try_init(),
        false => registry.with(format.with_ansi(false)).try_init(),
    };
    handle
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(level).unwrap_or_else(|error| {
        eprintln!("warning: log level `{level}` is not understood ({error}); using `info`");
        EnvFilter::new("info")
    })
}

/// CRC-32 of the file's bytes; 0 if it cannot be read.
fn file_crc(path: &Path) -> u32 {
    std::fs::read(path).map_or(0, |bytes| crc32fast::hash(&bytes))
}

/// The running parts.
struct Program {
    adopter: Arc<Adopter>,
    jobs: Arc<Jobs>,
    peers: Peers,
    workers: Vec<JoinHandle<std::io::Result<bool>>>,
    loss: Arc<Loss>,
    config: Config,
}

impl Program {
    fn start(
        config: &Config,
        path: &Path,
        table: Table,
        state: StateFile,
        journal: Journal,
        totals: Arc<Totals>,
    ) -> anyhow::Result<Self> {
        let count = match config.listen.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let (senders, inboxes): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let peers = Peers(Arc::new(senders));
        let slot_map = Arc::new(ArcSwap::from_pointee(SlotMap::default()));
        let refresh = Arc::new(Notify::new());
        let loss = Arc::new(Loss::default());
        let stores = StoresConfig {
            standalone: standalone(config),
            cluster: seeds(config),
            slot_map: slot_map.clone(),
            refresh: refresh.clone(),
            loss: loss.clone(),
            queue_bytes_max: config
                .cluster
                .as_ref()
                .map_or(0, |store| store.queue_bytes)
                .max(config.standalone.queue_bytes),
        };
        let listeners = listeners(config.listen.address, count)?;
        let admin_listener = std::net::TcpListener::bind(config.admin.address)
            .with_context(|| format!("listen on the admin address {}", config.admin.address))?;
        let traffic = Arc::new(TrafficBook::default());
        let table = Arc::new(ArcSwap::from_pointee(table));
        let journal = Arc::new(journal);
        let (clients, scripts) = (Arc::new(Clients::default()), Arc::new(Scripts::default()));
        let (subscribing, audit) = (Arc::new(Subscribing::default()), Arc::new(Audit::default()));
        let mut workers = Vec::new();
        for ((number, inbox), listener) in inboxes.into_iter().enumerate().zip(listeners) {
            let parts = WorkerParts {
                number,
                address: config.listen.address,
                clients_max: config.listen.max_clients,
                limits: limits(config),
                stores: stores.clone(),
                db: config.standalone.urls.first().map_or(0, |url| url.db),
                table: table.load_full(),
                peers: peers.clone(),
                inbox,
                journal: journal.clone(),
                totals: totals.clone(),
                traffic: traffic.clone(),
                clients: clients.clone(),
                scripts: scripts.clone(),
                audit: audit.clone(),
                subscribing: subscribing.clone(),
            };
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            workers.push(thread.spawn(move || worker::run(parts, listener))?);
        }
        let adopter = Arc::new(Adopter::new(table, peers.clone(), state, config.flip_timeout, loss.clone()));
        let context = jobs::Context {
            adopter: adopter.clone(),
            peers: peers.clone(),
            standalone: stores.standalone.clone(),
            seeds: stores.cluster.clone(),
            slot_map: slot_map.clone(),
            refresh: refresh.clone(),
            copied: jobs::Copied::default(),
        };
        let jobs = Jobs::new(context);
        if !stores.cluster.is_empty() {
            tokio::spawn(topology::keep_fresh(stores.cluster, slot_map, refresh, loss.clone()));
        }
        let parts = admin::Parts {
            audit,
            adopter: adopter.clone(),
            jobs: jobs.clone(),
            totals,
            traffic,
            token: config.admin.token.clone(),
            config_path: path.to_path_buf(),
            started: Instant::now(),
            feed: Arc::default(),
            changing: Arc::default(),
        };
        tokio::spawn(admin::serve(admin_listener, parts));
        Ok(Self { adopter, jobs, peers, workers, loss, config: config.clone() })
    }

    /// What an earlier run left open.
    fn recover(&self, diverged: HashSet<Bytes>) {
        if !diverged.is_empty() {
            tracing::warn!(keys = diverged.len(), "the journal names keys that may differ; they are repaired first");
        }
        for key in diverged {
            self.peers.send(self.peers.lane_of(&key), Message::Recover { key });
        }
        self.backfill(doubtful);
    }

    /// A store may have lost what it acknowledged: every dual route is walked again.
    fn doubt(&self) {
        self.adopter.note_loss();
        self.backfill(doubtful);
    }

    fn backfill(&self, of: impl Fn(&Table) -> Vec<RouteName>) {
        let routes = of(&self.adopter.table());
        if routes.is_empty() {
            return;
        }
        let (jobs, options) = (self.jobs.clone(), jobs::Options { rate: jobs::RATE_DEFAULT, repair: false });
        tokio::spawn(async move { jobs.sync(routes, options).await });
    }

    /// Adopts what the file becomes, until a signal ends the program.
    async fn serve(mut self, path: &Path, level: LevelHandle) -> anyhow::Result<()> {
        let (changed, mut changes) = mpsc::channel(1);
        let watching: PathBuf = path.to_path_buf();
        tokio::spawn(async move {
            if let Err(error) = config::watch::watch(watching, changed).await {
                tracing::error!(%error, "proxy.toml cannot be watched; changes to it need a restart");
            }
        });
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        // Left alone it would kill: with a handler a write beyond the limit of file sizes is an error like a full disk.
        let _size_limit = signal(SignalKind::from_raw(SIGXFSZ))?;
        let (listen, admin) = (self.config.listen.address, self.config.admin.address);
        tracing::info!(url = %format!("redis://{listen}/0"), admin = %format!("http://{admin}/"), workers = self.workers.len(), "serving");
        loop {
            tokio::select! {
                Some(()) = changes.recv() => self.reload(path, &level).await,
                () = self.loss.told() => self.doubt(),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        self.drain().await
    }

    async fn reload(&self, path: &Path, level: &LevelHandle) {
        let crc = file_crc(path);
        let config = match config::load(path) {
            Ok(config) => config,
            Err(report) => {
                tracing::error!("proxy.toml was changed and cannot be used; the running table stays\n{report}");
                return self.adopter.note_refusal(report.to_string(), crc);
            }
        };
        if config.log.level != self.config.log.level
            && let Err(error) = level.reload(filter(&config.log.level))
        {
            tracing::warn!(%error, "the log level stays as it was");
        }
        for setting in needs_restart(&self.config, &config) {
            tracing::warn!(setting, "changed in proxy.toml; it takes effect at the next start");
        }
        if let Ok(adopted) = self.adopter.propose(&config.routing, crc).await {
            tracing::info!(
                version = adopted.version,
                flips = adopted.flips.len(),
                took_ms = adopted.took.as_secs_f64() * 1e3,
                "table adopted"
            );
            // The way back needs what the standalone has missed.
            self.backfill(|_| {
                let back =
                    adopted.flips.iter().filter(|flip| flip.from == Phase::Cluster && flip.to == Phase::DualCluster);
                back.map(|flip| flip.route.clone()).collect()
            });
        }
    }

    /// Lets clients have their answers and the followers their effects, and notes whether all of it was done.
    async fn drain(&mut self) -> anyhow::Result<()> {
        tracing::info!("draining: no new clients, everything that was asked is answered");
        for worker in 0..self.peers.0.len() {
            self.peers.send(worker, Message::Stop);
        }
        let workers = std::mem::take(&mut self.workers);
        let join = move || workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>();
        let ended = tokio::task::spawn_blocking(join).await?;
        let is_clean = ended.iter().all(|ended| matches!(ended, Ok(Ok(true))));
        self.adopter.save(&self.adopter.table(), is_clean).context("write state file")?;
        match is_clean {
            true => tracing::info!("drained; every follower has what its leader has answered"),
            false => tracing::warn!(
                "not everything could be answered in time; the next start takes every dual route for doubtful"
            ),
        }
        Ok(())
    }
}

/// The dual routes of which any key may differ.
fn doubtful(table: &Table) -> Vec<RouteName> {
    let doubtful = table.routes().iter().filter(|route| route.dual.as_ref().is_some_and(|dual| dual.is_in_doubt()));
    doubtful.map(|route| route.name.clone()).collect()
}

/// Settings that a running proxy cannot change.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let mut changed = Vec::new();
    let mut look = |differs: bool, name| changed.extend(differs.then_some(name));
    look(old.listen != new.listen, "[listen]");
    look(old.admin != new.admin, "[admin]");
    look(old.standalone != new.standalone, "[standalone]");
    look(old.cluster != new.cluster, "[cluster]");
    look(old.state_directory != new.state_directory, "[state]");
    look(old.log.json != new.log.json, "log.format");
    look(old.flip_timeout != new.flip_timeout, "routing.flip_timeout");
    changed
}

/// One for each worker on the same port; the kernel spreads the clients over them.
fn listeners(address: SocketAddr, count: usize) -> anyhow::Result<Vec<std::net::TcpListener>> {
    // SO_REUSEPORT would let two programs share the port without a word: a plain bind finds out.
    drop(std::net::TcpListener::bind(address).with_context(|| format!("listen on {address}"))?);
    let bind = |_| worker::bind(address).with_context(|| format!("listen on {address}"));
    (0..count).map(bind).collect()
}

fn limits(config: &Config) -> SessionLimits {
    SessionLimits {
        requests: Limits { query_bytes_max: config.listen.max_query_bytes, ..Limits::default() },
        pending_reply_bytes_max: config.listen.max_pending_reply_bytes,
        password: config.listen.password.clone(),
    }
}

fn endpoint(url: &StoreUrl, store: &config::Store) -> Endpoint {
    Endpoint {
        address: url.address().into(),
        login: Login { user: url.user.clone(), password: url.password.clone() },
        db: url.db,
        timeouts: Timeouts { connect: store.connect_timeout, reply: store.reply_timeout, patience: store.patience },
    }
}

/// How to reach the standalone.
pub fn standalone(config: &Config) -> Endpoint {
    let store = &config.standalone;
    // `config::check` refuses a section without a URL.
    endpoint(&store.urls[0], store)
}

/// How to reach the cluster's seeds; none without a `[cluster]` section.
pub fn seeds(config: &Config) -> Vec<Endpoint> {
    let of = |store: &config::Store| store.urls.iter().map(|url| endpoint(url, store)).collect();
    config.cluster.as_ref().map(of).unwrap_or_default()
}
