# `make demo` and `make test` are the two commands of the README; both start from nothing but Python and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test torture lint format docs constraints dist bench gpu gpu-wheels clean

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

# A link or an anchor that leads nowhere is an error (but not with --quiet). The variable silences an advertisement.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo 'wrote build/site/index.html; its search needs a server: python3 -m http.server --directory build/site'

# What `make test` has just passed with, for those who want the same versions.
constraints: $(INSTALLED)
	( echo '# Versions that the tests passed with, on Linux and Python 3.11: `make constraints` after `make test`.'; \
	  $(BIN)/python -m pip freeze --exclude-editable ) > constraints.txt

# What a package index gets. URL is the repository's address: links of the README lead there.
dist:
	$(PYTHON) -m venv $(VENV)-dist
	$(VENV)-dist/bin/python -m pip install --quiet build twine
	$(VENV)-dist/bin/python docs/release.py '$(URL)' dist

# An environment of its own: some of the peers hold NumPy and others back.
bench:
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet --editable '.[bench]'
	$(VENV)-bench/bin/python benchmarks/run_all.py

# The first hour with a GPU, in five minutes: tests, agreement with the CPU, speed and memory. Each part has its own limit,
# and what is done is on the page. `make gpu PARTS=step,speed`, `MINUTES=20`, `OUT=folder`; `DEVICE=cpu` is a rehearsal.
DEVICE ?= cuda
FOLDER ?= wheels
MINUTES ?= 5
OUT ?= $(if $(filter cpu,$(DEVICE)),build,benchmarks)
ifeq ($(wildcard $(FOLDER)/physseg_gpu_py*.tar.xz),)
gpu: $(INSTALLED)
GPU_PYTHON = $(BIN)/python
else
GPU_PYTHON = $(PYTHON)
endif
gpu:
	$(GPU_PYTHON) benchmarks/gpu/start.py --folder $(FOLDER) --device $(DEVICE) --out $(OUT) --minutes $(MINUTES) $(if $(PARTS),--parts $(PARTS))

# For a machine without a package index that has PyTorch: copy the clone with this folder, and `make gpu` there.
# What that machine has beside PyTorch need not travel: `HAVE=numpy,pillow,pyarrow,opencv-python-headless`, say.
PYTHON_VERSION ?= 3.12
HAVE ?= numpy,pillow
gpu-wheels: $(INSTALLED)
	$(BIN)/python benchmarks/gpu/wheels.py --python-version $(PYTHON_VERSION) --folder $(FOLDER) --have '$(HAVE)'

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-dist build dist *.egg-info physseg_demo
