//! Links that lose packets at random, by the kernel's own means: netfilter's `ingress` and `egress` hooks on the hosts' link ends.
//!
//! Each link loses in both directions, whoever stands between, and counts what it lost at each hook. Recorders beside the links see
//! what the appliance sees: what a host sends is lost before they see it, what a host is sent after.
//!
//! What a wire loses, its sender does not know. A `drop` at the `egress` hook is told to the sender's TCP, which then has not sent the
//! segment at all: its later segments carry the number before, and nothing is ever lost as on a wire. So what is lost on the way out is
//! forwarded to an interface that leads nowhere.

use std::fmt::Write as _;

use serde_json::Value;

use crate::lab::{Arms, CLIENT4, CLIENT6, LAN4, LAN6, Lab, SERVER4, SERVER6, SERVICE4, SERVICE6, WAN4, WAN6};
use crate::netns::Ns;

/// The table that holds the rules.
const TABLE: &str = "loss";

/// The interface that leads nowhere: its other end is down.
const NOWHERE: &str = "nowhere";

/// What the links of a lab lose, for as long as the lab stands.
#[derive(Clone, Copy, Debug)]
pub struct Losses<'lab> {
    lab: &'lab Lab,
}

/// A link end, a direction, and how many packets were lost there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Such as `client egress`.
    pub at: String,
    /// Packets.
    pub packets: u64,
}

impl<'lab> Losses<'lab> {
    /// From now on, of a thousand packets each link loses about `per_mille` in either direction.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn start(lab: &'lab Lab, per_mille: u16) -> Losses<'lab> {
        let losses = Losses { lab };
        // nft takes no number past the last.
        let some = if per_mille < 1000 { format!("numgen random mod 1000 < {per_mille} ") } else { String::new() };
        for (name, ns, interface) in losses.ends() {
            // One command a line: nft reads a line to its end.
            let mut rules = format!("add table netdev {TABLE}\n");
            for (hook, lose) in [("ingress", "drop".to_owned()), ("egress", format!("fwd to {NOWHERE}"))] {
                let _ = writeln!(
                    rules,
                    "add chain netdev {TABLE} {hook} {{ type filter hook {hook} device {interface} priority 0; }}\n\
                     add rule netdev {TABLE} {hook} {some}counter {lose}"
                );
            }
            let file = lab.write(&format!("loss-{name}.nft"), &rules);
            ns.sh(&format!(
                "ip link add {NOWHERE} type veth peer name {NOWHERE}0\n\
                 sysctl -qw net.ipv6.conf.{NOWHERE}.disable_ipv6=1\nip link set {NOWHERE} up\nnft -f {file}"
            ));
        }
        losses
    }

    /// What was lost so far, at each of the four hooks.
    ///
    /// # Panics
    /// When the rules are gone.
    #[must_use]
    pub fn counts(&self) -> Vec<Lost> {
        let ends = self.ends();
        let counted = ends.iter().flat_map(|(name, ns, _)| {
            let listed = ns.sh(&format!("nft -j list table netdev {TABLE}"));
            let listed: Value = serde_json::from_str(&listed).expect("nft prints JSON");
            ["ingress", "egress"].map(|hook| {
                let packets = packets(&listed, hook).unwrap_or_else(|| panic!("no counter at {hook} in {listed}"));
                Lost { at: format!("{name} {hook}"), packets }
            })
        });
        counted.collect()
    }

    /// What was lost at each hook; every one of them did lose something.
    ///
    /// # Panics
    /// When one did not: then the run says nothing about loss there.
    #[must_use]
    pub fn expect_everywhere(&self) -> Vec<Lost> {
        let counts = self.counts();
        assert!(counts.iter().all(|lost| lost.packets > 0), "a hook lost nothing: {counts:?}");
        counts
    }

    fn ends(&self) -> [(&'static str, &'lab Ns, &'static str); 2] {
        [("client", &self.lab.client, "c0"), ("server", &self.lab.server, "s0")]
    }
}

/// The counter of the rule in chain `hook`.
fn packets(listed: &Value, hook: &str) -> Option<u64> {
    let rules = listed["nftables"].as_array()?.iter().filter_map(|entry| entry.get("rule"));
    let mut expressions =
        rules.filter(|rule| rule["chain"] == hook).filter_map(|rule| rule["expr"].as_array()).flatten();
    expressions.find_map(|expression| expression["counter"]["packets"].as_u64())
}

/// Tells the hosts' kernels for good who their neighbours are. A kernel that loses three ARP requests in a row calls a host unreachable;
/// that is no fault of who stands between.
pub fn neighbours_are_known(lab: &Lab) {
    let (client, server) = (lab.client.mac_of("c0"), lab.server.mac_of("s0"));
    let know = |ns: &Ns, interface: &str, addresses: &[String], mac: [u8; 6]| {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let known =
            |address: &String| format!("ip neigh replace {address} lladdr {mac} nud permanent dev {interface}\n");
        ns.sh(&addresses.iter().map(known).collect::<String>());
    };
    let service = [SERVICE4.to_string(), SERVICE6.to_string()];
    let clients = [CLIENT4.to_string(), CLIENT6.to_string()];
    if lab.arms == Arms::Cable {
        know(&lab.client, "c0", &service, server);
        know(&lab.server, "s0", &clients, client);
        return;
    }
    let (wan, lan) = (lab.appliance.mac_of("p0"), lab.appliance.mac_of("p1"));
    know(&lab.client, "c0", &[&service[..], &[WAN4.to_string(), WAN6.to_string()]].concat(), wan);
    know(&lab.server, "s0", &[LAN4.to_string(), LAN6.to_string()], lan);
    // Where the kernel itself stands between. Sluice has a table of its own.
    if !lab.appliance.sh("ip -o addr show dev p0").is_empty() {
        know(&lab.appliance, "p0", &clients, client);
        know(&lab.appliance, "p1", &[SERVER4.to_string(), SERVER6.to_string()], server);
    }
}
