//! PROXY protocol, versions 1 and 2, as a receiver (haproxy `doc/proxy-protocol.txt`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header taken, in bytes. Version 2 allows 65,551; balancers send well under 1 KiB, extensions included.
pub const MAX_HEADER: usize = 16 + 4096;
/// Longest version 1 header, its CRLF included (section 2.1).
const MAX_V1: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What the first bytes of a connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A header of `len` bytes. `source` is the sender's address; `None` for the balancer's own connections
    /// (`LOCAL`, `UNKNOWN`) and for families other than TCP over IP.
    Complete { len: usize, source: Option<SocketAddr> },
    /// A header so far as it goes: read more. Never for [`MAX_HEADER`] bytes or more.
    Partial,
    /// Not a header. The text is fixed.
    Invalid(&'static str),
}

/// Reads a header from the first bytes of a connection.
pub fn parse(input: &[u8]) -> Parsed {
    let signature = input.len().min(SIGNATURE.len());
    if input[..signature] == SIGNATURE[..signature] {
        if input.len() < 16 { Parsed::Partial } else { version_2(input) }
    } else if input.len() >= 6 && input.starts_with(b"PROXY ") {
        version_1(input)
    } else if b"PROXY ".starts_with(input) {
        Parsed::Partial
    } else {
        Parsed::Invalid("no PROXY protocol header")
    }
}

fn version_1(input: &[u8]) -> Parsed {
    let window = &input[..input.len().min(MAX_V1)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if input.len() >= MAX_V1 {
            Parsed::Invalid("PROXY header of version 1 longer than 107 bytes")
        } else {
            Parsed::Partial
        };
    };
    const MALFORMED: Parsed = Parsed::Invalid("PROXY header of version 1 is malformed");
    let line = match window[..end].strip_suffix(b"\r").map(std::str::from_utf8) {
        Some(Ok(line)) => line,
        _ => return MALFORMED,
    };
    let words: Vec<&str> = line.split(' ').take(7).collect();
    if words.get(1) == Some(&"UNKNOWN") {
        return Parsed::Complete { len: end + 1, source: None };
    }
    let [_, family, source, destination, source_port, destination_port] = words[..] else { return MALFORMED };
    let address = |text: &str| match family {
        "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => None,
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|_| !text.starts_with('+'));
    match (address(source), address(destination), port(source_port), port(destination_port)) {
        (Some(ip), Some(_), Some(port), Some(_)) => Parsed::Complete { len: end + 1, source: Some(SocketAddr::new(ip, port)) },
        _ => MALFORMED,
    }
}

/// `input` holds at least the 16 fixed bytes.
fn version_2(input: &[u8]) -> Parsed {
    let (version, command) = (input[12] >> 4, input[12] & 0x0F);
    if version != 2 {
        return Parsed::Invalid("PROXY header of an unknown version");
    }
    let length = usize::from(u16::from_be_bytes([input[14], input[15]]));
    let len = 16 + length;
    if len > MAX_HEADER {
        return Parsed::Invalid("PROXY header of version 2 longer than 4112 bytes");
    }
    let Some(body) = input.get(16..len) else { return Parsed::Partial };
    let source = match (command, input[13]) {
        (0, _) => None,
        // TCP over IPv4: addresses, then ports, in network order.
        (1, 0x11) => match body {
            [a, b, c, d, _, _, _, _, p, q, _, _, ..] => {
                Some(SocketAddr::new(Ipv4Addr::new(*a, *b, *c, *d).into(), u16::from_be_bytes([*p, *q])))
            }
            _ => return Parsed::Invalid("PROXY header of version 2 is too short for its addresses"),
        },
        (1, 0x21) => match (body.first_chunk::<16>(), body.get(32..36)) {
            (Some(ip), Some(ports)) => {
                Some(SocketAddr::new(Ipv6Addr::from(*ip).into(), u16::from_be_bytes([ports[0], ports[1]])))
            }
            _ => return Parsed::Invalid("PROXY header of version 2 is too short for its addresses"),
        },
        // Unspecified, datagrams, UNIX sockets: the specification has the receiver ignore the addresses.
        (1, _) => None,
        _ => return Parsed::Invalid("PROXY header of version 2 with an unknown command"),
    };
    Parsed::Complete { len, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend_from_slice(&[0x20 | command, family]);
        header.extend_from_slice(&(body.len() as u16).to_be_bytes());
        header.extend_from_slice(body);
        header
    }

    fn source(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn version_1_in_every_form() {
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 2575\r\n", source("192.0.2.7:56324")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 65535 2575\r\n", source("[2001:db8::7]:65535")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
        ] {
            let mut input = line.as_bytes().to_vec();
            for cut in 0..input.len() {
                assert_eq!(parse(&input[..cut]), Parsed::Partial, "{line:?} cut at {cut}");
            }
            input.extend_from_slice(b"\x0bMSH|\nrest");
            assert_eq!(parse(&input), Parsed::Complete { len: line.len(), source: expected }, "{line:?}");
        }
    }

    #[test]
    fn version_1_refuses_what_is_malformed() {
        for line in [
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 2575 9\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 70000 2575\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 +1 2575\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 2575\n",
            "PROXY UDP4 192.0.2.7 198.51.100.1 1 2575\r\n",
        ] {
            assert!(matches!(parse(line.as_bytes()), Parsed::Invalid(_)), "{line:?}");
        }
        assert!(matches!(parse(&[&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat()), Parsed::Invalid(_)));
        assert!(matches!(parse(b"\x0bMSH|"), Parsed::Invalid(_)));
    }

    #[test]
    fn version_2_in_every_form() {
        let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 0xDC, 0x04, 0x0A, 0x0F];
        let mut v6 = [0u8; 36];
        v6[15] = 1;
        v6[33] = 80;
        let with_extension = [&v4[..], &[4, 0, 1, 9]].concat();
        for (header, expected) in [
            (v2(1, 0x11, &v4), source("192.0.2.7:56324")),
            (v2(1, 0x11, &with_extension), source("192.0.2.7:56324")),
            (v2(1, 0x21, &v6), source("[::1]:80")),
            (v2(0, 0x00, &[]), None),
            (v2(1, 0x31, &[0; 216]), None),
        ] {
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]), Parsed::Partial);
            }
            let len = header.len();
            assert_eq!(parse(&[header, b"MSH".to_vec()].concat()), Parsed::Complete { len, source: expected });
        }
    }

    #[test]
    fn version_2_refuses_what_is_malformed() {
        let mut version = v2(1, 0x11, &[0; 12]);
        version[12] = 0x31;
        for header in [version, v2(2, 0x11, &[0; 12]), v2(1, 0x11, &[0; 11]), v2(1, 0x21, &[0; 35]), v2(1, 0x11, &[0; 5000])] {
            assert!(matches!(parse(&header), Parsed::Invalid(_)));
        }
    }
}
