//! What the two start-up frames settle: CRCs, the depths of both directions' Reads, and how the initiator says that it
//! is ready (RFC 5044, section 7.1; RFC 6581, sections 4 and 9).

use bytes::Bytes;

use super::mpa::{Enhanced, FrameKind, NOT_NEGOTIATED, Revision, RtrOptions, StartError, StartFrame};
use super::terminate::Code;

/// The deepest IRD and ORD that are used, the same as siw's.
pub const MAX_DEPTH: u16 = 128;

/// What one side wants of a connection.
#[derive(Clone, Debug)]
pub struct Config {
    /// The revision of the Request; a responder answers in the Request's.
    pub revision: Revision,
    /// Whether this side asks for CRCs. RFC 5044, section 4.4 makes it the default.
    pub crc: bool,
    /// Inbound Reads held at most. Raised to a power of two, since siw sends that many (up to [`MAX_DEPTH`]).
    pub ird: u16,
    /// Outbound Reads wanted at most.
    pub ord: u16,
    /// Initiator: ask for the peer-to-peer model, in which its first FPDU is an empty one that lets the responder
    /// send. Without it the responder is silent until this side's program has sent something.
    pub peer_to_peer: bool,
    /// Bytes of the longest Send that is received.
    pub receive_size: usize,
    /// For the peer's program.
    pub private_data: Bytes,
}

impl Config {
    pub(super) fn ird(&self) -> u16 {
        if self.ird == 0 { 0 } else { self.ird.min(MAX_DEPTH).next_power_of_two() }
    }

    pub(super) fn ord(&self) -> u16 {
        self.ord.min(MAX_DEPTH)
    }

    /// The Request that asks for it.
    pub(super) fn request(&self) -> StartFrame {
        let rtr = RtrOptions { send: true, write: true, read: self.ord > 0 };
        let enhanced =
            Enhanced { peer_to_peer: self.peer_to_peer.then_some(rtr), ird: self.ird(), ord: self.ord() };
        StartFrame {
            kind: FrameKind::Request,
            revision: self.revision,
            markers: false,
            crc: self.crc,
            reject: false,
            enhanced: (self.revision == Revision::V2).then_some(enhanced),
            private_data: self.private_data.clone(),
        }
    }
}

/// The empty message with which an initiator of the peer-to-peer model begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rtr {
    /// An RDMA Write.
    Write,
    /// An RDMA Read.
    Read,
    /// A Send, which takes one of the responder's receives and is delivered to its program.
    Send,
}

/// What was settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Whether CRCs are in use, in both directions.
    pub crc: bool,
    /// Reads that the peer may have outstanding.
    pub ird: u16,
    /// Reads that we may have outstanding.
    pub ord: u16,
    /// What the peer's program sent along.
    pub private_data: Bytes,
}

/// Why nothing was settled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NegotiationError {
    /// The peer's frame is not well-formed.
    #[error(transparent)]
    Frame(#[from] StartError),
    /// The peer asks for markers (RFC 5044, section 4.3), which are not implemented; like siw we then refuse.
    #[error("the peer asks for MPA markers, which are not implemented")]
    Markers,
    /// The Reply is of another revision than the Request, or without the enhanced header that the Request has.
    #[error("the Reply is not in the form of the Request")]
    Mismatch,
    /// The peer wants more Reads outstanding than we hold.
    #[error("the peer wants {wanted} inbound Reads, and there is room for {ird}")]
    Ird {
        /// What it wants.
        wanted: u16,
        /// What we have.
        ird: u16,
    },
    /// There is no way of saying "ready" that both sides know.
    #[error("the two sides have no RTR form in common")]
    Rtr,
}

impl NegotiationError {
    /// The Terminate that tells the responder about it, where there is one.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Ird { .. } => Some(Code::MPA_IRD),
            Self::Rtr => Some(Code::MPA_RTR),
            Self::Frame(_) | Self::Markers | Self::Mismatch => None,
        }
    }
}

