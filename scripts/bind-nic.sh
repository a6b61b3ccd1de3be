#!/usr/bin/env bash
# Hands PCI network cards to DPDK, and back to the kernel.
#
# Usage: scripts/bind-nic.sh --list
#        scripts/bind-nic.sh status [NIC...]
#        sudo scripts/bind-nic.sh bind [--driver DRIVER] [--force] NIC...
#        sudo scripts/bind-nic.sh unbind NIC...
#
# NIC is a PCI address (0000:03:00.0, or 03:00.0) or the name of a network interface (enp3s0).
#
#   -l, --list, list  all network cards: driver, IOMMU group, interface, what speaks against binding
#   status            one line per NIC: "<address> <driver>", the driver "none" when there is none
#   bind              give the NIC to DPDK's driver; nothing happens if it has it already
#   unbind            give the NIC back to its kernel driver; nothing happens if it has it already
#   --driver DRIVER   vfio-pci or uio_pci_generic; by default the best one that works here:
#                       1. vfio-pci, when the card is behind an IOMMU: its DMA is confined to our memory
#                       2. vfio-pci in no-IOMMU mode, when the kernel has it: DMA is not confined
#                       3. uio_pci_generic: DMA is not confined, and the card needs a legacy interrupt
#   --force           bind even the card that carries the default route or an SSH session
#   -h, --help        this text
#
# A bound card has no interface: its addresses and routes are gone until 'unbind', and are not restored
# by it. Bindings do not survive a reboot; docs/bare-metal.md shows a unit file that repeats them.
set -Eeuo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PCI=/sys/bus/pci
# Remembers, until reboot, which kernel driver a card came from.
STATE=/run/sluice/bind-nic

# --- What sysfs says about a card -------------------------------------------------------------

# The last part of what a link points to. Shell builtins only: this runs for every card and question,
# and in the lab VM a started program costs a tenth of a second.
link_name() { if [[ -e $1 ]]; then (cd -P "$1" && printf '%s' "${PWD##*/}"); fi; }
# The content of a sysfs file, empty when there is none.
content() { if [[ -r $1 ]]; then printf '%s' "$(<"$1")"; fi; }
driver_of() { link_name "$PCI/devices/$1/driver"; }
group_of() { link_name "$PCI/devices/$1/iommu_group"; }
# No-IOMMU mode invents groups as well; those protect nothing.
has_iommu() {
    local group
    group="$(group_of "$1")"
    [[ -n $group && "$(content "/sys/kernel/iommu_groups/$group/name")" != vfio-noiommu ]]
}
interfaces_of() {
    local path
    # virtio cards keep theirs one level down, below their virtio device.
    for path in "$PCI/devices/$1"/net/* "$PCI/devices/$1"/virtio*/net/*; do
        if [[ -e $path ]]; then printf '%s\n' "${path##*/}"; fi
    done
}
is_nic() { [[ "$(content "$PCI/devices/$1/class")" == 0x02* ]]; }
all_nics() {
    local path
    for path in "$PCI/devices"/*; do
        if is_nic "${path##*/}"; then printf '%s\n' "${path##*/}"; fi
    done
}
# Reads lspci's names, once: it parses a large file each time. To be called outside $( ).
LSPCI=''
read_names() { if [[ -z $LSPCI ]] && have lspci; then LSPCI="$(lspci -D 2>/dev/null || true)"; fi; }
describe() {
    local line
    while read -r line; do
        if [[ $line == "$1 "* ]]; then
            printf '%s' "${line#* *: }"
            return
        fi
    done <<<"$LSPCI"
    printf 'PCI ID %s:%s' "$(content "$PCI/devices/$1/vendor")" "$(content "$PCI/devices/$1/device")"
}

