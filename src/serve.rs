//! The program's table of contents: builds every part from a configuration, joins them, and drains them at the end.
//!
//! Threads: one for each worker, one for the journal, and the one that calls [`run`], on which the control side lives
//! (adoption of new tables, jobs, the admin server, the cluster's layout).

mod listeners;
mod reach;
mod takeover;

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::admin;
use crate::audit::Audit;
use crate::config::watch::Fingerprint;
use crate::config::{self, Config};
use crate::dual::adopt::Adopter;
use crate::dual::desk::{Ask, Desk};
use crate::dual::journal::Journal;
use crate::dual::shelf::Where;
use crate::dual::state::{Snapshot, StateFile};
use crate::dual::tenure::{Tenure, TenureParts};
use crate::dual::traffic::TrafficBook;
use crate::dual::{Audience, Copying, Message, Peers, Recent, Shadowing, Subscribing, remembered};
use crate::jobs::checkpoint::{JobFile, Record};
use crate::jobs::{self, Jobs};
use crate::metrics::{PANICS, Totals};
use crate::routing::flip::Jumps;
use crate::routing::{Key, Phase, RouteName, Table};
use crate::serve::listeners::Listeners;
use crate::session::users::Users;
use crate::session::worker::{self, WorkerParts};
use crate::session::{Bounds, Clients, Filter, Scripts, SessionLimits};
use crate::store::{Fence, Loss, PrivateLinks, Role, SlotMap, SlowLimit, StoresConfig, private_link, topology};
use crate::{process, service};

pub use reach::{acceptor, seeds, standalone};

use reach::Certificates;

/// The same number on every Linux but MIPS.
const SIGXFSZ: i32 = 25;
/// Between two lines about a wait.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// What happens when another proxy runs with the same state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// This one does not start.
    Refuse,
    /// This one takes its place.
    TakeOver,
}

/// Runs the proxy until SIGTERM or SIGINT, or until another takes its place, and drains it. `path` is watched for changes.
pub fn run(path: &Path, beside: Beside) -> anyhow::Result<()> {
    // Before it is read: what is saved after that is a change.
    let loaded = config::watch::fingerprint(path);
    let config = &config::load(path)?;
    process::started();
    private_link::be_a_proxy(&config.lease.name);
    let level = start_logging(config);
    process::raise_open_files();
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        tracing::error!(%panic, "an internal error, which is worth a report");
    }));
    let (_lock, inherited) = take_place(&config.state_directory, beside)?;
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
    let (table, refused) =
        remembered::first_table(snapshot.as_ref(), |route| state.has_stale_cluster_keys(route), &config.routing);
    if is_lost {
        table.routes().iter().filter_map(|route| route.dual.as_ref()).for_each(|dual| dual.set_in_doubt(true));
    }
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&control, async {
        // Before anybody is served: a signal that comes without a handler ends the program in the midst of an answer.
        let signals = Signals::listen()?;
        let program = Program::start(config, path, table, state, journal, totals, inherited)?;
        let is_refused = refused.is_some();
        if let Some(refused) = refused {
            tracing::error!(reason = %refused, "proxy.toml was changed while the proxy was down in a way that could lose data; going on with the last adopted table until the file can be adopted");
            program.adopter.note_refusal(refused.to_string(), file_crc(path));
        }
        let is_clean = snapshot.as_ref().is_some_and(|snapshot| snapshot.clean);
        program.recover(found.open, is_clean);
        program.serve(path, loaded, level, signals, is_refused).await
    })
}

