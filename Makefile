# Everything sets itself up in .venv; a second time takes a second.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test parity check setup clean

demo: setup
	$(BIN)/monosemy demo --overwrite

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/parity

# Files of other tools, held against those tools themselves, in an environment of their own.
parity: setup
	benchmarks/setup_peers.sh
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/parity

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv
