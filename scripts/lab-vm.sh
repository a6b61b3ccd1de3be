#!/usr/bin/env bash
# Bare metal in a box: boots Debian's kernel in a virtual machine with two emulated PCI network cards
# (e1000e and vmxnet3) behind an IOMMU, hands them to DPDK with bind-nic.sh, runs sluice on them with
# hugepages = "require", and downloads through it from one network namespace to an nginx in another.
#
#   client namespace -- tap -- e1000e [ VM: sluice ] vmxnet3 -- tap -- server namespace (nginx)
#
# Usage: sudo scripts/lab-vm.sh [options]
#
#   --testpmd        run DPDK's testpmd as a wire in place of sluice: tests the lab itself
#   --no-iommu       a machine without an IOMMU: the cards go to uio_pci_generic instead of vfio-pci
#   --requests N     downloads per IP version (default 20)
#   --accel ACCEL    tcg (software emulation, the default: works everywhere) or kvm
#   --memory MIB     the VM's memory (default 2560)
#   --deadline S     seconds for the whole VM run (default 300)
#   --keep           keep the logs even when everything passed
#   -h, --help       this text
#
# Needs what 'scripts/setup.sh --test --vm' installs and, without --testpmd, target/release/sluice
# (or SLUICE_BIN). The VM sees this machine's root directory read-only, and writes go to its RAM.
# Prints a table of checks; exit code 0 when all passed. Logs of a failed run stay in target/lab/.
set -Eeuo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

mode=sluice iommu=1 requests=20 accel=tcg memory=2560 deadline=300 keep=0
ARGS=("$@")
number() { [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || usage_error "$1 needs a number, found '${2:-nothing}'"; }
while (($#)); do
    case $1 in
        --testpmd) mode=testpmd ;;
        --no-iommu) iommu=0 ;;
        --requests) number "$@" && requests=$2 && shift ;;
        --memory) number "$@" && memory=$2 && shift ;;
        --deadline) number "$@" && deadline=$2 && shift ;;
        --accel)
            [[ "${2:-}" =~ ^(tcg|kvm)$ ]] || usage_error "--accel is tcg or kvm, found '${2:-nothing}'"
            accel=$2
            shift
            ;;
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
need_tool qemu-system-x86_64 busybox cpio modprobe curl nginx ethtool ip
[[ "$(uname -m)" == x86_64 ]] || die "the lab VM is x86_64 only"
[[ -c /dev/net/tun ]] || modprobe tun 2>/dev/null || die "/dev/net/tun is missing: this kernel has no tap devices"
KERNEL_DIR="$(lab_kernel)"
[[ -n $KERNEL_DIR ]] || die "no kernel under $TARGET/lab/kernel: run 'sudo scripts/setup.sh --test --vm' first"
KERNEL_VERSION="$(basename "$KERNEL_DIR")"
SLUICE_BIN="$(realpath -m "${SLUICE_BIN:-$TARGET/release/sluice}")"
if [[ $mode == sluice ]]; then
    [[ -x $SLUICE_BIN ]] || die "$SLUICE_BIN is missing: 'cargo build --release -p sluice' first, or try the lab with --testpmd"
else
    need_tool dpdk-testpmd
fi

# Addresses. With testpmd, client and server share a wire; with sluice, it stands between two networks.
CLIENT4=198.51.100.1 CLIENT6=2001:db8:1::1
WAN4=198.51.100.2 WAN6=2001:db8:1::2 LAN4=10.0.0.1 LAN6=fd00:10::1
if [[ $mode == testpmd ]]; then
    SERVER4=198.51.100.5 SERVER6=2001:db8:1::5
    URL4="http://$SERVER4:8080/body" URL6="http://[$SERVER6]:8080/body"
else
    SERVER4=10.0.0.5 SERVER6=fd00:10::5
    URL4="http://198.51.100.10/body" URL6="http://[2001:db8:1::10]/body"
