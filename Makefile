# Two commands set everything up, each in a virtual environment of its own inside this folder:
#   make demo   the light runtime draws, reconstructs and scores digits with the model that ships with it
#   make test   the whole package, its linters and its tests but for the slow ones, which make test-all runs too
PYTHON ?= python3
INFER = .venv-demo/bin/vae-infer
DEV = .venv-dev/bin
# in the order of their names: xdist's own puts files of few tests last, and those are the slowest
TESTS = $(DEV)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo lint test test-all arm64 compatibility clean

demo: .venv-demo/installed
	mkdir -p demo
	$(INFER) sample -n 16 --seed 7 -o demo/samples.png
	$(INFER) reconstruct examples/digits -o demo/reconstructions.png
	$(INFER) elbo examples/digits --samples 100

test: lint
	$(TESTS)

test-all: lint
	$(TESTS) -m ""

lint: .venv-dev/installed
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/mypy
	$(DEV)/mypy --package vae_runtime --platform darwin --cache-dir .mypy_cache/darwin
	$(DEV)/mypy --package vae_runtime --platform win32 --cache-dir .mypy_cache/win32

# not part of the tests: the runtime in an emulated 64-bit ARM userland against this machine; needs root, and x86-64
arm64: .venv-dev/installed
	$(DEV)/python tests/emulated/arm64.py

# nor this: the shipped graphs in every runtime to be had here, in nats; docs/compatibility.md says what each needs
compatibility: .venv-dev/installed
	$(DEV)/python tests/compatibility/table.py

.venv-demo/installed: pyproject.toml $(shell find runtime artifacts -type f -not -path '*/__pycache__/*')
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --disable-pip-version-check --force-reinstall .
	touch $@

.venv-dev/installed: pyproject.toml
	$(PYTHON) -m venv .venv-dev
	$(DEV)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv-demo .venv-dev demo
