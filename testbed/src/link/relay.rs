//! Forwards frames from one device to another on schedule: a thread a direction.
//!
//! The thread sleeps until a frame enters or one is due. It reads frames from the one device into a ring and writes them
//! to the other from there; nothing is allocated or copied in between. Reading never waits for writing: a device takes
//! what is written to it at once or not at all.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::alarm::Alarm;
use super::capture::Sink;
use super::drain::Drain;
use super::may_offload;
use super::port::{Receive, Transmit};
use super::ring::FrameRing;
use super::scheduler::{Nanos, Scheduler, Verdict};
use super::vnet::{self, MAX_RECORD, VnetHeader};
use super::waiter::{Wait, Waiter};
use crate::agent::protocol::DirectionStatus;
use crate::topology::Impairment;

/// Frames read before the thread looks again at what is due.
const BATCH: usize = 32;
/// More than a rate's and a delay's worth: what a late thread may find waiting.
const SPARE: u64 = 4 << 20;
/// Room for frames under way where the impairment sets no bound of its own.
const UNBOUNDED: u64 = 64 << 20;
/// No direction holds more than this, whatever was asked.
const MOST: u64 = 1 << 30;

/// What [`Relay::ask_to_drain`] asked for.
#[derive(Clone, Copy, Debug)]
pub struct DrainRequest(u64);

/// One direction that is being forwarded. It stops when it is dropped.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    wake: EventFd,
    drain: Drain,
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
    /// Whether `capture` holds something: what every frame can afford to look at.
    capturing: AtomicBool,
    capture: RwLock<Option<Sink>>,
    /// Whether `change` holds something, likewise.
    changing: AtomicBool,
    change: Mutex<Option<Change>>,
}

/// What is to be done from now on.
#[derive(Debug)]
struct Change {
    impairment: Impairment,
    cut: bool,
}

impl Shared {
    fn capture(&self, record: &[u8]) {
        if self.capturing.load(Ordering::Acquire)
            && let Some(sink) = &*self.capture.read().unwrap_or_else(PoisonError::into_inner)
        {
            sink.keep(record);
        }
    }

    fn wake(&self) {
        // Only a full counter refuses, and that wakes as well.
        let _ = self.wake.write(1);
    }
}

impl Relay {
    /// Starts forwarding. `name` names the thread, `seed` decides all chances.
    pub fn start(
        name: &str,
        receive: Box<dyn Receive>,
        transmit: Box<dyn Transmit>,
        impairment: &Impairment,
        seed: u64,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            drain: Drain::default(),
            frames: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            capturing: AtomicBool::new(false),
            capture: RwLock::new(None),
            changing: AtomicBool::new(false),
            change: Mutex::default(),
        });
        let overtaking = if impairment.reorder > 0.0 { capacity(impairment) } else { 0 };
        let origin = Instant::now();
        let forwarder = Forwarder {
            receive,
            transmit,
            scheduler: Scheduler::new(impairment, seed),
            under_way: FrameRing::new(capacity(impairment)),
            overtaking: FrameRing::new(overtaking),
            discarded: vec![0; MAX_RECORD].into_boxed_slice(),
            cut: false,
            origin,
            waiter: Waiter::new(),
            alarm: Alarm::new(origin)?,
            shared: Arc::clone(&shared),
        };
        let name = name.to_owned();
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            if let Err(error) = forwarder.run() {
                tracing::error!(%error, direction = name, "the relay stopped");
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// From now on every frame that enters goes to `sink` as well, or none does. When this returns, no frame is on its
    /// way to the sink that was there before.
    pub fn capture(&self, sink: Option<Sink>) {
        let mut capture = self.shared.capture.write().unwrap_or_else(PoisonError::into_inner);
        self.shared.capturing.store(sink.is_some(), Ordering::Release);
        *capture = sink;
    }

    /// Every frame that its host sends after this returns is treated so. Where it is cut, nothing arrives any more, what
    /// is under way included.
    pub fn change(&self, impairment: Impairment, cut: bool) {
        let mut change = self.shared.change.lock().unwrap_or_else(PoisonError::into_inner);
        *change = Some(Change { impairment, cut });
        self.shared.changing.store(true, Ordering::Release);
        drop(change);
        self.shared.wake();
    }

    /// Asks it to take all that its host has sent until now; [`drained`](Self::drained) waits for that. So relays that
    /// are asked first drain together.
    pub fn ask_to_drain(&self) -> DrainRequest {
        let request = DrainRequest(self.shared.drain.ask());
        self.shared.wake();
        request
    }

    /// Waits until what was asked for is done, at most for `limit`: a host that never stops sending, or a relay that has
    /// ended, is not waited for. Returns whether it was done.
    pub fn drained(&self, request: DrainRequest, limit: Duration) -> bool {
        self.shared.drain.wait(request.0, limit)
    }

    /// Asks it to end, which dropping it then waits for: many relays end together where each is asked first.
    pub fn ask_to_stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
    }

    /// Its counters now.
    pub fn status(&self) -> DirectionStatus {
        DirectionStatus {
            frames: self.shared.frames.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            dropped: self.shared.dropped.load(Ordering::Relaxed),
            ..DirectionStatus::default()
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a relay's thread panicked");
        }
    }
}

