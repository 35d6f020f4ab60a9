//! The request's field: memory that is offered for one exchange.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderValue};

use super::lexer::{Parts, bad, excerpt, number, the_field};
use super::{HeaderError, Mode, TransferId};
use crate::fabric::{RemoteAddress, Stag};

/// What a client offers for one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What is to be done.
    pub mode: Mode,
    /// Over which RDMA connection.
    pub route: Route,
    /// The client's region: where the body goes (`server-writes`), or its beginning lies (`server-reads`).
    pub region: Option<Advert>,
    /// Bytes of the body that the client has for the server.
    pub bytes: Option<u64>,
    /// Names the transfer; requests of 2007 have none.
    pub id: Option<TransferId>,
    /// That the body is to be sealed (with TLS), and this offer's number on its HTTP connection. Lengths are then those of
    /// what is sealed.
    pub seal: Option<u64>,
}

/// A region that the peer may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advert {
    /// Where it begins.
    pub at: RemoteAddress,
    /// Bytes that may be used from there on. `to + maxlen` is at most 2^64.
    pub maxlen: u64,
}

/// Which RDMA connection carries a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// One that the server makes, to this address of the client's; an IPv4-mapped IPv6 address is given as IPv4.
    Server(SocketAddr),
    /// One that the client has made for this HTTP connection.
    Client,
    /// The HTTP connection itself.
    InPlace,
}

impl Route {
    /// Who connects: `server`, `client`, or nobody (`in-place`).
    pub fn token(&self) -> &'static str {
        match self {
            Self::Server(_) => "server",
            Self::Client => "client",
            Self::InPlace => "in-place",
        }
    }
}

/// What a request's field asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A transfer.
    Transfer(Offer),
    /// Where the client may connect to, and to be let in with this id.
    Introduction(TransferId),
    /// That the HTTP connection become an RDMA connection; on one that has, whether it has.
    InPlace(TransferId),
}

impl Asked {
    /// What a request asks for, if it does.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, HeaderError> {
        the_field(headers)?.map(Self::parse).transpose()
    }

    /// Parses a field's value.
    pub fn parse(value: &HeaderValue) -> Result<Self, HeaderError> {
        let parts = Parts::split(value)?;
        if parts.word.eq_ignore_ascii_case("connect") {
            let id = id(parts.required("id")?)?;
            return match parts.optional("connect")? {
                Some(word) if word.eq_ignore_ascii_case("in-place") => Ok(Self::InPlace(id)),
                Some(word) if !word.eq_ignore_ascii_case("client") => {
                    Err(bad("connect", word, "client or in-place"))
                }
                _ => Ok(Self::Introduction(id)),
            };
        }
        Offer::of_parts(&parts).map(Self::Transfer)
    }

    /// The field's value of a request to be introduced.
    pub fn introduction(id: TransferId) -> HeaderValue {
        value(format!("connect, id={id}"))
    }

    /// The field's value of a request for the connection in place.
    pub fn in_place(id: TransferId) -> HeaderValue {
        value(format!("connect, connect=in-place, id={id}"))
    }
}

impl Offer {
    /// Parses a field's value that is an offer.
    pub fn parse(value: &HeaderValue) -> Result<Self, HeaderError> {
        Self::of_parts(&Parts::split(value)?)
    }

    fn of_parts(parts: &Parts<'_>) -> Result<Self, HeaderError> {
        let mode = Mode::from_token(parts.word).ok_or_else(|| HeaderError::UnknownWord {
            found: excerpt(parts.word),
            expected: "mode (server-writes, client-reads, client-writes, server-reads)",
        })?;
        let route = route(parts)?;
        let region = match mode {
            Mode::ServerWrites | Mode::ServerReads => Some(advert(parts)?),
            Mode::ClientReads | Mode::ClientWrites => None,
        };
        let bytes = match (mode, parts.optional("bytes")?) {
            (Mode::ServerWrites | Mode::ClientReads, _) => None,
            (Mode::ServerReads, None) => region.map(|region| region.maxlen),
            (_, None) => return Err(HeaderError::Missing("bytes")),
            (_, Some(bytes)) => Some(number("bytes", bytes, u64::MAX)?),
        };
        let id = match parts.optional("id")? {
            Some(text) => Some(id(text)?),
            // Those of 2007 can do with one Send at the end; whatever else there is needs names.
            None if mode == Mode::ServerWrites && matches!(route, Route::Server(_)) => None,
            None => return Err(HeaderError::Missing("id")),
        };
        let seal = parts.optional("seal")?.map(|text| number("seal", text, u64::MAX)).transpose()?;
        if seal.is_some() && id.is_none() {
            return Err(HeaderError::Missing("id"));
        }
        Ok(Self { mode, route, region, bytes, id, seal })
    }

