//! Promises, shown on real servers with real clients. One module a promise.

mod common;

mod admin;
mod audit;
mod bad_input;
mod beginning;
mod bypass;
mod channels;
mod commands;
mod connection;
mod copying;
mod corpus;
mod crowd;
mod databases;
mod differential;
mod disk;
mod effects;
mod fault;
mod faults;
mod hostile;
mod keyspace;
mod model;
mod moves;
mod operator;
mod ordeals;
mod protocol;
mod refused;
mod shadow;
mod share;
mod subscribers;
mod succession;
mod tagged;
mod tls;
mod untouched;
mod users;
mod watching;
