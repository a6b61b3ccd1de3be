//! Namespaces and links around the appliance, or around a plain cable.
//!
//! ```text
//! Two arms:  client c0 ------------ p0 appliance p1 ---------- s0 server
//! One arm:   client c0 --- bridge --- p0 appliance       (server s0 on the same bridge)
//! Cable:     client c0 ------------------------------------- s0 server (which owns the service addresses itself)
//! ```
//! With an [`Impairment`] the client's link goes through a lossy [`Wire`] in a namespace of its own.
//!
//! The cable shows what peers see without sluice: a conversation run over it and through the appliance must look the same.
//! The peers' ends have no offloads (or the kernel would hand over unfinished checksums); the appliance's ends have no
//! addresses (or the kernel would answer in its place).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Uid;
use tempfile::TempDir;

use crate::netns::{Ns, host};
use crate::wire::{Impairment, Wire};

/// The client on the appliance's link; also the appliance's default gateway, so every unknown address is behind it.
pub const CLIENT4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// A second client address, two networks away.
pub const FAR_CLIENT4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// An address on the client's link that no kernel owns: for clients in user space.
pub const RAW_CLIENT4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
/// The appliance towards the clients.
pub const WAN4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Where the services listen.
pub const SERVICE4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The appliance towards the servers.
pub const LAN4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The server.
pub const SERVER4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
/// On the servers' network, an address that no kernel owns: for servers in user space.
pub const RAW_SERVER4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 77);
/// Answers ARP, never TCP.
pub const SILENT4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 66);
/// On the servers' network, answers nothing at all.
pub const ABSENT4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 99);

/// As [`CLIENT4`].
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// As [`RAW_CLIENT4`].
pub const RAW_CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x77);
/// As [`WAN4`].
pub const WAN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
/// As [`SERVICE4`].
pub const SERVICE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
/// As [`LAN4`].
pub const LAN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 2);
/// As [`SERVER4`].
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 5);
/// As [`RAW_SERVER4`].
pub const RAW_SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 0x77);

/// IP family of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// Where clients dial service `port`.
    #[must_use]
    pub fn service(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick(SERVICE4, SERVICE6), port)
    }

    /// Where the server listens.
    #[must_use]
    pub fn server(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick(SERVER4, SERVER6), port)
    }

    /// The client's address.
    #[must_use]
    pub fn client(self) -> IpAddr {
        self.pick(CLIENT4, CLIENT6)
    }

    /// A client's address no kernel owns.
    #[must_use]
    pub fn raw_client(self) -> IpAddr {
        self.pick(RAW_CLIENT4, RAW_CLIENT6)
    }

    /// Where a server in user space listens.
    #[must_use]
    pub fn raw_server(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick(RAW_SERVER4, RAW_SERVER6), port)
    }

    /// The address of [`Lab::host_behind`] a side's router.
    #[must_use]
    pub fn behind(self, side: Side) -> IpAddr {
        match side {
            Side::Client => self.pick(Ipv4Addr::new(192, 0, 2, 2), Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2)),
            Side::Server => self.pick(Ipv4Addr::new(10, 9, 0, 2), Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2)),
        }
    }

    fn pick(self, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
        match self {
            Family::V4 => v4.into(),
            Family::V6 => v6.into(),
        }
    }
}

/// One of the two sides of the appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The clients'.
    Client,
    /// The servers'.
    Server,
}

/// What stands between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arms {
    /// The appliance, one port for both sides.
    One,
    /// The appliance, a port for each side.
    Two,
    /// Nothing.
    Cable,
}

/// Namespaces and links, gone when dropped.
#[derive(Debug)]
pub struct Lab {
    /// Before the namespaces, so that it stops before its interfaces go.
    wire: Option<Wire>,
    /// How the appliance is attached.
    pub arms: Arms,
    /// The clients, on interface `c0`.
    pub client: Ns,
    /// The appliance, on `p0` (clients, or both sides) and `p1` (servers).
    pub appliance: Ns,
    /// The servers, on `s0`.
    pub server: Ns,
    between: Option<Ns>,
    dir: TempDir,
    /// Last: the next lab may come when this one is gone.
    _turn: MutexGuard<'static, ()>,
}

