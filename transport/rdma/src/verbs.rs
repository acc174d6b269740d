//! Adapters, memory registrations and queue pairs. With `library.rs`, all `unsafe` of the package.
//!
//! What makes the rest of the package safe: the adapter reaches memory only through a
//! [`Registration`], which holds the memory and ends, in its `drop`, before it lets go of it; all
//! objects hold the device that they belong to; and all of them stay on one thread, because they are
//! joined by `Rc`.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{self, ManuallyDrop};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;

use halfmoon_transport::Memory;
use rdma_sys::{
    _compat_ibv_port_attr, ibv_access_flags, ibv_comp_channel, ibv_context, ibv_cq, ibv_device,
    ibv_mr, ibv_pd, ibv_port_attr, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_cap,
    ibv_qp_init_attr, ibv_qp_state, ibv_qp_type, ibv_recv_wr, ibv_send_flags, ibv_send_wr, ibv_sge,
    ibv_wc, ibv_wr_opcode,
};

use crate::deal::End;
use crate::library::{Library, Missing, checked, last_error, library, owned, prefer_huge_pages};
use crate::note::NOTE_BYTES;
use crate::place::{Door, Place};
use crate::work::{Finished, What, Work};

/// Most work that a queue pair has to do at once, and most notes that it has room for.
pub(crate) const SEND_DEPTH: usize = 256;
pub(crate) const NOTES_DEPTH: u32 = 128;

/// Completions taken from a queue in one call.
const TAKEN_AT_ONCE: usize = 32;

/// Bytes that are asked for to travel with the work itself: what is granted is at least the last.
const INLINE_BYTES: [u32; 3] = [256, 128, NOTE_BYTES as u32];

/// How long an unanswered packet waits before it is sent again, as verbs count: 4.096 µs · 2^14, and
/// how often it is sent again. A peer that is gone is noticed by its TCP connection, so this may be
/// patient: half a second of trouble in the network costs no lane.
const PATIENCE: u8 = 14;
const TRIES: u8 = 7;

/// How often and after how long (1.28 ms, as verbs count) a note is sent again for which the peer had
/// no room. Who counts the notes of the other side, as we do, never sees that.
const NOTE_TRIES: u8 = 3;
const NOTE_PAUSE: u8 = 14;

/// An adapter that is open.
pub(crate) struct Device {
    library: &'static Library,
    context: NonNull<ibv_context>,
    domain: NonNull<ibv_pd>,
    channel: NonNull<ibv_comp_channel>,
    /// A descriptor of the channel of our own.
    events: Arc<OwnedFd>,
    name: String,
    pub(crate) door: Door,
}

/// Whether the peer may write to registered memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Local,
    Peer,
}

/// Memory that the adapter may reach.
pub(crate) struct Registration {
    device: Rc<Device>,
    region: NonNull<ibv_mr>,
    /// As the words themselves said, not `len_bytes`.
    start: u64,
    len: usize,
    memory: ManuallyDrop<Arc<dyn Memory>>,
}

/// Where a queue pair says what has been done.
pub(crate) struct CompletionQueue {
    device: Rc<Device>,
    queue: NonNull<ibv_cq>,
}

/// One end of a connection.
pub(crate) struct QueuePair {
    pair: NonNull<ibv_qp>,
    /// Bytes that may travel with the work itself.
    inline_bytes: usize,
    completions: Rc<CompletionQueue>,
    /// Reused between calls.
    requests: Vec<(ibv_send_wr, ibv_sge)>,
}

