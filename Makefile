# Everything a developer or a CI runner does here, one target each.
# Dependencies are compiled once for all tests (dev profile), once as metadata for clippy and
# rustdoc, and in release only for `bench` and `demo`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TOOLS := $(CURDIR)/target/tools
export PATH := $(TOOLS)/bin:/usr/sbin:/sbin:$(PATH)

# Where tests that could not run leave their reason; printed at the end of `make test`.
export FERRULE_SKIPPED := $(CURDIR)/target/skipped.txt

# Many integration tests wait for a deadline most of their time, so there are more of them than
# cores; each starts several processes, so there are not many more.
TEST_THREADS ?= 4

# The binaries that leak on purpose, for the tests of what finds leaks. They have names of their own, and
# a test is named along with it so that dependencies are wanted as all tests want them: without one
# they would be compiled a second time, with fewer features.
LEAKY = cargo build --workspace --bin ferrule-leaky --bin ferrule-seeded \
  --features proxy/leaky-layer,proxy/seeded-leaks --test flat --locked

.PHONY: help check fmt clippy doc deny build test proof proof-short proof-ci proof-upgrade instructions \
  instructions-update bench demo lab fuzz bpf bpf-check image deb install-tools

help: ## shows this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

check: fmt clippy doc deny ## formatting, lints, documentation, licences and duplicates

fmt:
	@echo "== format"
	cargo fmt --all --check
	cargo fmt --manifest-path ebpf-filter/program/Cargo.toml --check

clippy:
	@echo "== lints"
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --workspace --bin ferrule-leaky --bin ferrule-seeded \
	  --features proxy/leaky-layer,proxy/seeded-leaks,proxy/system-allocator --test flat --locked -- -D warnings

# It is made with private items, so links to them lead somewhere.
doc:
	@echo "== documentation"
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --document-private-items --locked --quiet

# Advisories need a database that many networks do not let one fetch. It is consulted when it can
# be had, and its absence is said, not hidden.
deny: | install-tools
	@echo "== dependencies"
	cargo-deny --locked --all-features check --hide-inclusion-graph bans licenses sources
	@if timeout 60 cargo-deny --locked fetch db </dev/null >/dev/null 2>&1; then \
	  cargo-deny --locked check --disable-fetch advisories; \
	else echo "advisories: not checked, the advisory database cannot be reached from here"; fi

install-tools: ## installs what tests and benchmarks need (Debian packages, oha, cargo-deny)
	@tests/install.sh

build: ## builds the binary and every test in one go, so that nothing is compiled twice
	@echo "== build"
	cargo build --workspace --bins --tests --locked
	$(LEAKY)

test: install-tools check bpf-check build ## everything: tools, checks, unit and integration tests, attacks, instruction counts
	@echo "== tests"
	@rm -f "$$FERRULE_SKIPPED"
	@TEST_THREADS=$(TEST_THREADS) tests/run.sh
	@echo "== attacks"
	target/debug/loadtest proof --short --forgive-timing --ferrule target/debug/ferrule \
	  --suites attacks --output target/proof-attacks
	@$(MAKE) --no-print-directory instructions
	@if [ -s "$$FERRULE_SKIPPED" ]; then \
	  echo "Not run:"; sort -u "$$FERRULE_SKIPPED"; [ "$${CI:-}" != true ]; fi

bpf: ## rebuilds the kernel's programs (ebpf-filter/program), after a change to them or to common
	@ebpf-filter/program/update.sh

bpf-check: ## rebuilds the kernel's programs elsewhere and compares the bytes with the committed ones
	@echo "== kernel programs"
	@ebpf-filter/program/check.sh

# What leaks on purpose is as leaky in debug builds, which are there after `make build`.
proof: install-tools ## everything that is promised, measured: target/proof/report.html; options in PROOF
	$(LEAKY)
	cargo build --release --locked -p proxy --bin ferrule -p loadtest --bin loadtest
	target/release/loadtest proof $(PROOF)

proof-short: install-tools ## the same in some ten minutes, without nginx and HAProxy
	$(LEAKY)
	cargo build --release --locked -p proxy --bin ferrule -p loadtest --bin loadtest
	target/release/loadtest proof --short --forgive-timing $(PROOF)

# What a clean clone can afford: the binaries that `build` has made, and what does not depend on timing.
proof-ci: install-tools build ## attacks and faults in their short form with the debug build, eight to ten minutes
	target/debug/loadtest proof --short --forgive-timing --ferrule target/debug/ferrule \
	  --suites attacks,faults --output target/proof-ci

# Instructions under callgrind: the same on a busy machine.
MICRO = $$(cargo bench -p proxy --bench micro --features micro --locked --no-run --message-format json \
  | grep -o '"executable":"[^"]*micro-[^"]*"' | cut -d'"' -f4 | tail -n 1)

instructions: install-tools ## counts the instructions of what each request pays for, and compares with what is stored
	@echo "== instructions"
	proxy/benches/instructions $(MICRO)

instructions-update: install-tools ## stores them
	proxy/benches/instructions $(MICRO) --update

UPGRADES ?= 20
PROOF_UPGRADE = $(CURDIR)/target/proof-upgrade

# All that is said is in target/proof-upgrade.log, the table in target/proof-upgrade.txt.
proof-upgrade: install-tools ## 20 upgrades under every class of traffic, with transfers of 100 MB, in bind and steer mode and over the mesh
	cargo build --release --locked -p proxy --bin ferrule
	@rm -f $(PROOF_UPGRADE).table
	ended=0; FERRULE_BINARY=$(CURDIR)/target/release/ferrule FERRULE_TRANSFER_BYTES=100000000 \
	  FERRULE_UPGRADES=$(UPGRADES) FERRULE_PROOF=$(PROOF_UPGRADE).table \
	  cargo test --locked -p tests --test it -- upgrade:: --test-threads 1 --nocapture \
	  2>&1 | tee $(PROOF_UPGRADE).log || ended=$$?; \
	{ echo 'class|mode|upgrades|begun|done|refused|reset|failed|cut|duplicated|slowest ms'; \
	  sort -s -t '|' -k 1,1 $(PROOF_UPGRADE).table; } | column -t -s '|' | tee $(PROOF_UPGRADE).txt; \
	exit $$ended

bench: install-tools ## beside nginx and HAProxy only: CPU, latency, memory; see loadtest/README.md
	cargo build --release --locked -p proxy --bin ferrule -p loadtest --bin loadtest
	target/release/loadtest peers $(BENCH)

demo: ## a two-region edge on loopback, with curl lines to try
	cargo run --release --locked -- demo

lab: install-tools ## three regions with routers and BGP in network namespaces, with things to try; needs root
	cargo build --locked -p proxy --bin ferrule -p tests --bin lab
	FERRULE_BINARY=$(CURDIR)/target/debug/ferrule target/debug/lab

image: ## a container image, ferrule:latest; IMAGE="--build-arg …" for arguments of the Dockerfile
	DOCKER_BUILDKIT=1 docker build --tag ferrule $(IMAGE) .

deb: ## a Debian package, in target/debian
	cargo build --release --locked -p proxy --bin ferrule
	@mkdir -p target/debian
	@config/debian/build target/release/ferrule target/debian

fuzz: ## searches for input that breaks a parser, SECONDS (60) per target; needs nightly and cargo-fuzz
	proxy/fuzz/run $(or $(SECONDS),60)
