//! Keys of the proxy itself. They are shown to no client, copied to no other store and compared with nothing.

/// Before the name of a key in the making, which is copied piece by piece.
pub const RESERVED_COPIES: &[u8] = b"cutover:copy:";

/// Before the name of a lease, and of what belongs to it.
pub const RESERVED_LEASES: &[u8] = b"cutover:lease:";

/// Whether a name on either store is one of the proxy's own keys.
pub fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(RESERVED_COPIES) || name.starts_with(RESERVED_LEASES)
}