# Turns what the user wrote into a full PCI address.
resolve() {
    local address=$1
    if [[ -e /sys/class/net/$1/device ]]; then
        address="$(readlink -f "/sys/class/net/$1/device")"
        # A virtio interface's device is the virtio one; its parent is the PCI card.
        if [[ "$(basename "$address")" == virtio* ]]; then address="$(dirname "$address")"; fi
        address="$(basename "$address")"
    elif [[ $1 =~ ^[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]$ ]]; then
        address="0000:$1"
    fi
    address="${address,,}"
    if [[ ! $address =~ ^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$ ]]; then
        if [[ -e /sys/class/net/$1 ]]; then die "'$1' is a virtual interface, not a PCI card: sluice reaches it as a virtual device (device = \"net_af_packet0\", args = \"iface=$1\")"; fi
        die "'$1' is neither a PCI address (0000:03:00.0) nor an interface here; see '$SELF --list'"
    fi
    [[ -e $PCI/devices/$address ]] || die "there is no PCI device $address; see '$SELF --list'"
    is_nic "$address" || read_names
    is_nic "$address" || die "$address is not a network card but: $(describe "$address")"
    printf '%s' "$address"
}

# --- What speaks against taking a card --------------------------------------------------------

# An interface and everything stacked on it: VLANs, bonds, bridges, macvlans.
with_uppers() {
    local upper
    printf '%s\n' "$1"
    for upper in "/sys/class/net/$1"/upper_*; do
        if [[ -e $upper ]]; then with_uppers "${upper##*/upper_}"; fi
    done
}

# Our ends of all SSH connections. SSH_CONNECTION does not survive sudo; the sockets do.
# To be called outside $( ): the answer is kept.
SSH_ADDRESSES=unknown
read_ssh_addresses() {
    [[ $SSH_ADDRESSES == unknown ]] || return 0
    SSH_ADDRESSES="$(
        if [[ -n "${SSH_CONNECTION:-}" ]]; then awk '{print $3}' <<<"$SSH_CONNECTION"; fi
        if have ss; then
            ss -tnH state established '( sport = :22 )' 2>/dev/null |
                awk '{ sub(/:[0-9]+$/, "", $3); gsub(/[][]|%.*|^\[?::ffff:/, "", $3); print $3 }'
        fi
    )"
}

# Prints why the card must stay with the kernel; nothing when it may go.
objection() {
    local nic=$1 interface stacked address
    for interface in $(interfaces_of "$nic"); do
        for stacked in $(with_uppers "$interface"); do
            if ip route show table all default dev "$stacked" 2>/dev/null | grep -q . ||
                ip -6 route show table all default dev "$stacked" 2>/dev/null | grep -qv '^unreachable'; then
                printf 'carries the default route (%s)' "$stacked"
                return
            fi
            for address in $SSH_ADDRESSES; do
                if ip -o addr show dev "$stacked" 2>/dev/null | grep -qF " $address/"; then
                    printf 'carries an SSH session (%s, %s)' "$stacked" "$address"
                    return
                fi
            done
        done
    done
}

# Other cards of the same IOMMU group that a kernel driver still holds: VFIO hands out whole groups.
group_holders() {
    local group path other driver
    group="$(group_of "$1")"
    for path in "/sys/kernel/iommu_groups/$group/devices"/*; do
        other="${path##*/}"
        if [[ $other == "$1" ]]; then continue; fi
        # Bridges (class 0x06) may stay with the kernel.
        if [[ "$(content "$PCI/devices/$other/class")" == 0x06* ]]; then continue; fi
        driver="$(driver_of "$other")"
        case $driver in '' | vfio-pci | pci-stub) ;; *) printf ' %s(%s)' "$other" "$driver" ;; esac
    done
}

# --- Choosing a driver ------------------------------------------------------------------------

load() { [[ -e $PCI/drivers/$2 ]] || { modprobe "$1" 2>/dev/null && [[ -e $PCI/drivers/$2 ]]; }; }
noiommu_switch=/sys/module/vfio/parameters/enable_unsafe_noiommu_mode
has_legacy_interrupt() { [[ "$(od -An -tu1 -j61 -N1 "$PCI/devices/$1/config" 2>/dev/null | tr -d ' ')" != 0 ]]; }

