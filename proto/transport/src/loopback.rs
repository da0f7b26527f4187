//! Addresses for clusters that live on this machine alone: tests, drills, benchmarks.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below it are ports that need privileges or that services are known by.
const FIRST_PORT: u16 = 10_000;

static NEXT_PORT: AtomicU16 = AtomicU16::new(FIRST_PORT);

/// An address to listen on that stays free until somebody listens there, also between
/// the end of a process and its next start.
///
/// A free port of 127.0.0.1 does not: it may become the local port of any connection on
/// the machine. This process has a loopback address of its own, named after its id, from
/// which only its members dial, and from ports above those that are given out here. Whether
/// somebody listens is asked with a connection: a listener that looks and closes lives on,
/// for a moment, in a child that another thread forks meanwhile.
///
/// # Panics
/// When it was called some 55,000 times.
pub fn free_address() -> SocketAddr {
    loop {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        assert!(port >= FIRST_PORT, "this process has used up its ports");
        let address = SocketAddr::from((own_address(std::process::id()), port));
        if !somebody_listens(address) {
            return address;
        }
    }
}

fn somebody_listens(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}

/// Linux's ids of processes have 22 bits at most; 127.64.0.0/10 has as many addresses.
fn own_address(pid: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 64, 0, 0).to_bits() | pid & 0x3f_ffff)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn every_process_has_a_loopback_address_and_every_call_a_port() {
        assert_eq!(own_address(1), Ipv4Addr::new(127, 64, 0, 1));
        assert_eq!(own_address(4_194_304 - 1), Ipv4Addr::new(127, 127, 255, 255));
        let (first, second) = (free_address(), free_address());
        assert_eq!(first.ip(), own_address(std::process::id()));
        assert_ne!(first, second);
        assert!(!somebody_listens(first));
        let _listener = TcpListener::bind(first).expect("it is free");
        assert!(somebody_listens(first));
    }
}
