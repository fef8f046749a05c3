#!/usr/bin/env bash
# The local stack: a standalone Redis, a Redis Cluster of six nodes and the proxy, on loopback, data under .local/.
#   local.sh up | down | stores | seed | get-redis
set -euo pipefail
cd "$(dirname "$0")/.."

LOCAL=.local
STANDALONE_PORT=6390
CLUSTER_PORTS=(7000 7001 7002 7003 7004 7005)
PROXY_PORT=6380
BINARY=target/release/cutover

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

get_redis() {
    command -v redis-server >/dev/null && command -v redis-cli >/dev/null && return
    local as=()
    [ "$(id -u)" = 0 ] || as=(sudo)
    if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || command -v sudo >/dev/null; }; then
        say "installing redis-server (Debian package)"
        "${as[@]}" apt-get update -qq
        # RUNLEVEL=1: the package must not start a server of its own.
        "${as[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server redis-tools >/dev/null
    fi
    command -v redis-server >/dev/null || fail "redis-server is missing; install Redis 7.0 or newer (Debian: apt install redis-server, macOS: brew install redis)"
}

answers() { redis-cli -p "$1" ping 2>/dev/null | grep -q PONG; }

wait_for() {
    for _ in $(seq 100); do answers "$1" && return; sleep 0.1; done
    fail "nothing answers on port $1; see $2"
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
    if ! redis-cli -p "${CLUSTER_PORTS[0]}" cluster info | grep -q cluster_state:ok; then
        # After a restart the nodes find each other by themselves; only a new one has to be made.
        if redis-cli -p "${CLUSTER_PORTS[0]}" cluster info | grep -q '^cluster_known_nodes:1\b'; then
            say "creating the cluster"
            redis-cli --cluster create "${CLUSTER_PORTS[@]/#/127.0.0.1:}" --cluster-replicas 1 --cluster-yes >"$LOCAL/cluster/create.log" ||
                fail "the cluster could not be created; see $LOCAL/cluster/create.log"
        fi
    fi
    for port in "${CLUSTER_PORTS[@]}"; do
        for _ in $(seq 300); do
            redis-cli -p "$port" cluster info | grep -q cluster_state:ok && continue 2
            sleep 0.1
        done
        fail "the cluster does not become ready; see $LOCAL/cluster/$port/redis.log"
    done
}

proxy_runs() { [ -f "$LOCAL/proxy.pid" ] && kill -0 "$(cat "$LOCAL/proxy.pid")" 2>/dev/null; }

proxy() {
    command -v cargo >/dev/null || fail "cargo is missing; install Rust from https://rustup.rs"
    say "building the proxy"
    cargo build --release --quiet
    if ! proxy_runs; then
        nohup "$BINARY" serve >>"$LOCAL/proxy.log" 2>&1 </dev/null &
        echo $! >"$LOCAL/proxy.pid"
    fi
    wait_for "$PROXY_PORT" "$LOCAL/proxy.log"
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
    if proxy_runs; then
        local pid
        pid=$(cat "$LOCAL/proxy.pid")
        kill "$pid"
        for _ in $(seq 150); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    fi
    rm -f "$LOCAL/proxy.pid"
    for file in "$LOCAL"/standalone/redis.pid "$LOCAL"/cluster/*/redis.pid; do
        [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null && say "stopped ${file%/redis.pid}"
    done
    return 0
}

case "${1:-}" in
    up) up ;;
    down) down ;;
    stores) stores ;;
    get-redis) get_redis ;;
    seed) seed ;;
    *) fail "usage: local.sh up|down|stores|seed" ;;
esac
