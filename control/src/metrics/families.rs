//! Every metric's name, kind, labels and meaning, in one table. docs/metrics.md explains the same ones; a test compares.

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows, from zero at start.
    Counter,
    /// A value of the moment.
    Gauge,
    /// Counts by upper bounds.
    Histogram,
}

/// One metric, all its label values together.
#[derive(Debug)]
pub struct Family {
    /// The name on the wire, unit included.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// The label names, in the order they are written.
    pub labels: &'static [&'static str],
    /// The HELP text.
    pub help: &'static str,
}

/// Defines one constant a family and [`ALL`], so that none can be left out of the latter.
macro_rules! families {
    ($($id:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(pub(crate) const $id: Family =
            Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)+
        /// Every family, in the order of docs/metrics.md.
        pub const ALL: &[Family] = &[$($id),+];
    };
}

families! {
    BUILD_INFO: Gauge "sluice_build_info" ["version", "dpdk"]
        "Always 1; the labels say which sluice runs on which DPDK.";
    START_TIME: Gauge "sluice_start_time_seconds" []
        "When the appliance started, seconds since 1970-01-01 UTC.";
    CLOCK_STEPS: Counter "sluice_clock_steps_total" []
        "Times the system's wall clock was set while the appliance ran.";

    PORT_RX_PACKETS: Counter "sluice_port_rx_packets_total" ["port", "worker"]
        "Frames received.";
    PORT_RX_BYTES: Counter "sluice_port_rx_bytes_total" ["port", "worker"]
        "Octets of received frames, without the Ethernet FCS.";
    PORT_TX_PACKETS: Counter "sluice_port_tx_packets_total" ["port", "worker"]
        "Frames the device took for sending.";
    PORT_TX_BYTES: Counter "sluice_port_tx_bytes_total" ["port", "worker"]
        "Octets of frames the device took, without the Ethernet FCS.";
    PORT_TX_FULL: Counter "sluice_port_tx_full_total" ["port", "worker"]
        "Frames freed because the transmit queue had no room.";
    PORT_MISSED: Counter "sluice_port_missed_packets_total" ["port"]
        "Frames the device dropped because the receive queues were full.";
    PORT_RX_ERRORS: Counter "sluice_port_rx_errors_total" ["port"]
        "Frames the device received damaged.";
    PORT_RX_NO_BUFFER: Counter "sluice_port_rx_no_buffer_total" ["port"]
        "Times the device found no free frame in the packet pool.";
    PORT_TX_ERRORS: Counter "sluice_port_tx_errors_total" ["port"]
        "Frames the device took but failed to send.";

    DROPPED: Counter "sluice_dropped_packets_total" ["reason"]
        "Received frames dropped, by the reason.";
    DROPPED_BYTES: Counter "sluice_dropped_bytes_total" ["reason"]
        "Octets of received frames dropped, by the reason.";
    RULE_MATCHED_PACKETS: Counter "sluice_rule_matched_packets_total" ["rule"]
        "TCP packets that the rule matched.";
    RULE_MATCHED_BYTES: Counter "sluice_rule_matched_bytes_total" ["rule"]
        "Octets of the IP packets that the rule matched.";
    RULE_CUT_PACKETS: Counter "sluice_rule_cut_packets_total" ["rule", "dry_run"]
        "TCP packets that the rule dropped, or would have dropped.";
    RULE_CUT_BYTES: Counter "sluice_rule_cut_bytes_total" ["rule", "dry_run"]
        "Octets of the IP packets that the rule dropped, or would have dropped.";
    RULE_CUT_CLIENTS: Counter "sluice_rule_cut_clients_total" ["rule"]
        "Clients proved by a cookie that a rule with dry_run would have cut.";
    SET_PREFIXES: Gauge "sluice_set_prefixes" ["set"]
        "Prefixes that the set was made of when it was last read.";
    SET_LOADED: Gauge "sluice_set_loaded_timestamp_seconds" ["set"]
        "When the set was last read, seconds since 1970-01-01 UTC.";
    SET_FAILURES: Counter "sluice_set_load_failures_total" ["set"]
        "Times the set's files had changed and could not be used.";
    SET_STALE: Gauge "sluice_set_stale" ["set"]
        "1 while the set is not what its files are, since they cannot be used.";
    SET_SKIPPED: Gauge "sluice_set_skipped_lines" ["set"]
        "Lines of the set's lists that were skipped when it was last read.";
    SETS_MEMORY: Gauge "sluice_sets_memory_bytes" []
        "Octets of the table in which sources are looked up.";
    BANS: Gauge "sluice_bans" ["worker"]
        "Bans that the worker enforces.";
    BANS_REFUSED: Counter "sluice_bans_refused_total" ["worker"]
        "Bans that a worker, or the reader of the file of bans, had no room for.";
    BANS_STALE: Gauge "sluice_bans_stale" []
        "1 while the bans are not what their file is, since it cannot be used.";
    LIMIT_RECORDS: Gauge "sluice_limit_records" ["worker"]
        "Sources and prefixes whose limits the worker remembers, estimated.";
    LIMIT_DISPLACED: Counter "sluice_limit_records_displaced_total" ["worker"]
        "Records given up before they had drained, for others that were worth more.";
    LIMIT_REFUSED: Counter "sluice_limit_records_refused_total" ["worker"]
        "Packets of sources that were let through unremembered, for want of a record worth less.";
    SAMPLE_WRITTEN: Counter "sluice_sample_packets_total" []
        "Dropped packets written to the sample.";
    SAMPLE_LOST: Counter "sluice_sample_lost_total" []
        "Dropped packets of the sample that could not be written.";
    LOCAL_REPLIES: Counter "sluice_local_replies_total" ["worker"]
        "ARP and NDP answers and ICMP echo replies sent.";

    SYN_COOKIES: Counter "sluice_syn_cookies_sent_total" ["worker"]
        "SYN-ACKs sent, each carrying a cookie.";
    COOKIE_ACKS: Counter "sluice_cookie_acks_total" ["result"]
        "ACKs that belonged to no connection, by what their cookie was worth.";
    CHALLENGE_ACKS: Counter "sluice_challenge_acks_total" ["worker"]
        "Challenge ACKs sent (RFC 5961).";
    RESETS: Counter "sluice_resets_sent_total" ["worker"]
        "RSTs sent for connections that were refused or are unknown.";
    PEACE: Gauge "sluice_peace" ["worker"]
        "Whether so few SYNs come that answered ones are noted.";
    UNANSWERED: Gauge "sluice_unanswered_syns" ["worker"]
        "SYN-ACKs that no ACK has answered and that may be repeated.";
    UNANSWERED_DISPLACED: Counter "sluice_unanswered_syns_displaced_total" ["worker"]
        "SYN-ACKs that are not repeated because newer ones needed the room.";
    REPEATS: Counter "sluice_syn_acks_repeated_total" ["worker"]
        "SYN-ACKs sent again because no ACK came.";
    REPEATS_WITHHELD: Counter "sluice_syn_acks_repeats_withheld_total" ["worker"]
        "Repeats not sent, for their ceiling or because the device was full.";
    KEEP_ALIVES: Counter "sluice_cookie_keep_alives_total" ["worker"]
        "Keep-alive probes that proved a cookie.";
    PATHS_NARROWED: Counter "sluice_paths_narrowed_total" ["source"]
        "Paths found to take smaller packets than thought, by how that became known.";
    STRANGERS_RESET: Counter "sluice_flowless_resets_total" ["worker"]
        "RSTs sent in answer to segments of no connection.";
    RESETS_WITHHELD: Counter "sluice_flowless_resets_withheld_total" ["reason"]
        "Segments of no connection that got no RST, by the reason.";
    ANSWERS_WITHHELD: Counter "sluice_answers_withheld_total" ["worker"]
        "RSTs and ACKs to segments of no connection that the ceiling of such answers kept back.";

    SERVICE_SYNS: Counter "sluice_service_syns_total" ["service"]
        "SYNs to the service that were answered.";
    UNDER_ATTACK: Gauge "sluice_service_under_attack" ["service"]
        "Workers that see far more SYNs to the service than clients.";
    SESSIONS_OPENED: Counter "sluice_sessions_opened_total" ["service"]
        "Sessions opened by validated clients.";
    SESSIONS_ACTIVE: Gauge "sluice_sessions_active" ["service"]
        "Sessions alive.";
    SESSIONS_ENDED: Counter "sluice_sessions_ended_total" ["service", "cause"]
        "Sessions ended, by the cause.";
    SESSION_REFUSALS: Counter "sluice_session_refusals_total" ["service", "reason"]
        "Validated clients refused, by the limit they met.";
    DIAL_FAILURES: Counter "sluice_upstream_dial_failures_total" ["service", "upstream", "reason"]
        "Dials that did not become a connection, by the reason.";
    SPLICE_FALLBACKS: Counter "sluice_splice_fallbacks_total" ["service", "missing"]
        "Spliced sessions that went on in terminate mode, by what their upstream did not accept.";
    SYN_ACK_MSS: Gauge "sluice_syn_ack_mss_bytes" ["service"]
        "Largest MSS that the service's SYN-ACKs promise; ports allow less.";
    SYN_ACK_WINDOW: Gauge "sluice_syn_ack_window_bytes" ["service"]
        "Window in the service's SYN-ACKs.";
    SYN_ACK_WINDOW_SCALE: Gauge "sluice_syn_ack_window_scale" ["service"]
        "Window scale that the service's SYN-ACKs promise; -1 = none.";
    SYN_ACK_SACK: Gauge "sluice_syn_ack_sack" ["service"]
        "Whether the service's SYN-ACKs promise selective acknowledgments.";
    SYN_ACK_TIMESTAMPS: Gauge "sluice_syn_ack_timestamps" ["service"]
        "Whether the service's SYN-ACKs promise timestamps.";
    PROBES: Counter "sluice_probes_total" ["service", "upstream", "result"]
        "Probes of spliced services' upstreams, by what became of them.";
    UPSTREAM_SYN_COOKIES: Gauge "sluice_upstream_syn_cookies" ["service", "upstream"]
        "Whether the upstream kept nothing of the last probe's SYN: it answers with SYN cookies.";
    RELAYED_BYTES: Counter "sluice_relayed_bytes_total" ["service", "direction"]
        "Payload octets relayed, without PROXY headers.";

    FLOW_ENTRIES: Gauge "sluice_flow_entries" ["worker"]
        "Entries of the flow table.";
    TIME_WAIT: Gauge "sluice_time_wait" ["worker"]
        "Connections in TIME-WAIT.";
    SOURCE_PORTS: Gauge "sluice_source_ports" ["worker"]
        "Source ports towards upstreams that are in use or resting.";
    SOURCE_PORTS_REUSED: Counter "sluice_source_ports_reused_total" ["worker"]
        "Source ports taken out of TIME-WAIT since no other was free.";
    SOURCE_PORT_RESTS_CUT: Counter "sluice_source_port_rests_cut_total" ["worker"]
        "Source ports whose rest ended early because too many were resting.";
    TIMERS: Gauge "sluice_timers" ["worker"]
        "Armed timers.";
    BUFFER_BYTES: Gauge "sluice_buffer_bytes" ["worker"]
        "Octets leased for socket buffers.";
    HELD_BYTES: Gauge "sluice_held_bytes" ["worker"]
        "Octets of clients' segments held until an upstream accepts (splice mode).";
    NEIGHBORS: Gauge "sluice_neighbors" ["worker"]
        "Neighbours known or being resolved (ARP and NDP).";

    WORKER_BUSY_RATIO: Gauge "sluice_worker_busy_ratio" ["worker"]
        "Share of the last second in which the worker had something to do, 0 to 1.";
    WORKER_TURN_SECONDS: Histogram "sluice_worker_turn_seconds" ["worker"]
        "How long the worker's turns took in which it had something to do.";
    WORKER_TURNS: Counter "sluice_worker_turns_total" ["worker"]
        "Turns of the worker's loop.";
    WORKER_BUSY_TURNS: Counter "sluice_worker_busy_turns_total" ["worker"]
        "Turns that served at least one frame or timer.";
    HANDOVER_PACKETS: Counter "sluice_handover_packets_total" ["worker"]
        "Frames this worker handed to the worker that owns the connection.";
    HANDOVER_FULL: Counter "sluice_handover_full_total" ["worker"]
        "Frames this worker lost because the owner's mailbox was full.";
    MAILBOX_OCCUPANCY: Gauge "sluice_mailbox_occupancy" ["worker"]
        "Frames waiting in this worker's mailbox.";
    POOL_EMPTY: Counter "sluice_pool_empty_total" ["worker"]
        "Times the packet pool had no frame for this worker.";
    POOL_IN_USE: Gauge "sluice_pool_frames_in_use" []
        "Frames of the packet pool in use, those posted to receive queues included.";
    POOL_CAPACITY: Gauge "sluice_pool_frames_capacity" []
        "Frames of the packet pool.";

    CONNECTION_LOG_LINES: Counter "sluice_connection_log_lines_total" []
        "Ended connections written to the connection log.";
    CONNECTION_LOG_LOST: Counter "sluice_connection_log_lost_total" ["reason"]
        "Ended connections that are missing from the connection log, by the reason.";
    CONNECTION_LOG_ERRORS: Counter "sluice_connection_log_write_errors_total" []
        "Writes to the connection log that failed and are tried again.";
    CONNECTION_LOG_WAITING: Gauge "sluice_connection_log_waiting" []
        "Ended connections that wait to be written to the connection log.";
}
