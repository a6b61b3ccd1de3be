#!/usr/bin/env bash
# Shows sluice at work on this machine: real clients, a real nginx, a real SYN flood, no real network.
#
#   client namespace -- veth -- [ sluice on DPDK's af_packet ] -- veth -- server namespace (nginx)
#
# Downloads a file through the appliance a number of times, then again while hping3 floods the same
# service with SYNs from random sources, and prints what came of it. nginx reads PROXY v2 headers and
# logs the client address it is told.
#
# Usage: sudo scripts/demo.sh [options]
#
#   --requests N         downloads before and during the flood (default 50 each)
#   --flood-seconds S    shortest duration of the flood (default 8)
#   --no-setup           do not install packages or reserve hugepages
#   --no-build           use target/release/sluice (or SLUICE_BIN) as it is
#   --keep               keep the logs even when everything went well
#   -h, --help           this text
#
# Does all its set-up itself on Debian 12 with a Rust toolchain (scripts/setup.sh). Nothing leaves this
# machine: all traffic stays in namespaces that vanish at the end, also on Ctrl-C. Packages and
# reserved hugepages stay; 'sudo scripts/setup.sh --release-hugepages' gives the memory back.
# Exit code 0 when every download was intact, nginx saw the right client each time, the flood was
# answered with cookies and opened no session.
set -Eeuo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

requests=50 flood_seconds=8 with_setup=1 with_build=1 keep=0
ARGS=("$@")
number() { [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || usage_error "$1 needs a number, found '${2:-nothing}'"; }
while (($#)); do
    case $1 in
        --requests) number "$@" && requests=$2 && shift ;;
        --flood-seconds) number "$@" && flood_seconds=$2 && shift ;;
        --no-setup) with_setup=0 ;;
        --no-build) with_build=0 ;;
        --keep) keep=1 ;;
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

# --- Set-up and build -------------------------------------------------------------------------

if ((with_setup)); then
    step "Setting up (scripts/setup.sh --test)"
    "$REPO/scripts/setup.sh" --test
fi
need_tool ip curl nginx hping3 ethtool taskset timeout
SLUICE_BIN="$(realpath -m "${SLUICE_BIN:-$TARGET/release/sluice}")"
if ((with_build)); then
    step "Building the release (cargo build --release -p sluice)"
    cargo_run build --release -p sluice
fi
[[ -x $SLUICE_BIN ]] || die "$SLUICE_BIN is missing: run without --no-build"

RUN="$TARGET/demo/run-$$"
mkdir -p "$RUN/nginx"
PASSED=0
keep_or_remove_logs() {
    hand_back_target
    if ((PASSED && !keep)); then
        rm -rf "$RUN"
        return
    fi
    rm -rf "$TARGET/demo/last"
    mv "$RUN" "$TARGET/demo/last"
    say "logs: $TARGET/demo/last (sluice.out, sluice.err, connections.json, nginx/)"
}
on_exit keep_or_remove_logs

# --- Two networks with the appliance between them ---------------------------------------------

step "Creating the namespaces client, appliance and server"
netns_create client && CLIENT=$NETNS
netns_create appliance && APPLIANCE=$NETNS
netns_create server && SERVER=$NETNS
# The kernel must not speak on the appliance's interfaces: no IPv4 address, and no IPv6 at all.
sysctl_in "$APPLIANCE" net.ipv6.conf.all.disable_ipv6=1
sysctl_in "$APPLIANCE" net.ipv6.conf.default.disable_ipv6=1
# `join NAMESPACE INTERFACE ADDRESS APPLIANCE_INTERFACE`
join() {
    ip link add "$2" netns "$1" type veth peer name "$4" netns "$APPLIANCE"
    # veth leaves checksums to hardware that is not there; sluice would drop such segments, rightly.
    ip netns exec "$1" ethtool -K "$2" tx off >/dev/null 2>&1
    ip -n "$1" addr add "$3" dev "$2"
    ip -n "$1" link set "$2" up
    ip -n "$APPLIANCE" link set "$4" up
}
join "$CLIENT" client0 198.51.100.1/24 wan0
join "$SERVER" server0 10.0.0.5/24 lan0

write_nginx_config "$RUN/nginx" 10.0.0.5:80
BODY="$RUN/nginx/www/body"
head -c 65536 /dev/urandom >"$BODY"
start_nginx "$SERVER" "$RUN/nginx"

# --- The appliance ----------------------------------------------------------------------------

pick_cores
cat >"$RUN/sluice.toml" <<TOML
[runtime]
cores = [$WORKER_CORE]
control_core = $CONTROL_CORE
idle = "sleep"

[[port]]
name = "wan"
device = "net_af_packet0"
args = "iface=wan0"
addresses = ["198.51.100.2/24"]
gateway = ["198.51.100.1"]

[[port]]
name = "lan"
device = "net_af_packet1"
args = "iface=lan0"
addresses = ["10.0.0.1/24"]

[[service]]
name = "web"
listen = ["198.51.100.10:80"]
mode = "terminate"
proxy_protocol = "v2"
limits = { connections = 2000 }
[[service.upstream]]
address = "10.0.0.5:80"