/// Keeps a second proxy away from the same state: two would break the order of writes. The lock is held until the file is
/// dropped. Gives the sockets that are inherited, too.
fn take_place(directory: &Path, beside: Beside) -> anyhow::Result<(File, Vec<TcpListener>)> {
    std::fs::create_dir_all(directory).with_context(|| format!("create state directory {}", directory.display()))?;
    let path = directory.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let has_lock = || match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    };
    if has_lock()? {
        return Ok((file, listeners::from_environment()?));
    }
    if beside == Beside::Refuse {
        anyhow::bail!(
            "another cutover runs with the state directory {}; stop it, take its place with `cutover serve --takeover`, or give this one a [state] directory of its own",
            directory.display()
        )
    }
    let (asked, mut told) = (Instant::now(), Duration::ZERO);
    let inherited = loop {
        match takeover::ask(directory) {
            Ok(sockets) => break sockets,
            // One that has just been started offers its place a moment later, and one that ends leaves it.
            Err(_) if asked.elapsed() < takeover::PATIENCE => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => {
                return Err(error).context(
                    "ask the running cutover for its place; it goes on as before. Stop it with SIGTERM, which drains it, and start this one",
                );
            }
        }
        if has_lock()? {
            return Ok((file, listeners::from_environment()?));
        }
    };
    tracing::info!("the running cutover drains; its clients wait in the sockets that it has handed over");
    while !has_lock()? {
        if asked.elapsed() > told + TOLD_EVERY {
            told = asked.elapsed();
            tracing::warn!(
                seconds = told.as_secs(),
                "the running cutover still drains; it ends after its drain_timeout at the latest"
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    tracing::info!(waited_ms = asked.elapsed().as_secs_f64() * 1e3, "took the place of the one that ran");
    Ok((file, inherited))
}

/// What ends the program, and what must not.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Left alone it would kill: with a handler a write beyond the limit of file sizes is an error like a full disk.
    _size_limit: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _size_limit: signal(SignalKind::from_raw(SIGXFSZ))?,
        })
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
    desk: Arc<Desk>,
    peers: Peers,
    workers: Vec<JoinHandle<std::io::Result<bool>>>,
    loss: Arc<Loss>,
    copying: Arc<Copying>,
    shadowing: Arc<Shadowing>,
    bounds: Arc<Bounds>,
    users: Arc<ArcSwap<Users>>,
    clients: Arc<Clients>,
    /// The sockets again, for a successor.
    sockets: Vec<TcpListener>,
    admin: tokio::task::JoinHandle<()>,
    certificates: Certificates,
    totals: Arc<Totals>,
    slow: SlowCommands,
    config: Config,
}

/// Which commands the log calls slow, and what it says of them.
#[derive(Default)]
struct SlowCommands {
    limit: Arc<SlowLimit>,
    shows_keys: Arc<AtomicBool>,
}

impl SlowCommands {
    fn set(&self, log: &config::Log) {
        self.limit.set(log.slow_command);
        self.shows_keys.store(log.slow_command_keys, Ordering::Relaxed);
    }
}

