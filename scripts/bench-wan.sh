#!/usr/bin/env bash
# Measures what a client far away gets: one iperf3 flow each direction over a wire that loses and delays, which stands
# between the client and the server (no proxy), or between the client and sluice in terminate and in splice mode.
#
#   client -- wire -- server
#   client -- wire -- [ sluice ] -- server
#
# Everything is on this machine: network namespaces, veth, sluice on net_af_packet, the wire in user space.
#
# Usage: sudo scripts/bench-wan.sh [options]
#
#   --rounds N     runs of each kind, of which the median counts (default 3)
#   --seconds S    length of one run after a second that does not count (default 5)
#   --loss P       percent of the frames lost, each way (default 1)
#   --delay MS     what the wire adds to the round trip, milliseconds, even (default 50)
#   --rate M       what the wire carries each way, Mbit/s, behind a queue of 50 ms (default 400: less than what two cores can
#                  do in each of the cases, or the processor would be measured; 0 = whatever comes)
#   --congestion N what client and server use, such as cubic or bbr (default the kernel's own)
#   --only WORDS   some of "proxyless terminate splice" (default all)
#   --no-setup     do not install packages or reserve hugepages
#   --no-build     use what is built
#   -h, --help     this text
#
# Prints a table in Markdown. A benchmark, not a test: it passes whatever the figures are.
set -Eeuo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

