# One command each. Needs Rust and a C compiler; tests install what they need under target/.

CARGO ?= cargo

.PHONY: help demo build test check fmt clippy doc bench otlp fuzz loadtest dashboards

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

fuzz: ## Fuzzing of all that comes from outside (fuzz/README.md): every target for a minute; TARGET=document SECONDS=3600
	cd fuzz && for target in $(if $(TARGET),$(TARGET),$$($(CARGO) fuzz list)); do \
	    mkdir -p corpus/$$target && \
	    $(CARGO) fuzz run --sanitizer none $$target corpus/$$target seeds/$$target -- -max_total_time=$(if $(SECONDS),$(SECONDS),60) \
	        -timeout=10 -rss_limit_mb=1500 -max_len=8192 -dict=words.dict || exit 1; \
	done

loadtest: ## A simulated fleet against a server, verified with a ledger; ARGS=smoke, ARGS="blowout --seed 7", ARGS=--help
	$(CARGO) build --locked --quiet --release --bins
	$(CARGO) run --locked --quiet --release --bin vogeler-loadtest -- $(ARGS)

dashboards: ## Write dashboards/*.json anew from tests/dashboards/boards
	VOGELER_WRITE_DASHBOARDS=1 $(CARGO) test --locked --test main dashboards::drift