fi
# PCI addresses inside the VM.
NIC_WAN=0000:00:10.0 NIC_LAN=0000:00:11.0 NIC_MGMT=0000:00:12.0
driver=vfio-pci
((iommu)) || driver=uio_pci_generic

# --- Where this run's files live --------------------------------------------------------------

arm_undo
RUN="$TARGET/lab/run-$$"
SHARE="$RUN/share" # the VM's only writable view of this machine
mkdir -p "$SHARE" "$RUN/nginx"
PASSED=0
keep_or_remove_logs() {
    hand_back_target
    if ((PASSED && !keep)); then
        rm -rf "$RUN"
        return
    fi
    rm -rf "$TARGET/lab/last"
    # The disk image of the boot is of no interest.
    rm -f "$RUN/initramfs.gz"
    mv "$RUN" "$TARGET/lab/last"
    say "logs: $TARGET/lab/last (console.log, share/guest.log, share/app.out, nginx/)"
}
on_exit keep_or_remove_logs

# --- The initramfs: busybox, the modules that reach the root directory, and a few lines of shell ---

build_initramfs() {
    local root="$RUN/initramfs" module path
    mkdir -p "$root"/{bin,dev,proc,sys,modules,lower,ram,new}
    cp "$(command -v busybox)" "$root/bin/busybox"
    # In dependency order, each once.
    for module in virtio_pci 9pnet_virtio 9p overlay; do
        modprobe -d "$KERNEL_DIR" -S "$KERNEL_VERSION" --show-depends "$module" || die "the kernel package has no module '$module'"
    done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' >"$RUN/modules"
    while read -r path; do
        cp "$path" "$root/modules/"
        basename "$path"
    done <"$RUN/modules" >"$root/modules/order"
    cat >"$root/init" <<'INIT'
#!/bin/busybox sh
# Reaches the host's root directory over 9p, lays RAM over it, and goes on in lab-guest.sh there.
bb=/bin/busybox
die() { echo "lab: $*"; $bb sleep 1; $bb poweroff -f; }
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
while read -r m; do $bb insmod "/modules/$m" || die "insmod $m failed"; done </modules/order
nine=trans=virtio,version=9p2000.L,msize=262144
$bb mount -t 9p -o ro,cache=loose,$nine hostroot /lower || die "cannot mount the host's root directory"
$bb mount -t tmpfs -o size=50% ram /ram
$bb mkdir /ram/upper /ram/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/ram/upper,workdir=/ram/work overlay /new || die "cannot lay RAM over it"
$bb mkdir -p /new/sluice-lab /new/proc /new/sys /new/dev /new/run
$bb mount -t 9p -o cache=none,$nine labshare /new/sluice-lab || die "cannot mount the share"
for d in proc sys dev; do $bb mount --move /$d /new/$d; done
$bb mount -t tmpfs run /new/run
. /new/sluice-lab/env
exec $bb switch_root /new /bin/bash "$REPO/scripts/lab-guest.sh"
INIT
    chmod +x "$root/init"
    (cd "$root" && find . -print0 | cpio --null -o -H newc --quiet) | gzip -1 >"$RUN/initramfs.gz"
    rm -rf "$root"
}

write_sluice_config() {
    cat >"$SHARE/sluice.toml" <<TOML
[runtime]
cores = [1]
control_core = 0
hugepages = "require"

[[port]]
name = "wan"
device = "$NIC_WAN"
addresses = ["$WAN4/24", "$WAN6/64"]
gateway = ["$CLIENT4", "$CLIENT6"]

[[port]]
name = "lan"
device = "$NIC_LAN"
addresses = ["$LAN4/24", "$LAN6/64"]

[[service]]
name = "web"
listen = ["198.51.100.10:80"]
mode = "terminate"
proxy_protocol = "v2"
limits = { connections = 1000 }
[[service.upstream]]
address = "$SERVER4:80"

[[service]]
name = "web6"
listen = ["[2001:db8:1::10]:80"]
mode = "terminate"
proxy_protocol = "v2"
limits = { connections = 1000 }
[[service.upstream]]
address = "[$SERVER6]:80"

[metrics]
listen = "127.0.0.1:9150"
TOML
}

