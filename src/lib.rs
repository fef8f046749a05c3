#![doc = include_str!("../ARCHITECTURE.md")]

pub mod admin;
pub mod audit;
pub mod change;
pub mod cli;
pub mod command;
pub mod config;
pub mod dual;
pub mod jobs;
pub mod metrics;
pub mod resp;
pub mod routing;
pub mod serve;
pub mod session;
pub mod slot;
pub mod store;
pub mod wire;
