# shellcheck shell=bash
# shellcheck disable=SC2034 # variables set here are read by the scripts that source this
# Common functions of sluice's scripts: messages, root and tool checks, an undo stack that runs on
# every way out (normal end, error, Ctrl-C), processes and namespaces that belong to one run,
# bounded waiting, and the Rust toolchain of whoever called us. Sourced, never executed:
#
#   set -Eeuo pipefail
#   source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
#
# Rules every script keeps: only processes and namespaces this run created are ended, by pid and by
# name; whatever is created is undone in reverse order; errors name the cause and the remedy.

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
SELF="$(basename "$0")"
# Cargo's target directory, also our place for logs and caches.
TARGET="${CARGO_TARGET_DIR:-$REPO/target}"
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# ---------------------------------------------------------------------------------------------
# Messages
# ---------------------------------------------------------------------------------------------

if [[ -t 1 && -z "${NO_COLOR:-}" ]]; then
    BOLD=$'\e[1m' RED=$'\e[31m' GREEN=$'\e[32m' YELLOW=$'\e[33m' PLAIN=$'\e[0m'
else
    BOLD='' RED='' GREEN='' YELLOW='' PLAIN=''
fi

say() { printf '%s\n' "$*"; }
step() { printf '%s==> %s%s\n' "$BOLD" "$*" "$PLAIN"; }
warn() { printf '%s%s: warning:%s %s\n' "$YELLOW" "$SELF" "$PLAIN" "$*" >&2; }
die() {
    printf '%s%s: error:%s %s\n' "$RED" "$SELF" "$PLAIN" "$*" >&2
    exit 1
}
# A wrong command line: exit code 2, as for sluice itself.
usage_error() {
    printf '%s%s: error:%s %s (try --help)\n' "$RED" "$SELF" "$PLAIN" "$*" >&2
    exit 2
}
# `help_from_header FILE`: the comment block under the #! line is the script's help text.
help_from_header() { sed -n '2,/^[^#]/{/^#/!d; s/^# \{0,1\}//; p}' "$1"; }

# ---------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------

# `need_root ARGUMENTS...`: the arguments appear in the advice.
need_root() {
    [[ $EUID -eq 0 ]] || die "this needs root: run 'sudo $0${*:+ $*}'"
}
have() { command -v "$1" >/dev/null 2>&1; }
need_tool() {
    local tool
    for tool in "$@"; do
        have "$tool" || die "'$tool' is missing: run 'sudo scripts/setup.sh --test --vm' first"
    done
}

# ---------------------------------------------------------------------------------------------
# Undo stack: `on_exit command args...` runs on the way out, last registered first.
# ---------------------------------------------------------------------------------------------