# --- Checks -----------------------------------------------------------------------------------

CHECKS="$RUN/checks" # lines "PASS<tab>what<tab>detail"
: >"$CHECKS"
check() { printf '%s\t%s\t%s\n' "$1" "$2" "${3:-}" >>"$CHECKS"; }
guest_got_to() { [[ -e $SHARE/$1 ]]; }

# `check_downloads NAME URL`: N downloads, and that nginx saw each client's own address and port.
check_downloads() {
    local name=$1 url=$2 log="$RUN/fetch-$1" ok seen
    : >"$log"
    fetch_many "$CLIENT_NS" "$requests" 30 "$url" "$RUN/nginx/www/body" "$log"
    ok="$(count_ok "$log")"
    if ((ok == requests)); then
        check PASS "$name: $requests downloads of 64 KiB" "all intact"
    else
        check FAIL "$name: $requests downloads of 64 KiB" "$ok intact; $(grep -m1 '^failed' "$log")"
    fi
    seen="$(count_seen "$log" "$RUN/nginx/access.log")"
    if ((seen == requests)); then
        check PASS "$name: client address and port in nginx's log" "$(awk '$1 == "ok" {print $2; exit}' "$log")"
    else
        check FAIL "$name: client address and port in nginx's log" "$seen of $requests; last: $(tail -n 1 "$RUN/nginx/access.log" 2>/dev/null)"
    fi
}

print_table() {
    local result what detail colour failed=0
    say
    while IFS=$'\t' read -r result what detail; do
        colour=$GREEN
        if [[ $result != PASS ]]; then colour=$RED failed=1; fi
        printf '  %s%s%s  %-58s %s\n' "$colour" "$result" "$PLAIN" "$what" "$detail"
    done <"$CHECKS"
    say
    return "$failed"
}

# --- Run --------------------------------------------------------------------------------------

started=$SECONDS
step "Preparing a VM ($KERNEL_VERSION, $accel) to run $mode"
build_initramfs
if [[ $mode == sluice ]]; then write_sluice_config; fi
{
    printf '%s=%q\n' REPO "$REPO" MODE "$mode" KERNEL_DIR "$KERNEL_DIR" SLUICE_BIN "$SLUICE_BIN" \
        NIC_WAN "$NIC_WAN" NIC_LAN "$NIC_LAN" NIC_MGMT "$NIC_MGMT" DRIVER "$driver" HUGEPAGES "$((memory / 6))"
} >"$SHARE/env"

netns_create vm && VM_NS=$NETNS
netns_create client && CLIENT_NS=$NETNS
netns_create server && SERVER_NS=$NETNS

# shellcheck disable=SC2054 # the commas are QEMU's
arguments=(
    -nodefaults -no-user-config -display none -monitor none -no-reboot
    -machine q35,kernel-irqchip=split -accel "$accel" -cpu max -smp 2 -m "$memory"
    -serial "file:$RUN/console.log"
    -kernel "$KERNEL_DIR/vmlinuz" -initrd "$RUN/initramfs.gz"
    -append "console=ttyS0 quiet panic=-1 intel_iommu=on iommu=pt"
    -fsdev "local,id=hostroot,path=/,security_model=none,readonly=on,multidevs=remap"
    -device "virtio-9p-pci,fsdev=hostroot,mount_tag=hostroot"
    -fsdev "local,id=labshare,path=$SHARE,security_model=none"
    -device "virtio-9p-pci,fsdev=labshare,mount_tag=labshare"
    # The taps are QEMU's own and vanish with it.
    -netdev "tap,id=wan,ifname=wan,script=no,downscript=no"
    -device "e1000e,netdev=wan,mac=52:54:00:5c:00:01,addr=10.0,romfile="
    -netdev "tap,id=lan,ifname=lan,script=no,downscript=no"
    -device "vmxnet3,netdev=lan,mac=52:54:00:5c:00:02,addr=11.0,romfile="
    # A third card plays the machine's own network: bind-nic.sh must refuse it.
    -netdev "user,id=mgmt,restrict=on"
    -device "virtio-net-pci,netdev=mgmt,mac=52:54:00:5c:00:03,addr=12.0,romfile="
)
if ((iommu)); then arguments+=(-device "intel-iommu,intremap=on,device-iotlb=on"); fi
ip netns exec "$VM_NS" qemu-system-x86_64 "${arguments[@]}" >"$RUN/qemu.log" 2>&1 </dev/null &
QEMU=$!
on_exit stop_pid "$QEMU" 2

