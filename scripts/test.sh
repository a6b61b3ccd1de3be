#!/usr/bin/env bash
# Everything that must hold before a change is accepted: format, lints, documentation, unit and property
# tests, and the whole appliance with real clients and servers in network namespaces.
#
# Usage: sudo scripts/test.sh [options] [-- filter...]
#
#   --quick       without the whole-appliance tests
#   --vm          also scripts/lab-vm.sh: sluice on emulated PCI network cards in a virtual machine
#   --no-setup    do not install packages or reserve hugepages
#   -h, --help    this text
#   filter...     names of whole-appliance tests to run, as for 'cargo test'
#
# Does all its set-up itself on Debian 12 with a Rust toolchain. Builds run as the user who called sudo;
# only the whole-appliance tests and the VM run as root. Every step runs even when an earlier one
# failed, unless it needs that one's result. Exit code 0 when all passed.
set -Eeuo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

quick=0 vm=0 with_setup=1 filters=()
ARGS=("$@")
while (($#)); do
    case $1 in
        --quick) quick=1 ;;
        --vm) vm=1 ;;
        --no-setup) with_setup=0 ;;
        -h | --help)
            help_from_header "$0"
            exit 0
            ;;
        --)
            shift
            filters=("$@")
            break
            ;;
        *) usage_error "unknown option '$1'" ;;
    esac
    shift
done
need_root "${ARGS[@]}"
arm_undo
on_exit hand_back_target

# --- Steps ------------------------------------------------------------------------------------

RESULTS=() FAILURES=0
# `run_step NAME command args...`: runs it, remembers how it went; succeeds when the command did.
run_step() {
    local name=$1 begin=$SECONDS code=0
    shift
    step "$name"
    "$@" || code=$?
    RESULTS+=("$code"$'\t'"$((SECONDS - begin))"$'\t'"$name")
    if ((code)); then
        FAILURES=$((FAILURES + 1))
        printf '%s==> FAILED: %s (status %s)%s\n' "$RED" "$name" "$code" "$PLAIN"
    fi
    return "$code"
}
skip_step() {
    RESULTS+=("skipped"$'\t'0$'\t'"$1: $2")
    FAILURES=$((FAILURES + 1))
    printf '%s==> SKIPPED: %s: %s%s\n' "$RED" "$1" "$2" "$PLAIN"
}
summary() {
    local line code seconds name word
    say
    step "Summary"
    for line in "${RESULTS[@]}"; do
        IFS=$'\t' read -r code seconds name <<<"$line"
        case $code in
            0) word="${GREEN}ok     " ;;
            skipped) word="${RED}SKIPPED" ;;
            *) word="${RED}FAILED " ;;
        esac
        printf '  %s%s %5d s  %s\n' "$word" "$PLAIN" "$seconds" "$name"
    done
}

# A toolchain installed with rustup's minimal profile lacks these.
ensure_component() {
    as_builder "$CARGO" "$1" --version >/dev/null 2>&1 && return
    say "adding the toolchain component $2"
    as_builder rustup component add "$2" || die "'cargo $1' is missing: 'rustup component add $2'"
}
lint_scripts() { (cd "$REPO" && shellcheck -x scripts/*.sh .ci/run); }
document() { as_builder env RUSTDOCFLAGS="-D warnings" "$CARGO" doc --workspace --no-deps; }
# Built as the builder, run as root against the release build of sluice: they create namespaces and open devices.
whole_appliance() {
    cargo_run test -p sluice-tests --no-run &&
        SLUICE_BIN="$TARGET/release/sluice" cargo_as_root test -p sluice-tests -- "${filters[@]}"
}

if ((with_setup)); then
    setup=(--test)
    if ((vm)); then setup+=(--vm); fi
    run_step "setup" "$REPO/scripts/setup.sh" "${setup[@]}" || {
        summary
        exit 1
    }
fi
find_cargo
ensure_component fmt rustfmt
ensure_component clippy clippy

run_step "scripts (shellcheck)" lint_scripts || true
run_step "format" cargo_run fmt --all -- --check || true
run_step "lints (clippy)" cargo_run clippy --workspace --all-targets -- -D warnings || true
run_step "documentation (rustdoc)" document || true
run_step "unit and property tests" cargo_run test --workspace --exclude sluice-tests || true
built=1
run_step "release build" cargo_run build --release -p sluice || built=0
if ((quick)); then
    say "whole-appliance tests left out (--quick)"
elif ((built)); then
    run_step "whole-appliance tests" whole_appliance || true
else
    skip_step "whole-appliance tests" "there is no release build"
fi
if ((vm)); then
    if ((built)); then
        run_step "bare metal in a box (lab-vm.sh)" "$REPO/scripts/lab-vm.sh" || true
    else
        skip_step "bare metal in a box (lab-vm.sh)" "there is no release build"
    fi
fi

summary
if ((FAILURES)); then
    say "${RED}$FAILURES of ${#RESULTS[@]} steps failed.${PLAIN}"
    exit 1
fi
say "${GREEN}All ${#RESULTS[@]} steps passed.${PLAIN}"
