//! The command line. Exit codes: 0 done, 1 refused or found different, 2 wrong usage or unusable config.

mod api_client;
mod change;
mod check;
mod job;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config};
use crate::jobs;
use crate::routing::Phase;

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
/// The way of one provider:
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
    Serve,
    /// Reads and judges the configuration, reaches both stores, and says what the next reload would flip.
    Check,
    /// Shows each route: phase, leader, whether it is synced, and open divergence.
    Status {
        /// Providers, ranges or prefixes; all of them if none is named.
        #[arg(value_name = "ROUTE")]
        routes: Vec<String>,
        /// Shows it again each second until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Changes the phase of routes in the configuration, keeping its comments and layout, and waits until the running
    /// proxy has adopted it. A flip that could lose data is refused, and the file is put back.
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
}

#[derive(Debug, Args)]
struct Move {
    /// Providers, ranges ("100..199"), prefixes, or new_providers, other_keys, pubsub.
    #[arg(value_name = "ROUTE", required = true)]
    routes: Vec<String>,
    /// standalone, dual-standalone, dual-cluster or cluster.
    #[arg(long, value_name = "PHASE")]
    to: Phase,
    /// Overrides the judgement: what differs between the stores may be lost.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Walk {
    /// Providers, ranges or prefixes, as the configuration names them.
    #[arg(value_name = "ROUTE", required_unless_present = "all")]
    routes: Vec<String>,
    /// Every route that is in a dual phase.
    #[arg(long, conflicts_with = "routes")]
    all: bool,
    /// Keys a second at most; 0 for as fast as the stores answer.
    #[arg(long, default_value_t = jobs::RATE_DEFAULT)]
    rate: u64,
}

/// Runs the command line of this process and gives its exit code.
pub fn run() -> ExitCode {
    // clap prints what is wrong and exits with 2, or prints help and exits with 0.
    let cli = Cli::parse();
    let config = match config::load(&cli.config) {
        Ok(config) => config,
        Err(report) => {
            eprintln!("{report}");
            return ExitCode::from(UNUSABLE);
        }
    };
    match execute(&cli, &config) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(REFUSED)
        }
    }
}

fn execute(cli: &Cli, config: &Config) -> anyhow::Result<u8> {
    match &cli.command {
        Command::Serve => crate::serve::run(config, &cli.config).map(|()| DONE),
        Command::Check => check::run(config, &cli.config, cli.json),
        Command::Status { routes, watch } => status::run(config, routes, *watch, cli.json),
        Command::Move(asked) => change::run(config, &cli.config, &asked.routes, asked.to, asked.force, cli.json),
        Command::Backfill(walk) => job::run(config, jobs::Kind::Backfill, walk, false, cli.json),
        Command::Verify { walk, repair } => job::run(config, jobs::Kind::Verify, walk, *repair, cli.json),
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
