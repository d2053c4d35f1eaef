#!/usr/bin/env bash
# Installs what the tests and benchmarks need and is not there yet: Debian packages through
# apt-get, and two Rust programs and a collector of PyPI into target/tools. Running it again does
# nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="/usr/sbin:/sbin:$PATH"

OHA=1.16.0
CARGO_DENY=0.20.2
ROTEL=0.0.1a15
tools="$PWD/target/tools"

say() { echo "install: $*"; }

# command package
needed="nginx:nginx-light nghttpd:nghttp2-server h2load:nghttp2-client haproxy:haproxy
curl:curl openssl:openssl python3:python3 pip3:python3-pip taskset:util-linux column:bsdextrautils cc:gcc
ip:iproute2 nsenter:util-linux unshare:util-linux setpriv:util-linux"

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

# Of Debian's `prometheus` only promtool is taken, out of the package: to install it would start a
# daemon that nobody here asked for.
if ! command -v promtool >/dev/null && [ ! -x "$tools/bin/promtool" ]; then
  say "promtool"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  if ! (cd "$work" && apt-get -qq download prometheus >log 2>&1); then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    "${as_root[@]}" apt-get -qq update </dev/null >"$work/log" 2>&1 || true
    if ! (cd "$work" && apt-get -qq download prometheus >>log 2>&1); then
      tail -n 20 "$work/log"
      exit 1
    fi
  fi
  dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar -x -C "$work" ./usr/bin/promtool
  install -D "$work/usr/bin/promtool" "$tools/bin/promtool"
  rm -rf "$work"
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

# The wheel is little more than the binary of an OpenTelemetry collector. It is built for one
# version of Python, of which nothing is used, and for x86_64 only: elsewhere its tests are skipped.
if [ "$(uname -m)" != x86_64 ]; then
  say "rotel $ROTEL is not there for $(uname -m); tests that need it are skipped"
elif ! [ -d "$tools/rotel/rotel-$ROTEL.dist-info" ]; then
  say "rotel $ROTEL"
  rm -rf "$tools/rotel"
  PIP_ROOT_USER_ACTION=ignore pip3 install --quiet --no-deps --only-binary=:all: --python-version 3.11 \
    --target "$tools/rotel" "rotel==$ROTEL"
  chmod +x "$tools/rotel/rotel/rotel-agent"
  mkdir -p "$tools/bin"
  ln -sf "$tools/rotel/rotel/rotel-agent" "$tools/bin/rotel-agent"
fi
say "all there"
