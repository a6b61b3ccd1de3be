//! A raw Ethernet interface: frames in, frames out.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use pcap::{Active, Capture, Direction, Error};

use crate::netns::Ns;

/// Largest frame read.
const SNAPLEN: i32 = 65_535;

/// An open interface. What others send out of it is not seen, only what comes in.
pub struct Link {
    capture: Capture<Active>,
    interface: String,
    frame: Vec<u8>,
    /// The VLAN it speaks in.
    vlan: Option<u16>,
}

impl Link {
    /// Opens `interface` in the calling thread's namespace.
    ///
    /// # Panics
    /// Without root, or when there is no such interface.
    #[must_use]
    pub fn open_here(interface: &str) -> Link {
        let opened = Capture::from_device(interface).and_then(|capture| {
            let capture = capture.promisc(true).snaplen(SNAPLEN).immediate_mode(true).buffer_size(32 << 20).open()?;
            capture.direction(Direction::In)?;
            // We wait ourselves: libpcap's timeout on Linux may wait for a frame without end.
            capture.setnonblock()
        });
        let capture = opened.unwrap_or_else(|error| panic!("cannot open {interface} for raw frames: {error}"));
        Link { capture, interface: interface.to_owned(), frame: Vec::new(), vlan: None }
    }

    /// Opens `interface` in `ns`.
    ///
    /// # Panics
    /// As [`Link::open_here`].
    #[must_use]
    pub fn open(ns: &Ns, interface: &str) -> Link {
        ns.run(|| Link::open_here(interface))
    }

    /// From now on speaks and listens in one VLAN only: adds 802.1Q tags, and takes them off.
    #[must_use]
    pub fn tagged(self, vlan: u16) -> Link {
        Link { vlan: Some(vlan), ..self }
    }

    /// The next frame, if one comes within `patience`.
    ///
    /// # Panics
    /// When the interface goes away.
    pub fn receive(&mut self, patience: Duration) -> Option<&[u8]> {
        if !self.read() {
            let mut waiting = [PollFd::new(self.capture.as_fd(), PollFlags::POLLIN)];
            // Interrupted or not: what matters is whether there is a frame now.
            let _ = ppoll(&mut waiting, Some(TimeSpec::from_duration(patience)), None);
            if !self.read() {
                return None;
            }
        }
        Some(&self.frame)
    }

    /// Copies the next frame to our buffer, if there is one.
    fn read(&mut self) -> bool {
        loop {
            match self.capture.next_packet() {
                Ok(packet) => {
                    self.frame.clear();
                    self.frame.extend_from_slice(packet.data);
                }
                Err(Error::TimeoutExpired | Error::NoMorePackets) => return false,
                Err(error) => panic!("cannot read {}: {error}", self.interface),
            }
            let Some(vlan) = self.vlan else { return true };
            let [high, low] = vlan.to_be_bytes();
            if self.frame.get(12..16) == Some(&[0x81, 0, high, low]) {
                self.frame.drain(12..16);
                return true;
            }
        }
    }

    /// Sends a frame. False when the kernel had no room for it.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        let Some((vlan, (macs, rest))) = self.vlan.zip(frame.split_at_checked(12)) else {
            return self.capture.sendpacket(frame).is_ok();
        };
        let [high, low] = vlan.to_be_bytes();
        self.capture.sendpacket([macs, &[0x81, 0, high, low], rest].concat()).is_ok()
    }

    /// Frames the kernel dropped because we read too slowly.
    pub fn overruns(&mut self) -> u64 {
        self.capture.stats().map_or(0, |stats| u64::from(stats.dropped))
    }
}
