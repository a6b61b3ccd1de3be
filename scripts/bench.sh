#!/usr/bin/env bash
# Measures what one core of this machine does with attack packets, with segments of spliced sessions, and with filters, beside
# dpdk-testpmd in the same run.
#
# DPDK's net_pcap replays a capture from memory without end on one core; testpmd (macswap, 5tswap) and sluice take turns on it. In
# the second part each frame of the capture is a segment of an open session, which sluice rewrites and sends on by another port;
# another capture, played once, opens the sessions (tcpstack/examples/splice_pcap.rs). In the third part filters drop the packets or
# let them pass: sets and bans of a million prefixes, rules, expressions, limits. Also counts instructions per packet kind, which no
# noisy neighbour disturbs.
#
# Usage: sudo scripts/bench.sh [options]
#
#   --attack          only the first part
#   --splice          only the second part
#   --filters         only the third part
#   --flows LIST      the second part's sessions, "64 8192 500000" by default
#   --kinds LIST      of the third part only these rows; a wrong name lists all
#   --rounds N        turns of each program, of which the median counts (default 5)
#   --seconds S       length of one turn's measurement (default 4; at most 10)
#   --no-instructions leave the instruction counts out (they need valgrind)
#   --no-setup        do not install packages or reserve hugepages
#   --no-build        use what is built
#   -h, --help        this text
#
# The most sessions need some 1.5 GiB of hugepages, a million different packets 2.7 GiB; they are reserved for the time of the run
# if they can be.
#
# Prints tables in Markdown. A benchmark, not a test: it passes whatever the figures are.
set -Eeuo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

rounds=5 seconds=4 instructions=1 with_setup=1 with_build=1 attack=1 splice=1 filters=1 flows="64 8192 500000" kinds=''
ARGS=("$@")
number() { [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || usage_error "$1 needs a number, found '${2:-nothing}'"; }
while (($#)); do
    case $1 in
        --attack) splice=0 filters=0 ;;
        --splice) attack=0 filters=0 ;;
        --filters) attack=0 splice=0 ;;
        --kinds)
            [[ "${2:-}" =~ ^[a-z][a-z\ -]*$ ]] || usage_error "--kinds needs names, found '${2:-nothing}'"
            kinds=$2
            shift
            ;;
        --flows)
            [[ "${2:-}" =~ ^[1-9][0-9]*( [1-9][0-9]*)*$ ]] || usage_error "--flows needs numbers, found '${2:-nothing}'"
            flows=$2
            shift
            ;;
        --rounds) number "$@" && rounds=$2 && shift ;;
        --seconds) number "$@" && seconds=$2 && shift ;;
        --no-instructions) instructions=0 ;;
        --no-setup) with_setup=0 ;;
        --no-build) with_build=0 ;;
        -h | --help)
            help_from_header "$0"
            exit 0
            ;;
        *) usage_error "unknown option '$1'" ;;
    esac
    shift
done
((attack || splice || filters)) || usage_error "--attack, --splice and --filters each mean that part alone"
((seconds <= 10)) || usage_error "--seconds: at most 10 (nobody answers ARP for long)"
need_root "${ARGS[@]}"
arm_undo

if ((with_setup)); then
    step "Setting up (scripts/setup.sh --test)"
    "$REPO/scripts/setup.sh" --test
fi
need_tool dpdk-testpmd curl taskset
if ((with_build)); then
    step "Building the release"
    cargo_run build --release -p sluice
    cargo_run build --release -p sluice-filters --example attack_pcap --example filter_path
    cargo_run build --release -p sluice-tcpstack --example packet_path --example splice_path --example splice_pcap
fi
SLUICE_BIN="$(realpath -m "${SLUICE_BIN:-$TARGET/release/sluice}")"
EXAMPLES="$TARGET/release/examples"

WORK=$(mktemp -d)
on_exit rm -rf "$WORK"
pick_cores

# ---------------------------------------------------------------------------------------------
# Both programs
# ---------------------------------------------------------------------------------------------

