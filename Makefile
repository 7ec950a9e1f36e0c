# Two commands matter: `make demo` shows the system at work, `make test` checks it. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROMPT ?= What is a hold?
TESTS_AT_ONCE ?= 2

.PHONY: demo test lint typecheck simulate replay-campaign chaos-ledger chaos-fleet fuzz-api tools-on-top event-fixtures tiny-model lock clean

demo: $(STAMP)
	@$(BIN)/darkbloomd demo --prompt "$$DEMO_PROMPT"
demo: export DEMO_PROMPT = $(PROMPT)

# Files of tests run side by side, so many at once.
test: $(STAMP) lint typecheck
	@$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile

lint: $(STAMP)
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format --check -q .

typecheck: $(STAMP)
	@$(BIN)/mypy

# Runs the whole market in virtual time, SEEDS times with faults. SEED=7 replays one run with its whole trace.
simulate: export SEEDS ?= 10000
simulate: export FIRST ?= 0
simulate: $(STAMP)
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed "$$SEED",--first "$$FIRST" --seeds "$$SEEDS")
simulate: export SEED ?=

# Replays the log of a random business and compares it with the live tables. A failure prints its seed; set SEED to it.
replay-campaign: export OPERATIONS ?= 100000
replay-campaign: $(STAMP)
	@$(BIN)/python -m pytest -q -s -o timeout=0 -k whatever_the_pages_and_restarts_were tests/integration/test_replay.py

# Kills the ledger's writer, its server and its connections, and checks what is left. ROUNDS=1000 is a night's work.
chaos-ledger: export SEED ?=
chaos-ledger: export ROUNDS ?= 40
chaos-ledger: $(STAMP)
	@$(BIN)/python -m tests.chaos.ledger

# Breaks the parts of a market under load, one after the other, and checks that requests, books and fleet come out sound.
# A failure prints its seed; set SEED to it for the same order of faults.
chaos-fleet: export SEED ?=
chaos-fleet: export ROUNDS ?= 26
chaos-fleet: $(STAMP)
	@$(BIN)/python -m tests.chaos.fleet

# Asks every operation of the OpenAPI document for EXAMPLES made-up requests each. A failure prints its seed; set SEED to it.
fuzz-api: export SEED ?=
fuzz-api: export EXAMPLES ?= 300
fuzz-api: $(STAMP)
	@$(BIN)/python -m pytest -q -s -k schemathesis tests/acceptance/test_openapi.py

# Runs tools of other people unmodified against a coordinator and a real agent. TOOLS_VENV names the folder of a virtual
# environment, which is made when it is not there, so that they never mix with what this project itself needs.
tools-on-top: $(STAMP)
	@test -n "$(TOOLS_VENV)" || { echo "Set TOOLS_VENV to a folder for the environment of the tools" >&2; exit 1; }
	@test -x "$(TOOLS_VENV)/bin/python" || $(PYTHON) -m venv "$(TOOLS_VENV)"
	@"$(TOOLS_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check llm "pydantic-ai-slim[openai]"
	@DARKBLOOM_TOOLS_VENV="$(abspath $(TOOLS_VENV))" $(BIN)/python -m pytest -rP tests/acceptance/test_tools_on_top.py

# Writes the stored bytes and the shape of each event version that has none yet; what exists is never touched.
event-fixtures: $(STAMP)
	@$(BIN)/python -m tests.support.event_fixtures

# Trains the model that demo and tests use, on this repository's documentation. Under five minutes on two cores.
tiny-model: $(STAMP)
	@$(BIN)/python -m models.train_tiny

$(STAMP): requirements.lock requirements-media.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; set PYTHON=python3.12, for example" >&2; exit 1; }
	@echo "Setting up $(VENV) from requirements.lock; the first time this takes a minute or two." >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	    -r requirements-media.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Needs uv; run it after changing the dependencies in pyproject.toml.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-emit-index-url --no-emit-find-links --quiet -o requirements.lock
	uv pip compile requirements-media.in --no-deps --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-emit-index-url --no-emit-find-links --quiet -o requirements-media.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