/// All adapters that open.
pub(crate) fn devices() -> Result<Vec<Rc<Device>>, Missing> {
    let library = library()?;
    let mut count = 0;
    // SAFETY: the pointer is to a variable of ours.
    let list = unsafe { (library.ibv_get_device_list)(&raw mut count) };
    if list.is_null() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` entries, and is not freed before this loop has ended.
        let device = unsafe { *list.add(index) };
        match Device::open(library, device) {
            Ok(device) => found.push(Rc::new(device)),
            Err(error) => tracing::warn!(%error, "an RDMA device does not open"),
        }
    }
    // SAFETY: it is the list from above; devices that were opened outlive it.
    unsafe { (library.ibv_free_device_list)(list) };
    Ok(found)
}

impl Device {
    fn open(library: &'static Library, device: *mut ibv_device) -> io::Result<Self> {
        // SAFETY: `device` is of a list that was not freed yet; name and path are strings.
        let (name, path, context) = unsafe {
            let path = owned((*device).dev_path.as_ptr());
            (owned((library.ibv_get_device_name)(device)), path, (library.ibv_open_device)(device))
        };
        let (context, door) = (last_error(context)?, Door::at(path.into())?);
        let raw = context.as_ptr();
        // SAFETY: the context is open. Each of the two is given back in `drop`.
        let (domain, channel) =
            unsafe { ((library.ibv_alloc_pd)(raw), (library.ibv_create_comp_channel)(raw)) };
        // A device that gives neither is broken; what it may have given is not worth the code that
        // would give it back.
        let (domain, channel) = (last_error(domain)?, last_error(channel)?);
        // SAFETY: the channel was just made, and its descriptor is open while it is.
        let events = unsafe { BorrowedFd::borrow_raw((*channel.as_ptr()).fd) };
        let events = Arc::new(events.try_clone_to_owned()?);
        // Of both copies: the flag belongs to what they stand for.
        rustix::io::ioctl_fionbio(&events, true)?;
        Ok(Self { library, context, domain, channel, events, name, door })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Can be read when a completion queue that was armed has something.
    pub(crate) fn events(&self) -> &Arc<OwnedFd> {
        &self.events
    }

    /// Takes the events, with the key of the queue that each is of. `false`: there will be none any more,
    /// and its descriptor can be read for ever.
    pub(crate) fn take_events(&self, mut take: impl FnMut(u64)) -> bool {
        loop {
            let (mut queue, mut key) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: the channel is open and does not block; the pointers are to variables of ours.
            let code = unsafe {
                (self.library.ibv_get_cq_event)(self.channel.as_ptr(), &raw mut queue, &raw mut key)
            };
            if code != 0 {
                let is_open = io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock;
                self.door.is_shut.set(!is_open);
                return is_open;
            }
            // SAFETY: the kernel tells only of queues that exist, and all queues of this channel
            // stay on this thread, so none was destroyed since.
            unsafe { (self.library.ibv_ack_cq_events)(queue, 1) };
            take(key as u64);
        }
    }

    /// Whether a port works, and the largest packet that it takes.
    pub(crate) fn mtu(&self, port: u8) -> io::Result<u8> {
        // SAFETY: all zero is a valid value of this plain structure.
        let mut attributes: ibv_port_attr = unsafe { mem::zeroed() };
        let filled = (&raw mut attributes).cast::<_compat_ibv_port_attr>();
        // SAFETY: the context is open. The exported function fills the beginning of the structure,
        // as it was in the first release; what we read is there.
        checked(unsafe { (self.library.ibv_query_port)(self.context.as_ptr(), port, filled) })?;
        if attributes.state != rdma_sys::ibv_port_state::IBV_PORT_ACTIVE {
            return Err(io::ErrorKind::NetworkDown.into());
        }
        u8::try_from(attributes.active_mtu).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: whatever belongs to the device holds it, so nothing of it is left but these.
        unsafe {
            (self.library.ibv_destroy_comp_channel)(self.channel.as_ptr());
            (self.library.ibv_dealloc_pd)(self.domain.as_ptr());
            (self.library.ibv_close_device)(self.context.as_ptr());
        }
    }
}

impl Registration {
    /// Lets the adapter reach memory.
    pub(crate) fn new(
        device: &Rc<Device>,
        memory: Arc<dyn Memory>,
        reach: Reach,
    ) -> io::Result<Self> {
        let remote = ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        let local = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0;
        // Never with relaxed ordering: a later write must not appear before an earlier one.
        let access = if reach == Reach::Peer { local | remote } else { local };
        let words = memory.words();
        let start = words.as_ptr().cast_mut().cast::<c_void>();
        let len = size_of_val(words);
        prefer_huge_pages(start, len);
        // SAFETY: the range is that of `memory`, whose words stay where they are while it lives; the
        // registration holds it. They are atomics, so the adapter may change them at any time.
        let region = unsafe {
            (device.library.ibv_reg_mr)(
                device.domain.as_ptr(),
                start,
                len,
                c_int::try_from(access).unwrap_or(0),
            )
        };
        let region = last_error(region)?;
        let (device, start, memory) = (Rc::clone(device), start as u64, ManuallyDrop::new(memory));
        Ok(Self { device, region, start, len, memory })
    }

    /// What the peer needs to write to it.
    pub(crate) fn rkey(&self) -> u32 {
        // SAFETY: the region lives as long as this, and the library does not change it.
        unsafe { (*self.region.as_ptr()).rkey }
    }

    fn lkey(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.region.as_ptr()).lkey }
    }

    /// The address of the first byte.
    pub(crate) const fn address(&self) -> u64 {
        self.start
    }

    /// How many bytes are registered.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Whether it is with this device.
    pub(crate) fn is_of(&self, device: &Rc<Device>) -> bool {
        Rc::ptr_eq(&self.device, device)
    }

    /// The memory.
    pub(crate) fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: the region is ours and is not used after this.
        let code = unsafe { (self.device.library.ibv_dereg_mr)(self.region.as_ptr()) };
        if code == 0 {
            // SAFETY: it is dropped here only, and not used after this.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        } else {
            // The adapter might still write to it: it must never become anything else.
            tracing::error!(code, "memory stays registered, and is given up");
        }
    }
}

impl CompletionQueue {
    /// A queue with room for all that a queue pair may have to tell. `key` comes with its events.
    pub(crate) fn new(device: &Rc<Device>, key: u64) -> io::Result<Rc<Self>> {
        let room = c_int::try_from(SEND_DEPTH + NOTES_DEPTH as usize).unwrap_or(c_int::MAX);
        // SAFETY: context and channel are open; the key is a number that is never followed.
        let queue = unsafe {
            (device.library.ibv_create_cq)(
                device.context.as_ptr(),
                room,
                key as *mut c_void,
                device.channel.as_ptr(),
                0,
            )
        };
        Ok(Rc::new(Self { device: Rc::clone(device), queue: last_error(queue)? }))
    }

    /// Takes what has been done. A queue that cannot be asked says so as work that has failed.
    pub(crate) fn take(&self, mut take: impl FnMut(Finished)) {
        loop {
            // SAFETY: all zero is a valid value of this plain structure.
            let mut entries: [ibv_wc; TAKEN_AT_ONCE] = unsafe { mem::zeroed() };
            let room = i32::try_from(TAKEN_AT_ONCE).unwrap_or(1);
            let into = entries.as_mut_ptr();
            // SAFETY: the queue exists, and the array has room for so many.
            let count = unsafe { rdma_sys::ibv_poll_cq(self.queue.as_ptr(), room, into) };
            let Ok(count) = usize::try_from(count) else { return take(Finished::UNKNOWN) };
            entries.iter().take(count).map(Finished::of).for_each(&mut take);
            if count < TAKEN_AT_ONCE {
                return;
            }
        }
    }

    /// Asks for an event when something comes.
    pub(crate) fn arm(&self) -> io::Result<()> {
        // SAFETY: the queue exists.
        checked(unsafe { rdma_sys::ibv_req_notify_cq(self.queue.as_ptr(), 0) })
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: queue pairs hold their queue, so none uses it any more; all events were
        // acknowledged when they were taken.
        unsafe { (self.device.library.ibv_destroy_cq)(self.queue.as_ptr()) };
    }
}

impl QueuePair {
    /// One end, which is not connected.
    pub(crate) fn new(completions: &Rc<CompletionQueue>, port: u8) -> io::Result<Self> {
        let device = &completions.device;
        let mut refused = io::Error::from(io::ErrorKind::Unsupported);
        for inline in INLINE_BYTES {
            // SAFETY: all zero is a valid value of this plain structure.
            let mut wanted: ibv_qp_init_attr = unsafe { mem::zeroed() };
            wanted.send_cq = completions.queue.as_ptr();
            wanted.recv_cq = completions.queue.as_ptr();
            wanted.qp_type = ibv_qp_type::IBV_QPT_RC;
            wanted.cap = ibv_qp_cap {
                max_send_wr: u32::try_from(SEND_DEPTH).unwrap_or(u32::MAX),
                max_recv_wr: NOTES_DEPTH,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: inline,
            };
            // SAFETY: the domain and the queue are of this device and exist.
            let pair =
                unsafe { (device.library.ibv_create_qp)(device.domain.as_ptr(), &raw mut wanted) };
            match last_error(pair) {
                Ok(pair) => {
                    let inline_bytes = wanted.cap.max_inline_data as usize;
                    let completions = Rc::clone(completions);
                    let made = Self { pair, inline_bytes, completions, requests: Vec::new() };
                    made.begin(port)?;
                    return Ok(made);
                }
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Its number.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: the pair lives as long as this, and its number does not change.
        unsafe { (*self.pair.as_ptr()).qp_num }
    }

    fn library(&self) -> &'static Library {
        self.completions.device.library
    }

    fn modify(&self, attributes: &mut ibv_qp_attr, which: ibv_qp_attr_mask) -> io::Result<()> {
        let which = c_int::try_from(which.0).unwrap_or(0);
        // SAFETY: the pair exists; the attributes are of ours.
        checked(unsafe { (self.library().ibv_modify_qp)(self.pair.as_ptr(), attributes, which) })
    }

    fn begin(&self, port: u8) -> io::Result<()> {
        use ibv_qp_attr_mask as Mask;
        // SAFETY: all zero is a valid value of this plain structure.
        let mut attributes: ibv_qp_attr = unsafe { mem::zeroed() };
        attributes.qp_state = ibv_qp_state::IBV_QPS_INIT;
        attributes.port_num = port;
        attributes.qp_access_flags = ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        let which = Mask::IBV_QP_STATE | Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT;
        self.modify(&mut attributes, which | Mask::IBV_QP_ACCESS_FLAGS)
    }

    /// Connects it with the other end.
    pub(crate) fn connect(&self, place: &Place, first_packet: u32, end: &End) -> io::Result<()> {
        use ibv_qp_attr_mask as Mask;
        // SAFETY: all zero is a valid value of this plain structure.
        let mut attributes: ibv_qp_attr = unsafe { mem::zeroed() };
        attributes.qp_state = ibv_qp_state::IBV_QPS_RTR;
        attributes.path_mtu = u32::from(place.mtu.min(end.mtu));
        attributes.dest_qp_num = end.queue_pair;
        attributes.rq_psn = end.first_packet;
        attributes.max_dest_rd_atomic = 1;
        attributes.min_rnr_timer = NOTE_PAUSE;
        attributes.ah_attr.is_global = 1;
        attributes.ah_attr.port_num = place.port;
        attributes.ah_attr.grh.dgid.raw = end.gid;
        attributes.ah_attr.grh.sgid_index = place.gid_index;
        attributes.ah_attr.grh.hop_limit = 64;
        let which = Mask::IBV_QP_STATE | Mask::IBV_QP_AV | Mask::IBV_QP_PATH_MTU;
        let which = which | Mask::IBV_QP_DEST_QPN | Mask::IBV_QP_RQ_PSN;
        let which = which | Mask::IBV_QP_MAX_DEST_RD_ATOMIC | Mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(&mut attributes, which)?;
        attributes.qp_state = ibv_qp_state::IBV_QPS_RTS;
        attributes.sq_psn = first_packet;
        attributes.timeout = PATIENCE;
        attributes.retry_cnt = TRIES;
        attributes.rnr_retry = NOTE_TRIES;
        attributes.max_rd_atomic = 1;
        let which = Mask::IBV_QP_STATE | Mask::IBV_QP_TIMEOUT | Mask::IBV_QP_RETRY_CNT;
        let which = which | Mask::IBV_QP_RNR_RETRY | Mask::IBV_QP_SQ_PSN;
        self.modify(&mut attributes, which | Mask::IBV_QP_MAX_QP_RD_ATOMIC)
    }

    /// Makes room for a note in registered memory.
    pub(crate) fn receive(&self, id: u64, into: &Registration, offset: usize) -> io::Result<()> {
        assert!(offset + NOTE_BYTES <= into.len);
        let mut place = ibv_sge {
            addr: into.address() + offset as u64,
            length: NOTE_BYTES as u32,
            lkey: into.lkey(),
        };
        let list = &raw mut place;
        let mut request =
            ibv_recv_wr { wr_id: id, next: ptr::null_mut(), sg_list: list, num_sge: 1 };
        let mut refused = ptr::null_mut();
        // SAFETY: the pair exists, and the request is read during the call only. The adapter writes
        // to the memory while it is registered, and within it, as was just checked.
        checked(unsafe {
            rdma_sys::ibv_post_recv(self.pair.as_ptr(), &raw mut request, &raw mut refused)
        })
    }

    /// Hands work over, all of it with one signal to the adapter.
    ///
    /// # Panics
    /// If a range is not within its memory.
    pub(crate) fn post<'a>(&mut self, works: impl Iterator<Item = Work<'a>>) -> io::Result<()> {
        self.requests.clear();
        self.requests.extend(works.map(|work| request(&work, self.inline_bytes)));
        // Chained only now that the vector does not move them any more.
        let mut next = ptr::null_mut();
        for (request, place) in self.requests.iter_mut().rev() {
            request.next = next;
            request.sg_list = place;
            next = request;
        }
        if next.is_null() {
            return Ok(());
        }
        let mut refused = ptr::null_mut();
        // SAFETY: the pair exists. The chain is of `requests`, whose entries stay where they are
        // during the call, and it is read during the call only. So are the bytes of what travels
        // inline: those that `works` borrows, which outlives the call, and of registered memory. Other
        // memory is read by the adapter while it is registered.
        checked(unsafe { rdma_sys::ibv_post_send(self.pair.as_ptr(), next, &raw mut refused) })
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: the pair is ours and is not used after this. From here on the adapter writes nothing
        // that its peer sends.
        unsafe { (self.library().ibv_destroy_qp)(self.pair.as_ptr()) };
    }
}

fn request(work: &Work<'_>, inline_bytes: usize) -> (ibv_send_wr, ibv_sge) {
    // SAFETY: all zero is a valid value of these plain structures and unions of integers.
    let mut request: ibv_send_wr = unsafe { mem::zeroed() };
    request.wr_id = work.id;
    request.num_sge = 1;
    if work.signalled {
        request.send_flags |= ibv_send_flags::IBV_SEND_SIGNALED.0;
    }
    let place = match &work.what {
        What::Write { from, offset, len, address, rkey } => {
            assert!(offset.checked_add(*len).is_some_and(|end| end <= from.len));
            request.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE;
            request.wr.rdma = rdma_sys::rdma_t { remote_addr: *address, rkey: *rkey };
            let length = u32::try_from(*len).unwrap_or(u32::MAX);
            ibv_sge { addr: from.address() + *offset as u64, length, lkey: from.lkey() }
        }
        What::Note(bytes) => {
            request.opcode = ibv_wr_opcode::IBV_WR_SEND;
            ibv_sge { addr: bytes.as_ptr() as u64, length: NOTE_BYTES as u32, lkey: 0 }
        }
    };
    if place.length as usize <= inline_bytes {
        request.send_flags |= ibv_send_flags::IBV_SEND_INLINE.0;
    }
    (request, place)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Device {
        /// From now on none of its completion queues can be asked.
        pub(crate) fn mute(&self) {
            unsafe extern "C" fn refuse(_: *mut ibv_cq, _: c_int, _: *mut ibv_wc) -> c_int {
                -1
            }
            // SAFETY: the context is open, and its table is used on this thread only.
            unsafe { (*self.context.as_ptr()).ops.poll_cq = Some(refuse) };
        }

        /// From now on nothing can be read from its descriptor, as when its driver is gone.
        pub(crate) fn deafen(&self) {
            let folder = std::fs::File::open("/").unwrap();
            // SAFETY: both descriptors are open, and the channel keeps its number.
            let done = unsafe {
                let fd = std::os::fd::AsRawFd::as_raw_fd(&folder);
                libc::dup2(fd, (*self.channel.as_ptr()).fd)
            };
            assert!(done >= 0, "{}", io::Error::last_os_error());
        }
    }
}
