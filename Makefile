# Each target does all the set-up that a fresh machine needs, and reuses it when it is there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-full faults chaos lint format clean setup

demo: setup
	$(BIN)/vitline run configs/demo.yaml

# What needs no cluster runs two files at a time; what starts ranks or Ray has the machine to itself.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/integration --ignore tests/faults
	$(BIN)/python -m pytest tests/integration tests/faults

test-full: setup
	$(BIN)/python -m pytest -m '(slow or not slow) and not gpu' --timeout 3600

# Hosts of network namespaces (needs root), and kills at random moments.
faults: setup
	$(BIN)/python -m pytest -m '(slow or not slow) and not gpu' tests/faults --timeout 3600

# A fault drawn at random every minute, on three hosts; MINUTES=4 for a shorter one.
MINUTES ?= 20
chaos: setup
	VITLINE_CHAOS_MINUTES=$(MINUTES) $(BIN)/python -m pytest -m slow tests/faults/test_chaos.py -s --timeout 7200

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layout.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON); install Python 3.11 or 3.12, or name one: make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "found $$($(PYTHON) --version); expected Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "missing: Python's venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the versions of constraints.txt into $(VENV): a few minutes"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,s3,gcs]'
	@touch $@

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