rounds=3 seconds=5 loss=1 delay=50 rate=400 congestion=() only="proxyless terminate splice" with_setup=1 with_build=1
ARGS=("$@")
number() { [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || usage_error "$1 needs a number, found '${2:-nothing}'"; }
while (($#)); do
    case $1 in
        --rounds) number "$@" && rounds=$2 && shift ;;
        --seconds) number "$@" && seconds=$2 && shift ;;
        --loss)
            [[ "${2:-}" =~ ^[0-9]+(\.[0-9]+)?$ ]] || usage_error "--loss needs a percentage, found '${2:-nothing}'"
            loss=$2 && shift
            ;;
        --delay)
            number "$@" && delay=$2 && shift
            ((delay % 2 == 0)) || usage_error "--delay is shared by both directions: it must be even, found '$delay'"
            ;;
        --rate)
            [[ "${2:-}" =~ ^[0-9]+$ ]] || usage_error "--rate needs a number, found '${2:-nothing}'"
            rate=$2 && shift
            ;;
        --congestion)
            [[ -n "${2:-}" ]] || usage_error "--congestion needs a name"
            congestion=(--congestion "$2") && shift
            ;;
        --only)
            only=${2:-}
            for path in $only; do
                [[ $path =~ ^(proxyless|terminate|splice)$ ]] || usage_error "--only knows proxyless, terminate and splice, found '$path'"
            done
            shift
            ;;
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
read -ra paths <<<"$only"
((${#paths[@]})) || usage_error "--only needs a word"
need_root "${ARGS[@]}"
arm_undo

if ((with_setup)); then
    step "Setting up (scripts/setup.sh --test)"
    "$REPO/scripts/setup.sh" --test
fi
need_tool iperf3 ethtool ip taskset
if ((with_build)); then
    step "Building the release"
    cargo_run build --release -p sluice
    cargo_run build --release -p sluice-tests --bin sluice-wire
fi
SLUICE_BIN="$(realpath -m "${SLUICE_BIN:-$TARGET/release/sluice}")"
WIRE="$TARGET/release/sluice-wire"

WORK=$(mktemp -d)
on_exit rm -rf "$WORK"
pick_cores

# --- Namespaces and links ---------------------------------------------------------------------

CLIENT='' BETWEEN='' APPLIANCE='' SERVER=''
netns_create client && CLIENT=$NETNS
netns_create between && BETWEEN=$NETNS
netns_create appliance && APPLIANCE=$NETNS
netns_create server && SERVER=$NETNS

# `link NAMESPACE END NAMESPACE END`: a veth pair whose ends are up, without offloads and deep enough for a far client's window.
link() {
    ip link add name "$2" netns "$1" type veth peer name "$4" netns "$3"
    local ns end
    for end in "$1 $2" "$3 $4"; do
        read -r ns end <<<"$end"
        sysctl_in "$ns" "net.ipv6.conf.$end.disable_ipv6=1"
        ip netns exec "$ns" ethtool -K "$end" tx off rx off gro off gso off tso off sg off >/dev/null 2>&1
        ip -n "$ns" link set "$end" txqueuelen 10000 up
    done
}
link "$CLIENT" c0 "$BETWEEN" w0
link "$BETWEEN" w1 "$APPLIANCE" p0
link "$APPLIANCE" p1 "$SERVER" s0
# The server's own way to the wire, for the runs without a proxy.
link "$BETWEEN" w2 "$SERVER" d0
ip -n "$CLIENT" addr add 198.51.100.1/24 dev c0
ip -n "$SERVER" addr add 10.0.0.5/24 dev s0
ip -n "$SERVER" addr add 198.51.100.10/24 dev d0
for ns in "$CLIENT" "$SERVER"; do
    # More than a gigabit and 50 ms hold.
    sysctl_in "$ns" "net.ipv4.tcp_rmem=4096 131072 67108864"
    sysctl_in "$ns" "net.ipv4.tcp_wmem=4096 65536 67108864"
    # A run must not know what the run before it met.
    sysctl_in "$ns" net.ipv4.tcp_no_metrics_save=1
done

# One server for each run: one that lost its client with the wire would wait for it.
IPERF3_PID=''
listening() { ip netns exec "$SERVER" ss -Htln 'sport = :5201' | grep -q .; }
start_iperf3() {
    if [[ -n $IPERF3_PID ]]; then stop_pid "$IPERF3_PID" 2; fi
    ip netns exec "$SERVER" iperf3 -s -1 -p 5201 >"$WORK/iperf3.log" 2>&1 </dev/null &
    IPERF3_PID=$!
    wait_until_or_dead 10 "$IPERF3_PID" listening || die "iperf3 does not listen: $(tail -n 3 "$WORK/iperf3.log")"
}
# What still runs on the way out ends with its namespace.

# --- What stands between ----------------------------------------------------------------------

SLUICE_PID=''
start_sluice() {
    # It asks at its start what the server accepts.
    start_iperf3
    cat >"$WORK/wan.toml" <<TOML
[runtime]
cores = [$WORKER_CORE]
control_core = $CONTROL_CORE
hugepages = "off"
mbufs = 32767
idle = "sleep"
[[port]]
name = "wan"
device = "net_af_packet0"
args = "iface=p0,blocksz=65536,framesz=2048,framecnt=16384"
addresses = ["198.51.100.2/24"]
gateway = ["198.51.100.1"]
[[port]]
name = "lan"
device = "net_af_packet1"
args = "iface=p1,blocksz=65536,framesz=2048,framecnt=16384"
addresses = ["10.0.0.2/24"]
[[service]]
name = "iperf3"
listen = ["198.51.100.10:5201"]
mode = "$1"
proxy_protocol = "off"
[[service.upstream]]
address = "10.0.0.5:5201"
[log]
connections = "off"
TOML
    ip netns exec "$APPLIANCE" "$SLUICE_BIN" run -c "$WORK/wan.toml" >"$WORK/sluice.log" 2>&1 </dev/null &
    SLUICE_PID=$!
    wait_until_or_dead 40 "$SLUICE_PID" grep -q "sluice: ready" "$WORK/sluice.log" ||
        die "sluice did not start: $(tail -n 3 "$WORK/sluice.log")"
    # The first probe's answer.
    sleep 1
}

WIRE_PID=''
start_wire() { # far end, loss in percent, delay in ms of the round trip
    local share
    share=$(awk -v percent="$2" 'BEGIN { print percent / 100 }')
    ip netns exec "$BETWEEN" "$WIRE" w0 "$1" --loss "$share" --delay-ms $(($3 / 2)) --rate "$rate" --seed "$round" --seconds 3600 \
        >"$WORK/wire.log" 2>&1 </dev/null &
    WIRE_PID=$!
    wait_until_or_dead 10 "$WIRE_PID" grep -q joined "$WORK/wire.log" || die "the wire did not start: $(cat "$WORK/wire.log")"
    # Somebody else may have the service's address now.
    ip -n "$CLIENT" neigh flush dev c0
}
stop_wire() {
    stop_pid "$WIRE_PID" 5
    local refused overrun
    read -r refused overrun < <(awk '{ for (i = 1; i < NF; i++) v[$i] = $(i + 1) } END { print v["refused"] + 0, v["overrun"] + 0 }' "$WORK/wire.log")
    ((refused + overrun == 0)) || warn "$1: the wire itself lost $((refused + overrun)) frames"
}

# Leaves in RATE what arrived of one flow, in Mbit/s.
RATE=0
run() {
    RATE=0
    start_iperf3
    if ip netns exec "$CLIENT" timeout $((seconds + 30)) iperf3 -c 198.51.100.10 -p 5201 -t "$seconds" -O 1 -f k --connect-timeout 5000 "${congestion[@]}" "$@" \
        >"$WORK/run.log" 2>&1 </dev/null; then
        RATE=$(awk '/receiver/ { rate = $7 / 1000 } END { print rate + 0 }' "$WORK/run.log")
    else
        warn "iperf3: $(tail -n 1 "$WORK/run.log")"
    fi
}

# --- Runs -------------------------------------------------------------------------------------

wires=("0 0" "$loss 0" "0 $delay" "$loss $delay")
declare -A rates=()
step "$rounds rounds of $((${#paths[@]} * ${#wires[@]} * 2)) runs"
for ((round = 1; round <= rounds; round++)); do
    for path in "${paths[@]}"; do
        far=w1
        if [[ $path == proxyless ]]; then
            far=w2
        else
            start_sluice "$path"
        fi
        for wire in "${wires[@]}"; do
            read -r percent ms <<<"$wire"
            start_wire "$far" "$percent" "$ms"
            for direction in up down; do
                flags=()
                [[ $direction == up ]] || flags=(--reverse)
                run "${flags[@]}"
                rates["$path $wire $direction"]+="$RATE "
                printf 'round %d: %-9s %s%% loss, %s ms, %-4s %8.1f Mbit/s\n' "$round" "$path" "$percent" "$ms" "$direction" "$RATE" >&2
            done
            stop_wire "round $round, $path, $percent% loss, $ms ms"
        done
        if [[ $path != proxyless ]]; then stop_pid "$SLUICE_PID" 10; fi
    done
done

median() { tr ' ' '\n' <<<"${rates["$1"]:-}" | grep . | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
# `cell PATH WIRE DIRECTION`: its median, and of what it would be without a proxy.
cell() {
    local rate alone
    [[ -n "${rates["$1 $2 $3"]:-}" ]] || {
        echo "-"
        return
    }
    rate=$(median "$1 $2 $3")
    alone=$([[ -z "${rates["proxyless $2 $3"]:-}" ]] || median "proxyless $2 $3")
    awk -v rate="$rate" -v alone="${alone:-0}" -v proxyless="$([[ $1 == proxyless ]] && echo 1 || echo 0)" \
        'BEGIN { printf "%.1f", rate; if (!proxyless && alone > 0) printf " (%.2f)", rate / alone; print "" }'
}

say
say "Mbit/s that arrived, ${congestion[1]:-$(ip netns exec "$SERVER" sysctl -n net.ipv4.tcp_congestion_control)} at both ends, a wire of $((rate)) Mbit/s (0 = any), medians of $rounds runs of $seconds s; in brackets the share of what arrives without a proxy."
say
say "| wire, each way | direction | no proxy | terminate | splice |"
say "|---|---|---|---|---|"
for wire in "${wires[@]}"; do
    read -r percent ms <<<"$wire"
    for direction in up down; do
        say "| $percent% loss, $ms ms more round trip | $direction | $(cell proxyless "$wire" "$direction") | $(cell terminate "$wire" "$direction") | $(cell splice "$wire" "$direction") |"
    done
done
