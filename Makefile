# `make demo` and `make test` are the two commands of the README; both start from nothing but Python and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test torture lint format bench clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/physseg demo

# Two worker processes. Each takes a contiguous half of the tests, so that fixtures of a file are mostly made once; the
# one that finishes first steals from the other. `make test JOBS=8` on a larger machine.
JOBS ?= 2
test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Faults of every kind for some minutes: long tests, everything that starts servers of its own, Ceph where installed.
torture: $(INSTALLED)
	$(BIN)/python -m pytest -m "cluster or torture"

# mypy names modules after folders; the link gives the repository root its import name, whatever the clone is called.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/typing && ln -sfn $(CURDIR) $(VENV)/typing/physseg
	MYPYPATH=$(VENV)/typing $(BIN)/mypy -p physseg.common -p physseg.manifests -p physseg.structure_extractors -p physseg.pipeline -p physseg.train -m physseg.cli

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An environment of its own: some of the peers hold NumPy and others back.
bench:
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet --editable '.[bench]'
	$(VENV)-bench/bin/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) $(VENV)-bench build dist *.egg-info physseg_demo
