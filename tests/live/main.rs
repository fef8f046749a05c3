//! Promises, shown on real servers with real clients. One module a promise.

mod common;

mod bad_input;
mod commands;
mod connection;
mod disk;
mod effects;
mod faults;
mod keyspace;
mod model;
mod moves;
mod protocol;
