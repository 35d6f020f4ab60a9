//! The only place that calls libibverbs and librdmacm. What leaves it is safe: each object of the C libraries is owned by
//! one value here, keeps alive what it depends on, and is destroyed when that value is dropped.
//!
//! The order in which things must end (queue pair, completion queue, completion channel, protection domain, device) is the
//! order of the fields and references of these types.

#![expect(unsafe_code, reason = "libibverbs and librdmacm are C libraries")]

use std::io;

mod device;

pub(super) use device::{Context, Devices, PortAttributes, Transport};

/// The result of a call of librdmacm's, or of one of libibverbs' that sets errno: 0, or -1 and errno.
fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