# Sets DRIVER and WHY.
choose_driver() {
    local nic=$1 hint=''
    DRIVER='' WHY=''
    if [[ $WANTED_DRIVER != uio_pci_generic ]]; then
        if has_iommu "$nic"; then
            if load vfio-pci vfio-pci; then
                local holders
                holders="$(group_holders "$nic")"
                [[ -z $holders ]] || die "$nic shares IOMMU group $(group_of "$nic") with devices that kernel drivers hold:$holders. Bind those too, or move the card to another slot"
                DRIVER=vfio-pci WHY="the card is behind an IOMMU (group $(group_of "$nic")): its DMA is confined to sluice's memory"
                return
            fi
            hint="the card is behind an IOMMU, but this kernel has no vfio-pci module"
        else
            modprobe vfio 2>/dev/null || true
            if [[ -e $noiommu_switch ]] && load vfio-pci vfio-pci && { echo 1 >"$noiommu_switch"; } 2>/dev/null; then
                DRIVER=vfio-pci WHY="no IOMMU covers the card, so vfio-pci runs in no-IOMMU mode: the card can write anywhere in memory"
                return
            fi
            if compgen -G '/sys/firmware/acpi/tables/DMAR*' >/dev/null; then
                hint="the machine has an IOMMU that the kernel does not use: boot with intel_iommu=on iommu=pt"
            elif compgen -G '/sys/firmware/acpi/tables/IVRS*' >/dev/null; then
                hint="the machine has an IOMMU that the kernel does not use for this card: boot with iommu=pt"
            else
                hint="no IOMMU (is VT-d or AMD-Vi switched on in the firmware?), and this kernel has no VFIO no-IOMMU mode"
            fi
        fi
        [[ $WANTED_DRIVER != vfio-pci ]] || die "vfio-pci cannot take $nic: $hint"
    fi
    if ! load uio_pci_generic uio_pci_generic; then
        die "no driver for $nic works here: ${hint:+$hint; }this kernel has no uio_pci_generic module"
    fi
    has_legacy_interrupt "$nic" ||
        die "no driver for $nic works here: ${hint:+$hint; }uio_pci_generic needs a legacy interrupt, which the card lacks (SR-IOV functions never have one)"
    DRIVER=uio_pci_generic WHY="${hint:-it was asked for}; the card can write anywhere in memory"
}

# --- Moving cards -----------------------------------------------------------------------------

release_driver() {
    local current
    current="$(driver_of "$1")"
    [[ -z $current ]] || echo "$1" >"$PCI/drivers/$current/unbind"
}
# Lets exactly DRIVER take the card, whatever its id tables say; empty clears the override.
override() { echo "$2" >"$PCI/devices/$1/driver_override"; }

to_kernel() {
    local nic=$1 original=''
    if [[ -r $STATE/$nic ]]; then original="$(<"$STATE/$nic")"; fi
    release_driver "$nic"
    override "$nic" ''
    # The driver's module may have been unloaded meanwhile.
    if [[ -n $original ]]; then modprobe "$original" 2>/dev/null || true; fi
    modprobe -- "$(<"$PCI/devices/$nic/modalias")" 2>/dev/null || true
    # A module that was just loaded has already taken the card.
    if [[ -z "$(driver_of "$nic")" && -n $original && -e $PCI/drivers/$original ]]; then
        echo "$nic" >"$PCI/drivers/$original/bind" 2>/dev/null || true
    fi
    if [[ -z "$(driver_of "$nic")" ]]; then echo "$nic" >"$PCI/drivers_probe" 2>/dev/null || true; fi
}

bind_one() {
    local nic=$1 current reason interfaces
    current="$(driver_of "$nic")"
    if [[ $current == vfio-pci || $current == uio_pci_generic ]] && [[ $WANTED_DRIVER == auto || $WANTED_DRIVER == "$current" ]]; then
        say "$nic: already bound to $current"
        return
    fi
    read_ssh_addresses
    reason="$(objection "$nic")"
    if [[ -n $reason ]]; then
        ((force)) || die "$nic $reason: refusing to cut this machine off. Use another card, or --force at the console"
        warn "$nic $reason; taken because of --force"
    fi
    case $current in
        mlx4_core | mlx5_core | mana)
            ((force)) || die "$nic is driven by $current: DPDK works through that driver, leave the card where it is and name $nic as the port's device"
            ;;
    esac
    choose_driver "$nic"
    interfaces="$(interfaces_of "$nic" | tr '\n' ' ')"
    if [[ $current != vfio-pci && $current != uio_pci_generic && -n $current ]]; then
        mkdir -p "$STATE"
        printf '%s\n' "$current" >"$STATE/$nic"
    fi
    release_driver "$nic"
    override "$nic" "$DRIVER"
    echo "$nic" >"$PCI/drivers_probe" 2>/dev/null || true
    if [[ "$(driver_of "$nic")" != "$DRIVER" ]]; then
        to_kernel "$nic"
        die "$DRIVER did not take $nic (see 'dmesg | tail'); the card is back with '$(driver_of "$nic")'"
    fi
    say "$nic: ${current:-no driver}${interfaces:+ (interface ${interfaces% })} -> $DRIVER: $WHY"
}

