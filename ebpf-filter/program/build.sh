#!/usr/bin/env bash
# Builds the kernel's programs into one object whose bytes depend on the sources and on the versions
# in toolchain.sh, and on nothing else: paths are mapped away and DWARF, which knows more paths, is
# stripped. BTF stays: the kernel wants it, and the verifier quotes source lines from it.
#
#   build.sh TOOLCHAIN OBJECT
set -euo pipefail

toolchain=$(cd "${1:?the folder that toolchain.sh filled}" && pwd)
object=${2:?the file to write}
program=$(cd "$(dirname "$0")" && pwd)
workspace=$(cd "$program/../.." && pwd)
target=$workspace/target/bpf
registry=${CARGO_HOME:-$HOME/.cargo}/registry/src

cargo fetch --quiet --locked --manifest-path "$program/Cargo.toml"
flags=(
  '--cfg=bpf_target_arch="x86_64"' # of structures that no program here reads
  -Cdebuginfo=2
  -Clinker="$toolchain/bin/bpf-linker"
  -Clink-arg=--btf
  --remap-path-prefix="$workspace"=/ferrule
)
# The folder's name depends on where the crates were downloaded from.
for folder in "$registry"/*/; do flags+=(--remap-path-prefix="${folder%/}"=/registry); done
joined=$(printf '%s\x1f' "${flags[@]}")

# Neither the workspace's .cargo/config.toml (flags for the host) nor the caller's flags apply:
# CARGO_ENCODED_RUSTFLAGS goes before both. aya-ebpf uses assembly that stable compilers only take with
# RUSTC_BOOTSTRAP.
env -u RUSTFLAGS -u RUSTC_WRAPPER -u CARGO_BUILD_TARGET \
  RUSTC="$toolchain/bin/rustc" RUSTC_BOOTSTRAP=1 CARGO_ENCODED_RUSTFLAGS="${joined%$'\x1f'}" \
  cargo build --release --locked --quiet --manifest-path "$program/Cargo.toml" \
  --target bpfel-unknown-none --target-dir "$target"

mkdir -p "$(dirname "$object")"
cp "$target/bpfel-unknown-none/release/ferrule" "$object.tmp"
"$toolchain/bin/llvm-strip" --strip-debug "$object.tmp"
mv "$object.tmp" "$object"
