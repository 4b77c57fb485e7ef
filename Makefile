# One command each. Needs Rust and a C compiler; tests install what they need under target/.

CARGO ?= cargo

.PHONY: help demo build test check fmt clippy doc bench otlp loadtest

help: ## Show this
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

demo: ## The whole system in one process: server, 25 clients, runner
	$(CARGO) run --locked --bin vogeler -- demo $(ARGS)

build: ## The release binary, target/release/vogeler
	$(CARGO) build --locked --release --bin vogeler

test: ## All tests, on real services that they start themselves
	$(CARGO) test --locked

check: fmt clippy doc test ## Everything that CI checks

fmt: ## Whether the code is formatted
	$(CARGO) fmt --check

clippy: ## Lints, as errors
	$(CARGO) clippy --locked --all-targets -- -D warnings

doc: ## The documentation, warnings as errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

bench: ## The server as ratios to ceilings of the same run (ARGS=--quick), and rates of the pure stages
	$(CARGO) bench --locked --bench ratio -- $(ARGS)
	$(CARGO) bench --locked --bench stages

otlp: ## The export of traces (cargo feature otlp): lints, and its tests with a collector of their own
	$(CARGO) clippy --locked --all-targets --features otlp -- -D warnings
	$(CARGO) test --locked --features otlp trace

loadtest: ## A simulated fleet against the ingest, compared with a ledger; ARGS="--nodes 1000 --results 20"
	$(CARGO) run --locked --quiet --release --bin vogeler-loadtest -- $(ARGS)
