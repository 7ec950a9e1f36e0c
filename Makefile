# Two commands matter: `make demo` shows the system at work, `make test` checks it. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROMPT ?= What is a hold?

.PHONY: demo test lint typecheck check tiny-model event-fixtures chaos-ledger lock clean

demo: $(STAMP)
	@$(BIN)/darkbloomd demo --prompt "$$DEMO_PROMPT"
demo: export DEMO_PROMPT = $(PROMPT)

test: $(STAMP) lint typecheck
	@$(BIN)/python -m pytest

lint: $(STAMP)
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format --check -q .

typecheck: $(STAMP)
	@$(BIN)/mypy

# Writes the stored bytes and the shape of each event version that has none yet; what exists is never touched.
event-fixtures: $(STAMP)
	@$(BIN)/python -m tests.support.event_fixtures

# Trains the model that demo and tests use, on this repository's documentation. Under five minutes on two cores.
tiny-model: $(STAMP)
	@$(BIN)/python -m models.train_tiny

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; set PYTHON=python3.12, for example" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Needs uv; run it after changing the dependencies in pyproject.toml.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-emit-index-url --no-emit-find-links --quiet -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