/// The responder's half: the Reply to `request`, what it settles, and whether the initiator will begin with an RTR.
pub(super) fn respond(
    request: &StartFrame,
    config: &Config,
) -> Result<(StartFrame, Negotiated, bool), NegotiationError> {
    if request.markers {
        return Err(NegotiationError::Markers);
    }
    let (mut ird, mut ord) = (config.ird(), config.ord());
    let enhanced = request.enhanced.map(|asked| {
        let rtr = asked.peer_to_peer.map(|offered| {
            // A Send would take a receive, so it is taken only if nothing else is offered.
            let silent = offered.write || offered.read;
            let common =
                RtrOptions { send: offered.send && !silent, write: offered.write, read: offered.read };
            // With nothing offered at all, one has to be named all the same; the initiator then says "none in common".
            if silent || common.send { common } else { RtrOptions { write: true, ..common } }
        });
        if rtr.is_some_and(|rtr| rtr.read && !rtr.write) {
            ird = ird.max(1);
        }
        if asked.ird != NOT_NEGOTIATED {
            ord = ord.min(asked.ird);
        }
        let echo = |asked: u16, ours: u16| if asked == NOT_NEGOTIATED { NOT_NEGOTIATED } else { ours };
        Enhanced { peer_to_peer: rtr, ird: echo(asked.ord, ird), ord: echo(asked.ird, ord) }
    });
    let reply = StartFrame {
        kind: FrameKind::Reply,
        revision: request.revision,
        markers: false,
        crc: request.crc || config.crc,
        reject: false,
        enhanced,
        private_data: config.private_data.clone(),
    };
    let rtr = enhanced.is_some_and(|e| e.peer_to_peer.is_some());
    let settled = Negotiated { crc: reply.crc, ird, ord, private_data: request.private_data.clone() };
    Ok((reply, settled, rtr))
}

/// A Reply that refuses `request`. It has the Request's form: siw strips the enhanced header's bytes unseen.
pub fn reject(request: &StartFrame, private_data: Bytes) -> StartFrame {
    StartFrame {
        kind: FrameKind::Reply,
        revision: request.revision,
        markers: false,
        crc: request.crc,
        reject: true,
        enhanced: request.enhanced.map(|_| Enhanced { peer_to_peer: None, ird: 0, ord: 0 }),
        private_data,
    }
}

