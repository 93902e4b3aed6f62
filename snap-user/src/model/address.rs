//! Addresses of sockets in words.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

// The same on every architecture.
const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;

/// A `struct sockaddr` in words; empty without one.
pub fn address_words(raw: &[u8]) -> String {
    let Some((family, rest)) = raw.split_first_chunk::<2>() else {
        return String::new();
    };
    match i32::from(u16::from_ne_bytes(*family)) {
        AF_UNIX => match rest.split_first() {
            None => String::new(),
            Some((0, name)) => format!("@{}", String::from_utf8_lossy(name)),
            Some(_) => String::from_utf8_lossy(rest)
                .trim_end_matches('\0')
                .to_owned(),
        },
        AF_INET if rest.len() >= 6 => {
            let ip = Ipv4Addr::new(rest[2], rest[3], rest[4], rest[5]);
            SocketAddr::from((ip, u16::from_be_bytes([rest[0], rest[1]]))).to_string()
        }
        AF_INET6 if rest.len() >= 22 => {
            let mut ip = [0u8; 16];
            ip.copy_from_slice(&rest[6..22]);
            let ip = Ipv6Addr::from(ip);
            SocketAddr::from((ip, u16::from_be_bytes([rest[0], rest[1]]))).to_string()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_words() {
        let mut v4 = (AF_INET as u16).to_ne_bytes().to_vec();
        v4.extend([0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(address_words(&v4), "127.0.0.1:8080");
        let mut unix = (AF_UNIX as u16).to_ne_bytes().to_vec();
        unix.extend(b"/run/x\0");
        assert_eq!(address_words(&unix), "/run/x");
        let mut hidden = (AF_UNIX as u16).to_ne_bytes().to_vec();
        hidden.extend(b"\0name");
        assert_eq!(address_words(&hidden), "@name");
        assert_eq!(address_words(&[]), "");
    }
}
