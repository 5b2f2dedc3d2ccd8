# One door to everything. `make` alone lists the doors.
SHELL := /bin/bash
PY := .venv/bin/python
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: build-lab ## bring a lab up, run a protected job, pull a cable, show the report
	$(PY) tools/demo.py

test: build-dev ## everything CI runs: lint, types, unit tests, lab tests on a real Slurm
	tools/check
	$(PY) -m pytest -n 2 --dist loadfile

check: build-dev ## lint and types only
	tools/check

unit: build-dev ## the unit tests only (seconds)
	$(PY) -m pytest tests/unit

lab: build-lab ## bring a lab up and say how to use it
	.venv/bin/fabricctl lab up

bench: build-lab ## every benchmark: ours beside a peer or the limit, ratios printed
	tools/setup lab bench
	for b in bench/*.py; do echo "== $$b"; $(PY) $$b || exit; done

build-lab:
	tools/setup lab
	$(MAKE) -s -C spank_plugin && $(MAKE) -s -C fabricctl/paths && $(MAKE) -s -C fabricctl/state

build-dev:
	tools/setup lab dev
	$(MAKE) -s -C spank_plugin && $(MAKE) -s -C fabricctl/paths && $(MAKE) -s -C fabricctl/state

build: ## the wheel and the plugin
	tools/setup lab dev
	$(MAKE) -s -C spank_plugin && $(MAKE) -s -C fabricctl/paths && $(MAKE) -s -C fabricctl/state
	.venv/bin/pip wheel -q --no-deps -w dist .

install: ## on a node or into DESTDIR=; then docs/install.md
	$(MAKE) -s -C spank_plugin && $(MAKE) -s -C fabricctl/paths && $(MAKE) -s -C fabricctl/clock && $(MAKE) -s -C fabricctl/state
	DESTDIR=$(DESTDIR) tools/install

uninstall: ## take away what install put there
	DESTDIR=$(DESTDIR) tools/install --remove

clean: ## what was built, not the venv
	rm -rf build dist demo *.egg-info

.PHONY: help demo test check unit lab bench build install uninstall build-lab build-dev clean