    /// The field's value.
    pub fn to_value(&self) -> HeaderValue {
        let Self { mode, route, region, bytes, id, seal } = self;
        let mut text = mode.to_string();
        match route {
            Route::Server(address) => {
                text.push_str(&format!(", ip={}, port={}", address.ip(), address.port()))
            }
            Route::Client => text.push_str(", connect=client"),
            Route::InPlace => text.push_str(", connect=in-place"),
        }
        if let Some(Advert { at, maxlen }) = region {
            text.push_str(&format!(", stag={}, to={}, maxlen={maxlen}", at.stag.0, at.to));
        }
        if let Some(bytes) = bytes {
            text.push_str(&format!(", bytes={bytes}"));
        }
        if let Some(id) = id {
            text.push_str(&format!(", id={id}"));
        }
        if let Some(seal) = seal {
            text.push_str(&format!(", seal={seal}"));
        }
        value(text)
    }
}

fn route(parts: &Parts<'_>) -> Result<Route, HeaderError> {
    match parts.optional("connect")? {
        None => {}
        Some(word) if word.eq_ignore_ascii_case("client") => return Ok(Route::Client),
        Some(word) if word.eq_ignore_ascii_case("in-place") => return Ok(Route::InPlace),
        Some(word) if word.eq_ignore_ascii_case("server") => {}
        Some(word) => return Err(bad("connect", word, "server, client or in-place")),
    }
    let ip = address(parts.required("ip")?)?;
    Ok(Route::Server(SocketAddr::new(ip, port(parts.required("port")?)?)))
}

pub(super) fn port(text: &str) -> Result<u16, HeaderError> {
    u16::try_from(number("port", text, 0xffff)?)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| bad("port", text, "1 to 65535"))
}

fn advert(parts: &Parts<'_>) -> Result<Advert, HeaderError> {
    let stag = parts.required("stag")?;
    let stag = u32::try_from(number("stag", stag, 0xffff_ffff)?)
        .map_err(|_| bad("stag", stag, "a number of 32 bits"))?;
    let to = number("to", parts.required("to")?, u64::MAX)?;
    let maxlen = number("maxlen", parts.required("maxlen")?, u64::MAX)?;
    if u128::from(to) + u128::from(maxlen) > 1 << 64 {
        return Err(HeaderError::PastTheEnd { to, maxlen });
    }
    Ok(Advert { at: RemoteAddress { stag: Stag(stag), to }, maxlen })
}

pub(super) fn id(text: &str) -> Result<TransferId, HeaderError> {
    TransferId::parse(text).ok_or_else(|| bad("id", text, "32 hexadecimal digits"))
}

/// A header value of text that this module made, which is visible ASCII throughout.
pub(super) fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("fallback, reason=malformed"))
}