/// Bytes to hold for an impairment: what its rate puts into its delay, its queue, and as much again by half for headers
/// and for what does not fit before the ring's end.
fn capacity(impairment: &Impairment) -> usize {
    let bytes = match (impairment.rate, impairment.queue) {
        (Some(rate), Some(queue)) => {
            let stay = (impairment.delay + impairment.jitter * 5).as_nanos();
            let flight = u128::from(rate) * stay / 8_000_000_000;
            u64::try_from(flight).unwrap_or(MOST).saturating_add(queue)
        }
        _ => UNBOUNDED,
    };
    let bytes = bytes.saturating_add(bytes / 2).saturating_add(SPARE);
    if bytes > MOST {
        tracing::warn!(
            bytes,
            most = MOST,
            "a link's delay and queue hold more than the relay does; frames beyond are dropped"
        );
    }
    bytes.min(MOST) as usize
}

/// Where the next frame goes, and whether that is room for it to stay.
fn slot<'a>(ring: &'a mut FrameRing, discarded: &'a mut [u8]) -> (&'a mut [u8], bool) {
    match ring.slot() {
        Some(slot) => (slot, true),
        None => (discarded, false),
    }
}

struct Forwarder {
    receive: Box<dyn Receive>,
    transmit: Box<dyn Transmit>,
    scheduler: Scheduler,
    under_way: FrameRing,
    overtaking: FrameRing,
    discarded: Box<[u8]>,
    cut: bool,
    origin: Instant,
    waiter: Waiter,
    alarm: Alarm,
    shared: Arc<Shared>,
}

impl Forwarder {
    fn run(mut self) -> io::Result<()> {
        // Whether there may be a frame to read.
        let mut readable = true;
        while !self.shared.stop.load(Ordering::Acquire) {
            let asked = self.shared.drain.asked();
            if self.shared.changing.load(Ordering::Acquire) {
                self.take_change();
            }
            let mut more = readable;
            for _ in 0..BATCH {
                let Some(now) = (if more { self.take_one()? } else { None }) else {
                    more = false;
                    break;
                };
                self.deliver_due(now);
            }
            if !more {
                if readable {
                    self.shared.drain.meet(asked);
                }
                readable = self.sleep()?;
            }
        }
        Ok(())
    }

    fn now(&self) -> Nanos {
        Nanos(self.origin.elapsed().as_nanos() as u64)
    }

    /// Does from now on what was asked for last.
    fn take_change(&mut self) {
        let mut change = self.shared.change.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.changing.store(false, Ordering::Relaxed);
        let Some(Change { impairment, cut }) = change.take() else { return };
        drop(change);
        self.cut = cut;
        if cut {
            self.under_way.clear();
            self.overtaking.clear();
        }
        let now = self.now();
        self.scheduler.change(&impairment, now);
        self.under_way.grow(capacity(&impairment));
        if impairment.reorder > 0.0 {
            self.overtaking.grow(capacity(&impairment));
        }
        if let Err(error) = self.receive.set_offload(may_offload(&impairment)) {
            tracing::warn!(%error, "a host's super-frames stay as they were");
        }
    }