# `choose_memory MBUFS`: hugepages if there are enough, for a while if need be; sets what both programs are told.
HUGEPAGES=/sys/kernel/mm/hugepages/hugepages-2048kB
choose_memory() {
    # A frame takes 2.4 KiB, and a whole page of ordinary memory; the rest is for rings and devices.
    local mib=$(($1 * 12 / 5 / 1024 + 256)) ordinary=$(($1 * 4 / 1024 + 256)) reserved free
    local wanted=$((mib / 2 + 100))
    reserved=$(<"$HUGEPAGES/nr_hugepages") free=$(<"$HUGEPAGES/free_hugepages")
    if ((free < wanted && with_setup)); then
        on_exit give_back "$reserved"
        echo $((reserved + wanted - free)) >"$HUGEPAGES/nr_hugepages" || true
        free=$(<"$HUGEPAGES/free_hugepages")
    fi
    mbufs=$1
    if ((free >= wanted)); then
        memory=(-m "$mib" --in-memory)
        hugepages=require
    else
        warn "only $free of $wanted hugepages of 2 MiB are free: both programs run on ordinary memory"
        memory=(--no-huge -m "$ordinary")
        hugepages=off
    fi
}
give_back() { echo "$1" >"$HUGEPAGES/nr_hugepages"; }

