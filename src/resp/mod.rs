//! Room `resp`.
