//! A raw Ethernet interface: frames in, frames out.

use pcap::{Active, Capture, Direction, Error};

use crate::netns::Ns;

/// Largest frame read.
const SNAPLEN: i32 = 65_535;

/// An open interface. What others send out of it is not seen, only what comes in.
pub struct Link {
    capture: Capture<Active>,
    interface: String,
}

impl Link {
    /// Opens `interface` in the calling thread's namespace. Reads wait at most some milliseconds.
    ///
    /// # Panics
    /// Without root, or when there is no such interface.
    #[must_use]
    pub fn open_here(interface: &str) -> Link {
        let opened = Capture::from_device(interface).and_then(|capture| {
            let capture =
                capture.promisc(true).snaplen(SNAPLEN).immediate_mode(true).timeout(1).buffer_size(32 << 20).open()?;
            capture.direction(Direction::In)?;
            Ok(capture)
        });
        let capture = opened.unwrap_or_else(|error| panic!("cannot open {interface} for raw frames: {error}"));
        Link { capture, interface: interface.to_owned() }
    }

    /// Opens `interface` in `ns`.
    ///
    /// # Panics
    /// As [`Link::open_here`].
    #[must_use]
    pub fn open(ns: &Ns, interface: &str) -> Link {
        ns.run(|| Link::open_here(interface))
    }

    /// The next frame, if one comes within a few milliseconds.
    ///
    /// # Panics
    /// When the interface goes away.
    pub fn receive(&mut self) -> Option<&[u8]> {
        match self.capture.next_packet() {
            Ok(packet) => Some(packet.data),
            Err(Error::TimeoutExpired | Error::NoMorePackets) => None,
            Err(error) => panic!("cannot read {}: {error}", self.interface),
        }
    }

    /// Sends a frame. False when the kernel had no room for it.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        self.capture.sendpacket(frame).is_ok()
    }

    /// Frames the kernel dropped because we read too slowly.
    pub fn overruns(&mut self) -> u64 {
        self.capture.stats().map_or(0, |stats| u64::from(stats.dropped))
    }
}
