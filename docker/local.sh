#!/usr/bin/env bash
# The local stack: a standalone Redis, a Redis Cluster of six nodes and the proxy, on loopback, data under .local/.
#   local.sh up | down | stores | seed | get-redis | get-chromium | get-promtool
set -euo pipefail
cd "$(dirname "$0")/.."

LOCAL=.local
STANDALONE_PORT=6390
CLUSTER_PORTS=(7000 7001 7002 7003 7004 7005)
PROXY_PORT=6380
BINARY=target/release/cutover

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# debian PACKAGE...: installs them where that can be done.
debian() {
    local as=()
    [ "$(id -u)" = 0 ] || as=(sudo)
    if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || command -v sudo >/dev/null; }; then
        say "installing $* (Debian packages)"
        "${as[@]}" apt-get update -qq
        # RUNLEVEL=1: a package must not start a server of its own.
        "${as[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            -o DPkg::Lock::Timeout=300 "$@" >/dev/null
    fi
}

# The tests of what stands in docker/ ask it.
get_promtool() {
    command -v promtool >/dev/null && return
    debian prometheus
    command -v promtool >/dev/null || fail "promtool is missing; install Prometheus (Debian: apt install prometheus, macOS: brew install prometheus)"
}

get_redis() {
    command -v redis-server >/dev/null && command -v redis-cli >/dev/null && return
    debian redis-server redis-tools
    command -v redis-server >/dev/null || fail "redis-server is missing; install Redis 7.0 or newer (Debian: apt install redis-server, macOS: brew install redis)"
}

# For the dashboard's test.
get_chromium() {
    local chromium=${CHROMIUM:-/usr/bin/chromium}
    [ -x "$chromium" ] && return
    debian chromium fonts-dejavu-core
    [ -x "$chromium" ] || fail "Chromium is missing at $chromium, and the dashboard cannot be tested without it; install it (Debian: apt install chromium) or say where one is: CHROMIUM=/path/to/chromium make test"
}

answers() { redis-cli -p "$1" ping 2>/dev/null | grep -q PONG; }

wait_for() {
    for _ in $(seq 100); do answers "$1" && return; sleep 0.1; done
    fail "nothing answers on port $1; see $2"
}

# The command line of a process; nothing if there is none.
command_of() {
    if [ -d /proc/self ]; then
        tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" || true
    else
        ps -p "$1" -o args= || true
    fi
}

# is_process PID PATTERN: there is one, and it is still the one that is meant.
is_process() { [[ "$(command_of "$1")" == $2 ]]; }

# runs PIDFILE PATTERN
runs() {
    local pid
    pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && is_process "$pid" "$2"
}

# stop NAME PIDFILE PATTERN: asks it to end, and waits until it has.
stop() {
    runs "$2" "$3" || return 0
    local pid
    pid=$(cat "$2")
    kill "$pid"
    for _ in $(seq 200); do
        is_process "$pid" "$3" || { say "stopped $1"; return; }
        sleep 0.1
    done
    say "$1 did not end within 20 s of SIGTERM: killing it"
    kill -9 "$pid"
}

# start_redis DIRECTORY PORT [ARGUMENTS]
start_redis() {
    local directory=$1 port=$2
    shift 2
    mkdir -p "$directory"
    if answers "$port"; then
        local theirs
        theirs=$(redis-cli -p "$port" config get dir | tail -1)
        [ "$theirs" = "$(realpath "$directory")" ] || fail "port $port is taken by another Redis (its data is in $theirs); stop it first"
        return
    fi
    redis-server --port "$port" --bind 127.0.0.1 --dir "$(realpath "$directory")" --daemonize yes \
        --logfile redis.log --pidfile redis.pid --appendonly yes --save '' "$@" >/dev/null
    wait_for "$port" "$directory/redis.log"
}

stores() {
    get_redis
    start_redis "$LOCAL/standalone" "$STANDALONE_PORT"
    for port in "${CLUSTER_PORTS[@]}"; do
        start_redis "$LOCAL/cluster/$port" "$port" --cluster-enabled yes --cluster-config-file nodes.conf --cluster-node-timeout 5000
    done
    # After a restart the nodes find each other by themselves; only new ones have to be made a cluster.
    local info
    info=$(redis-cli -p "${CLUSTER_PORTS[0]}" cluster info)
    if grep -q '^cluster_known_nodes:1\b' <<<"$info"; then
        say "creating the cluster"
        redis-cli --cluster create "${CLUSTER_PORTS[@]/#/127.0.0.1:}" --cluster-replicas 1 --cluster-yes >"$LOCAL/cluster/create.log" ||
            fail "the cluster could not be created; see $LOCAL/cluster/create.log"
    elif ! grep -q '^cluster_slots_assigned:16384\b' <<<"$info"; then
        fail "the cluster was left half made; make down, rm -r $LOCAL/cluster, make up"
    fi
    for port in "${CLUSTER_PORTS[@]}"; do
        for _ in $(seq 300); do
            redis-cli -p "$port" cluster info | grep -q cluster_state:ok && continue 2
            sleep 0.1
        done
        fail "the cluster does not become ready; see $LOCAL/cluster/$port/redis.log"
    done
}

