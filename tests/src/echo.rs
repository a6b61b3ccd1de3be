//! ICMP and ICMPv6 echo from a kernel's raw socket.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::frames::checksum;
use crate::netns::Ns;

/// Sends `count` echo requests from `ns`, one every `interval`, and counts the answers that come within a second of the last.
///
/// # Panics
/// Without root.
#[must_use]
pub fn answers(ns: &Ns, to: IpAddr, count: u16, interval: Duration) -> u32 {
    let (domain, protocol, request, answer, header) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0, 20),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129, 0),
    };
    let socket = ns.run(|| Socket::new(domain, Type::RAW, Some(protocol)));
    let mut socket = socket.unwrap_or_else(|error| panic!("a raw socket for ICMP: {error}"));
    socket.connect(&SocketAddr::new(to, 0).into()).unwrap_or_else(|error| panic!("no route to {to}: {error}"));
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
    let id = fastrand::u16(..).to_be_bytes();
    let sender = socket.try_clone().expect("a socket can be cloned");
    let sending = thread::spawn(move || {
        for number in 0..count {
            let [high, low] = number.to_be_bytes();
            let mut message = [request, 0, 0, 0, id[0], id[1], high, low, b's', b'l', b'u', b'i', b'c', b'e', 0, 0];
            // The kernel computes ICMPv6's itself.
            let sum = checksum(&[&message]);
            message[2..4].copy_from_slice(&sum);
            let _ = sender.send(&message);
            thread::sleep(interval);
        }
    });
    let mut seen = 0;
    let deadline = Instant::now() + interval * u32::from(count) + Duration::from_secs(1);
    while seen < u32::from(count) && Instant::now() < deadline {
        let mut packet = [0; 128];
        let Ok(length) = socket.read(&mut packet) else { continue };
        let message = &packet[header.min(length)..length];
        seen +=
            u32::from(message.len() == 16 && message[0] == answer && message[4..6] == id && message[8..10] == *b"sl");
    }
    sending.join().expect("the sender's thread");
    seen
}