pub(super) fn address(value: &str) -> Result<IpAddr, HeaderError> {
    let bare = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let ip = match bare {
        Some(bare) => bare.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => value.parse::<IpAddr>().ok(),
    };
    ip.map(|ip| ip.to_canonical()).ok_or_else(|| bad("ip", value, "an IPv4 or IPv6 address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::RDMA;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Offer, HeaderError> {
        Offer::parse(&HeaderValue::from_str(text).unwrap())
    }

    fn sample() -> Offer {
        parse("server-writes, ip=10.0.0.15, port=3242, stag=642, to=0, maxlen=1048576").unwrap()
    }

    #[test]
    fn the_syntax_of_2007_parses() {
        let offer = sample();
        assert_eq!(offer.mode, Mode::ServerWrites);
        assert_eq!(offer.route, Route::Server("10.0.0.15:3242".parse().unwrap()));
        let at = RemoteAddress { stag: Stag(642), to: 0 };
        assert_eq!((offer.region, offer.bytes, offer.id), (Some(Advert { at, maxlen: 1 << 20 }), None, None));
    }

    #[test]
    fn spelling_may_vary() {
        let text = "Server-Writes,maxlen = 0x100000,\tSTAG=0X282,, to=0,future=~thing~ ,ip=::ffff:10.0.0.15,port=3242,";
        assert_eq!(parse(text).unwrap(), sample());
        let v6 = parse("server-writes, ip=[2001:db8::1], port=1, stag=0, to=0, maxlen=0").unwrap();
        assert_eq!(v6.route, Route::Server("[2001:db8::1]:1".parse().unwrap()));
        assert_eq!(parse(&v6.to_value().to_str().unwrap().replace('[', "")).unwrap(), v6);
    }

    #[test]
    fn every_mistake_is_named() {
        let rest = "ip=10.0.0.15, port=3242, stag=642, to=0, maxlen=9";
        let cases = [
            (String::new(), "\"\" is no mode"),
            (format!("server-wrotes, {rest}"), "\"server-wrotes\" is no mode"),
            (format!("server-writes, {rest}, what"), "\"what\" is not of the form"),
            (format!("server-writes, {rest}, =1"), "\"=1\" is not of the form"),
            (format!("server-writes, {rest}, Port=1"), "port is given twice"),
            ("server-writes, ip=10.0.0.15".into(), "port is missing"),
            (format!("server-writes, {}", rest.replace("15", "256")), "ip=\"10.0.0.256\": expected an IPv4"),
            (format!("server-writes, {}", rest.replace("10.0.0.15", "fe80::1%eth0")), "expected an IPv4"),
            (format!("server-writes, {}", rest.replace("3242", "0")), "port=\"0\": expected 1 to 65535"),
            (format!("server-writes, {}", rest.replace("642", "-1")), "stag=\"-1\": expected a number of 32"),
            (format!("server-writes, {}", rest.replace("642", "4294967296")), "expected a number of 32 bits"),
            (format!("server-writes, {}", rest.replace("to=0", "to=0xffffffffffffffff")), "reach past 2^64"),
            (format!("server-writes, {}", rest.replace("=9", "=+9")), "maxlen=\"+9\""),
            (
                format!("server-writes, {rest}, connect=x"),
                "connect=\"x\": expected server, client or in-place",
            ),
            ("client-reads, connect=client".into(), "id is missing"),
            (format!("client-writes, {rest}"), "bytes is missing"),
            ("server-reads, connect=client".into(), "stag is missing"),
            (format!("server-writes, {rest}, seal=0"), "id is missing"),
            (format!("server-writes, {rest}, id={:032}, seal=x", 0), "seal=\"x\": expected a number"),
            (format!("server-writes, {rest}, id=12"), "id=\"12\": expected 32 hexadecimal digits"),
            (format!("server-writes, {rest}, x={}", "y".repeat(MAX)), "more than 1024"),
        ];
        for (text, expected) in cases {
            let error = parse(&text).expect_err(&text).to_string();
            assert!(error.contains(expected), "{text:?} gave {error:?}, not {expected:?}");
        }
    }
    const MAX: usize = super::super::MAX_FIELD;

    #[test]
    fn two_fields_are_one_too_many() {
        let mut headers = HeaderMap::new();
        assert_eq!(Asked::of(&headers), Ok(None));
        headers.append(RDMA, sample().to_value());
        assert_eq!(Asked::of(&headers), Ok(Some(Asked::Transfer(sample()))));
        headers.append(RDMA, sample().to_value());
        assert_eq!(Asked::of(&headers), Err(HeaderError::Repeated(2)));
    }

    #[test]
    fn an_introduction_is_asked_for() {
        let id = TransferId([0xab; 16]);
        assert_eq!(Asked::parse(&Asked::introduction(id)), Ok(Asked::Introduction(id)));
        assert!(Asked::parse(&HeaderValue::from_static("connect")).is_err());
        assert_eq!(Asked::parse(&Asked::in_place(id)), Ok(Asked::InPlace(id)));
        assert!(Asked::parse(&HeaderValue::from_static("connect, connect=in-place")).is_err());
        let server = HeaderValue::try_from(format!("connect, connect=server, id={id}")).unwrap();
        assert!(Asked::parse(&server).is_err());
    }

    #[test]
    fn a_body_that_is_read_is_as_long_as_its_region_unless_told_otherwise() {
        let offer = |more: &str| {
            parse(&format!("server-reads, connect=client, stag=1, to=0, maxlen=9, id={:032}{more}", 0))
                .unwrap()
        };
        assert_eq!(offer("").bytes, Some(9));
        assert_eq!(offer(", bytes=90").bytes, Some(90));
    }

    fn any_offer() -> impl Strategy<Value = Offer> {
        let mode = prop::sample::select(&Mode::ALL[..]);
        let advert = any::<(u32, u64, u64)>().prop_map(|(stag, to, n)| Advert {
            at: RemoteAddress { stag: Stag(stag), to },
            maxlen: n.min(u64::MAX - to),
        });
        let route = prop_oneof![
            (any::<IpAddr>(), 1..=u16::MAX)
                .prop_map(|(ip, port)| Route::Server(SocketAddr::new(ip.to_canonical(), port))),
            Just(Route::Client),
            Just(Route::InPlace),
        ];
        let seal = any::<Option<u64>>();
        (mode, route, advert, any::<u64>(), any::<[u8; 16]>(), seal).prop_map(
            |(mode, route, advert, bytes, id, seal)| {
                let region = matches!(mode, Mode::ServerWrites | Mode::ServerReads).then_some(advert);
                let bytes = matches!(mode, Mode::ClientWrites | Mode::ServerReads).then_some(bytes);
                Offer { mode, route, region, bytes, id: Some(TransferId(id)), seal }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed(offer in any_offer()) {
            prop_assert_eq!(Offer::parse(&offer.to_value()), Ok(offer));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let _ = Offer::parse(&value);
            }
        }

        #[test]
        fn what_is_parsed_is_printed_and_parsed_again(
            text in "(server-writes|client-reads), (ip=10[.]0[.]0[.]15, |ip=::1, )?port=[0-9]{1,6}, stag=(0x)?[0-9a-f]{1,9}, \
                     to=[0-9]{1,21}, maxlen=[0-9]{1,3}(, id=[0-9a-f]{31,33})?"
        ) {
            if let Ok(offer) = parse(&text) {
                prop_assert_eq!(Offer::parse(&offer.to_value()), Ok(offer));
            }
        }
    }
}
