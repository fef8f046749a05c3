//! Promises, shown on real servers with real clients. One module a promise.

mod common;
mod model;
