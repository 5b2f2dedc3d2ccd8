# One door to everything. `make` alone lists the doors.
SHELL := /bin/bash
PY := .venv/bin/python
.DEFAULT_GOAL := help
# Programs and libraries in C, each below build/.
BUILD_C = +@for part in spank_plugin fabricctl/{paths,clock,state}; do $(MAKE) -s -C $$part || exit; done

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: build-lab ## bring a lab up, run a protected job, pull a cable, show the report
	$(PY) tools/demo.py

test: build-dev ## everything CI runs: lint, types, C under valgrind, unit tests, lab tests on a real Slurm
	tools/check
	tools/valgrind
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=12

coverage: build-dev ## the whole test run with its lines counted: build/coverage/coverage.txt
	tools/coverage

check: build-dev ## lint and types only
	tools/check

unit: build-dev ## the unit tests only (seconds)
	$(PY) -m pytest tests/unit

lab: build-lab ## bring a lab up and say how to use it
	.venv/bin/fabricctl lab up

bench: build-lab ## every benchmark beside a peer or the limit: build/bench/bench.html, with what moved
	tools/setup lab bench
	$(PY) tools/bench.py $(BENCH)

build-lab:
	tools/setup lab
	$(BUILD_C)

build-dev:
	tools/setup lab dev
	$(BUILD_C)

build: ## the wheel and the plugin
	tools/setup lab dev
	$(BUILD_C)
	.venv/bin/pip wheel -q --no-deps -w dist .

install: ## on a node or into DESTDIR=; then docs/install.md
	$(BUILD_C)
	DESTDIR=$(DESTDIR) tools/install

soak: build-dev ## random faults on everything for HOURS (4), invariants checked throughout
	tools/soak $(or $(HOURS),4)

docs: build-dev ## the documentation as a site, build/docs-site/index.html
	tools/setup lab dev docs
	$(PY) tools/reference.py build/docs-src
	.venv/bin/mkdocs build -q -f tools/mkdocs.yml

try-package: build-dev ## packages on a fresh Debian: SUITE=bookworm|trixie|forky (root, minutes)
	tools/try-package $(or $(SUITE),trixie)

fuzz: build-dev ## each parser led by coverage for FUZZ_S seconds (60)
	tools/setup lab dev fuzz
	for t in $$($(PY) -c 'from tests.fuzz.targets import TARGETS; print(*TARGETS)'); do echo "== $$t"; \
	  $(PY) -m tests.fuzz $$t -max_total_time=$(or $(FUZZ_S),60) -print_final_stats=1 || exit; done

fuzz-c: ## the parsers in C under libFuzzer, each FUZZ_S seconds (60); clang
	tools/setup fuzz-c
	$(MAKE) -s -C tests/fuzz/c run FUZZ_S=$(or $(FUZZ_S),60)

uninstall: ## take away what install put there
	DESTDIR=$(DESTDIR) tools/install --remove

clean: ## what was built, not the venv
	rm -rf build dist demo *.egg-info

.PHONY: fuzz-c coverage soak docs try-package fuzz help demo test check unit lab bench build install uninstall build-lab build-dev clean
