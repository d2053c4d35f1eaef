#!/usr/bin/env bash
# Installs what the tests and benchmarks need and is not there yet: Debian packages through
# apt-get, and two Rust programs, a collector of PyPI, promtool and a Docker engine into
# target/tools. Running it again does nothing.
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
ip:iproute2 nsenter:util-linux unshare:util-linux setpriv:util-linux systemd-analyze:systemd valgrind:valgrind"

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)

missing=()
for pair in $needed; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if ((${#missing[@]})); then
  if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
    say "root or sudo is needed for: ${missing[*]}"
    exit 1
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

# Unpacks Debian packages into a folder without installing them: that would start daemons that nobody
# here asked for.
unpack() {
  local to=$1 package
  shift
  mkdir -p "$to/packages"
  if ! (cd "$to/packages" && apt-get -qq download "$@" >../log 2>&1); then
    "${as_root[@]}" apt-get -qq update </dev/null >"$to/log" 2>&1 || true
    if ! (cd "$to/packages" && apt-get -qq download "$@" >>../log 2>&1); then
      tail -n 20 "$to/log"
      exit 1
    fi
  fi
  for package in "$to"/packages/*.deb; do dpkg-deb --extract "$package" "$to"; done
  rm -r "$to/packages" "$to/log"
}

if ! command -v promtool >/dev/null && [ ! -x "$tools/bin/promtool" ]; then
  say "promtool"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  unpack "$work" prometheus
  install -D "$work/usr/bin/promtool" "$tools/bin/promtool"
  rm -rf "$work"
fi

# A Docker engine that a test starts for itself, and what an image is based on there: the C library
# and what Debian's own minimal images have of folders.
docker=$tools/docker
if [ ! -e "$docker/base.tar" ]; then
  say "a Docker engine"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  unpack "$work/engine" docker.io containerd runc
  rm -rf "$docker"
  for program in usr/bin/{docker,containerd,containerd-shim-runc-v2} usr/sbin/{dockerd,runc}; do
    install -D "$work/engine/$program" "$docker/$program"
  done
  unpack "$work/base" base-files libc6 libgcc-s1
  # Last, because it says that the rest is there.
  tar -C "$work/base" --owner=0 --group=0 -cf "$docker/base.tar.new" .
  mv "$docker/base.tar.new" "$docker/base.tar"
  rm -rf "$work"
fi

# Of Debian's `bird2` only the daemon and its client are taken, for the same reason.
if ! command -v bird >/dev/null && [ ! -x "$tools/bin/bird" ]; then
  say "bird"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  unpack "$work/bird" bird2
  # The libraries it is linked with start nothing.
  if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
    --no-install-recommends libssh-gcrypt-4 libreadline8 </dev/null >"$work/log" 2>&1; then
    tail -n 20 "$work/log"
    exit 1
  fi
  install -D -t "$tools/bin" "$work/bird/usr/sbin/bird" "$work/bird/usr/sbin/birdc"
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
