#!/usr/bin/env bash
# Rebuilds the kernel's programs and compares the bytes with the committed object.
#
# Fails on a difference. When Debian no longer offers that exact compiler nothing can be compared:
# that is said loudly and is no failure, because the committed object is still the one that was tested.
set -euo pipefail
cd "$(dirname "$0")"
tools=../../target/tools/bpf
built=../../target/bpf/ferrule.bpf.o

sha256sum --check --quiet ferrule.bpf.o.sha256

status=0
./toolchain.sh "$tools" || status=$?
case $status in
  0) ;;
  69)
    echo "###############################################################################"
    echo "## NOT COMPARED: the compiler of ferrule.bpf.o can no longer be had."
    echo "## Raise the versions in ebpf-filter/program/toolchain.sh and run: make bpf"
    echo "###############################################################################"
    exit 0
    ;;
  *) exit "$status" ;;
esac

./build.sh "$tools" "$built"
if ! cmp "$built" ferrule.bpf.o; then
  echo "ferrule.bpf.o is not what the sources give: run make bpf, and commit what it writes"
  exit 1
fi
echo "ferrule.bpf.o is what the sources give"
