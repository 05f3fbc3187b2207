#!/usr/bin/env bash
# Makes sure that the programs are there that the tests start for themselves: PostgreSQL and Redis.
# The tests run private instances in temporary folders; a running server is never touched.
# Installs with apt-get as root or with `sudo -n`; otherwise says what to install.
# TOLLGATE_NO_INSTALL=1 turns installing off.
set -euo pipefail

has_postgres() {
    command -v initdb > /dev/null && command -v postgres > /dev/null && return
    local bin
    for bin in /usr/lib/postgresql/*/bin; do
        [ -x "$bin/initdb" ] && [ -x "$bin/postgres" ] && return
    done
    return 1
}

packages=()
has_postgres || packages+=(postgresql)
command -v redis-server > /dev/null || packages+=(redis-server)
# setpriv, because PostgreSQL refuses to run as root; kill as a program and not only as a word of the shell.
[ "$(id -u)" != 0 ] || command -v setpriv > /dev/null || packages+=(util-linux)
type -P kill > /dev/null || packages+=(procps)
[ ${#packages[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
    if command -v sudo > /dev/null && sudo -n true 2> /dev/null; then as_root=(sudo -n); else as_root=(false); fi
fi
if [ -n "${TOLLGATE_NO_INSTALL:-}" ] || ! command -v apt-get > /dev/null || [ "${as_root[*]-}" = false ]; then
    {
        echo "the tests need programs that are not here: ${packages[*]} (Debian's names)"
        echo "    Debian, Ubuntu: sudo apt-get install ${packages[*]}"
        echo "    Fedora:         sudo dnf install postgresql-server redis"
        echo "    macOS:          brew install postgresql redis"
    } >&2
    exit 1
fi

echo "installing for the tests: ${packages[*]}"
quietly() { # COMMAND...: its output only when it fails
    local log
    log=$(mktemp)
    if ! "$@" > "$log" 2>&1 < /dev/null; then
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
# Without lists, or with old ones, the packages cannot be had.
quietly "${apt[@]}" update || echo "apt-get update failed; trying with the lists that are here" >&2
quietly "${apt[@]}" install --no-install-recommends "${packages[@]}"
has_postgres || { echo "PostgreSQL's initdb and postgres are still not to be found" >&2; exit 1; }
