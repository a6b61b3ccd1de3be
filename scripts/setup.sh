#!/usr/bin/env bash
# Makes a Debian 12 machine ready to build and run sluice. Safe to run again: it looks first, changes
# only what is missing, and says which is which.
#
# Usage: sudo scripts/setup.sh [options]
#
#   --test               also what the tests and the demo use: nginx, haproxy, OpenSSH, iperf3, curl,
#                        hping3, scapy, tcpdump, nftables, ethtool, valgrind, shellcheck
#   --vm                 also what scripts/lab-vm.sh uses: QEMU, busybox, and Debian's kernel, which is
#                        unpacked under target/lab/kernel and not installed
#   --no-packages        hugepages only: no packages, no network
#   --hugepages N        2 MiB hugepages to reserve (default 512 = 1 GiB, less on a small machine;
#                        0 = leave hugepages alone). Never lowers what is reserved already.
#   --persist            keep that reservation across reboots (/etc/sysctl.d/60-sluice.conf)
#   --release-hugepages  give all unused hugepages back, remove what --persist wrote, do nothing else
#   --dry-run            say what would change, change nothing
#   -h, --help           this text
#
# Services: installing nginx, haproxy or openssh-server would start them. Those that this script
# installs are neither started nor enabled; the tests start their own copies with their own
# configuration. A service that was there before is not touched.
set -Eeuo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# DPDK with its headers, what bindgen needs, and the tools the scripts are written with.
BASE_PACKAGES=(build-essential pkg-config clang libclang-dev libdpdk-dev dpdk dpdk-dev
    libpcap-dev libnuma-dev iproute2 kmod procps util-linux ca-certificates)
TEST_PACKAGES=(nginx-light haproxy openssh-server openssh-client iperf3 curl hping3 python3-scapy
    tcpdump nftables ethtool valgrind shellcheck)
VM_PACKAGES=(qemu-system-x86 busybox-static cpio curl ethtool nginx-light)
# Packages whose installation starts a service, and that service's unit.
declare -A SERVICES=([nginx-light]=nginx [haproxy]=haproxy [openssh-server]=ssh)

HUGEPAGES_DEFAULT=512
HUGEPAGES=''
NR_HUGEPAGES=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
FREE_HUGEPAGES=/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages
SYSCTL_FILE=/etc/sysctl.d/60-sluice.conf
with_packages=1 with_test=0 with_vm=0 persist=0 release=0 dry_run=0

ARGS=("$@")
while (($#)); do
    case $1 in
        --test) with_test=1 ;;
        --vm) with_vm=1 ;;
        --hugepages)
            [[ "${2:-}" =~ ^[0-9]+$ ]] || usage_error "--hugepages needs a count of 2 MiB pages, found '${2:-nothing}'"
            HUGEPAGES=$2
            shift
            ;;
        --no-packages) with_packages=0 ;;
        --persist) persist=1 ;;
        --release-hugepages) release=1 ;;
        --dry-run) dry_run=1 ;;
        -h | --help)
            help_from_header "$0"
            exit 0
            ;;
        *) usage_error "unknown option '$1'" ;;
    esac
    shift
done
if ((persist)) && [[ $HUGEPAGES == 0 ]]; then
    usage_error "--persist keeps a reservation, and --hugepages 0 asks for none"
fi

already() { printf '  ok       %s\n' "$*"; }
changing() {
    if ((dry_run)); then printf '  would    %s\n' "$*"; else printf '  change   %s\n' "$*"; fi
}

# --- Packages --------------------------------------------------------------------------------

installed() {
    # Any flavour of nginx will do; installing another would replace the one that is there.
    if [[ $1 == nginx-light ]] && have nginx; then return; fi
    [[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]
}

# While packages are installed, tells Debian's maintainer scripts not to start the services we
# bring in (invoke-rc.d and deb-systemd-invoke ask this file; 101 = "not allowed").
hold_services_back() {
    local policy=/usr/sbin/policy-rc.d
    if [[ -e $policy ]]; then
        # Whatever it lets start is stopped afterwards.
        already "$policy exists and decides which services may start; left alone"
        return
    fi
    # shellcheck disable=SC2016 # $1 belongs to the written script
    printf '#!/bin/sh\n# Temporary, from sluice scripts/setup.sh\ncase "$1" in %s) exit 101 ;; esac\nexit 0\n' "$(
        IFS='|'
        echo "$*"
    )" >"$policy"
    chmod 755 "$policy"
    on_exit rm -f "$policy"
}

