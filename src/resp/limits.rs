//! Every bound on input.

/// Bounds on what a client or a store may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one argument. Redis's `proto-max-bulk-len`.
    pub bulk_bytes_max: usize,
    /// Bytes of one request. Redis's `client-query-buffer-limit`.
    pub query_bytes_max: usize,
    /// Arguments of one request. Redis's own bound is 1024 * 1024.
    pub args_max: usize,
    /// Bytes of an inline command or of a length line. Redis's `PROTO_INLINE_MAX_SIZE`.
    pub inline_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bulk_bytes_max: 512 << 20, query_bytes_max: 1 << 30, args_max: 1 << 20, inline_bytes_max: 64 << 10 }
    }
}

impl Limits {
    /// Of a client that has not logged in: what Redis allows it too.
    pub const STRANGER: Self =
        Self { bulk_bytes_max: 16 << 10, query_bytes_max: 64 << 10, args_max: 10, inline_bytes_max: 16 << 10 };
}

/// Bytes of one reply: as many as a client may let wait. A node that promises more is no Redis, or asked for too much.
pub const REPLY_BYTES_MAX: usize = 1 << 30;

/// How deep a reply may nest; Redis's own replies stay under ten, scripts may build deeper ones.
pub const REPLY_DEPTH_MAX: usize = 128;
