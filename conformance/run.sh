#!/usr/bin/env bash
# Runs official clients of every protocol, and attacks on HTTP/2, against a real suite on a free port.
# Installs the clients into target/conformance. Ends with 0 and says so where node, npm or python3 are not there,
# unless CONFORMANCE=required.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD/conformance
work=$PWD/target/conformance
# shellcheck source=versions.env
. "$here/versions.env"

say() { printf '\n== %s\n' "$1"; }
missing=()
for program in node npm python3; do command -v "$program" > /dev/null || missing+=("$program"); done
python3 -m pip --version > /dev/null 2>&1 || missing+=(pip)
if [ ${#missing[@]} -gt 0 ]; then
    echo "conformance: NOT RUN, these are not installed: ${missing[*]}"
    [ "${CONFORMANCE:-}" != required ]
    exit
fi

install() { # MARK COMMAND...: once for each list of versions
    local mark=$work/$1.installed
    if [ "$(cat "$mark" 2> /dev/null)" = "$2" ]; then return; fi
    local list=$2
    shift 2
    local log=$work/install.log
    "$@" > "$log" 2>&1 || { cat "$log" >&2; return 1; }
    printf '%s' "$list" > "$mark"
}
mkdir -p "$work/js" "$work/py"
say "official clients: $NPM $PYPI"
[ -f "$work/js/package.json" ] || echo '{"private":true,"type":"module"}' > "$work/js/package.json"
# shellcheck disable=SC2086
install npm "$NPM" npm --prefix "$work/js" install --no-audit --no-fund --save-exact $NPM
# shellcheck disable=SC2086
install pip "$PYPI" python3 -m pip install --quiet --disable-pip-version-check --upgrade --target "$work/py" $PYPI

say "descriptors and Python code, made from proto/"
export PYTHONPATH=$work/py:$work/gen PYTHONDONTWRITEBYTECODE=1
rm -rf "$work/gen"; mkdir -p "$work/gen"
(cd proto && find tollgate google -name '*.proto' -print0 | sort -z | xargs -0 \
    python3 -m grpc_tools.protoc -I . --include_imports --descriptor_set_out="$work/gen/descriptors.bin" \
        --python_out="$work/gen" --grpc_python_out="$work/gen")

say "the suite"
# As a part of the tests, whose features of dependencies it shares: nothing is compiled a second time.
${CARGO:-cargo} test --quiet --locked --workspace --test access --no-run
data=$(mktemp -d)
target/debug/tollgate up --data-dir "$data" --listen 127.0.0.1:0 --config "$here/suite.toml" \
    > "$data/out" 2> "$data/log" &
suite=$!
finish() {
    local status=$?
    kill "$suite" 2> /dev/null || true
    wait "$suite" 2> /dev/null || true
    [ "$status" = 0 ] || { echo "the end of the suite's log:" >&2; tail -n 40 "$data/log" >&2; }
    rm -rf "$data"
    exit "$status"
}
trap finish EXIT
for _ in $(seq 600); do
    grep -q '^ready ' "$data/out" 2> /dev/null && break
    kill -0 "$suite" 2> /dev/null || { echo "the suite died" >&2; exit 1; }
    sleep 0.1
done
EDGE=$(sed -n 's/^ready //p' "$data/out")
[ -n "$EDGE" ] || { echo "the suite did not become ready" >&2; exit 1; }
CA=$data/tls/ca.pem
export EDGE CA NODE_EXTRA_CA_CERTS=$CA DESCRIPTORS=$work/gen/descriptors.bin STAGE=$data/stage.json
echo "$EDGE"

# node looks for packages from where a script lies.
cp "$here"/*.mjs "$work/js/"
say "an account, a gateway: Connect with nothing but the standard library"
python3 "$here/stage.py"
for script in connect.mjs grpc_web.mjs socket.mjs; do
    say "$script"
    (cd "$work/js" && node "$script")
done
for script in native.py attacks.py; do
    say "$script"
    python3 "$here/$script"
done
kill -0 "$suite" || { echo "the suite died" >&2; exit 1; }
say "conformance: all is well"
