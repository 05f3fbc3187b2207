# All that a newcomer needs: `make run` and `make test`. Everything here is thin over cargo.
# The Rust version is in rust-toolchain.toml and nowhere else.

CARGO ?= cargo
LISTEN ?=
ARGS ?=
RUNNER ?= cargo
# What `make fault` does: seconds of faults, how many controllers, and the seed (a new one when it is empty).
FAULT_SECONDS ?= 300
FAULT_GATEWAYS ?= 300
FAULT_SEED ?=
# How long `make soak` goes on.
SOAK_SECONDS ?= 600

.DEFAULT_GOAL := help
.PHONY: help run demo test conformance fault soak test-deps fmt lint docs edge bench deploy-check images clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## build Tollgate and start all of it on https://localhost:8443, with its data in ./data
	@scripts/build-deps.sh
	$(CARGO) run --locked -p suite --bin tollgate -- up $(if $(LISTEN),--listen $(LISTEN)) $(ARGS)

demo: ## tell the whole story against the running suite (second terminal); ARGS='--openapi FILE' for your API
	@scripts/build-deps.sh
	$(CARGO) run --quiet --locked -p suite --bin tollgate -- demo $(ARGS)

test: test-deps lint ## format check, lints, every test on SQLite and PostgreSQL, official clients; installs what is missing
ifeq ($(RUNNER),nextest)
	$(CARGO) nextest run --locked --workspace $(if $(CI),--profile ci)
else
	$(CARGO) test --locked --workspace $(if $(CI),--no-fail-fast)
endif
	@conformance/run.sh

conformance: ## run official clients of every protocol, and attacks on HTTP/2, against a real suite (node, python3)
	@CONFORMANCE=required conformance/run.sh

fault: test-deps ## break everything for five minutes under 300 gateways; FAULT_SECONDS, FAULT_GATEWAYS, FAULT_SEED
	FAULT_SECONDS=$(FAULT_SECONDS) FAULT_GATEWAYS=$(FAULT_GATEWAYS) FAULT_SEED=$(FAULT_SEED) \
		$(CARGO) test --locked --workspace --test fault -- --nocapture

soak: test-deps ## ten minutes of mixed clients that come, cancel and go: memory and descriptors stay flat; SOAK_SECONDS, EDGE
	SOAK_SECONDS=$(SOAK_SECONDS) $(if $(TOLLGATE),TOLLGATE=$(TOLLGATE)) $(if $(EDGE),EDGE=$(EDGE)) $(CARGO) test --locked --workspace --test soak -- --nocapture

test-deps:
	@scripts/build-deps.sh
	@scripts/test-deps.sh

fmt: ## format the code
	$(CARGO) fmt --all

lint: ## check the format and run clippy, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

docs: ## build the API documentation, broken links are errors
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps

edge: ## build the edge as images have it, by a profile of its work: target/profiled/edge-proxy (takes a quarter of an hour)
	@scripts/build-deps.sh
	@scripts/edge.sh

bench: ## measure the release build: memory, start, token verification, and what else is installed for it
	@scripts/build-deps.sh
	@bench/run.sh

deploy-check: ## check deploy/compose.yaml and the manifests, as far as docker and kubectl are installed
	@scripts/deploy-check.sh

images: ## build the five container images (needs docker with BuildKit)
	@scripts/images.sh

clean: ## remove what was built; ./data stays
	$(CARGO) clean
