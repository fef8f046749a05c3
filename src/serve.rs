//! Builds every part from a Config and joins them.
