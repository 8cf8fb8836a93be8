# One command from a bare machine to a sweep's report: `make sweep`.
#
#   PYTHON  the interpreter that the environment is made with (3.11 or newer)
#   VENV    where the environment lies
#   OLDEST_PYTHON, OLDEST  the same for `make test-oldest`
#   ARGS    passed on to what is run, e.g. make sweep ARGS="--space losses --num-samples 4"

PYTHON ?= python3
VENV ?= .venv
OLDEST_PYTHON ?= python3.11
OLDEST ?= .venv-oldest
ARGS ?=
# Containers often set it. Without cached bytecode each process of Ray compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
CHECK_PYTHON := import sys; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv sweep test test-fast test-oldest lint docs bench constraints clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(INSTALLED) ## Make the environment and install the package into it (once)

# The stamp is written last: where the installation breaks off, the next make goes on with it.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "$(PYTHON) was not found: choose an interpreter with make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@"$(PYTHON)" -c '$(CHECK_PYTHON)' || { \
	  echo "retina_ray needs Python 3.11 or newer, $(PYTHON) is" \
	    "$$("$(PYTHON)" --version 2>&1): choose another with make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@"$(PY)" -m pip --version >/dev/null 2>&1 && "$(PY)" -c '$(CHECK_PYTHON)' || \
	  "$(PYTHON)" -m venv --clear "$(VENV)"
	"$(PY)" -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch "$@"

sweep: $(INSTALLED) ## Run a sweep and write its report
	"$(PY)" experiments/sweep.py $(ARGS)

# What starts Ray has all cores for itself; the rest shares them out. 5: nothing was asked for there.
test: test-fast ## Run the tests
	"$(PY)" -m pytest -m "ray and not long" $(ARGS) || [ $$? -eq 5 ]

test-fast: $(INSTALLED) ## Run the tests that do not start Ray, on all cores
	OMP_NUM_THREADS=1 "$(PY)" -m pytest -n logical --dist worksteal -m "not ray and not long" $(ARGS) \
	  || [ $$? -eq 5 ]

# The lowest versions that pyproject.toml allows, and of what these need, the newest.
test-oldest: $(OLDEST)/.installed ## Run the tests with the oldest versions that are promised
	OMP_NUM_THREADS=1 "$(OLDEST)/bin/python" -m pytest -n logical --dist worksteal \
	  -m "not ray and not long" $(ARGS)

$(OLDEST)/.installed: pyproject.toml
	"$(OLDEST_PYTHON)" -m venv --clear "$(OLDEST)"
	"$(OLDEST)/bin/python" -m pip install --disable-pip-version-check uv
	"$(OLDEST)/bin/python" -m uv pip install --python "$(OLDEST)/bin/python" \
	  --resolution lowest-direct -e '.[dev,fast-eval,s3,tensorboard]'
	@touch "$@"

lint: $(INSTALLED) ## Check style, format and types
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m pyright --pythonpath "$(PY)"

docs: $(INSTALLED) ## Write the pages and the API reference to build/site
	NO_MKDOCS_2_WARNING=1 "$(PY)" -m mkdocs build $(ARGS)

bench: $(INSTALLED) ## Run every benchmark but the soak and the learning, which take an hour each
	@set -e; for file in $(filter-out %/soak.py %/learning.py,$(sort $(wildcard benchmarks/*.py))); do \
	  echo "== $$file"; "$(PY)" "$$file" $(ARGS); done

constraints: $(INSTALLED) ## Upgrade all packages and pin what came of it
	"$(PY)" -m pip install --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[dev,docs]'
	"$(PY)" -m pip freeze --all --exclude pip --exclude-editable > .constraints.new
	@{ sed -n '/^#/p; /^[^#]/q' constraints.txt; LC_ALL=C sort -f .constraints.new; } \
	  > constraints.txt.new && mv constraints.txt.new constraints.txt && rm .constraints.new
	@touch "$(INSTALLED)"

clean: ## Remove caches and build outputs (not the environment, the data, the results)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .constraints.new constraints.txt.new
	find $(wildcard retina_ray experiments datasets benchmarks tests) -name __pycache__ -prune -exec rm -rf {} +
