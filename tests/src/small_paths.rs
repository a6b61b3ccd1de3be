//! Links on the way to either end that take smaller packets than the appliance's ports, with routers that say so and routers that do not:
//! what passes them through sluice, and through HAProxy in its place.

use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::appliance::{Service, Setup, Sluice};
use crate::lab::{Family, Lab, Side};
use crate::netns::Ns;
use crate::peer::{DOWN, Ending, Pattern, UP, accept, hear, send};
use crate::servers::{Relayed, relay};
use crate::trial::Between;

/// Bytes that each end sends.
const BYTES: u64 = 300_000;

/// A router before an end, as narrow towards it as this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Which end.
    pub side: Side,
    /// The largest IP packet it forwards.
    pub mtu: u16,
    /// It drops what is larger without a word.
    pub silent: bool,
    /// Both legs' family.
    pub family: Family,
}

impl Hop {
    /// Before either end, of either family, one after the other.
    #[must_use]
    pub fn all(mtu: u16, silent: bool) -> Vec<Hop> {
        let sides = [Side::Client, Side::Server].into_iter();
        sides.flat_map(|side| Family::BOTH.map(|family| Hop { side, mtu, silent, family })).collect()
    }

    /// The port of its service.
    fn port(&self) -> u16 {
        let family = if self.family == Family::V4 { 4 } else { 6 };
        if self.side == Side::Client { 7100 + family } else { 7200 + family }
    }
}

/// How long 300 kB each way took past each hop of [`Hop::all`]; none where they did not arrive whole within a minute.
///
/// # Panics
/// When the lab is at fault.
#[must_use]
pub fn passages(between: Between, mtu: u16, silent: bool) -> Vec<(Hop, Option<Duration>)> {
    let lab = Lab::two_arms();
    let far = [lab.host_behind(Side::Client, mtu), lab.host_behind(Side::Server, mtu)];
    if silent {
        for router in [&lab.client, &lab.server] {
            router.sh("nft add table inet mute\n\
                       nft 'add chain inet mute output { type filter hook output priority 0; }'\n\
                       nft add rule inet mute output icmp type destination-unreachable drop\n\
                       nft add rule inet mute output icmpv6 type packet-too-big drop\n");
        }
    }
    let hops = Hop::all(mtu, silent);
    let upstream = |hop: &Hop| match hop.side {
        Side::Client => hop.family.server(hop.port()),
        Side::Server => (hop.family.behind(Side::Server), hop.port()).into(),
    };
    let (mut sluice, mut haproxy) = (None, None);
    match between {
        Between::Sluice(mode) => {
            let services = hops.iter().map(|hop| {
                Service::new(&format!("to-{}", hop.port()), hop.port()).upstreams(&[upstream(hop)]).mode(mode)
            });
            let setup = Setup::of(services)
                .route("10.9.0.0/24", Family::V4.server(0).ip())
                .route("fd00:9::/64", Family::V6.server(0).ip());
            sluice = Some(Sluice::start(&lab, &setup));
        }
        Between::Haproxy => {
            let ports: Vec<_> =
                hops.iter().map(|hop| Relayed { port: hop.port(), upstream: upstream(hop), header: false }).collect();
            haproxy = Some(relay(&lab, &ports));
            // A kernel looks for black holes only when it is told to.
            lab.appliance.sh(&format!(
                "sysctl -qw net.ipv4.tcp_mtu_probing=1\n\
                 ip route add 192.0.2.0/24 via {}\nip -6 route add 2001:db8:2::/64 via {}\n\
                 ip route add 10.9.0.0/24 via {}\nip -6 route add fd00:9::/64 via {}\n",
                Family::V4.client(),
                Family::V6.client(),
                Family::V4.server(0).ip(),
                Family::V6.server(0).ip(),
            ));
        }
        Between::Nobody => panic!("somebody has to stand between"),
    }
    let passages = hops.into_iter().map(|hop| (hop, passage(&lab, &far, &hop, upstream(&hop)))).collect();
    drop((sluice, haproxy));
    passages
}

fn passage(
    lab: &Lab,
    [far_client, far_server]: &[Ns; 2],
    hop: &Hop,
    upstream: std::net::SocketAddr,
) -> Option<Duration> {
    let (clients, servers) = match hop.side {
        Side::Client => (far_client, &lab.server),
        Side::Server => (&lab.client, far_server),
    };
    let listener = servers.listen(upstream);
    let begun = Instant::now();
    let client = clients.connect(hop.family.service(hop.port())).ok()?;
    let server = accept(&listener);
    let ends = [(client, UP, DOWN), (server, DOWN, UP)].map(|(stream, says, hears)| {
        thread::spawn(move || {
            let sending = sending(&stream, says);
            let heard = hear(&stream);
            sending.join().expect("the sender's thread");
            heard == Pattern::heard(hears, BYTES, Ending::Eof)
        })
    });
    let whole = ends.map(|end| end.join().expect("an end's thread")).into_iter().all(|whole| whole);
    whole.then(|| begun.elapsed())
}

fn sending(stream: &TcpStream, seed: u64) -> thread::JoinHandle<()> {
    let writer = stream.try_clone().expect("a socket can be cloned");
    thread::spawn(move || {
        let _ = send(&writer, seed, BYTES);
        let _ = writer.shutdown(Shutdown::Write);
    })
}