# `worker_thread PID`: the thread that polls: of those on the worker's core alone the one that has run the longest.
worker_thread() {
    local task ran best='' most=-1
    for task in "/proc/$1/task/"*; do
        grep -qx "Cpus_allowed_list:[[:space:]]*$WORKER_CORE" "$task/status" 2>/dev/null || continue
        ran=$(on_core "${task##*/}") || continue
        if ((ran > most)); then most=$ran best=${task##*/}; fi
    done
    echo "$best"
}

# `on_core THREAD`: nanoseconds that it has run. Unlike a clock, they leave out what others took of its core.
on_core() { awk '{ print $1 }' "/proc/$1/schedstat" 2>/dev/null; }

# `testpmd_rate MODE VDEV...`: packets per second of the first device, as one number.
testpmd_rate() {
    local mode=$1 log="$WORK/testpmd.log" pid vdev worker ran devices=()
    shift
    for vdev in "$@"; do devices+=(--vdev "$vdev"); done
    dpdk-testpmd --lcores "0@$CONTROL_CORE,1@$WORKER_CORE" "${memory[@]}" --no-pci --file-prefix "bench$$" \
        "${devices[@]}" -- --forward-mode="$mode" --stats-period 1 --total-num-mbufs="$mbufs" >"$log" 2>&1 </dev/null &
    pid=$!
    # A large capture takes a while to load.
    if ! wait_until_or_dead 60 "$pid" grep -q 'Port statistics' "$log"; then
        stop_pid "$pid" 15
        die "testpmd did not start: $(grep -iE 'error|fail|cannot|could not' "$log" | tail -n 3)"
    fi
    sleep $((seconds + 3))
    worker=$(worker_thread "$pid")
    ran=$(on_core "$worker")
    stop_pid "$pid" 15
    # All it forwarded, by all the time it had for that: what others took of the core is not held against it.
    awk -v ran="${ran:-0}" '/Forward statistics for port 0 / { ours = 1 }
        ours && /RX-packets:/ { packets = $2; exit }
        END { if (ran > 0) printf "%.0f\n", packets * 1e9 / ran; else print 0 }' "$log"
}

# `start_sluice CONFIG`: runs it; sets SLUICE_PID.
start_sluice() {
    "$SLUICE_BIN" run -c "$1" >"$WORK/sluice.log" 2>&1 </dev/null &
    SLUICE_PID=$!
    if ! wait_until_or_dead 60 "$SLUICE_PID" grep -q "sluice: ready" "$WORK/sluice.log"; then
        stop_pid "$SLUICE_PID" 15
        die "sluice did not start: $(tail -n 3 "$WORK/sluice.log")"
    fi
}

# `read_metrics`: into the file METRICS, for `metric NAME [LABELS]`.
read_metrics() { curl -s -m 5 "127.0.0.1:$metrics_port/metrics" >"$METRICS"; }
metric() { metric_sum "$@" <"$METRICS"; }
METRICS="$WORK/metrics"
metrics_port=$((20000 + RANDOM % 20000))

# `sluice_rate NAME LABELS`: how much a counter of the running sluice grows in a second that its worker runs.
sluice_rate() {
    local first last begin end worker
    worker=$(worker_thread "$SLUICE_PID")
    read_metrics
    first=$(metric "$@") begin=$(on_core "$worker")
    sleep "$seconds"
    read_metrics
    last=$(metric "$@") end=$(on_core "$worker")
    echo $(((last - first) * 1000000000 / (end - begin)))
}

median() { tr ' ' '\n' | grep . | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# `each_takes EXAMPLE ARGUMENTS...`: instructions for one packet, by the difference of two counts of packets.
each_takes() {
    local example=$1 count sums=()
    shift
    for count in 20480 61440; do
        sums+=("$(valgrind --tool=callgrind --callgrind-out-file=/dev/null "$EXAMPLES/$example" "$@" "$count" 2>&1 |
            awk '/Collected/ { print $NF }')")
    done
    echo $(((sums[1] - sums[0]) / 40960))
}

declare -A rates=()
# `note ROUND PROGRAM RATE`
note() {
    rates[$2]+="$3 "
    printf 'round %d: %-40s %7.2f Mpps\n' "$1" "$2" "$(awk -v r="$3" 'BEGIN { print r / 1e6 }')" >&2
}

# ---------------------------------------------------------------------------------------------
# Attack packets
# ---------------------------------------------------------------------------------------------

# `one_port_config CAPTURE`: a service behind a port that replays it.
one_port_config() {
    cat <<TOML
[runtime]
cores = [$WORKER_CORE]
control_core = $CONTROL_CORE
hugepages = "$hugepages"
mbufs = $mbufs
[[port]]
name = "wan"
device = "net_pcap0"
args = "rx_pcap=$1,infinite_rx=1"
addresses = ["198.51.100.2/24"]
[[service]]
name = "bench"
listen = ["198.51.100.10:443"]
proxy_protocol = "off"
[[service.upstream]]
address = "198.51.100.20:443"
[metrics]
listen = "127.0.0.1:$metrics_port"
[log]
connections = "off"
TOML
}

attack_turn() {
    one_port_config "$WORK/$1.pcap" >"$WORK/bench.toml"
    start_sluice "$WORK/bench.toml"
    sleep 2
    sluice_rate sluice_port_rx_packets_total
    stop_pid "$SLUICE_PID" 15
}

bench_attack() {
    local round kind program rate reference each base
    choose_memory 65535
    rates=()
    for kind in syn syn-bare ack drop udp; do
        "$EXAMPLES/attack_pcap" "$kind" "$WORK/$kind.pcap" 8192
    done
    for ((round = 1; round <= rounds; round++)); do
        for kind in macswap 5tswap; do
            rate=$(testpmd_rate "$kind" "net_pcap0,rx_pcap=$WORK/syn.pcap,infinite_rx=1")
            note "$round" "testpmd $kind" "$rate"
        done
        for kind in syn syn-bare ack drop udp; do
            rate=$(attack_turn "$kind")
            note "$round" "sluice $kind" "$rate"
        done
    done

    reference=$(median <<<"${rates["testpmd 5tswap"]}")
    say
    say "| program | Mpps (median of $rounds) | of 5tswap | ns per packet |"
    say "|---|---|---|---|"
    for program in "testpmd macswap" "testpmd 5tswap" "sluice syn" "sluice syn-bare" "sluice ack" "sluice drop" "sluice udp"; do
        rate=$(median <<<"${rates[$program]}")
        awk -v p="$program" -v r="$rate" -v s="$reference" \
            'BEGIN { if (r > 0) printf "| %s | %.2f | %.2f | %.1f |\n", p, r / 1e6, r / s, 1e9 / r; else printf "| %s | 0 | 0 | - |\n", p }'
    done

    ((instructions)) || return 0
    say
    say "| packet kind | instructions |"
    say "|---|---|"
    base=$(each_takes packet_path none)
    for kind in syn syn-bare ack drop; do
        each=$(each_takes packet_path "$kind")
        say "| $kind | $((each - base)) |"
    done
}

# ---------------------------------------------------------------------------------------------
# Segments of spliced sessions
# ---------------------------------------------------------------------------------------------

# Octets of payload: an ACK with a little, and a full frame.
PAYLOADS=(6 1448)
# Ethernet, IPv4, TCP, timestamps.
HEADERS=66
# As splice_pcap has it.
SESSIONS_MAX=62500

# `splice_config FLOWS`: for the two captures of splice_pcap.
splice_config() {
    local n
    cat <<TOML
[runtime]
cores = [$WORKER_CORE]
control_core = $CONTROL_CORE
hugepages = "$hugepages"
mbufs = $mbufs
drain = "0s"
[[port]]
name = "clients"
device = "net_pcap0"
args = "rx_pcap=$WORK/replay.pcap,infinite_rx=1"
addresses = ["198.51.100.2/24"]
[[port]]
name = "upstreams"
device = "net_pcap1"
args = "rx_pcap=$WORK/open.pcap"
addresses = ["10.0.0.2/24"]
gateway = "10.0.0.1"
[[service]]
name = "bench"
listen = ["198.51.100.10:443"]
mode = "splice"
promise = { probe = "0s", mss = 1460, window_scale = 7, sack = true, timestamps = true }
limits = { connections = $1 }
# The upstreams never say another word.
timeouts = { connect = "1h", client_idle = "1h", upstream_idle = "1h", unacknowledged = "1h" }
TOML
    for ((n = 1; n <= ($1 + SESSIONS_MAX - 1) / SESSIONS_MAX; n++)); do
        printf '[[service.upstream]]\naddress = "172.16.0.%d:80"\n' "$n"
    done
    cat <<TOML
[cookies]
seed_file = "$WORK/seed"
epoch = "1h"
[metrics]
listen = "127.0.0.1:$metrics_port"
[log]
connections = "off"
TOML
}

# Whether all sessions are open and nothing else happens: within half a second everything that came from the clients was sent on, and
# nothing came from the upstreams any more.
all_forwarded() {
    local came went other
    read_metrics
    (($(metric sluice_sessions_active) == $1)) || return 1
    came=$(metric sluice_port_rx_packets_total 'port="clients"') went=$(metric sluice_port_tx_packets_total 'port="upstreams"')
    other=$(metric sluice_port_rx_packets_total 'port="upstreams"')
    sleep 0.5
    read_metrics
    came=$(($(metric sluice_port_rx_packets_total 'port="clients"') - came))
    went=$(($(metric sluice_port_tx_packets_total 'port="upstreams"') - went))
    other=$(($(metric sluice_port_rx_packets_total 'port="upstreams"') - other))
    ((came > 0 && went * 1000 >= came * 999 && other == 0))
}

splice_turn() {
    start_sluice "$WORK/splice.toml"
    if ! wait_until_or_dead 60 "$SLUICE_PID" all_forwarded "$1"; then
        stop_pid "$SLUICE_PID" 15
        die "not all sessions opened, or not all frames were sent on: $(metric sluice_sessions_active) of $1 sessions"
    fi
    sluice_rate sluice_port_tx_packets_total 'port="upstreams"'
    all_forwarded "$1" || warn "not everything was sent on: the figure is too low"
    stop_pid "$SLUICE_PID" 15
}

bench_splice() {
    local round count size frames name rate reference each base kind
    rates=()
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$WORK/seed")
    for count in $flows; do
        # Few sessions: a capture that the second-level cache holds.
        frames=$((count < 256 ? 256 : count))
        choose_memory $((frames < 60000 ? 65535 : frames + 16384))
        for size in "${PAYLOADS[@]}"; do
            "$EXAMPLES/splice_pcap" "$WORK/seed" "$count" "$size" "$frames" "$WORK/replay.pcap" "$WORK/open.pcap"
            splice_config "$count" >"$WORK/splice.toml"
            name="$((size + HEADERS)) octets, $count sessions"
            for ((round = 1; round <= rounds; round++)); do
                rate=$(testpmd_rate 5tswap "net_pcap0,rx_pcap=$WORK/replay.pcap,infinite_rx=1" "net_pcap1,rx_pcap=$WORK/open.pcap")
                note "$round" "5tswap: $name" "$rate"
                rate=$(splice_turn "$count")
                note "$round" "sluice: $name" "$rate"
            done
        done
    done

    say
    say "| frames | sessions | 5tswap, Mpps | sluice, Mpps | of 5tswap | Gbit/s | ns per packet |"
    say "|---|---|---|---|---|---|---|"
    for size in "${PAYLOADS[@]}"; do
        for count in $flows; do
            name="$((size + HEADERS)) octets, $count sessions"
            reference=$(median <<<"${rates["5tswap: $name"]}") rate=$(median <<<"${rates["sluice: $name"]}")
            awk -v n="$((size + HEADERS)) octets" -v c="$count" -v s="$reference" -v r="$rate" -v o=$((size + HEADERS)) 'BEGIN {
                if (r > 0 && s > 0)
                    printf "| %s | %d | %.2f | %.2f | %.2f | %.1f | %.1f |\n", n, c, s / 1e6, r / 1e6, r / s, r * o * 8 / 1e9, 1e9 / r
                else
                    printf "| %s | %d | - | - | - | - | - |\n", n, c
            }'
        done
    done

    ((instructions)) || return 0
    say
    say "| segment | instructions |"
    say "|---|---|"
    for size in 0 1448; do
        base=$(each_takes splice_path none "$size" 64)
        for kind in up down; do
            each=$(each_takes splice_path "$kind" "$size" 64)
            say "| $kind, $size octets of payload | $((each - base)) |"
        done
    done
}

# ---------------------------------------------------------------------------------------------
# Filters
# ---------------------------------------------------------------------------------------------

# One row a line: its name, its capture, what all its packets are to become, and what it is called.
FILTERS='
plain               syn              answered              answered with a cookie, no filters but the default ceiling
no-ceiling          syn              answered              answered with a cookie, syn_ack_ceiling = "off"
set                 listed           rule                  dropped by a set of a million prefixes
set-cold            listed-million   rule                  the same, a million packets
rule-first          syn              rule                  dropped by the first of 64 rules
rule-last           syn              rule                  dropped by the last of 64 rules
pcap                tool             rule                  dropped by a pcap expression
fingerprint         syn              rule                  dropped by MSS, window scale and order of options
payload             data             rule                  dropped by octets of the payload
limit-address       syn-few          source_syns           64 sources, over the limit of SYNs per address
limit-subnet        syn-few          source_syns           64 sources, over the limit of SYNs per subnet
limit-rule          syn-few          rule_limit            64 sources, over the limit of a rule per source
limit-pass          syn              answered              within the limit of SYNs per address, answered
limit-pass-cold     syn-million      answered              the same, a million packets of as many sources
bans                banned           banned                dropped by a ban among a million
bans-cold           banned-million   banned                the same, a million packets
everything          stranger         answered              past a set, 64 rules, an expression, limits and ceiling, answered
everything-cold     stranger-million answered              the same, a million packets of as many sources
ack                 ack              bad_cookie            ACK without a flow, cookie refused
ack-pass            ack              bad_cookie            the same, within the limit of such ACKs
ack-limit           ack-few          source_flowless_acks  64 sources, over the limit of such ACKs
'
MILLION=1000000
# Frames of a capture of a million, and what devices and caches hold.
MILLION_MBUFS=$((MILLION + 65536))

# `filter_row NAME`: sets CAPTURE, FATE, TITLE.
filter_row() {
    local name
    while read -r name CAPTURE FATE TITLE; do
        if [[ $name == "$1" ]]; then return 0; fi
    done <<<"$FILTERS"
    usage_error "--kinds knows $(awk 'NF { printf "%s%s", n++ ? ", " : "", $1 }' <<<"$FILTERS"), not '$1'"
}

# `sixty_four LAST`: 64 rules, of which the 63 first match nothing here, each for another reason, and a second condition that holds or not.
sixty_four() {
    local n
    for ((n = 0; n < 63; n++)); do
        printf '[[rule]]\nname = "rule-%d"\naction = "drop"\n' "$n"
        case $((n % 9)) in
            0) printf 'source_port = ["%d-%d"]\nflags = "syn !ack"\n' $((1 + n * 16)) $((12 + n * 16)) ;;
            1) printf 'hop_limit = "%d-%d"\nflags = "syn !ack"\n' $((65 + n * 3)) $((69 + n * 3)) ;;
            2) printf 'window = "%d-%d"\nhop_limit = "32-255"\n' $((100 + n * 64)) $((130 + n * 64)) ;;
            3) printf 'ip_length = "%d-%d"\n' $((100 + n * 8)) $((140 + n * 8)) ;;
            4) printf 'payload_length = "%d-%d"\nwindow = "%d-65535"\n' $((1 + n)) $((200 + n)) $((n * 3)) ;;
            5) printf 'flags = "rst"\nsource_port = ["%d-65535"]\n' $((1000 + n)) ;;
            6) printf 'source = ["192.0.2.%d/32", "198.18.%d.0/24"]\nflags = "syn !ack"\n' "$n" "$n" ;;
            7) printf 'mss = "%d-%d"\nflags = "syn !ack"\n' $((500 + n * 8)) $((507 + n * 8)) ;;
            8) printf 'window_scale = %d\nsack = false\nflags = "syn !ack"\n' $((n % 14)) ;;
        esac
    done
    printf '[[rule]]\nname = "rule-63"\naction = "drop"\n%s\n' "$1"
}

