#!/usr/bin/env bash
# The long form of the whole-appliance tests of short connections, for a night: thousands of each kind over links that lose 1, 3 and 10%
# of the packets in either direction, and thousands at once that echo through rings that overflow; through sluice in terminate and in
# splice mode, and through HAProxy in sluice's place.
#
#   client -- link that loses -- [ sluice or haproxy ] -- link that loses -- server
#
# Everything is on this machine, in network namespaces. Writes date and results into the table of docs/testing.md, which says what each
# column means.
#
# Usage: sudo scripts/night.sh [options]
#
#   --count N       connections of each kind (default 3000)
#   --loss LIST     percents, such as "1,3,10"; 0 stands for the echoes without loss (default "0,1,3,10")
#   --at-once N     connections at once where links lose (default 400)
#   --patience S    seconds that a connection may take (default 150)
#   --captures DIR  where records of connections that fail go (default target/night)
#   --print         print the table, leave docs/testing.md alone
#   --no-setup      do not install packages or reserve hugepages
#   --no-build      use what is built
#   -h, --help      this text
#
# Exit code 0 when sluice did what docs/testing.md asks, 1 when not. Takes about half an hour on two processors.
set -Eeuo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

count=3000 loss=0,1,3,10 at_once=400 patience=150 captures="$TARGET/night" print=0 with_setup=1 with_build=1
ARGS=("$@")
number() { [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || usage_error "$1 needs a number, found '${2:-nothing}'"; }
while (($#)); do
    case $1 in
        --count) number "$@" && count=$2 && shift ;;
        --at-once) number "$@" && at_once=$2 && shift ;;
        --patience) number "$@" && patience=$2 && shift ;;
        --loss)
            [[ "${2:-}" =~ ^[0-9]{1,2}(,[0-9]{1,2})*$ ]] || usage_error "--loss needs percents such as '1,3,10', found '${2:-nothing}'"
            loss=$2 && shift
            ;;
        --captures)
            [[ -n "${2:-}" ]] || usage_error "--captures needs a directory"
            captures=$2 && shift
            ;;
        --print) print=1 ;;
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
on_exit hand_back_target

if ((with_setup)); then
    step "Setting up (scripts/setup.sh --test)"
    "$REPO/scripts/setup.sh" --test
fi
need_tool haproxy nft ip tc ethtool setpriv
if ((with_build)); then
    step "Building the release"
    cargo_run build --release -p sluice
    cargo_run build --release -p sluice-tests --bin sluice-closings
fi
SLUICE_BIN="$(realpath -m "${SLUICE_BIN:-$TARGET/release/sluice}")"
CLOSINGS="$TARGET/release/sluice-closings"
[[ -x $SLUICE_BIN && -x $CLOSINGS ]] || die "sluice or sluice-closings is not built: leave --no-build out"

DOC="$REPO/docs/testing.md"
# Said now and not after half an hour.
((print)) || [[ $(grep -c '^<!-- night: \(begin\|end\)' "$DOC") == 2 ]] || die "$DOC has lost the marks of its table"

WORK=$(mktemp -d)
on_exit rm -rf "$WORK"
mkdir -p "$captures"

step "$count connections of each kind at $loss% loss; failures are recorded in $captures"
code=0
SLUICE_BIN="$SLUICE_BIN" SLUICE_CAPTURES="$(realpath "$captures")" "$CLOSINGS" \
    --count "$count" --loss "$loss" --at-once "$at_once" --patience "$patience" >"$WORK/table" </dev/null || code=$?
[[ -s $WORK/table ]] || die "there is no result: sluice-closings ended with status $code"

# The build's own words: which version, and whether the tree holds more than its commit.
version=$(as_builder git describe --always --dirty 2>/dev/null || echo "an unknown commit")
{
    printf '%s, %s, Linux %s, %s processors, HAProxy %s: %s connections of each kind.\n\n' \
        "$(date -u +%Y-%m-%d)" "$version" "$(uname -r)" "$(nproc)" "$(haproxy -v | awk 'NR == 1 { print $3 }')" "$count"
    cat "$WORK/table"
} >"$WORK/result"

say
cat "$WORK/result"
if ! ((print)); then
    # Between the two marks stands what the last run found.
    awk -v result="$WORK/result" '
        /^<!-- night: begin/ { print; while ((getline line < result) > 0) print line; skipping = 1 }
        /^<!-- night: end/ { skipping = 0 }
        !skipping { print }' "$DOC" >"$WORK/doc"
    # Written into the file that is there, so that it keeps its owner.
    cat "$WORK/doc" >"$DOC"
    say
    say "written into docs/testing.md"
fi
exit "$code"
