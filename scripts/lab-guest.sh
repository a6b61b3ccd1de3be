#!/usr/bin/env bash
# The part of lab-vm.sh that runs inside the virtual machine, as its first process. Not for use by hand.
# Talks to the other side through files in /sluice-lab: reads env and sluice.toml, writes results,
# ready, app.out, metrics and guest.log, and waits for stop. Always ends with power off.
set -Eeuo pipefail
# shellcheck disable=SC1091 # written by lab-vm.sh
source /sluice-lab/env
# shellcheck source=scripts/lib.sh
source "$REPO/scripts/lib.sh"
[[ $$ -eq 1 ]] || die "this runs only as the first process of the VM that lab-vm.sh boots"

SHARE=/sluice-lab
exec >"$SHARE/guest.log" 2>&1 </dev/null
power_off() {
    sync
    # The first process must not end before the machine does.
    busybox poweroff -f
    sleep 60
}
trap power_off EXIT
trap 'warn "line $LINENO: \"$BASH_COMMAND\" failed with status $?"' ERR

check() { printf '%s\t%s\t%s\n' "$1" "$2" "${3:-}" >>"$SHARE/results"; }
# `expect NAME DETAIL command args...`: the command's success is the check.
expect() {
    local name=$1 detail=$2
    shift 2
    mark "$name"
    if "$@"; then check PASS "$name" "$detail"; else check FAIL "$name" "$*"; fi
}
bind_nic() { "$REPO/scripts/bind-nic.sh" "$@"; }
drivers_are() { [[ "$(bind_nic status "$NIC_WAN" "$NIC_LAN")" == "$NIC_WAN $1"$'\n'"$NIC_LAN $2" ]]; }
# How far the machine is, with its uptime, for the log.
mark() { printf '[%s s] %s\n' "$(cut -d' ' -f1 /proc/uptime)" "$*"; }

# --- The machine: as an administrator finds it after boot --------------------------------------
mount -t devpts devpts /dev/pts 2>/dev/null || { mkdir -p /dev/pts && mount -t devpts devpts /dev/pts; }
mkdir -p /dev/shm && mount -t tmpfs shm /dev/shm
mkdir -p /lib/modules
ln -sfn "$KERNEL_DIR/lib/modules/$(uname -r)" "/lib/modules/$(uname -r)"
for module in e1000e vmxnet3 virtio_net; do modprobe "$module"; done
ip link set lo up
mgmt="$(basename "$(wait_until 10 compgen -G "/sys/bus/pci/devices/$NIC_MGMT/virtio*/net/*"; compgen -G "/sys/bus/pci/devices/$NIC_MGMT/virtio*/net/*")")"
ip link set "$mgmt" up
ip addr add 10.0.2.15/24 dev "$mgmt"
ip route add default via 10.0.2.2 dev "$mgmt"

# --- Hugepages and NICs, with the same scripts as on bare metal --------------------------------
expect "hugepages reserved by setup.sh" "$HUGEPAGES x 2 MiB" "$REPO/scripts/setup.sh" --no-packages --hugepages "$HUGEPAGES"
refuses_mgmt() { ! bind_nic bind "$NIC_MGMT" && [[ "$(bind_nic status "$NIC_MGMT")" == "$NIC_MGMT virtio-pci" ]]; }
expect "bind-nic.sh refuses the card with the default route" "virtio-net" refuses_mgmt
expect "bind-nic.sh binds e1000e and vmxnet3" "$DRIVER" bind_nic bind "$NIC_WAN" "$NIC_LAN"
expect "both are bound to $DRIVER" "" drivers_are "$DRIVER" "$DRIVER"
expect "binding again changes nothing" "" bind_nic bind "$NIC_WAN" "$NIC_LAN"
bind_nic --list

# --- The appliance -----------------------------------------------------------------------------
# testpmd ends when its standard input does: an open pipe keeps it running.
mkfifo /run/silence
exec 9<>/run/silence
case $MODE in
    sluice)
        "$SLUICE_BIN" run -c "$SHARE/sluice.toml" >"$SHARE/app.out" 2>"$SHARE/app.err" &
        ready() { grep -q '^sluice: ready' "$SHARE/app.out"; }
        good_end=0
        ;;
    testpmd)
        dpdk-testpmd -l 0,1 -a "$NIC_WAN" -a "$NIC_LAN" -- --forward-mode=io --auto-start --nb-cores=1 --total-num-mbufs=16384 \
            >"$SHARE/app.out" 2>"$SHARE/app.err" <&9 &
        ready() { grep -q 'Press enter to exit' "$SHARE/app.out"; }
        good_end=0
        ;;
esac
app=$!
mark "starting $MODE"
if wait_until_or_dead 200 "$app" ready; then
    check PASS "$MODE started on hugepages" "$(grep -E '^HugePages_(Total|Free)' /proc/meminfo | tr -s ' \n' ' ')"
    touch "$SHARE/ready"
    mark "$MODE serves"
    stopped() { [[ -e $SHARE/stop ]]; }
    wait_until_or_dead 600 "$app" stopped || check FAIL "$MODE kept running" "it ended by itself"
    if [[ $MODE == sluice ]]; then
        curl -sS --max-time 20 -o "$SHARE/metrics" http://127.0.0.1:9150/metrics || check FAIL "metrics" "no answer on 127.0.0.1:9150"
    fi
else
    check FAIL "$MODE started on hugepages" "$(tail -n 1 "$SHARE/app.err")"
fi
mark "stopping $MODE"
stop_pid "$app" 60
if [[ $STOPPED_STATUS -eq $good_end ]]; then
    check PASS "$MODE ended cleanly on SIGTERM" "status $STOPPED_STATUS"
else
    check FAIL "$MODE ended cleanly on SIGTERM" "status $STOPPED_STATUS, expected $good_end"
fi
cat "$SHARE/app.err" >>"$SHARE/app.out"

# --- And back ----------------------------------------------------------------------------------
expect "bind-nic.sh gives the cards back" "" bind_nic unbind "$NIC_WAN" "$NIC_LAN"
expect "e1000e and vmxnet3 have their kernel drivers again" "" drivers_are e1000e vmxnet3
dmesg >"$SHARE/dmesg"
mark "powering off"