proxy_runs() { runs "$LOCAL/proxy.pid" "*cutover serve*"; }

proxy() {
    command -v cargo >/dev/null || fail "cargo is missing; install Rust from https://rustup.rs"
    say "building the proxy (the first time takes some minutes)"
    cargo build --release --locked --quiet
    if proxy_runs; then
        [ "$(cksum <"$BINARY")" != "$(cat "$LOCAL/proxy.cksum" 2>/dev/null)" ] || return 0
        say "the proxy that runs is an older build: restarting it"
        stop "the proxy" "$LOCAL/proxy.pid" "*cutover serve*"
    elif answers "$PROXY_PORT"; then
        fail "port $PROXY_PORT is taken by another program that answers as a Redis; stop it first"
    fi
    cksum <"$BINARY" >"$LOCAL/proxy.cksum"
    # A process group of its own (set -m), so that a Ctrl-C meant for the demo does not end the proxy.
    set -m
    nohup "$BINARY" serve >>"$LOCAL/proxy.log" 2>&1 </dev/null &
    set +m
    echo $! >"$LOCAL/proxy.pid"
    for _ in $(seq 100); do
        answers "$PROXY_PORT" && return
        sleep 0.1
        proxy_runs || { tail -n 5 "$LOCAL/proxy.log" >&2; fail "the proxy ended at once; the lines above are from $LOCAL/proxy.log"; }
    done
    fail "the proxy does not answer on port $PROXY_PORT; see $LOCAL/proxy.log"
}

seed() {
    answers "$PROXY_PORT" || fail "the proxy does not run; make up"
    [ "$(redis-cli -p "$PROXY_PORT" exists provider:7:profile)" = 1 ] && return
    for provider in 7 8 9; do
        for n in $(seq 50); do
            printf 'SET provider:%s:page:%s "page %s of provider %s" EX 86400\n' "$provider" "$n" "$n" "$provider"
            printf 'SET :1:provider:%s:session:%s session-%s EX 3600\n' "$provider" "$n" "$n"
            printf 'ZADD provider:%s:ranking %s item-%s\n' "$provider" "$n" "$n"
        done
        printf 'HSET provider:%s:profile name "Provider %s" plan gold\n' "$provider" "$provider"
        printf 'RPUSH provider:%s:queue first second third\n' "$provider"
        printf 'SADD provider:%s:tags red green blue\n' "$provider"
        printf 'XADD provider:%s:events * kind signup\n' "$provider"
    done | redis-cli -p "$PROXY_PORT" >"$LOCAL/seed.log"
    if grep -q '^(error)\|^ERR' "$LOCAL/seed.log"; then fail "seeding failed; see $LOCAL/seed.log"; fi
}

up() {
    mkdir -p "$LOCAL"
    stores
    proxy
    seed
    # The proxy answers a PING by itself; ready it is with both stores.
    for _ in $(seq 100); do
        "$BINARY" health >/dev/null 2>&1 && break
        sleep 0.1
    done
    say ""
    say "REDIS_URL=redis://127.0.0.1:$PROXY_PORT/0"
    say "dashboard: http://127.0.0.1:9380/"
    say ""
    say "providers 7, 8 and 9 have sample data; move one by changing its word in proxy.toml, or:"
    say "  $BINARY move 7 --to dual-standalone"
    say "  $BINARY status"
    say "make down ends it all."
}

down() {
    stop "the proxy" "$LOCAL/proxy.pid" "*cutover serve*"
    rm -f "$LOCAL/proxy.pid"
    stop "the standalone" "$LOCAL/standalone/redis.pid" "*redis-server*:$STANDALONE_PORT*"
    for port in "${CLUSTER_PORTS[@]}"; do
        stop "cluster node $port" "$LOCAL/cluster/$port/redis.pid" "*redis-server*:$port*"
    done
}

case "${1:-}" in
    up) up ;;
    down) down ;;
    stores) stores ;;
    get-redis) get_redis ;;
    get-chromium) get_chromium ;;
    get-promtool) get_promtool ;;
    seed) seed ;;
    *) fail "usage: local.sh up|down|stores|seed|get-redis|get-chromium|get-promtool" ;;
esac
