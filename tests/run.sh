#!/usr/bin/env bash
# Runs every test of the workspace, TEST_THREADS (4) at a time.
#
# Many tests hold deadlines against a clock while others keep both cores busy, so what fails beside
# others is run once more alone. What fails again has failed; what passes is named at the end, because
# a test that is named there often is wrong or slow. More than a few at once are not bad luck: they
# have failed at once.
set -euo pipefail

readonly AGAIN_MAX=6

log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() { cargo test --workspace --locked --no-fail-fast -- "$@"; }

if run --test-threads "${TEST_THREADS:-4}" 2>&1 | tee "$log"; then exit 0; fi
mapfile -t failed < <(sed -nE 's/^test (.+) \.\.\. FAILED$/\1/p' "$log" | sort -u)
if ((${#failed[@]} == 0 || ${#failed[@]} > AGAIN_MAX)); then
  echo "tests: ${#failed[@]} failed" >&2
  exit 1
fi
echo "== once more, alone: ${failed[*]}"
run --test-threads 1 --exact "${failed[@]}"
echo "Passed only alone: ${failed[*]}"
