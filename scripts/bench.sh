#!/usr/bin/env bash
# Measures what one core of this machine does with attack packets, beside dpdk-testpmd in the same run.
#
# DPDK's net_pcap replays a small capture from memory without end on one core; testpmd (macswap, 5tswap) and
# sluice take turns on it. Also counts instructions per packet kind, which no noisy neighbour disturbs.
#
# Usage: sudo scripts/bench.sh [options]
#
#   --rounds N        turns of each program, of which the median counts (default 5)
#   --seconds S       length of one turn's measurement (default 4)
#   --no-instructions leave the instruction counts out (they need valgrind)
#   --no-setup        do not install packages or reserve hugepages
#   --no-build        use what is built
#   -h, --help        this text
#
# Prints a table in Markdown. A benchmark, not a test: it passes whatever the figures are.
set -Eeuo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

rounds=5 seconds=4 instructions=1 with_setup=1 with_build=1
ARGS=("$@")
number() { [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || usage_error "$1 needs a number, found '${2:-nothing}'"; }
while (($#)); do
    case $1 in
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
    cargo_run build --release -p sluice-filters --example attack_pcap
    cargo_run build --release -p sluice-tcpstack --example packet_path
fi
SLUICE_BIN="$(realpath -m "${SLUICE_BIN:-$TARGET/release/sluice}")"
EXAMPLES="$TARGET/release/examples"

WORK=$(mktemp -d)
on_exit rm -rf "$WORK"
pick_cores
memory=(--no-huge -m 1024)
hugepages=off
if (($(cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages) >= 400)); then
    memory=(-m 512 --in-memory)
    hugepages=require
fi

for kind in syn syn-bare ack drop udp; do
    "$EXAMPLES/attack_pcap" "$kind" "$WORK/$kind.pcap" 8192
done

# Ends a program this very shell started, and waits for its end.
finish() {
    kill -INT "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

# Both print packets per second, as one number.
testpmd_rate() {
    local mode=$1 log="$WORK/testpmd.log" pid
    dpdk-testpmd --lcores "0@$CONTROL_CORE,1@$WORKER_CORE" "${memory[@]}" --no-pci --file-prefix "bench$$" \
        --vdev "net_pcap0,rx_pcap=$WORK/syn.pcap,infinite_rx=1" \
        -- --forward-mode="$mode" --stats-period 1 --total-num-mbufs=65535 >"$log" 2>&1 </dev/null &
    pid=$!
    sleep $((seconds + 3))
    finish "$pid"
    # The first two reports see the start.
    awk '/Rx-pps:/ { n++; if (n > 2) { sum += $2; k++ } } END { if (k) printf "%.0f\n", sum / k; else print 0 }' "$log"
}

sluice_rate() {
    local kind=$1 pid port=$((20000 + RANDOM % 20000))
    cat >"$WORK/bench.toml" <<TOML
[runtime]
cores = [$WORKER_CORE]
control_core = $CONTROL_CORE
hugepages = "$hugepages"
[[port]]
name = "wan"
device = "net_pcap0"
args = "rx_pcap=$WORK/$kind.pcap,infinite_rx=1"
addresses = ["198.51.100.2/24"]
[[service]]
name = "bench"
listen = ["198.51.100.10:443"]
proxy_protocol = "off"
[[service.upstream]]
address = "198.51.100.20:443"
[metrics]
listen = "127.0.0.1:$port"
[log]
connections = "off"
TOML
    "$SLUICE_BIN" run -c "$WORK/bench.toml" >"$WORK/sluice.log" 2>&1 </dev/null &
    pid=$!
    local waited=0
    until grep -q "sluice: ready" "$WORK/sluice.log"; do
        if ((++waited > 200)); then
            finish "$pid"
            die "sluice did not start: $(tail -3 "$WORK/sluice.log")"
        fi
        sleep 0.1
    done
    sleep 2
    local first last begin end
    received() { curl -s -m 3 "127.0.0.1:$port/metrics" | awk '/^sluice_port_rx_packets_total/ { sum += $2 } END { printf "%.0f\n", sum }'; }
    first=$(received) begin=$(date +%s%N)
    sleep "$seconds"
    last=$(received) end=$(date +%s%N)
    curl -s -m 3 "127.0.0.1:$port/metrics" >"$WORK/metrics.$kind"
    finish "$pid"
    echo $(((last - first) * 1000000000 / (end - begin)))
}

median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

declare -A rates=()
programs=("testpmd macswap" "testpmd 5tswap" "sluice syn" "sluice syn-bare" "sluice ack" "sluice drop" "sluice udp")
for ((round = 1; round <= rounds; round++)); do
    for program in "${programs[@]}"; do
        read -r name what <<<"$program"
        rate=$("${name}_rate" "$what")
        rates[$program]+="$rate "
        printf 'round %d: %-18s %7.2f Mpps\n' "$round" "$program" "$(awk -v r="$rate" 'BEGIN { print r / 1e6 }')" >&2
    done
done

reference=$(tr ' ' '\n' <<<"${rates["testpmd 5tswap"]}" | grep . | median)
say
say "| program | Mpps (median of $rounds) | of 5tswap | ns per packet |"
say "|---|---|---|---|"
for program in "${programs[@]}"; do
    rate=$(tr ' ' '\n' <<<"${rates[$program]}" | grep . | median)
    awk -v p="$program" -v r="$rate" -v s="$reference" \
        'BEGIN { if (r > 0) printf "| %s | %.2f | %.2f | %.1f |\n", p, r / 1e6, r / s, 1e9 / r; else printf "| %s | 0 | 0 | - |\n", p }'
done

if ((instructions)); then
    need_tool valgrind
    say
    say "| packet kind | instructions |"
    say "|---|---|"
    counted() {
        valgrind --tool=callgrind --callgrind-out-file=/dev/null "$EXAMPLES/packet_path" "$1" "$2" 2>&1 |
            awk '/Collected/ { print $NF }'
    }
    base=$((($(counted none 60000) - $(counted none 20000)) / 40000))
    for kind in syn syn-bare ack drop; do
        each=$((($(counted "$kind" 60000) - $(counted "$kind" 20000)) / 40000 - base))
        say "| $kind | $each |"
    done
fi
