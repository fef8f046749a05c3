#![doc = include_str!("../ARCHITECTURE.md")]

pub mod admin;
pub mod audit;
pub mod change;
pub mod cli;
pub mod command;
pub mod config;
pub mod dual;
#[cfg(test)]
mod fuzz;
pub mod histogram;
pub mod jobs;
pub mod keep;
pub mod metrics;
pub mod process;
pub mod resp;
pub mod routing;
pub mod secret;
pub mod seldom;
pub mod serve;
pub mod service;
pub mod session;
pub mod slot;
pub mod store;
pub mod wire;
