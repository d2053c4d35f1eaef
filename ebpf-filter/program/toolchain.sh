#!/usr/bin/env bash
# Puts a compiler for BPF into a private folder; nothing of the system or of rustup is touched.
#
# The kernel's programs need a `core` library compiled for bpfel-unknown-none. Debian's rustc-web
# comes with one (libstd-rust-web-dev-bpf), so neither a nightly compiler nor the sources of the
# standard library are needed. Its LLVM does the linking, through bpf-linker.
#
# Versions are exact, because the same versions give the same bytes. Debian keeps only its newest
# one: exit 69 says that ours is gone, and then it is time to raise it here and to `make bpf`.
#
#   toolchain.sh DIRECTORY
set -euo pipefail

RUST=1.96.0+dfsg1-1~deb12u2
RUST_SERIES=1.96
LLVM=1:22.1.8-1~deb12u1
BPF_LINKER=0.13.0
GONE=69

directory=${1:?the folder to fill}
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
say() { echo "bpf toolchain: $*"; }

if [ "$(uname -m)" != x86_64 ] || ! command -v apt-get dpkg >/dev/null; then
  say "needs Debian's packages for amd64"
  exit $GONE
fi
if [ "$(cat "$directory/versions" 2>/dev/null)" = "$RUST $LLVM $BPF_LINKER" ]; then exit 0; fi

packages=("rustc-web=$RUST" "libstd-rust-web-$RUST_SERIES=$RUST" "libstd-rust-web-dev=$RUST"
  "libstd-rust-web-dev-bpf=$RUST" "libllvm22=$LLVM" "llvm-22=$LLVM")
offered() {
  local package
  for package in "${packages[@]}"; do
    apt-cache madison "${package%%=*}" | awk '{ print $3 }' | grep -qxF "${package#*=}" || return 1
  done
}
if ! offered; then
  # Only root may refresh the lists; without it the lists are what they are.
  if [ "$(id -u)" = 0 ]; then apt-get -qq update </dev/null || say "the package lists cannot be refreshed"; fi
  if ! offered; then
    say "Debian no longer offers rustc-web $RUST with LLVM $LLVM"
    exit $GONE
  fi
fi

say "downloading and unpacking into $directory (450 MB)"
rm -rf "$directory"/{bin,debs,llvm,usr,versions}
mkdir -p "$directory"/{bin,debs,llvm/lib}
unpack() {
  (cd "$directory/debs" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$@" </dev/null)
  for package in "$directory"/debs/*.deb; do dpkg -x "$package" "$directory"; done
  rm -f "$directory"/debs/*.deb
}
unpack "${packages[@]}"
libraries=$directory/usr/lib/x86_64-linux-gnu
# What LLVM itself links to is on most machines; where not, it comes along.
if LD_LIBRARY_PATH=$libraries ldd "$libraries/libLLVM.so.22.1" | grep -q 'not found'; then
  unpack libedit2 libbsd0 libmd0 libz3-4 libffi8 libxml2 libicu72
fi
rm -rf "$directory"/{debs,usr/share,usr/bin/rustdoc,usr/lib/rustlib/bpfeb-unknown-none}

# The libraries are for these programs only: exporting LD_LIBRARY_PATH would hit rustup's as well.
wrap() {
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$libraries" "$2" >"$directory/bin/$1"
  chmod +x "$directory/bin/$1"
}
wrap rustc "$directory/usr/bin/rustc"
wrap llvm-strip "$directory/usr/lib/llvm-22/bin/llvm-strip"
"$directory/bin/rustc" --print target-libdir --target bpfel-unknown-none >/dev/null

# bpf-linker's build looks for <prefix>/lib/libLLVM.so and for nothing else of LLVM.
ln -s "$libraries/libLLVM.so.22.1" "$directory/llvm/lib/libLLVM.so.22.1"
ln -s libLLVM.so.22.1 "$directory/llvm/lib/libLLVM.so"
say "building bpf-linker $BPF_LINKER"
log=$(mktemp)
if ! env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u RUSTC LLVM_PREFIX="$directory/llvm" \
  CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=symbols \
  cargo install bpf-linker --locked --force --version "$BPF_LINKER" --no-default-features \
  --features llvm-22 --root "$directory" --target-dir "$directory/build" </dev/null >"$log" 2>&1; then
  tail -n 20 "$log"
  exit 1
fi
rm -rf "$directory/build" "$log"

echo "$RUST $LLVM $BPF_LINKER" >"$directory/versions"
say "ready: $("$directory/bin/rustc" --version), $("$directory/bin/bpf-linker" --version)"
