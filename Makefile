# One file of targets: `make` lists them. What each needs is set up on first use, in .venv and in a per-user cache.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := worker tests bench docs
# For example: make test PYTEST_ARGS='-k produce'   make demo ARGS='--seconds 20 --processes 4'
PYTEST_ARGS ?= -n 4 --dist loadfile --no-loadscope-reorder
ARGS ?=
EXTRAS := avro completion demo protobuf test  # not native: it is built here
# command:Debian package, for what no Python package carries
TEST_TOOLS := java:openjdk-17-jre-headless mvn:maven npm:npm redis-server:redis-server prometheus:prometheus promtool:prometheus chromium:chromium
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif
CARGO := cd native && cargo
export PATH := $(CURDIR)/$(BIN):$(PATH):$(HOME)/.cargo/bin
# Debian 12 has a new enough Rust only under the names that Firefox is built with.
DEBIAN := $(shell . /etc/os-release 2>/dev/null && echo $$VERSION_ID)
TEST_TOOLS += cargo:$(if $(filter 12,$(DEBIAN)),cargo-web,cargo) cc:gcc
LOCK := --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --quiet --group build pyproject.toml

##@ Try it
.PHONY: demo chaos soak
demo: $(VENV)/.demo  ## the real worker on an embedded broker and store, with a live table (^C ends it)
	$(BIN)/python -m worker demo $(ARGS)

chaos: $(VENV)/.dev  ## ten minutes of random faults on real servers; ends by counting what is missing or doubled
	$(BIN)/python -m tests.faults.chaos $(ARGS)

soak: $(VENV)/.dev  ## ten minutes of steady load with kills and an outage; compares counters, rows, alerts, memory
	$(BIN)/python -m tests.faults.soak $(ARGS)

##@ Work on it
.PHONY: venv test test-tools native fuzz valgrind coverage check docs format bench bench-check
venv: $(VENV)/.dev  ## build .venv with everything that the other targets need

test: $(VENV)/.dev test-tools native  ## all tests, against real Kafka, Redis, ClickHouse and Prometheus
	$(CARGO) test --release --locked --quiet
	$(BIN)/python -m worker.local --fetch
	$(BIN)/python -m pytest $(PYTEST_ARGS)

native: test-tools $(VENV)/.native  ## build the optional native package into .venv; needs Rust 1.85 or newer

fuzz: $(VENV)/.dev native  ## compare native code with the reference on random bytes, for a minute (ARGS='SECONDS [SEED]')
	$(BIN)/python -m tests.native.fuzz $(ARGS)

valgrind: $(VENV)/.dev native  ## tests of the native reader under valgrind: five minutes; fails for errors in native code
	mkdir -p build
	PYTHONMALLOC=malloc valgrind --log-file=build/valgrind.log --error-limit=no --num-callers=40 --leak-check=full \
		--show-leak-kinds=definite $(BIN)/python -m pytest tests/native/test_reader.py --timeout 1800
	! grep worker_native build/valgrind.log

# Installs missing programs where it may: as root, or with sudo that asks for no password. Else it names them.
test-tools:
	@missing=(); for tool in $(TEST_TOOLS); do \
		command -v "$${tool%%:*}" >/dev/null || missing+=("$${tool##*:}"); done; \
	$(call install_packages,make test)

coverage: $(VENV)/.dev test-tools native  ## branch coverage of all tests, children included; writes htmlcov/
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage html --quiet
	$(BIN)/python -m coverage report | tail -n 40

check: $(VENV)/.dev  ## format, lint, types, import contracts: what CI runs before the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict $(SOURCES)
	$(BIN)/lint-imports --no-logo
	@worker=$$(sed -n 's/^version = "\(.*\)".*/\1/p' pyproject.toml | head -n 1); \
	package=$$(sed -n 's/^version = "\(.*\)".*/\1/p' native/Cargo.toml | head -n 1); \
	[ "$$worker" = "$$package" ] || { echo "pyproject.toml has version $$worker, native/Cargo.toml $$package" >&2; exit 1; }
	@if cargo clippy --version >/dev/null 2>&1 && cargo fmt --version >/dev/null 2>&1; then \
		$(CARGO) fmt --check && cargo clippy --release --locked --all-targets --quiet -- -D warnings; \
	else echo "native/ was not checked: clippy and rustfmt are not installed (rustup component add clippy rustfmt)" >&2; fi