disable_service() {
    if have systemctl; then
        systemctl disable --quiet "$1" >/dev/null 2>&1 || true
        systemctl stop "$1" >/dev/null 2>&1 || true
    elif have update-rc.d; then
        update-rc.d "$1" disable >/dev/null 2>&1 || true
    fi
}

APT_UPDATED=0
apt_update_once() {
    ((APT_UPDATED)) && return
    apt-get update -q </dev/null >"$APT_LOG" 2>&1 || {
        tail -n 5 "$APT_LOG" >&2
        die "'apt-get update' failed: are /etc/apt/sources.list and the network right?"
    }
    APT_UPDATED=1
}

install_packages() {
    local package missing=() services=()
    for package in "$@"; do
        installed "$package" || missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then
        already "$# packages installed"
        return
    fi
    (($# == ${#missing[@]})) || already "$(($# - ${#missing[@]})) of $# packages installed"
    changing "install: ${missing[*]}"
    for package in "${missing[@]}"; do
        if [[ -n "${SERVICES[$package]:-}" ]]; then
            services+=("${SERVICES[$package]}")
            changing "neither start nor enable the service '${SERVICES[$package]}' of $package; the tests start their own"
        fi
    done
    ((dry_run)) && return
    if ((${#services[@]})); then hold_services_back "${services[@]}"; fi
    apt_update_once
    # dpkg may be busy for a minute after boot (unattended upgrades): wait rather than fail.
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -q -y --no-install-recommends \
        "${missing[@]}" </dev/null >"$APT_LOG" 2>&1 || {
        tail -n 15 "$APT_LOG" >&2
        die "apt-get could not install: ${missing[*]}"
    }
    local service
    for service in "${services[@]}"; do disable_service "$service"; done
}

# --- Debian's kernel for the lab VM ----------------------------------------------------------

# Unpacked, not installed: an installed kernel would write to /boot and rebuild the boot loader.
fetch_kernel() {
    local cache="$TARGET/lab/kernel" package version have_kernel
    have_kernel="$(lab_kernel)"
    if [[ -n $have_kernel ]]; then
        already "kernel for the VM: $(basename "$have_kernel")"
        return
    fi
    changing "download Debian's kernel and unpack it under $cache (nothing is installed)"
    ((dry_run)) && return
    apt_update_once
    package="$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ {print $2; exit}')"
    [[ -n $package ]] || die "apt knows no kernel package behind 'linux-image-amd64'"
    version="${package#linux-image-}"
    local work="$cache/.unpack"
    rm -rf "$work"
    mkdir -p "$work/deb" "$work/root"
    on_exit rm -rf "$work"
    # apt drops to the user _apt for downloads, who may not be able to write here.
    (cd "$work/deb" && apt-get -o APT::Sandbox::User=root -q download "$package" </dev/null) >"$APT_LOG" 2>&1 || {
        tail -n 5 "$APT_LOG" >&2
        die "apt-get could not download $package"
    }
    dpkg-deb -x "$work"/deb/*.deb "$work/root"
    mv "$work/root/boot/vmlinuz-$version" "$work/root/vmlinuz"
    depmod -b "$work/root" "$version"
    mv "$work/root" "$cache/$version"
    already "kernel for the VM: $version"
}

# --- Hugepages -------------------------------------------------------------------------------

available_mib() { awk '/^MemAvailable:/ {print int($2 / 1024)}' /proc/meminfo; }

reserve_hugepages() {
    [[ -r $NR_HUGEPAGES ]] || {
        warn "this kernel has no 2 MiB hugepages: sluice will run with hugepages = \"off\" only"
        return
    }
    local current wanted=$HUGEPAGES limit got
    current="$(<"$NR_HUGEPAGES")"
    if [[ -z $wanted ]]; then
        # By default, at most a quarter of what is free goes to hugepages: nothing else can use them.
        limit=$((current + $(available_mib) / 4 / 2))
        wanted=$((HUGEPAGES_DEFAULT < limit ? HUGEPAGES_DEFAULT : limit))
    fi
    if ((current >= wanted)); then
        already "$current hugepages of 2 MiB reserved, $(<"$FREE_HUGEPAGES") free"
    else
        changing "reserve $wanted hugepages of 2 MiB (now $current); back with: sudo scripts/setup.sh --release-hugepages"
        if ((!dry_run)); then
            echo "$wanted" >"$NR_HUGEPAGES"
            got="$(<"$NR_HUGEPAGES")"
            if ((got < wanted)); then
                # Memory is fragmented: let the kernel tidy up once, then ask again.
                echo 1 >/proc/sys/vm/compact_memory 2>/dev/null || true
                echo "$wanted" >"$NR_HUGEPAGES"
                got="$(<"$NR_HUGEPAGES")"
            fi
            if ((got < wanted)); then
                warn "the kernel could reserve only $got of $wanted hugepages: memory is short or fragmented; reserve them at boot with the kernel argument hugepages=$wanted"
            fi
        fi
    fi
    if ((persist)); then
        local line="vm.nr_hugepages = $wanted"
        if grep -qxF "$line" "$SYSCTL_FILE" 2>/dev/null; then
            already "$SYSCTL_FILE keeps them across reboots"
        else
            changing "write '$line' to $SYSCTL_FILE"
            ((dry_run)) || printf '# Written by sluice scripts/setup.sh --persist\n%s\n' "$line" >"$SYSCTL_FILE"
        fi
    fi
}

mount_hugetlbfs() {
    local at
    grep -qw hugetlbfs /proc/filesystems || return 0
    at="$(awk '$3 == "hugetlbfs" && $4 !~ /pagesize=1024M/ {print $2; exit}' /proc/mounts)"
    if [[ -n $at ]]; then
        already "hugetlbfs is mounted on $at"
        return
    fi
    changing "mount hugetlbfs on /dev/hugepages"
    ((dry_run)) && return
    mkdir -p /dev/hugepages
    mount -t hugetlbfs -o pagesize=2M none /dev/hugepages
}

release_hugepages() {
    local current left
    current="$(<"$NR_HUGEPAGES")"
    if [[ -e $SYSCTL_FILE ]]; then
        changing "remove $SYSCTL_FILE"
        ((dry_run)) || rm -f "$SYSCTL_FILE"
    fi
    if ((current == 0)); then
        already "no hugepages reserved"
        return
    fi
    changing "release $(<"$FREE_HUGEPAGES") free of $current hugepages"
    ((dry_run)) && return
    echo 0 >"$NR_HUGEPAGES"
    left="$(<"$NR_HUGEPAGES")"
    ((left == 0)) || warn "$left hugepages are in use and go when their process ends"
}

# --- Main ------------------------------------------------------------------------------------

((dry_run)) || need_root "${ARGS[@]}"
arm_undo
APT_LOG="$(mktemp)"
on_exit rm -f "$APT_LOG"

if ((release)); then
    step "Hugepages"
    release_hugepages
    exit 0
fi

if ((with_packages)); then
    have apt-get || die "this script knows Debian's apt only; see docs/bare-metal.md for what sluice needs"
    # shellcheck disable=SC1091
    . /etc/os-release
    [[ "${ID:-}" == debian && "${VERSION_ID:-0}" -ge 12 ]] 2>/dev/null ||
        warn "written for Debian 12 (this is ${PRETTY_NAME:-unknown}): package names may differ"

    packages=("${BASE_PACKAGES[@]}")
    ((with_test)) && packages+=("${TEST_PACKAGES[@]}")
    ((with_vm)) && packages+=("${VM_PACKAGES[@]}")
    mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)

    step "Packages"
    install_packages "${packages[@]}"
    if ((with_vm)); then fetch_kernel; fi
fi
step "Hugepages"
if [[ $HUGEPAGES == 0 ]]; then
    already "left alone (--hugepages 0)"
else
    reserve_hugepages
    mount_hugetlbfs
fi
say "  note     virtual devices need nothing more; for real NICs see 'scripts/bind-nic.sh --list' and docs/bare-metal.md"