/// One lab at a time: two cores are few for a client, an appliance and a server.
static TURN: Mutex<()> = Mutex::new(());

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// The usual lab.
    #[must_use]
    pub fn two_arms() -> Lab {
        Lab::new(Arms::Two, None)
    }

    /// The lab without an appliance.
    #[must_use]
    pub fn cable() -> Lab {
        Lab::new(Arms::Cable, None)
    }

    /// Builds a lab. Labs take turns in a process: the second waits until the first is gone, so a test drops one before it
    /// builds another.
    ///
    /// # Panics
    /// Without root, or when the kernel refuses.
    #[must_use]
    pub fn new(arms: Arms, impairment: Option<Impairment>) -> Lab {
        assert!(Uid::effective().is_root(), "whole-appliance tests need root: network namespaces, raw sockets, DPDK");
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        raise_file_limit();
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        if id == 0 {
            remove_leftovers();
        }
        let prefix = format!("slt-{}-{id}", std::process::id());
        let mut lab = Lab {
            wire: None,
            arms,
            client: Ns::create(&format!("{prefix}-client")),
            appliance: Ns::create(&format!("{prefix}-appliance")),
            server: Ns::create(&format!("{prefix}-server")),
            between: (impairment.is_some() || arms == Arms::One).then(|| Ns::create(&format!("{prefix}-between"))),
            dir: tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary directory"),
            _turn: turn,
        };
        assert!(
            impairment.is_none() || arms != Arms::One,
            "the lossy wire stands between the client and a two-armed appliance or a cable"
        );
        lab.lay_links(impairment.is_some());
        lab.address_peers();
        lab.wire = impairment.map(|impairment| {
            let between = lab.between.as_ref().expect("made above");
            Wire::start(between, "w0", "w1", impairment)
        });
        lab
    }

    /// A directory for this lab's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in [`Lab::dir`] as text.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.dir().join(name).to_str().expect("temporary paths are UTF-8").to_owned()
    }

    /// Writes a file into [`Lab::dir`] and returns its path.
    ///
    /// # Panics
    /// When the disk refuses.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
        path
    }

    /// The interface beside the appliance's on the client's side, whose traffic is what the appliance sends and receives: the
    /// client's own, or the near end of the lossy wire. (The appliance's own shows nothing of what it sends.)
    #[must_use]
    pub fn beside_wan(&self) -> (&Ns, &'static str) {
        match (&self.between, &self.wire) {
            (Some(between), Some(_)) => (between, "w1"),
            _ => (&self.client, "c0"),
        }
    }

    /// A host one hop further away than the client or the server, which becomes its router. Packets towards it may have `mtu`
    /// octets on the last link, those from it as many as anywhere. It goes when dropped, before the lab does.
    #[must_use]
    pub fn host_behind(&self, side: Side, mtu: u16) -> Ns {
        let router = match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        let host = Ns::create(&format!("{}-far", router.name()));
        veth((router.name(), "r0"), (host.name(), "f0"));
        let [v4, v6] = Family::BOTH.map(|family| family.behind(side));
        let [router4, router6] = [v4.to_string(), v6.to_string()].map(|far| format!("{}1", &far[..far.len() - 1]));
        router.sh(&format!(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1\n{}\
             ip addr add {router4}/24 dev r0\nip -6 addr add {router6}/64 dev r0 nodad\n\
             ip route add {v4}/32 dev r0 mtu lock {mtu}\nip -6 route add {v6}/128 dev r0 mtu lock {mtu}\n",
            peer("r0")
        ));
        host.sh(&format!(
            "{}ip addr add {v4}/24 dev f0\nip -6 addr add {v6}/64 dev f0 nodad\n\
             ip route add default via {router4}\nip -6 route add default via {router6}\n",
            peer("f0")
        ));
        host
    }

    /// From now on links keep the order of what they carry, as recorders beside them see it. Otherwise what two processors send at once
    /// waits in two queues of a veth pair, and one may overtake the other behind the recorder.
    pub fn keep_order(&self) {
        for ns in [&self.client, &self.appliance, &self.server].into_iter().chain(&self.between) {
            // One sends after the other, past the recorder and onto the link in one; and one processor receives.
            ns.sh("for link in /sys/class/net/*; do\n\
                   name=${link##*/}\n\
                   [ $name != lo ] || continue\n\
                   tc qdisc replace dev $name root pfifo limit 10000\n\
                   echo 1 > $link/queues/rx-0/rps_cpus\n\
                   done");
        }
    }

    /// What the lossy wire did so far; none without one.
    #[must_use]
    pub fn wire(&self) -> Option<&Wire> {
        self.wire.as_ref()
    }

    fn lay_links(&self, lossy: bool) {
        let (client, appliance, server) = (self.client.name(), self.appliance.name(), self.server.name());
        let between = self.between.as_ref().map(Ns::name);
        match (self.arms, between) {
            (Arms::Two, Some(between)) if lossy => {
                veth((client, "c0"), (between, "w0"));
                veth((between, "w1"), (appliance, "p0"));
                veth((appliance, "p1"), (server, "s0"));
            }
            (Arms::Cable, Some(between)) if lossy => {
                veth((client, "c0"), (between, "w0"));
                veth((between, "w1"), (server, "s0"));
            }
            (Arms::One, Some(between)) => {
                veth((client, "c0"), (between, "b0"));
                veth((appliance, "p0"), (between, "b1"));
                veth((server, "s0"), (between, "b2"));
            }
            (Arms::Two, _) => {
                veth((client, "c0"), (appliance, "p0"));
                veth((appliance, "p1"), (server, "s0"));
            }
            (Arms::Cable, _) => veth((client, "c0"), (server, "s0")),
            (Arms::One, None) => unreachable!("one arm always has a bridge"),
        }
        if let Some(between) = &self.between {
            if lossy {
                between.sh(&format!("{}{}", bare("w0"), bare("w1")));
            } else {
                between.sh(&format!(
                    "ip link add br0 type bridge mcast_snooping 0\n{}{}{}\
                     for i in b0 b1 b2; do ip link set $i master br0; done\n{}",
                    bare("b0"),
                    bare("b1"),
                    bare("b2"),
                    "sysctl -qw net.ipv6.conf.br0.disable_ipv6=1; ip link set br0 up\n"
                ));
            }
        }
        match self.arms {
            Arms::Two => drop(self.appliance.sh(&format!("{}{}", bare("p0"), bare("p1")))),
            Arms::One => drop(self.appliance.sh(&bare("p0"))),
            Arms::Cable => {}
        }
    }

    fn address_peers(&self) {
        self.client.sh(&format!(
            "{}ip addr add {CLIENT4}/24 dev c0\nip addr add {FAR_CLIENT4}/32 dev c0\n\
             ip -6 addr add {CLIENT6}/64 dev c0 nodad\n",
            peer("c0")
        ));
        self.server.sh(&format!(
            "{}ip addr add {SERVER4}/24 dev s0\nip -6 addr add {SERVER6}/64 dev s0 nodad\n\
             ip addr add {SILENT4}/32 dev s0\n\
             nft add table ip silent\n\
             nft 'add chain ip silent input {{ type filter hook input priority 0; }}'\n\
             nft add rule ip silent input ip daddr {SILENT4} drop\n",
            peer("s0")
        ));
        if self.arms == Arms::Cable {
            self.server.sh(&format!(
                "ip addr add {SERVICE4}/24 dev s0\nip -6 addr add {SERVICE6}/64 dev s0 nodad\n\
                 ip route add {FAR_CLIENT4}/32 via {CLIENT4} dev s0\n",
            ));
        }
    }
}

/// A port of somebody who is no IP host: no IPv6 chatter, no offloads.
fn bare(interface: &str) -> String {
    format!("sysctl -qw net.ipv6.conf.{interface}.disable_ipv6=1\n{}", peer(interface))
}

/// A link end without offloads, up.
fn peer(interface: &str) -> String {
    format!(
        "ethtool -K {interface} tx off rx off gro off gso off tso off sg off >/dev/null 2>&1\n\
         ip link set {interface} txqueuelen 10000 up\n"
    )
}

fn veth((ns_a, a): (&str, &str), (ns_b, b): (&str, &str)) {
    host(&["ip", "link", "add", "name", a, "netns", ns_a, "type", "veth", "peer", "name", b, "netns", ns_b]);
}

/// Thousands of sockets on both ends live in this process.
fn raise_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits can be read");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit may rise to the hard one");
}

/// Removes namespaces of runs that were killed before they could. The name holds the process that made it.
fn remove_leftovers() {
    for name in host(&["ip", "netns", "list"]).lines().filter_map(|line| line.split_whitespace().next()) {
        let owner = name.strip_prefix("slt-").and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}