unbind_one() {
    local nic=$1 current
    current="$(driver_of "$nic")"
    case $current in
        vfio-pci | uio_pci_generic | '') ;;
        *)
            say "$nic: already with the kernel's $current"
            return
            ;;
    esac
    to_kernel "$nic"
    rm -f "$STATE/$nic"
    rmdir "$STATE" "$(dirname "$STATE")" 2>/dev/null || true
    [[ -n "$(driver_of "$nic")" ]] || die "$nic: no kernel driver takes it (is its module installed? 'modprobe -n -v $(<"$PCI/devices/$nic/modalias")')"
    # The interface appears a moment after the driver.
    wait_until 5 has_interface "$nic" || true
    say "$nic: ${current:-no driver} -> $(driver_of "$nic")$(interfaces_of "$nic" | sed 's/^/, interface /' | tr -d '\n')"
}
has_interface() { [[ -n "$(interfaces_of "$1")" ]]; }

list() {
    local nic note row='%-13s %-16s %-6s %-12s %s\n'
    [[ -n "$(all_nics)" ]] || {
        say "no PCI network cards here; virtual devices work without one (docs/lab.md)"
        return
    }
    read_names
    read_ssh_addresses
    # shellcheck disable=SC2059 # the format is ours
    printf "$row" ADDRESS DRIVER GROUP INTERFACE DESCRIPTION
    for nic in $(all_nics); do
        note="$(objection "$nic")"
        # shellcheck disable=SC2059
        printf "$row" "$nic" "$(driver_of "$nic" | grep . || echo none)" "$(group_of "$nic" | grep . || echo -)" \
            "$(interfaces_of "$nic" | paste -sd, | grep . || echo -)" "$(describe "$nic")${note:+ [$note]}"
    done
}

# --- Command line -----------------------------------------------------------------------------

ARGS=("$@")
command='' force=0 WANTED_DRIVER=auto nics=()
while (($#)); do
    case $1 in
        -h | --help)
            help_from_header "$0"
            exit 0
            ;;
        -l | --list | list) command=list ;;
        --force) force=1 ;;
        --driver)
            WANTED_DRIVER="${2:-}"
            [[ $WANTED_DRIVER =~ ^(auto|vfio-pci|uio_pci_generic)$ ]] || usage_error "--driver is vfio-pci or uio_pci_generic, found '${2:-nothing}'"
            shift
            ;;
        -*) usage_error "unknown option '$1'" ;;
        *) if [[ -z $command ]]; then command=$1; else nics+=("$1"); fi ;;
    esac
    shift
done

[[ -d $PCI/devices ]] || die "this machine has no PCI bus; virtual devices work without one (docs/lab.md)"
addresses=()
for nic in "${nics[@]}"; do
    address="$(resolve "$nic")"
    addresses+=("$address")
done
case $command in
    list) list ;;
    status)
        ((${#addresses[@]})) || mapfile -t addresses < <(all_nics)
        for nic in "${addresses[@]}"; do
            printf '%s %s\n' "$nic" "$(driver_of "$nic" | grep . || echo none)"
        done
        ;;
    bind | unbind)
        ((${#addresses[@]})) || usage_error "'$command' needs at least one NIC; see '$SELF --list'"
        need_root "${ARGS[@]}"
        for nic in "${addresses[@]}"; do "${command}_one" "$nic"; done
        ;;
    '') usage_error "what shall I do? list, status, bind or unbind" ;;
    *) usage_error "unknown command '$command': list, status, bind or unbind" ;;
esac