# What the packets of `syn` are.
THE_SYN='flags = "syn !ack"
hop_limit = "60-64"
ip_length = 60
payload_length = 0
source_port = ["1024-65535"]'
THE_EXPRESSION='tcp[tcpflags] & tcp-syn != 0 and ip[8] < 64 and tcp[14:2] = 1024'

# `filter_config NAME`: what makes the row's configuration.
filter_config() {
    local set="[[set]]
name = \"listed\"
files = [\"$WORK/list\"]
[[rule]]
name = \"listed\"
action = \"drop\"
source = \"@listed\""
    case $1 in
        plain | ack) ;;
        no-ceiling) printf '[filters]\nsyn_ack_ceiling = "off"\n' ;;
        set | set-cold) say "$set" ;;
        rule-first)
            printf '[[rule]]\nname = "first"\naction = "drop"\n%s\n' "$THE_SYN"
            sixty_four 'flags = "rst"'
            ;;
        rule-last) sixty_four "$THE_SYN" ;;
        pcap) printf '[[rule]]\nname = "tool"\naction = "drop"\npcap = "%s"\n' "$THE_EXPRESSION" ;;
        fingerprint)
            printf '[[rule]]\nname = "linux"\naction = "drop"\nflags = "syn !ack"\nmss = 1460\nwindow_scale = 7\noptions = "%s"\n' \
                "mss sack-permitted timestamps nop window-scale"
            ;;
        payload) printf '[[rule]]\nname = "get"\naction = "drop"\npayload = { text = "GET /index.html?a=" }\n' ;;
        limit-address) printf '[filters.per_address]\nsyns = "10/s burst 20"\n' ;;
        limit-subnet) printf '[filters.per_subnet]\nsyns = "10/s burst 20"\n' ;;
        limit-rule) printf '[[rule]]\nname = "limit"\naction = "limit"\nflags = "syn !ack"\nlimit = "10/s burst 20"\nper = "source"\n' ;;
        # The same sources again and again: a limit that none of them reaches.
        limit-pass) printf '[filters.per_address]\nsyns = "20000/s"\n' ;;
        limit-pass-cold) printf '[filters.per_address]\nsyns = "200/s"\n' ;;
        bans | bans-cold) printf '[bans]\nfile = "%s"\n' "$WORK/bans" ;;
        everything | everything-cold)
            say "$set"
            sixty_four 'flags = "rst"'
            printf '[[rule]]\nname = "tool"\naction = "drop"\npcap = "%s"\n' "$THE_EXPRESSION"
            if [[ $1 == everything ]]; then
                printf '[filters.per_address]\nsyns = "20000/s"\nflowless_acks = "20000/s"\n'
            else
                printf '[filters.per_address]\nsyns = "200/s"\nflowless_acks = "100/s"\n'
            fi
            ;;
        ack-pass) printf '[filters.per_address]\nflowless_acks = "20000/s"\n' ;;
        ack-limit) printf '[filters.per_address]\nflowless_acks = "10/s burst 20"\n' ;;
    esac
}

