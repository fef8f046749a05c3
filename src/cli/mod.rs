//! The command line. Exit codes: 0 done, 1 refused or found different, 2 wrong usage or unusable config.

mod api_client;
mod audit;
mod bake;
mod change;
mod check;
mod consent;
mod facts;
mod health;
mod init;
mod interrupt;
mod inventory;
mod job;
mod lines;
mod manual;
mod migrate;
mod output;
mod prepare;
mod progress;
mod rollback;
mod status;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::cli::api_client::ApiClient;
use crate::config;
use crate::jobs;
use crate::routing::Phase;
use crate::serve::Beside;

/// Done.
const DONE: u8 = 0;
/// Refused, or found different.
const REFUSED: u8 = 1;
/// Wrong usage, or a configuration that cannot be used.
const UNUSABLE: u8 = 2;

/// Moves an application's keys from a standalone Redis to a Redis Cluster, one provider at a time, while it runs.
///
/// The application's REDIS_URL points at the proxy (`cutover serve`). Each line of proxy.toml names a provider and its
/// phase: standalone, dual-standalone (copying), dual-cluster (cut over, the way back open), cluster (moved). Changing
/// that one word moves it, by hand or with `cutover move`; the running proxy adopts the file at once.
///
/// First look at what there is with `cutover inventory`. Then the whole way of one provider, in one command:
///   cutover migrate 42
///   cutover rollback 42                    (if anything looks wrong)
///   cutover migrate 42 --finish
///
/// The same, step by step:
///   cutover move 42 --to dual-standalone
///   cutover backfill 42
///   cutover verify 42
///   cutover move 42 --to dual-cluster      (and back, if anything looks wrong)
///   cutover move 42 --to cluster
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    /// The configuration.
    #[arg(long, global = true, value_name = "FILE", default_value = "proxy.toml", env = "CUTOVER_CONFIG")]
    config: PathBuf,
    /// Prints JSON for programs, where there is something to read.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the proxy in the foreground. SIGTERM drains and exits 0; SIGHUP re-reads the configuration.
    ///
    /// With --takeover it takes the place of a proxy that runs with the same state directory, of this version or an older
    /// one, and no client is refused: the running one hands over its listening sockets, answers what it was asked, brings
    /// the followers up to date and ends; then this one serves whoever has connected meanwhile. Without one that runs it
    /// starts as ever. Sockets that a service manager holds (LISTEN_FDS, as systemd does) are used where they listen on the
    /// addresses of the configuration.
    #[command(verbatim_doc_comment)]
    Serve {
        /// Takes the place of the proxy that runs with the same state directory.
        #[arg(long)]
        takeover: bool,
    },
    /// Asks for the two addresses, looks at both stores, and writes a first configuration with comments.
    ///
    /// Finds where the provider stands in keys by a sample of them (SCAN in small steps), and says in the file why. Nothing
    /// in the stores is changed. What is not asked for can be said: without a terminal the two questions are answered by two
    /// lines on standard input, or by --standalone and --cluster.
    ///
    /// Examples:
    ///   cutover init
    ///   cutover init --standalone redis://:secret@10.0.0.5:6379/0 --cluster 10.0.1.1:7000,10.0.1.2:7000
    #[command(verbatim_doc_comment)]
    Init(Init),
    /// Takes a backup of the standalone, keeps what both stores say of themselves, and judges whether the cluster can take
    /// what the standalone has. Exits 1 if something should be mended first.
    ///
    /// The backup is an RDB, taken as a replica takes it (SYNC): the server forks and sends it, and makes no file. Into the
    /// same folder go INFO and CONFIG of every server (without passwords) and CLUSTER NODES. Of the cluster it is looked at
    /// whether it has room, a version that reads what the standalone writes, cluster_state:ok, all slots, replicas in step,
    /// a maxmemory-policy that drops no keys, and persistence. Needs no running proxy, and changes nothing in the stores.
    ///
    /// Example:
    ///   cutover prepare --output before-the-move
    #[command(verbatim_doc_comment)]
    Prepare(Prepare),
    /// Reads and judges the configuration, reaches both stores, and says what the next reload would flip.
    Check,
    /// Asks the running proxy whether it can serve: with every store that its table needs. Exits 1, with the reason, if not.
    ///
    /// For health checks of containers, which have no other program to ask with.
    #[command(verbatim_doc_comment)]
    Health {
        /// Asks only whether the proxy itself is alive, whatever the stores do.
        #[arg(long)]
        live: bool,
    },
    /// Shows each route: phase, leader, keys copied, synced, open divergence, requests a second; and both stores' latency.
    ///
    /// COPIED counts the keys that the route's last backfill in this run of the proxy has copied. SYNCED says whether both
    /// stores are known to hold every key of the route. DIVERGENCE counts keys that may differ and are being repaired.
    /// OPS/S is that of the last five seconds, exact for little traffic and sampled for much. A store's latency is the time
    /// of a PING on the links that the application's requests use; for the cluster, that of its slowest primary.
    #[command(verbatim_doc_comment)]
    Status(Status),
    /// Reads the standalone without harming it: per provider the keys, bytes by type, TTLs and biggest keys.
    ///
    /// Goes through all keys with SCAN in small steps (never KEYS), asks type, TTL and size of each (MEMORY USAGE with five
    /// samples), and rests three times as long as the server took, so that at most a quarter of the server's time goes into
    /// it; a server that is busy slows it down further. Needs no running proxy. Prints the routes with the most bytes and
    /// writes all of them to a report in JSON. Keys are told apart by routing.keys and [prefixes] of the configuration;
    /// what belongs to none of them is listed by how it begins, so that a missing pattern shows.
    #[command(verbatim_doc_comment)]
    Inventory(Inventory),
    /// Shows what the application sent that will not work the same on a cluster, by route and client, with what to do.
    ///
    /// The proxy looks at what passes through it, in every phase: commands and transactions with keys in several slots or of
    /// several routes, WATCH over slots, scripts without declared keys, SORT patterns, other databases, and what it refuses.
    /// Let a day's traffic pass before the first move, then look here. Exits 1 if there is anything.
    #[command(verbatim_doc_comment)]
    Audit,
    /// Changes the phase of routes in the configuration, keeping its comments and layout, and waits until the running
    /// proxy has adopted it. A flip that could lose data is refused, and the file is put back.
    ///
    /// All routes of one command change in one edit, and are adopted or refused together. A range that is no line of the
    /// configuration stands for all lines in it, and gets a line for the ids that have none.
    ///
    /// Examples:
    ///   cutover move 42 --to dual-standalone
    ///   cutover move 100..199 asgi: --to dual-cluster
    ///   cutover move --all --to dual-standalone
    #[command(verbatim_doc_comment)]
    Move(Move),
    /// Copies what the follower lacks; the routes are synced afterwards. It runs inside the proxy: Ctrl-C ends the watching,
    /// not the copying, and running the command again shows the same job.
    Backfill(Walk),
    /// Compares both stores, value and TTL of every key, while traffic runs. Exits 1 if something differs.
    Verify {
        #[command(flatten)]
        walk: Walk,
        /// Copies what differs from the leader to the follower.
        #[arg(long)]
        repair: bool,
    },
    /// Takes routes the whole way to the cluster, step by step, and stops where something falls short.
    ///
    /// The steps: dual-standalone, backfill, verify, dual-cluster (the cutover), bake, verify. There it stops: the cluster
    /// answers, the standalone still gets every write, and `cutover rollback` undoes it at once. --finish goes on to
    /// cluster, where the standalone is let go. A route that is further on begins where it is.
    ///
    /// The bake is a wait with open eyes. It falls short at once when a request of the route is refused because its keys
    /// are in different slots (see --refusals), and after 30 s when keys stay diverged, the route is in doubt, a store
    /// does not answer, or a newer proxy.toml is refused.
    ///
    /// Whatever falls short stops the command (exit 1), leaves the routes in the phase they are in, which is always a safe
    /// one, and says what to do; the same command goes on from there. So does Ctrl-C, at any moment.
    ///
    /// Routes go one after the other, or --at-once of them in each step; with --all a hundred, because each backfill and
    /// each verify walks the whole store once for all of its routes. What falls short stops the command: what comes behind
    /// it is not begun.
    ///
    /// Examples:
    ///   cutover migrate 42
    ///   cutover migrate 7 100..199 --bake 1h
    ///   cutover migrate --all --at-once 0 --bake 30m --rate 0 --finish
    #[command(verbatim_doc_comment)]
    Migrate(Migrate),
    /// Takes routes back to the phase before, at once.
    ///
    /// From cluster to dual-cluster: the standalone is being given again what it lacks, which begins by itself; when
    /// `cutover status` says synced, a second rollback goes on. From dual-cluster to dual-standalone: the standalone
    /// answers again and has every write. From dual-standalone to standalone: the cluster gets no more writes.
    ///
    /// All routes go back in one edit. Where the proxy refuses some of them (open divergence that it could not repair
    /// within flip_timeout, or a standalone that is not synced yet), the others go back, the refused are named, and the
    /// exit code is 1.
    ///
    /// Examples:
    ///   cutover rollback 42
    ///   cutover rollback --all
    #[command(verbatim_doc_comment)]
    Rollback(Rollback),
    /// Prints the script that completes commands and options in a shell.
    ///
    /// Examples:
    ///   cutover completions bash > ~/.local/share/bash-completion/completions/cutover
    ///   cutover completions zsh > "${fpath[1]}/_cutover"
    ///   cutover completions fish > ~/.config/fish/completions/cutover.fish
    #[command(verbatim_doc_comment)]
    Completions { shell: Shell },
    /// Writes manual pages: one for cutover and one for each command.
    ///
    /// Example:
    ///   cutover man /usr/local/share/man/man1
    #[command(verbatim_doc_comment)]
    Man {
        /// Is made if it is not there.
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Init {
    /// The Redis that is being left; asked for if it is not given.
    #[arg(long, value_name = "URL")]
    standalone: Option<String>,
    /// Nodes of the Redis Cluster, separated by commas, or - for none yet; asked for if it is not given.
    #[arg(long, value_name = "URL", value_delimiter = ',', value_parser = init::seed)]
    cluster: Option<Vec<String>>,
    /// What the application's REDIS_URL will point at.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6380")]
    listen: SocketAddr,
    /// A key pattern, instead of a guess; may be given again.
    #[arg(long, value_name = "PATTERN")]
    keys: Vec<String>,
    /// How many keys are looked at.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    sample: usize,
    /// Replaces a configuration that is there, without asking.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct Prepare {
    /// The folder, made if it is not there [default: cutover-prepare-DATE-TIME].
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Only looks.
    #[arg(long)]
    no_backup: bool,
}

#[derive(Debug, Args)]
struct Status {
    /// Providers, ranges, prefixes, or share; everything that the table names if none is given.
    #[arg(value_name = "ROUTE")]
    routes: Vec<String>,
    /// Every provider that the table or the stores know; both stores are searched first.
    #[arg(long, conflicts_with = "routes")]
    all: bool,
    /// Shows it again each second until Ctrl-C.
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
struct Inventory {
    /// How many of the biggest keys are listed, in all and of each provider, and how many providers are printed.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// Where the report is written; an older one is replaced.
    #[arg(long, value_name = "FILE", default_value = "cutover-inventory.json")]
    output: PathBuf,
}

#[derive(Debug, Args)]
struct Move {
    /// Providers, ranges ("100..199"), prefixes, lists ("7,9,42"), or new_providers, other_keys, pubsub.
    #[arg(value_name = "ROUTE", required_unless_present = "all")]
    routes: Vec<String>,
    /// Every provider that the table or the stores know. Both stores are searched; who has no line gets one.
    #[arg(long, conflicts_with = "routes")]
    all: bool,
    /// standalone, dual-standalone, dual-cluster or cluster.
    #[arg(long, value_name = "PHASE")]
    to: Phase,
    /// Overrides the judgement: what differs between the stores may be lost. Asks first, on a terminal.
    #[arg(long)]
    force: bool,
    /// Does not ask; needed for --force with --all where there is no terminal.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct Walk {
    /// Providers, ranges, prefixes, as the configuration names them, or share.
    #[arg(value_name = "ROUTE", required_unless_present = "all")]
    routes: Vec<String>,
    /// Every route that is in a dual phase, and so every provider whose keys can be on both stores, named or not.
    #[arg(long, conflicts_with = "routes")]
    all: bool,
    /// Keys a second at most; 0 for as fast as the stores answer.
    #[arg(long, value_name = "N", default_value_t = jobs::RATE_DEFAULT)]
    rate: u64,
}

#[derive(Debug, Args)]
struct Migrate {
    /// Providers, ranges ("100..199"), prefixes, lists ("7,9,42"), or new_providers, other_keys.
    #[arg(value_name = "ROUTE", required_unless_present = "all")]
    routes: Vec<String>,
    /// Every provider that the table or the stores know. Both stores are searched; who has no line gets one.
    #[arg(long, conflicts_with = "routes")]
    all: bool,
    /// How long the routes are watched after the cutover; 0s for not at all.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    bake: Duration,
    /// Goes on to the phase cluster.
    #[arg(long)]
    finish: bool,
    /// Keys a second at most, in backfill and verify; 0 for as fast as the stores answer.
    #[arg(long, value_name = "N", default_value_t = jobs::RATE_DEFAULT)]
    rate: u64,
    /// How many routes take each step together; 0 for all of them [default: 1, with --all 100].
    #[arg(long, value_name = "N", visible_alias = "parallel")]
    at_once: Option<usize>,
    /// How many refused requests of a route the bake lets pass.
    #[arg(long, value_name = "N", default_value_t = 0)]
    refusals: u64,
}

#[derive(Debug, Args)]
struct Rollback {
    /// Providers, ranges ("100..199"), prefixes, lists ("7,9,42"), or new_providers, other_keys.
    #[arg(value_name = "ROUTE", required_unless_present = "all")]
    routes: Vec<String>,
    /// Every provider that the table or the stores know.
    #[arg(long, conflicts_with = "routes")]
    all: bool,
    /// Overrides the judgement: what only the cluster has may be lost. Asks first, on a terminal.
    #[arg(long)]
    force: bool,
    /// Does not ask; needed for --force with --all where there is no terminal.
    #[arg(long)]
    yes: bool,
}

/// Runs the command line of this process and gives its exit code.
pub fn run() -> ExitCode {
    // clap prints what is wrong and exits with 2, or prints help and exits with 0.
    let cli = Cli::parse();
    match execute(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // A report of findings says by itself that they are errors.
            match error.downcast_ref::<config::Report>() {
                Some(report) => eprintln!("{report}"),
                None => eprintln!("error: {error:#}"),
            }
            ExitCode::from(if error.is::<config::Report>() { UNUSABLE } else { REFUSED })
        }
    }
}

fn execute(cli: &Cli) -> anyhow::Result<u8> {
    let (path, as_json) = (&cli.config, cli.json);
    let config = || config::load(path);
    // For what is asked of the running proxy: another one's answers would be taken for this one's.
    let own = || -> anyhow::Result<_> {
        let config = config()?;
        match ApiClient::new(&config).stranger(path) {
            Some(reason) => bail!("{reason}"),
            None => Ok(config),
        }
    };
    match &cli.command {
        Command::Serve { takeover } => {
            let beside = if *takeover { Beside::TakeOver } else { Beside::Refuse };
            crate::serve::run(path, beside).map(|()| DONE)
        }
        Command::Init(asked) => init::run(path, asked, as_json),
        Command::Prepare(asked) => prepare::run(&config()?, asked, as_json),
        Command::Check => check::run(&config()?, path, as_json),
        Command::Status(asked) => status::run(&own()?, asked, as_json),
        Command::Health { live } => health::run(&config()?, *live),
        Command::Audit => audit::run(&own()?, as_json),
        Command::Inventory(asked) => inventory::run(&config()?, asked, as_json),
        Command::Move(asked) => change::run(&own()?, path, asked, as_json),
        Command::Migrate(asked) => migrate::run(&own()?, path, asked, as_json),
        Command::Rollback(asked) => rollback::run(&own()?, path, asked, as_json),
        Command::Backfill(walk) => job::run(&own()?, jobs::Kind::Backfill, walk, false, as_json),
        Command::Verify { walk, repair } => job::run(&own()?, jobs::Kind::Verify, walk, *repair, as_json),
        Command::Completions { shell } => manual::completions(*shell),
        Command::Man { directory } => manual::pages(directory),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
