# `make up` runs the whole thing on this machine; `make test` gets what the tests need and runs them all.

.PHONY: up down demo test bench instructions

up:
	@docker/local.sh up

down:
	@docker/local.sh down

# A small Django application and its users, while a provider moves to the cluster and back.
demo: up .venv/.done
	@.venv/bin/python tests/demo/demo.py

# A first build is no increment: without the bookkeeping for the next one it is a sixth faster.
test: export CARGO_INCREMENTAL ?= $(if $(wildcard target/debug),1,0)
# The live tests wait for stores more than they compute.
test: export RUST_TEST_THREADS ?= $(shell expr 2 '*' $$(getconf _NPROCESSORS_ONLN))
test: .venv/.done
	@docker/local.sh get-redis
	@docker/local.sh get-chromium
	@docker/local.sh get-promtool
	cargo fmt --check
	cargo test --locked --quiet
	cargo doc --locked --no-deps --quiet
	.venv/bin/python tests/packaging/check.py
	.venv/bin/python tests/clients/clients.py
	.venv/bin/python tests/dashboard/dashboard.py
	cargo build --locked --quiet --release
	-@python3 benches/instructions.py

# Instructions of the byte path: a report at the end of the tests, which fails nothing.
instructions:
	@docker/local.sh get-redis
	cargo build --locked --release
	python3 benches/instructions.py

# The pieces, then the whole in its three roles against a bare Redis.
bench:
	@docker/local.sh get-redis
	cargo bench --locked --bench pieces
	cargo build --locked --release
	python3 benches/whole.py

.venv/.done: tests/requirements.txt tests/packaging/requirements.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt -r tests/packaging/requirements.txt
	@touch $@

# docs/configuration.md and docs/commands.md, from the code; a house test compares them.
.PHONY: docs
docs:
	UPDATE_DOCS=1 cargo test --locked --quiet --test house references