# Whether sets and bans are what their files say.
loaded() {
    read_metrics
    ! grep -q 'name = "listed"' "$1" || (($(metric sluice_set_prefixes 'set="listed"') > 0)) || return 1
    ! grep -q '^\[bans\]' "$1" || (($(metric sluice_bans) == MILLION))
}

# `fate_metric FATE`: how many packets became that, of what read_metrics read.
fate_metric() {
    if [[ $1 == answered ]]; then metric sluice_syn_cookies_sent_total; else metric sluice_dropped_packets_total "reason=\"$1\""; fi
}

# `filter_turn NAME FATE`: its packets per second into RATE; the share that met that fate, hundredths, into SHARE; and instructions per
# packet into EACH, where perf can count them.
filter_turn() {
    local name=$1 fate=$2 came became begin end counted='' worker
    start_sluice "$WORK/$name.toml"
    if ! wait_until_or_dead 120 "$SLUICE_PID" loaded "$WORK/$name.toml"; then
        stop_pid "$SLUICE_PID" 15
        die "$name: sluice did not load its sets or bans: $(tail -n 3 "$WORK/sluice.log")"
    fi
    sleep 1
    worker=$(worker_thread "$SLUICE_PID")
    read_metrics
    came=$(metric sluice_port_rx_packets_total) became=$(fate_metric "$fate") begin=$(on_core "$worker")
    if ((perf_counts)); then
        counted=$(LC_ALL=C perf stat -x, -e instructions -t "$worker" -- sleep "$seconds" 2>&1 | awk -F, '/instructions/ { print $1 }')
    else
        sleep "$seconds"
    fi
    read_metrics
    came=$(($(metric sluice_port_rx_packets_total) - came)) became=$(($(fate_metric "$fate") - became)) end=$(on_core "$worker")
    stop_pid "$SLUICE_PID" 15
    RATE=$((came * 1000000000 / (end - begin)))
    SHARE=$((came ? became * 100 / came : 0))
    EACH=-
    if [[ $counted =~ ^[0-9]+$ ]] && ((came)); then EACH=$((counted / came)); fi
    ((SHARE >= 98)) || warn "$name: only $SHARE of 100 packets were what the row is about ($fate): read it with care"
}