/// The initiator's half: what a Reply that does not refuse settles.
pub(super) fn conclude(
    request: &StartFrame,
    reply: &StartFrame,
    config: &Config,
) -> Result<(Negotiated, Option<Rtr>), NegotiationError> {
    if reply.markers {
        return Err(NegotiationError::Markers);
    }
    let ird = config.ird();
    let mut ord = config.ord();
    let mut rtr = None;
    match (request.enhanced, reply.enhanced) {
        _ if request.revision != reply.revision => return Err(NegotiationError::Mismatch),
        (None, None) => {}
        (Some(asked), Some(answered)) => {
            if answered.ird != NOT_NEGOTIATED {
                ord = ord.min(answered.ird);
            }
            if answered.ord != NOT_NEGOTIATED && answered.ord > ird {
                return Err(NegotiationError::Ird { wanted: answered.ord, ird });
            }
            rtr = match (asked.peer_to_peer, answered.peer_to_peer) {
                (None, None) => None,
                (Some(offered), Some(taken)) if offered.write && taken.write => Some(Rtr::Write),
                (Some(offered), Some(taken)) if offered.read && taken.read && ord > 0 => Some(Rtr::Read),
                (Some(offered), Some(taken)) if offered.send && taken.send => Some(Rtr::Send),
                _ => return Err(NegotiationError::Rtr),
            };
        }
        _ => return Err(NegotiationError::Mismatch),
    }
    let crc = request.crc || reply.crc;
    Ok((Negotiated { crc, ird, ord, private_data: reply.private_data.clone() }, rtr))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            revision: Revision::V2,
            crc: true,
            ird: 5,
            ord: 16,
            peer_to_peer: false,
            receive_size: 4096,
            private_data: Bytes::new(),
        }
    }

    fn settle(initiator: &Config, responder: &Config) -> (Negotiated, Negotiated) {
        let request = initiator.request();
        let (reply, theirs, _) = respond(&request, responder).unwrap();
        let (ours, _) = conclude(&request, &reply, initiator).unwrap();
        (ours, theirs)
    }

    #[test]
    fn check_06_mpa_crc_on_if_either_side_sets_c() {
        for (a, b) in [(false, false), (false, true), (true, false), (true, true)] {
            let (ours, theirs) = settle(&Config { crc: a, ..config() }, &Config { crc: b, ..config() });
            assert_eq!((ours.crc, theirs.crc), (a || b, a || b));
        }
    }

    #[test]
    fn mpa_depths_bound_each_other() {
        // mpa_responder_ord_not_above_initiator_ird, mpa_initiator_ord_not_above_responder_ird
        let (ours, theirs) = settle(&Config { ird: 2, ..config() }, &Config { ird: 4, ..config() });
        assert_eq!((ours.ord, theirs.ird), (4, 4));
        assert_eq!((theirs.ord, ours.ird), (2, 2));
    }

    #[test]
    fn check_68_rdmap_ird_tolerates_next_pow2() {
        assert_eq!(config().request().enhanced.unwrap().ird, 8);
        assert_eq!(Config { ird: 0, ..config() }.ird(), 0);
        assert_eq!(Config { ird: u16::MAX, ..config() }.ird(), MAX_DEPTH);
    }

    #[test]
    fn check_14_mpa_v2_responder_accepts_v1() {
        let initiator = Config { revision: Revision::V1, ..config() };
        let (reply, _, rtr) = respond(&initiator.request(), &config()).unwrap();
        assert_eq!((reply.revision, reply.enhanced, rtr), (Revision::V1, None, false));
        settle(&initiator, &config());
    }

    #[test]
    fn check_15_mpa_s1_answered_with_s1_and_s0_with_s0() {
        let mut request = config().request();
        assert!(respond(&request, &config()).unwrap().0.enhanced.is_some());
        assert!(reject(&request, Bytes::new()).enhanced.is_some());
        request.enhanced = None;
        let (reply, ..) = respond(&request, &config()).unwrap();
        assert_eq!((reply.revision, reply.enhanced), (Revision::V2, None));
    }

    #[test]
    fn check_10_mpa_marker_request_rejected_or_honoured() {
        let request = StartFrame { markers: true, ..config().request() };
        assert_eq!(respond(&request, &config()).unwrap_err(), NegotiationError::Markers);
    }

    #[test]
    fn check_20_mpa_insufficient_ird_terminates_2_0_06() {
        let request = config().request();
        let (mut reply, ..) = respond(&request, &config()).unwrap();
        reply.enhanced = Some(Enhanced { peer_to_peer: None, ird: 1, ord: 9 });
        let error = conclude(&request, &reply, &config()).unwrap_err();
        assert_eq!(error, NegotiationError::Ird { wanted: 9, ird: 8 });
        assert_eq!(error.code(), Some(Code::MPA_IRD));
    }

    #[test]
    fn check_21_mpa_no_common_rtr_terminates_2_0_07() {
        let initiator = Config { peer_to_peer: true, ..config() };
        let request = initiator.request();
        let (mut reply, _, rtr) = respond(&request, &config()).unwrap();
        assert!(rtr);
        let none = RtrOptions { send: false, write: false, read: false };
        reply.enhanced = Some(Enhanced { peer_to_peer: Some(none), ird: 1, ord: 1 });
        let error = conclude(&request, &reply, &initiator).unwrap_err();
        assert_eq!(error.code(), Some(Code::MPA_RTR));
    }

    #[test]
    fn rtr_is_a_write_or_else_a_read_or_else_a_send() {
        let initiator = Config { peer_to_peer: true, ..config() };
        let request = initiator.request();
        let (mut reply, ..) = respond(&request, &config()).unwrap();
        assert_eq!(conclude(&request, &reply, &initiator).unwrap().1, Some(Rtr::Write));
        let read = RtrOptions { send: false, write: false, read: true };
        reply.enhanced = Some(Enhanced { peer_to_peer: Some(read), ird: 1, ord: 1 });
        assert_eq!(conclude(&request, &reply, &initiator).unwrap().1, Some(Rtr::Read));
        let send = RtrOptions { send: true, write: false, read: false };
        reply.enhanced = Some(Enhanced { peer_to_peer: Some(send), ird: 1, ord: 1 });
        assert_eq!(conclude(&request, &reply, &initiator).unwrap().1, Some(Rtr::Send));
        let mut only_send = request.clone();
        only_send.enhanced = reply.enhanced;
        let (answer, ..) = respond(&only_send, &config()).unwrap();
        assert_eq!(answer.enhanced.unwrap().peer_to_peer, Some(send));
    }

    #[test]
    fn not_negotiated_is_echoed_and_keeps_the_local_value() {
        let mut request = config().request();
        request.enhanced = Some(Enhanced { peer_to_peer: None, ird: NOT_NEGOTIATED, ord: NOT_NEGOTIATED });
        let (reply, settled, _) = respond(&request, &config()).unwrap();
        let answered = reply.enhanced.unwrap();
        assert_eq!((answered.ird, answered.ord), (NOT_NEGOTIATED, NOT_NEGOTIATED));
        assert_eq!((settled.ird, settled.ord), (8, 16));
    }
}