    /// Reads a frame, if there is one, and decides what becomes of it. Returns when it entered.
    fn take_one(&mut self) -> io::Result<Option<Nanos>> {
        let (mut slot, mut room) = slot(&mut self.under_way, &mut self.discarded);
        let Some(len) = self.receive.receive(slot)? else { return Ok(None) };
        // Looked at after the frame was taken: what was sent after a change was made is treated by it.
        if self.shared.changing.load(Ordering::Acquire) {
            let held = slot[..len].to_vec();
            self.take_change();
            (slot, room) = self::slot(&mut self.under_way, &mut self.discarded);
            slot[..len].copy_from_slice(&held);
        }
        let missed = self.receive.missed();
        if missed > 0 {
            self.shared.dropped.fetch_add(missed, Ordering::Relaxed);
        }
        let now = Nanos(self.origin.elapsed().as_nanos() as u64);
        let record = &mut slot[..len];
        self.shared.capture(record);
        if self.cut {
            return Ok(Some(now));
        }
        let Some((header, frame)) = VnetHeader::split(record) else { return Ok(Some(now)) };
        match self.scheduler.enter(now, header.wire_bytes(frame)) {
            Verdict::Deliver(delivery) if room => {
                if let Some(bit) = delivery.flip {
                    // Whoever gets it must be able to see the damage.
                    vnet::complete_record(record);
                    let frame = &mut record[vnet::HEADER_LEN..];
                    let bit = (bit % (frame.len().max(1) as u64 * 8)) as usize;
                    if let Some(byte) = frame.get_mut(bit / 8) {
                        *byte ^= 1 << (bit % 8);
                    }
                }
                if delivery.overtakes {
                    if self.overtaking.push_copy(record, delivery.due) && delivery.twice {
                        self.overtaking.repeat();
                    }
                } else {
                    self.under_way.push(len, delivery.due);
                    if delivery.twice {
                        self.under_way.repeat();
                    }
                }
            }
            Verdict::Lost => {}
            Verdict::Deliver(_) | Verdict::QueueFull => {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(Some(now))
    }

    /// Hands over every frame whose time has come.
    fn deliver_due(&mut self, now: Nanos) {
        while let Some(due) = self.next_due().filter(|due| *due <= now) {
            let first = self.overtaking.front().is_some_and(|(d, _)| d == due);
            let ring = if first { &mut self.overtaking } else { &mut self.under_way };
            let Some((_, record)) = ring.front() else { return };
            // Counted first, so that whoever has received a frame finds it counted.
            let bytes = (record.len() - vnet::HEADER_LEN) as u64;
            self.shared.frames.fetch_add(1, Ordering::Relaxed);
            self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
            // The host's interface is down, or its kernel is out of memory: the frame is gone, as on a wire.
            if let Err(error) = self.transmit.transmit(record) {
                tracing::debug!(%error, "a host did not take a frame");
                self.shared.frames.fetch_sub(1, Ordering::Relaxed);
                self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            }
            ring.pop();
        }
    }

    fn next_due(&self) -> Option<Nanos> {
        let due = |ring: &FrameRing| ring.front().map(|(due, _)| due);
        match (due(&self.under_way), due(&self.overtaking)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Hands over what is due, and sleeps until a frame enters, one is due, or somebody wants something; or not at all, if
    /// that is soon. Returns whether there may be a frame to read.
    fn sleep(&mut self) -> io::Result<bool> {
        let now = self.now();
        self.deliver_due(now);
        let until = match self.waiter.before(now, self.next_due()) {
            Wait::Not => return Ok(true),
            Wait::Until(time) => Some(time),
            Wait::Ever => None,
        };
        if let Some(time) = until {
            self.alarm.set(time)?;
        }
        let mut fds = [
            PollFd::new(self.receive.readiness(), PollFlags::POLLIN),
            PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.alarm.as_fd(), PollFlags::POLLIN),
        ];
        // An alarm that was set for what is no longer waited for would only be in the way.
        let fds = if until.is_some() { &mut fds[..] } else { &mut fds[..2] };
        match nix::poll::poll(fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        let [frame, woken, rang] = [0, 1, 2].map(|at| fds.get(at).is_some_and(|fd| fd.any() == Some(true)));
        if woken {
            // It refuses where nobody has woken us.
            let _ = self.shared.wake.read();
        }
        if rang {
            self.alarm.rang();
        }
        if let Some(time) = until.filter(|_| rang && !frame && !woken && self.waiter.learns()) {
            let now = self.now();
            self.waiter.woke(time, now);
        }
        Ok(frame || woken)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::os::fd::BorrowedFd;
    use std::sync::Mutex;

    use super::*;
    use crate::link::capture::{Capture, Source};

    type Pending = Arc<Mutex<VecDeque<Vec<u8>>>>;

    /// A device whose readiness comes too late: it never wakes the relay.
    struct Late(Pending, EventFd);

    impl Receive for Late {
        fn receive(&mut self, record: &mut [u8]) -> io::Result<Option<usize>> {
            let Some(frame) = self.0.lock().unwrap().pop_front() else { return Ok(None) };
            record[..frame.len()].copy_from_slice(&frame);
            Ok(Some(frame.len()))
        }

        fn readiness(&self) -> BorrowedFd<'_> {
            self.1.as_fd()
        }
    }

    struct Nowhere;

    impl Transmit for Nowhere {
        fn transmit(&mut self, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
    }

    /// A host that takes everything.
    struct Taken(Pending);

    impl Transmit for Taken {
        fn transmit(&mut self, record: &[u8]) -> io::Result<()> {
            self.0.lock().unwrap().push_back(record.to_vec());
            Ok(())
        }
    }

    #[test]
    fn a_cut_link_carries_nothing_and_one_that_is_healed_does() {
        let (sent, taken) = (Pending::default(), Pending::default());
        let never = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
        let late = Box::new(Late(Arc::clone(&sent), never));
        let wire = Impairment::default();
        let relay = Relay::start("r", late, Box::new(Taken(Arc::clone(&taken))), &wire, 1).unwrap();
        let send = |number: u8| {
            sent.lock().unwrap().push_back(vec![number; vnet::HEADER_LEN + 60]);
            assert!(relay.drained(relay.ask_to_drain(), Duration::from_secs(60)));
        };
        send(0);
        relay.change(wire.clone(), true);
        send(1);
        relay.change(wire.clone(), false);
        send(2);
        // An hour's delay, and then the cut: what is under way never arrives.
        relay.change(Impairment { delay: Duration::from_secs(3600), ..wire.clone() }, false);
        send(3);
        relay.change(wire.clone(), true);
        relay.change(wire, false);
        send(4);
        drop(relay);
        let taken: Vec<u8> = taken.lock().unwrap().iter().map(|record| record[record.len() - 1]).collect();
        assert_eq!(taken, [0, 2]);
    }

    #[test]
    fn what_a_device_holds_when_a_capture_ends_is_captured() {
        let pending = Pending::default();
        let never = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
        let late = Box::new(Late(Arc::clone(&pending), never));
        let relay = Relay::start("r", late, Box::new(Nowhere), &Impairment::default(), 1).unwrap();
        let limit = Duration::from_secs(60);
        // It has looked once and found nothing, so that it looks again only when it is asked to.
        assert!(relay.drained(relay.ask_to_drain(), limit));

        let folder = tempfile::tempdir().unwrap();
        let source = |name: &str| Source { name: name.to_owned(), description: String::new(), speed: None };
        let capture = Capture::start(&folder.path().join("c.pcapng"), [source("a"), source("b")]).unwrap();
        let [sink, _] = capture.sinks();
        relay.capture(Some(sink));
        let frames = 2 * BATCH as u64 + 1;
        pending.lock().unwrap().extend((0..frames).map(|_| vec![0; vnet::HEADER_LEN + 60]));
        assert!(relay.drained(relay.ask_to_drain(), limit));
        relay.capture(None);
        assert_eq!(capture.stop().unwrap(), (frames, 0));
    }
}
