# `make up` runs the whole thing on this machine; `make test` gets what the tests need and runs them all.

.PHONY: up down demo test bench

up:
	@docker/local.sh up

down:
	@docker/local.sh down
