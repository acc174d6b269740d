//! The exported functions of libibverbs, found when the program runs.
//!
//! `rdma-sys` has their types, and those functions that are inline in C, which go through a table in
//! the context. Nothing here or elsewhere refers to the exported symbols themselves, so the program
//! does not need the library to start.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::ptr::NonNull;
use std::sync::OnceLock;

use rdma_sys::{
    _compat_ibv_port_attr, ibv_comp_channel, ibv_context, ibv_cq, ibv_device, ibv_mr, ibv_pd,
    ibv_qp, ibv_qp_attr, ibv_qp_init_attr,
};

/// The library, as it is called on every distribution.
const NAME: &CStr = c"libibverbs.so.1";

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident: fn($($argument:ty),*) $(-> $result:ty)?,)*) => {
        /// The functions that are used.
        pub(crate) struct Library {
            $($(#[$doc])* pub(crate) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Library {
            /// # Safety
            /// `handle` is one of libibverbs, and is never closed.
            unsafe fn find(handle: *mut c_void) -> Result<Self, Missing> {
                Ok(Self {
                    $($name: {
                        const SYMBOL: &str = concat!(stringify!($name), "\0");
                        // SAFETY: the handle is open, and the name ends with a zero byte.
                        let found = unsafe { libc::dlsym(handle, SYMBOL.as_ptr().cast::<c_char>()) };
                        if found.is_null() {
                            return Err(Missing::Function(stringify!($name)));
                        }
                        // SAFETY: the library's manual gives this function this type; the types are
                        // those of its own header. It stays loaded.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) $(-> $result)?,
                            >(found)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut ibv_device,
    ibv_free_device_list: fn(*mut *mut ibv_device),
    ibv_get_device_name: fn(*mut ibv_device) -> *const c_char,
    ibv_open_device: fn(*mut ibv_device) -> *mut ibv_context,
    ibv_close_device: fn(*mut ibv_context) -> c_int,
    ibv_alloc_pd: fn(*mut ibv_context) -> *mut ibv_pd,
    ibv_dealloc_pd: fn(*mut ibv_pd) -> c_int,
    ibv_reg_mr: fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr,
    ibv_dereg_mr: fn(*mut ibv_mr) -> c_int,
    ibv_create_comp_channel: fn(*mut ibv_context) -> *mut ibv_comp_channel,
    ibv_destroy_comp_channel: fn(*mut ibv_comp_channel) -> c_int,
    ibv_create_cq: fn(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq,
    ibv_destroy_cq: fn(*mut ibv_cq) -> c_int,
    ibv_get_cq_event: fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int,
    ibv_ack_cq_events: fn(*mut ibv_cq, std::ffi::c_uint),
    ibv_create_qp: fn(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp,
    ibv_modify_qp: fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int,
    ibv_destroy_qp: fn(*mut ibv_qp) -> c_int,
    ibv_query_port: fn(*mut ibv_context, u8, *mut _compat_ibv_port_attr) -> c_int,
}

/// Why the library cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Missing {
    /// It is not installed, or does not load.
    #[error("{NAME:?} does not load ({0}); it is in the package libibverbs1")]
    Library(String),
    /// It is too old.
    #[error("{NAME:?} has no {0}")]
    Function(&'static str),
}

/// The library of this process.
pub(crate) fn library() -> Result<&'static Library, Missing> {
    static FOUND: OnceLock<Result<Library, Missing>> = OnceLock::new();
    FOUND.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Result<Library, Missing> {
    // SAFETY: the name ends with a zero byte. Loading the library runs its initialisers, which
    // affect nothing of ours.
    let handle = unsafe { libc::dlopen(NAME.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: after a failure this is a string, valid until the next call on this thread.
        let said = unsafe {
            let said = libc::dlerror();
            if said.is_null() { c"no reason given" } else { CStr::from_ptr(said) }
        };
        return Err(Missing::Library(said.to_string_lossy().into_owned()));
    }
    // SAFETY: it was just opened, and is never closed.
    unsafe { Library::find(handle) }
}

/// A string of the library's.
///
/// # Safety
/// `text` is a string that ends with a zero byte.
pub(crate) unsafe fn owned(text: *const c_char) -> String {
    // SAFETY: so says the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The error of a call that returned null.
pub(crate) fn last_error<T>(pointer: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(io::Error::last_os_error)
}

/// The error of a call that returns an error number.
pub(crate) fn checked(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.abs())) }
}

/// Asks for huge pages before memory is pinned: the adapter then has fewer pages to look up. Memory
/// that already has its pages keeps them.
pub(crate) fn prefer_huge_pages(start: *mut c_void, len: usize) {
    const HUGE: usize = 2 << 20;
    let skip = start.align_offset(HUGE);
    if len < skip.saturating_add(HUGE) {
        return;
    }
    let whole = (len - skip) / HUGE * HUGE;
    // SAFETY: the range is within memory that the caller holds; the advice changes none of it.
    unsafe { libc::madvise(start.wrapping_byte_add(skip), whole, libc::MADV_HUGEPAGE) };
}
