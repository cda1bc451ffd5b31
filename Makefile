# One entry for everything; `make help` lists it. Nothing outside this folder is written.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := dev,postgres,fast
LOWEST := .venv-lowest
BENCHMARKS := parser.py store.py "store.py --postgres --rows 60 --hours 2" simulator_reality.py "watch_health.py --replicas 300" \
	"collect_cost.py --replicas 100 --seconds 30" "fleet_scrape.py --minutes 1"
PYTEST_ARGS ?=
# Tests whose engines and servers run in real time, and those that compare speeds: one after the other, or they disturb each other.
REAL_TIME := $(addprefix tests/integration/,cli rpc simulator targets workflows test_kill_server.py) tests/performance

# The tests start hundreds of Python processes: without byte code each would compile the whole package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help alerts demo test unit check fix bench bench-diagnosis proto breaking test-lowest clean distclean venv

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

venv: $(STAMP) ## create .venv and install the project into it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP) ## see a fleet with a planted bottleneck measured, diagnosed, changed and proven better (about 2 minutes)
	@$(BIN)/perf-service demo

test: $(STAMP) ## every test, with the coverage gates
	@rm -f .coverage .coverage.*
	$(BIN)/python -m pytest tests $(addprefix --ignore=,$(REAL_TIME)) -n auto --dist loadfile --cov --cov-fail-under=0 --cov-report= --durations=5 $(PYTEST_ARGS)
	$(BIN)/python -m pytest $(REAL_TIME) --cov --cov-append --cov-report=json:.coverage.json --cov-report= --durations=5 $(PYTEST_ARGS)
	@$(BIN)/python scripts/coverage_gates.py .coverage.json

# In one process: on two cores, the imports of a second one cost what it saves.
unit: $(STAMP) ## the fast tests only
	$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

check: $(STAMP) ## lint, format, types, contract, import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/proto.py check
	$(BIN)/python scripts/alerts.py check
	@$(MAKE) --no-print-directory breaking

fix: $(STAMP) ## let the tools repair what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/proto.py format

alerts: $(STAMP) ## render deploy/alerts anew
	$(BIN)/python scripts/alerts.py generate

proto: $(STAMP) ## regenerate perf_service/v1 from protos/
	$(BIN)/python scripts/proto.py generate

breaking: $(STAMP) ## the contract must not break against the main branch (or the previous commit)
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/buf_breaking.sh

bench: $(STAMP) ## every benchmark, short; see benchmarks/README.md
	@$(BIN)/python -m benchmarks.diagnosis --situations 40 --no-doctor
	@for program in $(BENCHMARKS); do echo "== $$program"; $(BIN)/python benchmarks/$$program || exit 1; done

SET ?= tuning
bench-diagnosis: $(STAMP) ## is the right cause named? CAPTURES=folder LABELS=file for other real runs, SET=scoring for unseen situations
	$(BIN)/python -m benchmarks.diagnosis --set $(SET) $(if $(CAPTURES),--captures $(CAPTURES)) $(if $(LABELS),--labels $(LABELS)) $(BENCH_ARGS)

# Old libraries beside new ones warn of each other: that is not ours to mend.
test-lowest: ## the unit tests with the lowest versions that pyproject.toml allows
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@VIRTUAL_ENV=$(LOWEST) $(LOWEST)/bin/uv pip install --quiet --resolution lowest-direct --editable '.[$(EXTRAS)]'
	$(LOWEST)/bin/python -m pytest tests/unit -p no:cacheprovider -W ignore::DeprecationWarning $(PYTEST_ARGS)

clean: ## remove what tests and tools leave
	rm -rf build dist *.egg-info .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find perf_service tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## ... and the virtual environments
	rm -rf $(VENV) $(LOWEST) .tools .bench_cache