impl Program {
    fn start(
        config: &Config,
        path: &Path,
        table: Table,
        mut state: StateFile,
        journal: Journal,
        totals: Arc<Totals>,
        inherited: Vec<TcpListener>,
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
        let (desk, asks) = desk(config);
        let slow = SlowCommands::default();
        slow.set(&config.log);
        let stores = StoresConfig {
            standalone: standalone(config)?,
            cluster: seeds(config)?,
            slot_map: slot_map.clone(),
            refresh: refresh.clone(),
            loss: loss.clone(),
            slow: slow.limit.clone(),
            fence: desk.fence.clone(),
            queue_bytes_max: config
                .cluster
                .as_ref()
                .map_or(0, |store| store.queue_bytes)
                .max(config.standalone.queue_bytes),
            private_links: PrivateLinks::new(
                config.standalone.private_links,
                config.cluster.as_ref().map_or(0, |store| store.private_links),
            ),
        };
        let tls = acceptor(config)?;
        let certificates = Certificates::of(tls.as_ref(), &stores);
        let listeners = Listeners::open(config, inherited, count)?;
        let sockets = listeners.all().context("keep the sockets for a successor")?;
        let spread = listeners::spread(listeners.clients, count).context("share the sockets among the workers")?;
        // Before anybody is served, and where nothing can fail any more that a mistake in the file would explain: from here on
        // the clean end of the last run says nothing, also where the table is the one that it had.
        state.save(&remembered::snapshot_of(&table, false)).context("write state file")?;
        let bounds = Arc::new(Bounds::new(&limits(config)));
        bounds.set_shares(reach::shares(config));
        bounds.set_chosen(config.commands.clone());
        let users = Arc::new(ArcSwap::from_pointee(reach::users(config)));
        let traffic = Arc::new(TrafficBook::default());
        let copying = Arc::new(Copying::default());
        let recent = Arc::new(Recent::default());
        set_copying(&copying, config.copying);
        let shadowing = Arc::new(Shadowing::default());
        shadowing.set(config.shadow_reads);
        let table = Arc::new(ArcSwap::from_pointee(table));
        let journal = Arc::new(journal);
        let (clients, scripts) = (Arc::new(Clients::default()), Arc::new(Scripts::default()));
        let (subscribing, audit) = (Arc::new(Subscribing::default()), Arc::new(Audit::default()));
        let audience = Arc::new(Audience::default());
        let serving = Arc::new(AtomicUsize::new(count));
        let mut workers = Vec::new();
        for ((number, inbox), listeners) in inboxes.into_iter().enumerate().zip(spread) {
            let parts = WorkerParts {
                number,
                address: config.listen.address,
                bounds: bounds.clone(),
                users: users.clone(),
                tls: tls.clone(),
                stores: stores.clone(),
                slow_keys: slow.shows_keys.clone(),
                db: config.standalone.urls.first().map_or(0, |url| url.db),
                table: table.load_full(),
                peers: peers.clone(),
                inbox,
                serving: serving.clone(),
                journal: journal.clone(),
                copying: copying.clone(),
                recent: recent.clone(),
                shadowing: shadowing.clone(),
                totals: totals.clone(),
                traffic: traffic.clone(),
                clients: clients.clone(),
                scripts: scripts.clone(),
                audit: audit.clone(),
                subscribing: subscribing.clone(),
                audience: audience.clone(),
                desk: desk.clone(),
            };
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            workers.push(thread.spawn(move || worker::run(parts, listeners))?);
        }
        let id = state.id().to_string();
        let adopter =
            Arc::new(Adopter::new(table, peers.clone(), state, config.flip_timeout, loss.clone(), desk.clone()));
        if let Some(asks) = asks {
            let cluster =
                Where::Cluster { seeds: stores.cluster.clone(), slot_map: slot_map.clone(), refresh: refresh.clone() };
            let parts = TenureParts {
                name: config.lease.name.clone(),
                lasts: config.lease.lasts,
                id,
                url: reach::own_url(config),
                adopter: adopter.clone(),
                desk: desk.clone(),
                asks,
                peers: peers.clone(),
                reach: reach::proxies(config)?,
            };
            let stores = [Where::Standalone(stores.standalone.clone()), cluster];
            tokio::task::spawn_local(Tenure::new(parts, stores).run());
        }
        let context = jobs::Context {
            adopter: adopter.clone(),
            peers: peers.clone(),
            standalone: stores.standalone.clone(),
            seeds: stores.cluster.clone(),
            slot_map: slot_map.clone(),
            refresh: refresh.clone(),
            copied: jobs::Copied::default(),
            copying: copying.clone(),
            totals: totals.clone(),
            baselines: Default::default(),
            bytes_from: (Instant::now(), 0).into(),
            file: JobFile::of(&config.state_directory),
            bypass: Default::default(),
            recent,
        };
        let jobs = Jobs::new(context);
        jobs.watch_bypass(config.bypass_look_every);
        if !stores.cluster.is_empty() {
            tokio::spawn(topology::keep_fresh(stores.cluster, slot_map, refresh, loss.clone()));
        }
        let parts = admin::Parts {
            audit,
            adopter: adopter.clone(),
            jobs: jobs.clone(),
            totals: totals.clone(),
            traffic,
            copying: copying.clone(),
            shadowing: shadowing.clone(),
            token: config.admin.token.clone(),
            config_path: path.to_path_buf(),
            started: Instant::now(),
            feed: Arc::default(),
            changing: Arc::default(),
        };
        let admin = tokio::spawn(admin::serve(listeners.admin, parts));
        Ok(Self {
            adopter,
            jobs,
            desk,
            peers,
            workers,
            loss,
            copying,
            shadowing,
            bounds,
            users,
            clients,
            sockets,
            admin,
            certificates,
            totals,
            slow,
            config: config.clone(),
        })
    }

    /// What an earlier run left open.
    fn recover(&self, diverged: HashSet<Key>, is_clean: bool) {
        if !diverged.is_empty() {
            tracing::warn!(
                keys = diverged.len(),
                "the journal names keys that may differ; they are repaired first, and until then flips that trust the follower are refused"
            );
        }
        for key in diverged {
            self.peers.send(self.peers.lane_of(&key.name), Message::Recover { key });
        }
        let cut_off = self.jobs.cut_off();
        let is_walked = |route: &RouteName| cut_off.iter().any(|record: &Record| record.covers(route));
        self.backfill(|table| doubtful(table).into_iter().filter(|route| !is_walked(route)).collect());
        tokio::spawn(self.jobs.clone().go_on(cut_off, is_clean));
    }

    /// A store may have lost what it acknowledged: every dual route is walked again.
    async fn doubt(&self) {
        self.adopter.note_loss().await;
        self.backfill(doubtful);
    }

