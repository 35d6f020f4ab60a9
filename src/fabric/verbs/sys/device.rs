//! Devices, as librdmacm opens them.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys as ffi;

use super::returned;

/// The devices of this machine, each opened once for the whole process.
pub(crate) struct Devices {
    list: NonNull<*mut ffi::ibv_context>,
    count: usize,
}

// SAFETY: the list is never written to, and the contexts in it may be used by any thread at any time.
unsafe impl Send for Devices {}
// SAFETY: as above.
unsafe impl Sync for Devices {}

impl Devices {
    /// Opens them all.
    pub(crate) fn open() -> io::Result<Arc<Self>> {
        let mut count = 0;
        // SAFETY: `count` outlives the call, which only writes to it.
        let list = unsafe { ffi::rdma_get_devices(&raw mut count) };
        let list = NonNull::new(list).ok_or_else(io::Error::last_os_error)?;
        Ok(Arc::new(Self { list, count: usize::try_from(count).unwrap_or(0) }))
    }

    /// Each of them.
    pub(crate) fn contexts(self: &Arc<Self>) -> Vec<Context> {
        // SAFETY: the library returned an array of `count` pointers, which lives until `rdma_free_devices`.
        let list = unsafe { std::slice::from_raw_parts(self.list.as_ptr(), self.count) };
        let contexts = list.iter().filter_map(|&raw| NonNull::new(raw));
        contexts.map(|raw| Context { raw, _devices: self.clone() }).collect()
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // SAFETY: the list came from `rdma_get_devices` and is freed once; whoever uses a context holds `self`.
        unsafe { ffi::rdma_free_devices(self.list.as_ptr()) }
    }
}

/// An open device.
#[derive(Clone)]
pub(crate) struct Context {
    raw: NonNull<ffi::ibv_context>,
    _devices: Arc<Devices>,
}

// SAFETY: libibverbs may be called for one context by any number of threads (ibv_open_device(3): verbs are thread-safe).
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// How a device talks to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// iWARP.
    Iwarp,
    /// InfiniBand, and so RoCE.
    Ib,
    /// Anything else.
    Other,
}

/// What a device can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Work requests of a queue.
    pub(crate) work_requests: u32,
    /// Entries of a completion queue.
    pub(crate) completions: u32,
    /// Reads that a connection's peer may have outstanding.
    pub(crate) inbound_reads: u8,
    /// Reads that a connection may have outstanding.
    pub(crate) outbound_reads: u8,
    /// Ports.
    pub(crate) ports: u8,
}

/// What a port is in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortAttributes {
    /// `ibv_port_state`.
    pub(crate) state: u32,
    /// `ibv_mtu` as bytes.
    pub(crate) mtu: u32,
    /// The longest message.
    pub(crate) max_message: u32,
    /// Entries of the GID table, empty ones too.
    pub(crate) gids: usize,
}

impl Context {
    /// The library's pointer, valid while `self` or a clone lives.
    pub(super) fn raw(&self) -> *mut ffi::ibv_context {
        self.raw.as_ptr()
    }

    fn device(&self) -> *mut ffi::ibv_device {
        // SAFETY: the context is open, and its device is set for as long as it is.
        unsafe { self.raw.as_ref().device }
    }

    /// Its name, such as `siw-server`.
    pub(crate) fn name(&self) -> String {
        // SAFETY: the library returns a string that lives as long as the device, or null.
        let name = unsafe {
            let name = ffi::ibv_get_device_name(self.device());
            if name.is_null() { c"" } else { CStr::from_ptr(name) }
        };
        name.to_string_lossy().into_owned()
    }

    /// How it talks to others.
    pub(crate) fn transport(&self) -> Transport {
        // SAFETY: the device lives as long as the context. The field is an integer in rdma-sys.
        match unsafe { (*self.device()).transport_type } {
            ffi::ibv_transport_type::IBV_TRANSPORT_IWARP => Transport::Iwarp,
            ffi::ibv_transport_type::IBV_TRANSPORT_IB => Transport::Ib,
            _ => Transport::Other,
        }
    }

    /// What it can do.
    pub(crate) fn limits(&self) -> io::Result<Limits> {
        let mut attributes = MaybeUninit::<ffi::ibv_device_attr>::zeroed();
        // SAFETY: the context is open; the call fills the structure, which is all integers and so valid when zero.
        let attributes = unsafe {
            returned(ffi::ibv_query_device(self.raw(), attributes.as_mut_ptr()))?;
            attributes.assume_init()
        };
        let byte = |value: i32| u8::try_from(value.clamp(0, 255)).unwrap_or(0);
        Ok(Limits {
            work_requests: u32::try_from(attributes.max_qp_wr).unwrap_or(0),
            completions: u32::try_from(attributes.max_cqe).unwrap_or(0),
            inbound_reads: byte(attributes.max_qp_rd_atom),
            outbound_reads: byte(attributes.max_qp_init_rd_atom),
            ports: attributes.phys_port_cnt,
        })
    }

    /// What a port is in; the first is 1.
    pub(crate) fn port(&self, port: u8) -> io::Result<PortAttributes> {
        let mut attributes = MaybeUninit::<ffi::ibv_port_attr>::zeroed();
        // SAFETY: as in `limits`.
        let attributes = unsafe {
            returned(ffi::___ibv_query_port(self.raw(), port, attributes.as_mut_ptr()))?;
            attributes.assume_init()
        };
        Ok(PortAttributes {
            state: attributes.state,
            // IBV_MTU_256 is 1, and each further one doubles.
            mtu: 128_u32.checked_shl(attributes.active_mtu).unwrap_or(0),
            max_message: attributes.max_msg_sz,
            gids: usize::try_from(attributes.gid_tbl_len).unwrap_or(0),
        })
    }

    /// An entry of a port's GID table.
    pub(crate) fn gid(&self, port: u8, index: usize) -> io::Result<[u8; 16]> {
        let index = i32::try_from(index).map_err(io::Error::other)?;
        let mut gid = ffi::ibv_gid { raw: [0; 16] };
        // SAFETY: the context is open and `gid` outlives the call; any 16 bytes are a valid `raw`.
        unsafe {
            returned(ffi::ibv_query_gid(self.raw(), port, index, &raw mut gid))?;
            Ok(gid.raw)
        }
    }
}

impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}
