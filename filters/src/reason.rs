//! Why a frame was dropped. Each reason is a counter an operator can read.
//!
//! One list for the whole appliance: the parser and the stateless filters here give the first two groups, the layers above
//! give the rest. The order is the counters' order; nothing persists it.

/// Writes the enum, its list and its labels from one table, so that they cannot disagree.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// The label values of `sluice_dropped_packets_total`.
        #[must_use = "every drop is counted"]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        // As wide as a service's number: beside one in a result, neither is taken apart.
        #[repr(u16)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// Every reason, in counter order: `ALL[reason.index()] == reason`.
            pub const ALL: [DropReason; [$($label),+].len()] = [$(DropReason::$name),+];

            /// The metric's label value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(DropReason::$name => $label,)+
                }
            }
        }
    };
}

reasons! {
    // The parser.
    /// The frame ends before its headers, or the lengths in them, say it does.
    Truncated = "truncated",
    /// Neither IPv4, IPv6, ARP nor one 802.1Q tag in front of those.
    UnknownEtherType = "unknown_ether_type",
    /// Two VLAN tags, or a service tag (802.1ad).
    VlanStacked = "vlan_stacked",
    /// The Ethernet source is a group address.
    BadEthernetSource = "bad_ethernet_source",
    /// TCP or ICMPv4 in an Ethernet multicast or broadcast frame.
    EthernetMulticast = "ethernet_multicast",
    /// IP version and EtherType disagree, an IPv4 header below 20 octets, or IPv4's reserved flag.
    BadIpHeader = "bad_ip_header",
    /// An IP length that does not cover its own header, or is longer than a frame can be.
    BadIpLength = "bad_ip_length",
    /// The IPv4 header checksum is wrong.
    BadIpChecksum = "bad_ip_checksum",
    /// IPv4 options.
    IpOptions = "ip_options",
    /// An IPv6 extension header other than the fragment header.
    Ipv6Extension = "ipv6_extension",
    /// An IPv4 or IPv6 fragment.
    Fragment = "fragment",
    /// IPv4 arrived with a TTL of zero, or a hop count ran out in our hands.
    TtlExceeded = "ttl_exceeded",
    /// IP that carries neither TCP nor its family's ICMP.
    NotTcp = "not_tcp",
    /// A source address nobody may send from: unspecified, loopback, broadcast (of our networks too), class E, IPv4-mapped.
    MartianSource = "martian_source",
    /// A multicast source address.
    MulticastSource = "multicast_source",
    /// A destination address that is not unicast, or never on the wire.
    BadDestination = "bad_destination",
    /// Source and destination address are the same.
    Land = "land",
    /// No room for the TCP header, or a data offset below 5 or past the segment's end.
    BadTcpLength = "bad_tcp_length",
    /// Source or destination port 0.
    ZeroPort = "zero_port",
    /// A combination of TCP flags that no TCP sends.
    BadFlags = "bad_flags",
    /// The TCP checksum is wrong.
    BadTcpChecksum = "bad_tcp_checksum",

    // The gate.
    /// A source address of the appliance's own: somebody else uses it, or a switch sends our frames back.
    OwnSource = "own_source",
    /// An upstream's address as the source, on a port that the route to it does not leave by.
    UpstreamSource = "upstream_source",
    /// `port.source_check`: no route leads to the source, or none through this port.
    SourceRoute = "source_route",

    // The stateless filters.
    /// The source is in `filters.deny`.
    DenyList = "deny_list",
    /// The source is outside a closed `filters.allow`.
    NotAllowed = "not_allowed",
    /// TCP to an address and port where no service listens.
    NotAService = "not_a_service",
    /// The source is banned.
    Banned = "banned",
    /// A rule drops it.
    Rule = "rule",
    /// It is over a rule's limit.
    RuleLimit = "rule_limit",
    /// More SYNs than `filters.per_address`, `per_subnet` or `per_site` allow its source.
    SourceSyns = "source_syns",
    /// More segments of no connection than those allow.
    SourceFlowlessAcks = "source_flowless_acks",
    /// More connections than those allow.
    SourceConnections = "source_connections",
    /// More packets than those allow.
    SourcePackets = "source_packets",
    /// More octets than those allow.
    SourceBytes = "source_bytes",
    /// More SYN-ACKs towards the source's prefix than `filters.syn_ack_ceiling` allows.
    SynAckCeiling = "syn_ack_ceiling",

    // Ports and neighbours.
    /// The Ethernet destination is another station's.
    NotOurMac = "not_our_mac",
    /// A VLAN other than the port's.
    WrongVlan = "wrong_vlan",
    /// A frame in several buffers.
    MultiSegment = "multi_segment",
    /// ARP that breaks RFC 826.
    BadArp = "bad_arp",
    /// NDP that breaks RFC 4861.
    BadNdp = "bad_ndp",
    /// ICMP or ICMPv6 too short, with a bad checksum, or of a kind we do not serve.
    BadIcmp = "bad_icmp",
    /// Echo requests past `filters.icmp_rate`, or more ICMP errors than honest routers send.
    IcmpRate = "icmp_rate",
    /// More ARP and NDP requests than are answered.
    NeighborRate = "neighbor_rate",
    /// ARP, NDP or ICMP for an address that is not ours.
    NotOurs = "not_ours",
    /// The next hop has not answered ARP or NDP.
    NeighborUnresolved = "neighbor_unresolved",
    /// No route leads there.
    NoRoute = "no_route",
    /// The owning worker's queue was full.
    HandoverFull = "handover_full",
    /// The device's transmit queue was full.
    TxFull = "tx_full",
    /// A forwarded segment larger than the port's MTU: its sender keeps no MSS.
    TooBig = "too_big",
    /// The packet pool was empty.
    PoolEmpty = "pool_empty",

    // Cookies and flows.
    /// An ACK whose cookie we did not send, or sent too long ago.
    BadCookie = "bad_cookie",
    /// A segment that belongs to no flow and cannot open one: FIN, RST, SYN-ACK.
    NoFlow = "no_flow",
    /// A segment of an upstream's, or an ICMP error about one to it, on a port that its route does not point to.
    WrongPort = "wrong_port",
    /// A sequence number outside the window.
    OutOfWindow = "out_of_window",
    /// An acknowledgment of data never sent.
    BadAck = "bad_ack",
    /// An acknowledgment too old to be the peer's.
    OldAck = "old_ack",
    /// A RST that is not exactly at the expected sequence number (RFC 5961 section 3).
    BadRst = "bad_rst",
    /// A timestamp older than the last one (PAWS, RFC 7323 section 5).
    StaleTimestamp = "stale_timestamp",
    /// A SYN on an established flow (RFC 5961 section 4).
    SynOnFlow = "syn_on_flow",
    /// Too much is held for connections whose upstream has not accepted yet.
    DialBacklog = "dial_backlog",
    /// The service's `limits.connections` is reached.
    ConnectionLimit = "connection_limit",
    /// The service's `limits.connections_per_source` is reached.
    SourceLimit = "source_limit",
    /// The appliance is shutting down.
    Draining = "draining",
}

impl DropReason {
    /// Position in [`DropReason::ALL`], below its length.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn all_holds_every_reason_at_its_index() {
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), i);
        }
    }

    #[test]
    fn labels_are_unique_snake_case() {
        let labels: HashSet<_> = DropReason::ALL.into_iter().map(DropReason::as_str).collect();
        assert_eq!(labels.len(), DropReason::ALL.len());
        assert!(labels.iter().all(|l| l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')));
    }
}
