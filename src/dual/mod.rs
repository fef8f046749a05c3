//! The dual-write engine.
pub mod gate;
pub mod lane;