[metrics]
listen = "127.0.0.1:9150"

[log]
connections = "$RUN/connections.json"
TOML
step "Starting sluice (configuration: sluice.toml as in docs/lab.md, worker on core $WORKER_CORE)"
ip netns exec "$APPLIANCE" "$SLUICE_BIN" run -c "$RUN/sluice.toml" >"$RUN/sluice.out" 2>"$RUN/sluice.err" </dev/null &
SLUICE=$!
on_exit stop_pid "$SLUICE" 10
wait_until_or_dead 30 "$SLUICE" grep -q '^sluice: ready' "$RUN/sluice.out" || {
    tail -n 15 "$RUN/sluice.out" "$RUN/sluice.err" >&2
    die "sluice did not start"
}
sed 's/^/  | /' "$RUN/sluice.out"

metrics() { ip netns exec "$APPLIANCE" curl -sS --noproxy '*' --max-time 10 http://127.0.0.1:9150/metrics; }
metric() { metrics | metric_sum "$@"; }

# --- Downloads, then downloads under attack ---------------------------------------------------

URL=http://198.51.100.10/body
step "Downloading 64 KiB $requests times through it"
: >"$RUN/quiet"
begin=$SECONDS
fetch_many "$CLIENT" "$requests" 20 "$URL" "$BODY" "$RUN/quiet"
quiet_time=$((SECONDS - begin))

step "The same under a SYN flood from random sources (hping3 --flood --rand-source)"
cookies_before="$(metric sluice_syn_cookies_sent_total)"
opened_before="$(metric sluice_sessions_opened_total)"
received_before="$(metric sluice_port_rx_packets_total 'port="wan"')"
# Bounded whatever happens: hping3 ends by itself after two minutes. It prints its count on SIGINT.
ip netns exec "$CLIENT" timeout -s INT 120 \
    hping3 -q -n -S -p 80 -w 64240 --flood --rand-source -I client0 198.51.100.10 >"$RUN/flood" 2>&1 </dev/null &
FLOOD=$!
on_exit stop_pid "$FLOOD" 2
begin=$SECONDS
sleep 1
: >"$RUN/flooded"
fetch_many "$CLIENT" "$requests" 20 "$URL" "$BODY" "$RUN/flooded"
flooded_time=$((SECONDS - begin))
while ((SECONDS - begin < flood_seconds)); do sleep 0.2; done
alive "$FLOOD" || warn "the flood ended before the downloads did: $(tail -n 1 "$RUN/flood")"
stop_pid "$FLOOD" 5
flood_time=$((SECONDS - begin))
sleep 1 # what is still in the rings
sent="$(sed -n 's/^\([0-9]*\) packets \(transmitted\|tramitted\).*/\1/p' "$RUN/flood")"
cookies=$(($(metric sluice_syn_cookies_sent_total) - cookies_before))
opened=$(($(metric sluice_sessions_opened_total) - opened_before))
received=$(($(metric sluice_port_rx_packets_total 'port="wan"') - received_before))

stop_pid "$SLUICE" 15
sluice_status=$STOPPED_STATUS

# --- What came of it --------------------------------------------------------------------------

problems=()
# `row TITLE LOG SECONDS`
row() {
    local ok failed seen
    ok="$(count_ok "$2")" failed="$(count_failed "$2")" seen="$(count_seen "$2" "$RUN/nginx/access.log")"
    printf '  %-34s %6s %7s   %s\n' "$1" "$ok" "$failed" "$3"
    ((ok == requests)) || problems+=("$1: $(grep -m1 '^failed' "$2")")
    ((seen == requests)) || problems+=("$1: nginx logged the client's address and port for $seen of $requests downloads")
}
flood_sessions=$((opened > requests ? opened - requests : 0))
say
printf '  %-34s %6s %7s   %s\n' '' ok failed seconds
row "downloads" "$RUN/quiet" "$quiet_time"
row "downloads under the flood" "$RUN/flooded" "$flooded_time"
printf '  %-34s %s\n' "client address nginx saw" "$(awk '{print $1}' "$RUN/nginx/access.log" 2>/dev/null | sort | uniq -c | awk '{printf "%s%s (%s times)", sep, $2, $1; sep = ", "}')"
printf '  %-34s %s in %s s\n' "SYNs sent by the flood" "${sent:-unknown}" "$flood_time"
printf '  %-34s %s\n' "packets that reached the appliance" "$received"
printf '  %-34s %s\n' "answered with a cookie" "$cookies"
printf '  %-34s %s\n' "sessions created by the flood" "$flood_sessions"
say
((cookies > requests)) || problems+=("only $cookies cookies were sent: did the flood reach the appliance?")
((flood_sessions == 0)) || problems+=("the flood opened $flood_sessions sessions")
((sluice_status == 0)) || problems+=("sluice ended with status $sluice_status on SIGTERM, not 0")
if ((${#problems[@]})); then
    for problem in "${problems[@]}"; do warn "$problem"; done
    exit 1
fi
PASSED=1
say "${GREEN}Everything arrived intact; the flood cost no session.${PLAIN}"