docs: $(VENV)/.dev  ## write docs/options.md and docs/metrics.md from the code
	$(BIN)/python -m docs.generate

format: $(VENV)/.dev  ## rewrite the sources in the one format, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## measure, against the peers too, and write bench/results
	$(BIN)/python -m bench.run $(ARGS)

bench-check: $(VENV)/.dev  ## a short run that fails when something became slower
	$(BIN)/python -m bench.run --check $(ARGS)

##@ Keep it
.PHONY: lock clean help
lock: $(VENV)/.dev  ## resolve pyproject.toml anew into the constraints files (UPGRADE=--upgrade for newer versions)
	$(PIP) install 'uv>=0.9,<1'
	$(BIN)/uv pip compile $(LOCK) $(UPGRADE) $(addprefix --extra ,$(EXTRAS)) --output-file constraints.txt
	$(BIN)/uv pip compile $(LOCK) --extra demo --constraint constraints.txt --output-file constraints-demo.txt
	$(BIN)/uv pip compile $(filter-out --group build,$(LOCK)) --constraint constraints.txt --output-file constraints-run.txt
	for group in wheels manylinux; do \
		$(BIN)/uv pip compile $(filter-out --group build pyproject.toml,$(LOCK)) --group "pyproject.toml:$$group" \
			--constraint constraints.txt --output-file "constraints-$$group.txt"; done

clean:  ## remove .venv and what tools left behind
	rm -rf $(VENV) native/target build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find worker tests bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

help:  ## this list
	@awk 'BEGIN {FS = ":[^#]*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# `make demo` waits only for what the demo needs (8 s, not 30); a .venv for development has that too.
$(VENV)/.demo: constraints-demo.txt pyproject.toml | $(BIN)/python
	@if [ $(VENV)/.dev -nt constraints.txt ] && [ $(VENV)/.dev -nt pyproject.toml ]; then touch $@; exit; fi; \
	$(call install,constraints-demo.txt)

$(VENV)/.dev: constraints.txt pyproject.toml | $(BIN)/python
	@$(call install,constraints.txt)

$(VENV)/.native: $(wildcard native/src/*.rs) native/Cargo.toml native/Cargo.lock native/pyproject.toml | $(VENV)/.dev test-tools
	@echo "building native/ into $(VENV)" >&2
	@$(PIP) install --no-deps --no-build-isolation ./native
	@touch $@

define install_packages
	if (( $${#missing[@]} )); then \
		mapfile -t packages < <(printf '%s\n' "$${missing[@]}" | sort -u); \
		as_root=(); (( EUID == 0 )) || as_root=(sudo -n); \
		if command -v apt-get >/dev/null && { (( EUID == 0 )) || sudo -n true 2>/dev/null; }; then \
			echo "installing $${packages[*]}" >&2; export DEBIAN_FRONTEND=noninteractive; \
			"$${as_root[@]}" apt-get update -qq; \
			"$${as_root[@]}" apt-get install -y -qq --no-install-recommends "$${packages[@]}" >/dev/null; \
		else \
			echo "$(1): programs are missing; on Debian or Ubuntu: apt-get update && apt-get install -y" \
				"--no-install-recommends $${packages[*]}" >&2; exit 1; \
		fi; \
	fi
endef

define install
	echo "setting up $(VENV) from $(1), once" >&2 && \
	$(PIP) install --require-hashes --requirement $(1) && \
	$(PIP) install --no-deps --no-build-isolation --editable . && \
	touch $@
endef

$(BIN)/python:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(or $(PYTHON),what is on PATH) is not that. Debian 12, Ubuntu 24.04" \
			"or newer: apt-get install python3 python3-venv. One that lies elsewhere: make … PYTHON=/path/to/python3.12" >&2; \
		exit 1; }
	@missing=(); $(PYTHON) -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv); \
	$(call install_packages,make)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) could not make a virtual environment. Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