# `filter_path_takes NAME CAPTURE`: instructions for one packet in parser and filters.
filter_path_takes() {
    local count=100000 kind sums=()
    for kind in '' none; do
        # shellcheck disable=SC2086 # nothing, or one word
        sums+=("$(valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='*replay*' \
            "$EXAMPLES/filter_path" "$WORK/$1.toml" "$2" "$count" $kind 2>&1 | awk '/Collected/ { print $NF }')")
    done
    echo $(((sums[0] - sums[1]) / count))
}

bench_filters() {
    local round name names program capture reference base count rate title each perf_counts=0
    local CAPTURE FATE TITLE RATE SHARE EACH
    local -A counted=()
    rates=()
    if have perf && perf stat -x, -e instructions -- true 2>&1 | grep -qE '^[0-9]+,'; then perf_counts=1; fi
    read -ra names <<<"${kinds:-$(awk 'NF { print $1 }' <<<"$FILTERS" | tr '\n' ' ')}"

    for name in list bans; do "$EXAMPLES/attack_pcap" "$name" "$WORK/$name"; done
    sed -i 's/$/ never/' "$WORK/bans"
    for name in "${names[@]}"; do
        filter_row "$name"
        filter_memory "$CAPTURE"
        # What testpmd gets, and the row's own.
        for capture in "$(reference_of "$CAPTURE")" "$CAPTURE"; do
            count=8192
            if [[ $capture == *-million ]]; then count=$MILLION; fi
            [[ -e "$WORK/$capture.pcap" ]] || "$EXAMPLES/attack_pcap" "${capture%-million}" "$WORK/$capture.pcap" "$count"
        done
        { one_port_config "$WORK/$CAPTURE.pcap" && filter_config "$name"; } >"$WORK/$name.toml"
    done

    for ((round = 1; round <= rounds; round++)); do
        for capture in syn syn-million; do
            [[ -e "$WORK/$capture.pcap" ]] || continue
            filter_memory "$capture"
            for program in rxonly 5tswap; do
                rate=$(testpmd_rate "$program" "net_pcap0,rx_pcap=$WORK/$capture.pcap,infinite_rx=1")
                note "$round" "testpmd $program, $capture" "$rate"
            done
        done
        for name in "${names[@]}"; do
            filter_row "$name"
            filter_memory "$CAPTURE"
            filter_turn "$name" "$FATE"
            note "$round" "$name" "$RATE"
            counted[$name]=$EACH
        done
    done

    say
    say "| packets | Mpps (median of $rounds) | ns per packet | of rxonly | of 5tswap | instructions |"
    say "|---|---|---|---|---|---|"
    for capture in syn syn-million; do
        for program in rxonly 5tswap; do
            [[ -n "${rates["testpmd $program, $capture"]:-}" ]] || continue
            title="testpmd $program"
            if [[ $capture == *-million ]]; then title+=", a million packets"; fi
            filter_line "$title" "$(median <<<"${rates["testpmd $program, $capture"]}")" "$capture" -
        done
    done
    for name in "${names[@]}"; do
        filter_row "$name"
        capture=$(reference_of "$CAPTURE")
        each=${counted[$name]}
        if ((instructions)) && [[ $each == - ]]; then each="$(filter_path_takes "$name" "$WORK/$CAPTURE.pcap") (parser and filters)"; fi
        filter_line "$TITLE" "$(median <<<"${rates[$name]}")" "$capture" "$each"
    done
}