# QEMU has opened its taps: now they can move to where client and server live.
tap_exists() { ip -n "$VM_NS" link show dev "$1"; }
for tap in wan lan; do
    wait_until_or_dead 20 "$QEMU" tap_exists "$tap" || die "QEMU did not start: $(tail -n 3 "$RUN/qemu.log")"
done
# `plug TAP NAMESPACE ADDRESS...`
plug() {
    local tap=$1 ns=$2 address
    shift 2
    ip -n "$VM_NS" link set "$tap" netns "$ns"
    # Full checksums on every frame: nothing behind the card would fill them in.
    ip netns exec "$ns" ethtool -K "$tap" tx off >/dev/null 2>&1
    # An IPv6 address is to be usable at once, without looking for duplicates first.
    sysctl_in "$ns" "net.ipv6.conf.$tap.accept_dad=0"
    for address in "$@"; do ip -n "$ns" addr add "$address" dev "$tap"; done
    ip -n "$ns" link set "$tap" up
}
plug wan "$CLIENT_NS" "$CLIENT4/24" "$CLIENT6/64"
plug lan "$SERVER_NS" "$SERVER4/24" "$SERVER6/64"
write_nginx_config "$RUN/nginx" "$SERVER4:80" "[$SERVER6]:80" "$SERVER4:8080 plain" "[$SERVER6]:8080 plain"
head -c 65536 /dev/urandom >"$RUN/nginx/www/body"
start_nginx "$SERVER_NS" "$RUN/nginx"

step "Booting; waiting for $mode to serve"
begin=$SECONDS
if wait_until_or_dead "$deadline" "$QEMU" guest_got_to ready; then
    check PASS "$mode serves on the VM's NICs" "$((SECONDS - begin)) s after power-on"
    step "Downloading through it"
    check_downloads IPv4 "$URL4"
    check_downloads IPv6 "$URL6"
else
    check FAIL "$mode serves on the VM's NICs" "$(tail -n 1 "$SHARE/app.out" 2>/dev/null || tail -n 1 "$RUN/console.log" 2>/dev/null || true)"
fi

step "Stopping $mode and the VM"
touch "$SHARE/stop"
vm_is_off() { ! alive "$QEMU"; }
if wait_until "$((deadline > SECONDS - begin ? deadline - (SECONDS - begin) : 1))" vm_is_off; then
    check PASS "the VM powered itself off" "whole run $((SECONDS - started)) s"
else
    check FAIL "the VM powered itself off" "ended after $deadline s; see console.log"
fi
if [[ -s $SHARE/results ]]; then
    cat "$CHECKS" >>"$SHARE/results"
    mv "$SHARE/results" "$CHECKS"
else
    check FAIL "the guest script ran" "no results; see console.log and share/guest.log"
fi
if [[ $mode == sluice && -s $SHARE/metrics ]]; then
    opened="$(metric_sum sluice_sessions_opened_total <"$SHARE/metrics")"
    if ((opened == 2 * requests)); then
        check PASS "sluice counts one session per download" "$opened"
    else
        check FAIL "sluice counts one session per download" "$opened for $((2 * requests)) downloads"
    fi
fi
if print_table; then
    PASSED=1
else
    say "last lines of $mode in the VM:"
    tail -n 15 "$SHARE/app.out" 2>/dev/null | sed 's/^/  | /' || true
    exit 1
fi
