#!/usr/bin/env bash
# Rebuilds the committed object: ferrule.bpf.o, its checksum, and what it was built with.
set -euo pipefail
cd "$(dirname "$0")"
tools=../../target/tools/bpf

./toolchain.sh "$tools"
./build.sh "$tools" ferrule.bpf.o
sha256sum ferrule.bpf.o >ferrule.bpf.o.sha256
{
  echo "# What ferrule.bpf.o was built with; written by update.sh."
  "$tools/bin/rustc" --version
  "$tools/bin/bpf-linker" --version
  read -r rust llvm _ <"$tools/versions"
  echo "Debian rustc-web $rust"
  echo "Debian libllvm22 $llvm"
} >BUILDINFO
cat ferrule.bpf.o.sha256