# `reference_of CAPTURE`: the one of the same size that testpmd replays.
reference_of() { if [[ $1 == *-million ]]; then echo syn-million; else echo syn; fi; }

# `filter_memory CAPTURE`: memory for so many frames.
filter_memory() {
    if [[ $1 == *-million ]]; then choose_memory "$MILLION_MBUFS"; else choose_memory 65535; fi
}

# `filter_line TITLE RATE REFERENCE INSTRUCTIONS`
filter_line() {
    local rxonly=0 swap=0
    if [[ -n "${rates["testpmd rxonly, $3"]:-}" ]]; then
        rxonly=$(median <<<"${rates["testpmd rxonly, $3"]}") swap=$(median <<<"${rates["testpmd 5tswap, $3"]}")
    fi
    awk -v t="$1" -v r="$2" -v x="$rxonly" -v s="$swap" -v i="$4" 'BEGIN {
        if (r > 0 && x > 0 && s > 0) printf "| %s | %.2f | %.1f | %.2f | %.2f | %s |\n", t, r / 1e6, 1e9 / r, r / x, r / s, i
        else printf "| %s | %.2f | - | - | - | %s |\n", t, r / 1e6, i
    }'
}

if ((instructions)); then need_tool valgrind; fi
if ((attack)); then bench_attack; fi
if ((splice)); then bench_splice; fi
if ((filters)); then bench_filters; fi
