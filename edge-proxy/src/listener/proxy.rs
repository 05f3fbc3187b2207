//! The PROXY protocol, versions 1 and 2: what a balancer in front says about a connection before its first byte.
//!
//! It is believed from configured networks only, and there it must be: a connection without it is closed. It is
//! never guessed whether there is one, and nothing behind it is read.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// How version 2 begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, with its end.
const MAX_LINE: usize = 107;
/// The most bytes behind the fixed part of version 2: addresses and what else a balancer says.
const MAX_REST: usize = 4_096;
/// The TLV with the checksum of the header.
const CRC32C: u8 = 0x03;

/// Who is at the other end by what a balancer says; `None` when it speaks for itself (a health check), or does
/// not know.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut head = [0; 16];
    stream.read_exact(&mut head[..12]).await?;
    if head[..12] != SIGNATURE {
        return line(stream, &head[..12]).await;
    }
    stream.read_exact(&mut head[12..]).await?;
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > MAX_REST {
        return Err(bad("the header is too long"));
    }
    let mut header = vec![0; 16 + length];
    header[..16].copy_from_slice(&head);
    stream.read_exact(&mut header[16..]).await?;
    binary(&header)
}

/// Version 1: the rest of the line, a byte at a time, because what follows belongs to TLS.
async fn line(stream: &mut (impl AsyncRead + Unpin), begun: &[u8]) -> io::Result<Option<SocketAddr>> {
    let mut line = begun.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == MAX_LINE || !line.starts_with(b"PROXY ") {
            return Err(bad("there is no header"));
        }
        line.push(stream.read_u8().await?);
    }
    let line = std::str::from_utf8(&line[..line.len() - 2]).map_err(|_| bad("the line is no text"))?;
    text(line)
}

fn text(line: &str) -> io::Result<Option<SocketAddr>> {
    let mut words = line.split(' ');
    let mut next = || words.next().ok_or_else(|| bad("the line ends early"));
    if next()? != "PROXY" {
        return Err(bad("there is no header"));
    }
    let is_v4 = match next()? {
        // What stands behind it means nothing.
        "UNKNOWN" => return Ok(None),
        "TCP4" => true,
        "TCP6" => false,
        _ => return Err(bad("the protocol is unknown")),
    };
    let mut address = || -> io::Result<IpAddr> {
        let address: IpAddr = next()?.parse().map_err(|_| bad("an address cannot be read"))?;
        if address.is_ipv4() == is_v4 { Ok(address) } else { Err(bad("an address is of another family")) }
    };
    let (source, _) = (address()?, address()?);
    let mut port = || -> io::Result<u16> {
        let digits = next()?;
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let is_plain = is_number && (digits == "0" || !digits.starts_with('0'));
        digits.parse().ok().filter(|_| is_plain).ok_or_else(|| bad("a port cannot be read"))
    };
    let (source_port, _) = (port()?, port()?);
    match words.next() {
        None => Ok(Some(SocketAddr::new(source, source_port))),
        Some(_) => Err(bad("the line goes on")),
    }
}

/// Version 2, whole.
fn binary(header: &[u8]) -> io::Result<Option<SocketAddr>> {
    let (fixed, rest) = header.split_at_checked(16).ok_or_else(|| bad("the header ends early"))?;
    let is_local = match fixed[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(bad("the version or the command is unknown")),
    };
    let length = match fixed[13] >> 4 {
        0 => 0,
        1 => 12,
        2 => 36,
        3 => 216,
        _ => return Err(bad("the family is unknown")),
    };
    let too_short = || bad("the addresses are cut off");
    // A balancer that speaks for itself may leave out what nobody needs.
    let (addresses, tlvs) = match rest.split_at_checked(length) {
        Some(parts) => parts,
        None if is_local => return Ok(None),
        None => return Err(too_short()),
    };
    check(header, tlvs, 16 + length)?;
    if is_local {
        return Ok(None);
    }
    let array = |at: usize| addresses.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
    let port = |at| array(at).map(u16::from_be_bytes).ok_or_else(too_short);
    match fixed[13] {
        0x11 => {
            let source: [u8; 4] = addresses[..4].try_into().map_err(|_| too_short())?;
            Ok(Some(SocketAddr::new(source.into(), port(8)?)))
        }
        0x21 => {
            let source: [u8; 16] = addresses[..16].try_into().map_err(|_| too_short())?;
            Ok(Some(SocketAddr::new(source.into(), port(32)?)))
        }
        0x00 | 0x31 | 0x32 => Ok(None),
        _ => Err(bad("the transport is none of ours")),
    }
}

