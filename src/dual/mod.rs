//! The dual-write engine.
pub mod lane;
