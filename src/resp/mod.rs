//! Bytes and frames of the Redis protocol, no I/O: where a frame ends, what a request or a reply says, what the proxy
//! itself answers. redis-protocol decodes replies that must be understood; it never sees unscanned bytes, because it
//! recurses without a limit and parses an incomplete frame from its start each time.

pub mod limits;
pub mod refusal;
pub mod reply;
pub mod request;
pub mod scan;
pub mod write;