UNDO=()
on_exit() {
    local quoted
    printf -v quoted '%q ' "$@"
    UNDO+=("$quoted")
}
run_undo() {
    local code=$? i
    trap - EXIT ERR
    trap '' INT TERM HUP # a second Ctrl-C must not cut the clean-up short
    set +e
    for ((i = ${#UNDO[@]} - 1; i >= 0; i--)); do
        eval "${UNDO[i]}"
    done
    UNDO=()
    exit "$code"
}
# Call once at a script's start. Signals become ordinary exits with the conventional codes.
arm_undo() {
    trap run_undo EXIT
    # An unexpected failure says where it was; expected ones are caught or go through die.
    trap 'warn "line $LINENO: \"$BASH_COMMAND\" failed with status $?"' ERR
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# ---------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------

# `alive PID`: it runs and is this script's own child, or this very subshell's. A bare pid may meanwhile belong to somebody else.
alive() {
    local line
    read -r line 2>/dev/null <"/proc/$1/stat" || return 1
    line="${line##*) }" # "<state> <parent> ...", behind a name that may contain anything
    [[ $line != Z* && ($line == ?' '$$' '* || $line == ?' '$BASHPID' '*) ]]
}

# `stop_pid PID [GRACE]`: SIGTERM to one process, SIGKILL after GRACE seconds (default 5), and reaps it.
# Its exit status is left in STOPPED_STATUS for callers that care.
STOPPED_STATUS=0
stop_pid() {
    local pid=$1 grace=${2:-5} i
    STOPPED_STATUS=0
    if alive "$pid"; then
        kill -TERM "$pid" 2>/dev/null || true
        for ((i = 0; i < grace * 10; i++)); do
            alive "$pid" || break
            sleep 0.1
        done
        if alive "$pid"; then kill -KILL "$pid" 2>/dev/null || true; fi
    fi
    wait "$pid" 2>/dev/null || STOPPED_STATUS=$?
}

# `wait_until SECONDS command args...`: retries a quiet command until it succeeds or time is up.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# `wait_until_or_dead SECONDS PID command args...`: as wait_until, but gives up when PID ends.
wait_until_or_dead() {
    local deadline=$((SECONDS + $1)) pid=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= deadline)) || ! alive "$pid"; then return 1; fi
        sleep 0.1
    done
}

# ---------------------------------------------------------------------------------------------
# Network namespaces. Names carry this process's id, so runs side by side do not meet.
# ---------------------------------------------------------------------------------------------

# `netns_create ROLE`: creates the namespace "sluice-<ROLE>-<pid>", undone on exit; name in NETNS.
NETNS=''
netns_create() {
    NETNS="sluice-$1-$$"
    ip netns add "$NETNS" || die "cannot create the network namespace '$NETNS' (is this a container without CAP_SYS_ADMIN?)"
    on_exit netns_delete "$NETNS"
    ip -n "$NETNS" link set lo up
}
netns_delete() {
    local pid
    # Whatever still runs in there was started by us: the name is ours alone.
    for pid in $(ip netns pids "$1" 2>/dev/null); do
        kill -KILL "$pid" 2>/dev/null
    done
    ip netns del "$1" 2>/dev/null
}
sysctl_in() { ip netns exec "$1" sysctl -q -w "$2"; }

# ---------------------------------------------------------------------------------------------
# Servers both the demo and the lab use
# ---------------------------------------------------------------------------------------------

# `write_nginx_config DIR LISTEN...`: an nginx that reads PROXY headers on every LISTEN ("10.0.0.5:80",
# "[fd00::5]:80"; add " plain" for a port without them), serves DIR/www and logs to DIR/access.log
# one line per request: "<client address> <client port> <status> <request>".
write_nginx_config() {
    local dir=$1 listen
    shift
    mkdir -p "$dir/www" "$dir/tmp"
    {
        printf 'worker_processes 1;\ndaemon off;\npid %s/nginx.pid;\nerror_log %s/error.log;\n' "$dir" "$dir"
        # Run as root: the files lie wherever the repository does, which "nobody" may not be able to reach.
        printf 'user root;\nevents { worker_connections 4096; }\nhttp {\n'
        printf '  access_log off;\n  default_type text/plain;\n'
        local temp
        for temp in client_body fastcgi proxy scgi uwsgi; do
            printf '  %s_temp_path %s/tmp/%s;\n' "$temp" "$dir" "$temp"
        done
        # shellcheck disable=SC2016 # nginx's variables, not ours
        printf '  log_format proxied "$proxy_protocol_addr $proxy_protocol_port $status $request";\n'
        # shellcheck disable=SC2016
        printf '  log_format plain "$remote_addr $remote_port $status $request";\n'
        for listen in "$@"; do
            if [[ $listen == *' plain' ]]; then
                printf '  server { listen %s; root %s/www; access_log %s/access.log plain; }\n' "${listen% plain}" "$dir" "$dir"
            else
                printf '  server { listen %s proxy_protocol; root %s/www; access_log %s/access.log proxied; }\n' "$listen" "$dir" "$dir"
            fi
        done
        printf '}\n'
    } >"$dir/nginx.conf"
}

# `start_nginx NAMESPACE DIR`: runs it; the process is in NGINX_PID and ends with the script.
NGINX_PID=''
start_nginx() {
    local ns=$1 dir=$2
    ip netns exec "$ns" nginx -p "$dir" -c "$dir/nginx.conf" -e "$dir/error.log" >"$dir/nginx.out" 2>&1 </dev/null &
    NGINX_PID=$!
    on_exit stop_pid "$NGINX_PID" 3
    wait_until_or_dead 10 "$NGINX_PID" test -s "$dir/nginx.pid" ||
        die "nginx did not start: $(tail -n 3 "$dir/nginx.out" "$dir/error.log" 2>/dev/null)"
}

# ---------------------------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------------------------

# `fetch_many NAMESPACE COUNT SECONDS URL BODY LOG`: COUNT downloads of URL, one after the other and each
# on a connection of its own with SECONDS to finish, compared with the file BODY. One line per download
# goes to LOG: "ok <local address> <local port>" or "failed <reason>".
# shellcheck disable=SC2016 # the inner shell expands its own variables
fetch_many() {
    ip netns exec "$1" env -u http_proxy -u https_proxy -u all_proxy -u HTTP_PROXY -u HTTPS_PROXY -u ALL_PROXY \
        bash -c '
        count=$1 seconds=$2 url=$3 body=$4 log=$5
        for ((i = 0; i < count; i++)); do
            if ! out="$(curl -gsS --max-time "$seconds" -o "$log.body" -w "%{local_ip} %{local_port} %{http_code}" "$url" 2>&1)"; then
                echo "failed ${out//$'\''\n'\''/ }"
            elif [[ $out != *" 200" ]]; then
                echo "failed HTTP status ${out##* }"
            elif ! cmp -s "$body" "$log.body"; then
                echo "failed the body differs"
            else
                echo "ok ${out% *}"
            fi >>"$log"
        done
        rm -f "$log.body"' fetch_many "$2" "$3" "$4" "$5" "$6"
}
count_ok() { grep -c '^ok ' "$1" || true; }
count_failed() { grep -c '^failed ' "$1" || true; }
# `count_seen LOG ACCESS_LOG`: for how many of LOG's good downloads the server logged the client's very
# address and port.
count_seen() {
    awk 'FNR == NR { seen[$1 " " $2] = 1; next } $1 == "ok" && seen[$2 " " $3] { n++ } END { print n + 0 }' "$2" "$1"
}

# ---------------------------------------------------------------------------------------------
# Rust. Under sudo, builds run as the user who called sudo, with that user's toolchain, so that
# nothing in target/ or in the cargo home ends up owned by root.
# ---------------------------------------------------------------------------------------------

BUILD_USER='' # empty: build as ourselves
CARGO=''
find_cargo() {
    [[ -z $CARGO ]] || return 0
    local home
    if [[ $EUID -eq 0 && -n "${SUDO_USER:-}" && "$SUDO_USER" != root ]]; then
        home="$(getent passwd "$SUDO_USER" | cut -d: -f6)"
        CARGO="$(runuser -u "$SUDO_USER" -- env HOME="$home" PATH="$home/.cargo/bin:$PATH" sh -c 'command -v cargo' 2>/dev/null || true)"
        if [[ -n $CARGO ]]; then
            BUILD_USER=$SUDO_USER
            BUILD_HOME=$home
        fi
    fi
    if [[ -z $CARGO ]]; then
        BUILD_HOME="${HOME:-/root}"
        PATH="$BUILD_HOME/.cargo/bin:$PATH"
        CARGO="$(command -v cargo || true)"
    fi
    [[ -n $CARGO ]] || die "cargo is missing: install Rust from https://rustup.rs (Debian's own is too old), as the user who runs this"
    # A root-owned target/ (setup.sh --vm may have created it) would stop the builder.
    hand_back_target
    local wanted found
    wanted="$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' "$REPO/Cargo.toml")"
    found="$(as_builder "$CARGO" --version | awk '{print $2}')" || die "'$CARGO --version' failed: is a toolchain installed? ('rustup toolchain install stable')"
    if [[ -n $wanted && "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]]; then
        die "Rust $found at $CARGO is too old: sluice needs $wanted or later ('rustup update stable')"
    fi
}
# Runs a command as the builder, from the repository's top, without standard input.
BUILD_HOME="${HOME:-/root}"
as_builder() {
    if [[ -n $BUILD_USER ]]; then
        (cd "$REPO" && runuser -u "$BUILD_USER" -- env HOME="$BUILD_HOME" PATH="$(dirname "$CARGO"):$PATH" "$@" </dev/null)
    else
        (cd "$REPO" && "$@" </dev/null)
    fi
}
cargo_run() {
    find_cargo
    as_builder "$CARGO" "$@"
}
# The same cargo, toolchain and registry, but as root: for tests that need namespaces and devices.
# The caller has built everything as the builder before; what root leaves in target/ is handed back.
cargo_as_root() {
    find_cargo
    local code=0 homes=()
    if [[ -n $BUILD_USER ]]; then homes=(CARGO_HOME="$BUILD_HOME/.cargo" RUSTUP_HOME="$BUILD_HOME/.rustup"); fi
    (cd "$REPO" && env "${homes[@]}" PATH="$(dirname "$CARGO"):$PATH" "$CARGO" "$@" </dev/null) || code=$?
    hand_back_target
    return "$code"
}
# What root wrote into target/ goes to the builder, so that the next build without sudo works.
hand_back_target() {
    [[ -z $BUILD_USER || ! -d $TARGET ]] || chown -R --from=root "$BUILD_USER": "$TARGET"
}

# ---------------------------------------------------------------------------------------------
# Processors
# ---------------------------------------------------------------------------------------------

# Sets CONTROL_CORE and WORKER_CORE to the first two processors this process may use.
pick_cores() {
    local range list=() core
    for range in $(taskset -cp $$ | sed 's/.*: //; s/,/ /g'); do
        for ((core = ${range%-*}; core <= ${range#*-} && ${#list[@]} < 2; core++)); do list+=("$core"); done
    done
    ((${#list[@]} == 2)) || die "sluice needs two processors, one for a worker and one for everything else; this process may use ${#list[@]}"
    CONTROL_CORE=${list[0]} WORKER_CORE=${list[1]}
}

# ---------------------------------------------------------------------------------------------
# The lab VM's kernel
# ---------------------------------------------------------------------------------------------

# Prints the directory (vmlinuz, lib/modules/VERSION) of the newest kernel that setup.sh --vm unpacked,
# named after its version; nothing when there is none.
lab_kernel() {
    [[ -d $TARGET/lab/kernel ]] || return 0
    find "$TARGET/lab/kernel" -mindepth 2 -maxdepth 2 -name vmlinuz -printf '%h\n' | sort -V | tail -n 1
}

# ---------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------

# `metric_sum NAME [LABELS]` over Prometheus text on standard input: the sum of all series of NAME,
# or of those whose labels contain the text LABELS. Prints an integer; 0 when there is none.
metric_sum() {
    awk -v name="$1" -v labels="${2:-}" '
        $1 ~ "^" name "([{]|$)" && (labels == "" || index($0, labels)) { sum += $NF }
        END { printf "%d\n", sum }'
}
