//! The request's field: memory that is offered for one exchange.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderValue};

use super::lexer::{Parts, bad, excerpt, number, the_field};
use super::{HeaderError, Mode, TransferId};
use crate::fabric::Stag;

/// A region of the client's, and where to connect to reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What is to be done.
    pub mode: Mode,
    /// Where the client accepts an RDMA connection; an IPv4-mapped IPv6 address is given as IPv4.
    pub address: SocketAddr,
    /// The region.
    pub stag: Stag,
    /// The tagged offset at which the body begins.
    pub to: u64,
    /// Bytes that may be used from there on. `to + maxlen` is at most 2^64.
    pub maxlen: u64,
    /// Names the transfer; requests of 2007 have none.
    pub id: Option<TransferId>,
}

impl Offer {
    /// The offer of a request, if it has one.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, HeaderError> {
        the_field(headers)?.map(Self::parse).transpose()
    }

    /// Parses a field's value.
    pub fn parse(value: &HeaderValue) -> Result<Self, HeaderError> {
        let parts = Parts::split(value)?;
        let mode = Mode::from_token(parts.word).ok_or_else(|| HeaderError::UnknownWord {
            found: excerpt(parts.word),
            expected: "mode (server-writes, client-reads, client-writes, server-reads)",
        })?;
        let ip = address(parts.required("ip")?)?;
        let port = parts.required("port")?;
        let port = u16::try_from(number("port", port, 0xffff)?)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| bad("port", port, "1 to 65535"))?;
        let stag = parts.required("stag")?;
        let stag = u32::try_from(number("stag", stag, 0xffff_ffff)?)
            .map_err(|_| bad("stag", stag, "a number of 32 bits"))?;
        let to = number("to", parts.required("to")?, u64::MAX)?;
        let maxlen = number("maxlen", parts.required("maxlen")?, u64::MAX)?;
        if u128::from(to) + u128::from(maxlen) > 1 << 64 {
            return Err(HeaderError::PastTheEnd { to, maxlen });
        }
        let id = match parts.optional("id")? {
            Some(id) => Some(TransferId::parse(id).ok_or_else(|| bad("id", id, "32 hexadecimal digits"))?),
            None => None,
        };
        Ok(Self { mode, address: SocketAddr::new(ip, port), stag: Stag(stag), to, maxlen, id })
    }

    /// The field's value.
    pub fn to_value(&self) -> HeaderValue {
        let Self { mode, address, stag, to, maxlen, id } = self;
        let mut text = format!(
            "{mode}, ip={}, port={}, stag={}, to={to}, maxlen={maxlen}",
            address.ip(),
            address.port(),
            stag.0
        );
        if let Some(id) = id {
            text.push_str(&format!(", id={id}"));
        }
        value(text)
    }
}

/// A header value of text that this module made, which is visible ASCII throughout.
pub(super) fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("fallback, reason=malformed"))
}

fn address(value: &str) -> Result<IpAddr, HeaderError> {
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
        assert_eq!(offer.address, "10.0.0.15:3242".parse().unwrap());
        assert_eq!((offer.stag, offer.to, offer.maxlen, offer.id), (Stag(642), 0, 1 << 20, None));
    }

    #[test]
    fn spelling_may_vary() {
        let text = "Server-Writes,maxlen = 0x100000,\tSTAG=0X282,, to=0,future=~thing~ ,ip=::ffff:10.0.0.15,port=3242,";
        assert_eq!(parse(text).unwrap(), sample());
        let v6 = parse("server-writes, ip=[2001:db8::1], port=1, stag=0, to=0, maxlen=0").unwrap();
        assert_eq!(v6.address, "[2001:db8::1]:1".parse().unwrap());
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
        assert_eq!(Offer::of(&headers), Ok(None));
        headers.append(RDMA, sample().to_value());
        assert_eq!(Offer::of(&headers), Ok(Some(sample())));
        headers.append(RDMA, sample().to_value());
        assert_eq!(Offer::of(&headers), Err(HeaderError::Repeated(2)));
    }

    fn any_offer() -> impl Strategy<Value = Offer> {
        let mode = prop::sample::select(&Mode::ALL[..]);
        let lengths = any::<(u64, u64)>().prop_map(|(to, n)| (to, n.min(u64::MAX - to)));
        (mode, any::<IpAddr>(), 1..=u16::MAX, any::<u32>(), lengths, any::<Option<[u8; 16]>>()).prop_map(
            |(mode, ip, port, stag, (to, maxlen), id)| Offer {
                mode,
                address: SocketAddr::new(ip.to_canonical(), port),
                stag: Stag(stag),
                to,
                maxlen,
                id: id.map(TransferId),
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
