#!/usr/bin/env bash
# Installs what the tests and benchmarks need and is not there yet: Debian packages through
# apt-get, and two Rust programs into target/tools. Running it again does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="/usr/sbin:/sbin:$PATH"

OHA=1.16.0
CARGO_DENY=0.20.2
tools="$PWD/target/tools"

say() { echo "install: $*"; }

# command package
needed="nginx:nginx-light nghttpd:nghttp2-server h2load:nghttp2-client haproxy:haproxy
curl:curl openssl:openssl python3:python3 taskset:util-linux column:bsdextrautils cc:gcc"

missing=()
for pair in $needed; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if ((${#missing[@]})); then
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { say "root or sudo is needed for: ${missing[*]}"; exit 1; }
    as_root=(sudo -n)
  fi
  say "Debian packages: ${missing[*]}"
  log=$(mktemp)
  apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" </dev/null >>"$log" 2>&1; }
  if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; }; then
    tail -n 20 "$log"
    exit 1
  fi
  rm -f "$log"
fi

# A program of crates.io at exactly this version. Its build folder goes when it is installed.
# Without link-time optimisation: these tools are not what is measured.
cargo_tool() {
  local name=$1 version=$2
  shift 2
  if "$tools/bin/$name" --version 2>/dev/null | grep -qF "$version"; then return; fi
  say "$name $version (a few minutes)"
  local log
  log=$(mktemp)
  if ! CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo install "$name" --locked --version "$version" --root "$tools" \
    --target-dir "$tools/build" "$@" </dev/null >"$log" 2>&1; then
    tail -n 20 "$log"
    exit 1
  fi
  rm -f "$log"
  rm -rf "$tools/build"
}

cargo_tool oha "$OHA" --no-default-features --features rustls
cargo_tool cargo-deny "$CARGO_DENY" --debug
say "all there"