    fn backfill(&self, of: impl Fn(&Table) -> Vec<RouteName>) {
        let routes = of(&self.adopter.table());
        if routes.is_empty() {
            return;
        }
        let (jobs, options) = (self.jobs.clone(), jobs::Options { rate: jobs::RATE_DEFAULT, repair: false });
        tokio::spawn(jobs.sync(routes, options));
    }

    /// Adopts what the file becomes, until a signal ends the program. `is_refused`: it could not be adopted as it was, without
    /// a store to ask.
    async fn serve(
        mut self,
        path: &Path,
        loaded: Option<Fingerprint>,
        level: LevelHandle,
        mut signals: Signals,
        is_refused: bool,
    ) -> anyhow::Result<()> {
        let (changed, mut changes) = mpsc::channel(1);
        let watching = [vec![path.to_path_buf()], self.certificates.paths()].concat();
        tokio::spawn(async move {
            if let Err(error) = config::watch::watch(watching, loaded, changed).await {
                tracing::error!(%error, "proxy.toml and the certificates cannot be watched; changes to them need a restart");
            }
        });
        let (listen, admin) = (self.config.listen.address, self.config.admin.address);
        let scheme = if self.config.listen.tls.is_some() { "rediss" } else { "redis" };
        service::tell(&format!("READY=1\nSTATUS=serving {scheme}://{listen}/0"));
        tracing::info!(url = %format!("{scheme}://{listen}/0"), admin = %format!("http://{admin}/"), workers = self.workers.len(), "serving");
        if is_refused {
            self.reload(path, &level).await;
        }
        let sockets = std::mem::take(&mut self.sockets);
        let mut handed_over = tokio::spawn(takeover::offer(self.config.state_directory.clone(), sockets));
        loop {
            tokio::select! {
                Some(()) = changes.recv() => {
                    self.certificates.reload(&self.totals);
                    self.reload(path, &level).await;
                }
                () = self.loss.told() => self.doubt().await,
                () = self.desk.changed.notified() => self.reload(path, &level).await,
                () = self.desk.taken.notified() => self.backfill(doubtful),
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                _ = &mut handed_over => {
                    tracing::info!("a successor has the sockets: new clients are its own");
                    self.admin.abort();
                    break;
                }
            }
        }
        handed_over.abort();
        self.drain().await
    }

    async fn reload(&self, path: &Path, level: &LevelHandle) {
        let file = path.to_path_buf();
        // A million lines take a second, and whoever holds the lease has to prolong it.
        let loading = tokio::task::spawn_blocking(move || (file_crc(&file), config::load(&file)));
        let (crc, loaded) = match loading.await {
            Ok(loaded) => loaded,
            Err(error) => return tracing::error!(%error, "proxy.toml was changed and could not be read"),
        };
        let config = match loaded {
            Ok(config) => config,
            Err(report) => {
                tracing::error!(
                    "proxy.toml was changed and cannot be used; the running table and settings stay until it can\n{report}"
                );
                return self.adopter.note_refusal(report.to_string(), crc);
            }
        };
        if let Err(error) = level.reload(filter(&config.log.level)) {
            tracing::warn!(%error, "the new log level cannot be set; it stays as it was until the next start");
        }
        self.bounds.set(&limits(&config));
        self.bounds.set_shares(reach::shares(&config));
        self.bounds.set_chosen(config.commands.clone());
        self.change_users(&config);
        self.adopter.set_flip_timeout(config.flip_timeout);
        set_copying(&self.copying, config.copying);
        self.shadowing.set(config.shadow_reads);
        self.slow.set(&config.log);
        for setting in needs_restart(&self.config, &config) {
            tracing::warn!(setting, "changed in proxy.toml; it takes effect at the next start");
        }
        // Another URL waits for a restart, and its database with it.
        let mut routing = config.routing;
        routing.databases.main = self.config.routing.databases.main;
        let find = async |jumps: &Jumps| self.jobs.found(jumps).await;
        if let Ok(adopted) = self.adopter.propose(&routing, crc, find).await {
            tracing::info!(
                version = adopted.version,
                flips = adopted.flips.len(),
                took_ms = adopted.took.as_millis() as u64,
                "table adopted"
            );
            // The way back needs what the standalone has missed.
            self.backfill(|_| {
                let back =
                    adopted.flips.iter().filter(|flip| flip.from == Phase::Cluster && flip.to == Phase::DualCluster);
                back.map(|flip| flip.after.clone()).collect::<HashSet<_>>().into_iter().collect()
            });
        }
    }