/// Walks over what else a balancer says: each length must fit, and a checksum must be right.
fn check(header: &[u8], tlvs: &[u8], first: usize) -> io::Result<()> {
    let (mut rest, mut at) = (tlvs, first);
    while let Some((head, more)) = rest.split_at_checked(3) {
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        let (value, more) = more.split_at_checked(length).ok_or_else(|| bad("a value is cut off"))?;
        if head[0] == CRC32C {
            let told: [u8; 4] = value.try_into().map_err(|_| bad("the checksum has another length"))?;
            let mut zeroed = header.to_vec();
            zeroed[at + 3..at + 7].fill(0);
            if crc32c(&zeroed) != u32::from_be_bytes(told) {
                return Err(bad("the checksum is wrong"));
            }
        }
        (rest, at) = (more, at + 3 + length);
    }
    if rest.is_empty() { Ok(()) } else { Err(bad("a value is cut off")) }
}

/// CRC-32C (Castagnoli), as RFC 9260 has it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 * (crc & 1)))
    })
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("PROXY protocol: {what}"))
}

#[cfg(test)]
mod tests {
    use std::{io, net::SocketAddr};

    use proptest::prelude::*;

    use super::{SIGNATURE, crc32c, read};

    fn verdict(bytes: &[u8]) -> io::Result<(Option<SocketAddr>, usize)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut rest = bytes;
        let read = runtime.block_on(read(&mut rest))?;
        Ok((read, rest.len()))
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x34, 0x20, 0xfb];

    #[test]
    fn lines_are_read_to_their_end_and_no_further() {
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n", Some("192.0.2.7:56324")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n", Some("[2001:db8::7]:1")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ff:ff whatever 1\r\n", None),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            let bytes = [line.as_bytes(), b"\x16\x03\x01rest"].concat();
            assert_eq!(verdict(&bytes).unwrap(), (expected, 7), "{line}");
        }
    }

    #[test]
    fn lines_that_are_none_are_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        for line in [
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 1\r\n",
            "PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 +1 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 01 443\r\n",
            "PROXY  TCP4 192.0.2.7 198.51.100.1 1 443\r\n",
            "PROXY UDP4 192.0.2.7 198.51.100.1 1 443\r\n",
            "proxy TCP4 192.0.2.7 198.51.100.1 1 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 443\n\n",
            "PROXY TCP4",
            long.as_str(),
        ] {
            assert!(verdict(line.as_bytes()).is_err(), "{line:?}");
        }
    }

    #[test]
    fn binary_headers_are_read() {
        let v6 = [[0x20; 16], [0x30; 16]].concat().into_iter().chain([0, 7, 1, 187]).collect::<Vec<_>>();
        for (header, expected) in [
            (v2(0x21, 0x11, &V4), Some("192.0.2.7:4660")),
            (v2(0x21, 0x21, &v6), Some("[2020:2020:2020:2020:2020:2020:2020:2020]:7")),
            // With something else behind: an authority of two bytes.
            (v2(0x21, 0x11, &[&V4[..], &[2, 0, 2, b'a', b'b']].concat()), Some("192.0.2.7:4660")),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &V4), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            let bytes = [&header[..], b"\x16\x03\x01"].concat();
            assert_eq!(verdict(&bytes).unwrap(), (expected, 3), "{header:?}");
        }
    }

    #[test]
    fn binary_headers_that_lie_are_refused() {
        for header in [
            v2(0x11, 0x11, &V4),
            v2(0x22, 0x11, &V4),
            v2(0x21, 0x41, &V4),
            v2(0x21, 0x12, &V4),
            v2(0x21, 0x11, &V4[..11]),
            v2(0x21, 0x21, &V4),
            v2(0x21, 0x11, &[&V4[..], &[2, 0]].concat()),
            v2(0x21, 0x11, &[&V4[..], &[2, 0, 3, b'a']].concat()),
            v2(0x21, 0x11, &[&V4[..], &[3, 0, 4, 1, 2, 3, 4]].concat()),
            v2(0x21, 0x11, &vec![0; 5_000]),
            v2(0x21, 0x11, &V4)[..20].to_vec(),
        ] {
            assert!(verdict(&header).is_err(), "{header:?}");
        }
    }

    #[test]
    fn a_checksum_that_is_there_must_be_right() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        let mut header = v2(0x21, 0x11, &[&V4[..], &[3, 0, 4, 0, 0, 0, 0]].concat());
        let sum = crc32c(&header).to_be_bytes();
        let at = header.len() - 4;
        header[at..].copy_from_slice(&sum);
        assert!(verdict(&header).is_ok());
        header[16] ^= 1;
        assert!(verdict(&header).is_err());
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300), is_v2 in any::<bool>()) {
            let bytes = if is_v2 { [&SIGNATURE[..], &bytes].concat() } else { bytes };
            let _ = verdict(&bytes);
        }
    }
}