    /// Who may come in from now on. Clients whose users are gone, or may do other things now, are closed.
    fn change_users(&self, config: &Config) {
        let old = self.users.swap(Arc::new(reach::users(config)));
        for name in old.ended(&self.users.load()) {
            let closed = self.clients.kill(&Filter { user: Some(name.clone()), ..Filter::default() });
            tracing::info!(user = %name.escape_ascii(), closed, "the user is gone or has other rights; its clients are closed");
        }
    }

    /// Lets clients have their answers and the followers their effects, and notes whether all of it was done.
    async fn drain(&mut self) -> anyhow::Result<()> {
        service::tell("STOPPING=1\nSTATUS=draining");
        tracing::info!("draining: no new clients, everything that was asked is answered");
        self.jobs.interrupt().await;
        for worker in 0..self.peers.0.len() {
            self.peers.send(worker, Message::Stop);
        }
        let workers = std::mem::take(&mut self.workers);
        let join = move || workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>();
        let ended = tokio::task::spawn_blocking(join).await?;
        let is_clean = ended.iter().all(|ended| matches!(ended, Ok(Ok(true))));
        // Before the state file: without the word `clean` in that, a place in this counts for nothing.
        self.jobs.keep(is_clean);
        self.adopter.save(&self.adopter.table(), is_clean).await.context("write state file")?;
        self.desk.leave(is_clean).await;
        match is_clean {
            true => tracing::info!("drained; every follower has what its leader has answered"),
            false => tracing::warn!(
                "not everything could be answered in time; the next start takes every dual route for doubtful"
            ),
        }
        Ok(())
    }
}

/// Who holds the lease; without a cluster no route is dual, and nobody asks.
fn desk(config: &Config) -> (Arc<Desk>, Option<mpsc::UnboundedReceiver<Ask>>) {
    if config.cluster.is_none() {
        return (Arc::default(), None);
    }
    let fence = Arc::new(Fence::default());
    // Whose the routes are is known after the first look; until then their commands wait.
    fence.end(Role::Defers, None);
    let (desk, asks) = Desk::new(fence);
    (Arc::new(desk), Some(asks))
}

fn set_copying(copying: &Copying, settings: config::Copying) {
    copying.set(settings.large_key_bytes, settings.bytes_per_second, settings.is_by_type);
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
    let listen = config::Listen {
        max_clients: new.listen.max_clients,
        max_query_bytes: new.listen.max_query_bytes,
        max_pending_reply_bytes: new.listen.max_pending_reply_bytes,
        idle_timeout: new.listen.idle_timeout,
        drain_timeout: new.listen.drain_timeout,
        password: new.listen.password.clone(),
        ..old.listen.clone()
    };
    look(listen != new.listen, "[listen] address, tls or workers");
    look(old.admin != new.admin, "[admin]");
    look(old.standalone != new.standalone, "[standalone]");
    look(old.cluster != new.cluster, "[cluster]");
    look(old.bypass_look_every != new.bypass_look_every, "[bypass]");
    look(old.lease != new.lease, "[lease]");
    look(old.state_directory != new.state_directory, "[state]");
    look(old.log.json != new.log.json, "log.format");
    changed
}

/// Files that are no client's: links to the stores, the admin side, the state directory.
const FILES_SPARE: usize = 128;

/// `max_clients`, as far as there are files: a client that is told so knows more than one that nobody accepts.
fn clients_max(config: &Config) -> usize {
    let wanted = config.listen.max_clients;
    let Some(files) = process::open_files_max().and_then(|files| usize::try_from(files).ok()) else { return wanted };
    let room = files.saturating_sub(FILES_SPARE).max(1);
    if room < wanted {
        tracing::warn!(
            "the limit of {files} open files leaves room for {room} clients, and max_clients is {wanted}; raise the hard limit (LimitNOFILE in the unit, `ulimit -Hn`) or lower max_clients"
        );
    }
    wanted.min(room)
}

fn limits(config: &Config) -> SessionLimits {
    SessionLimits {
        clients_max: clients_max(config),
        query_bytes_max: config.listen.max_query_bytes,
        pending_reply_bytes_max: config.listen.max_pending_reply_bytes,
        idle_timeout: config.listen.idle_timeout,
        drain_timeout: config.listen.drain_timeout,
    }
}
