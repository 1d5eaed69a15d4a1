PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
ARGS ?=

.PHONY: demo test test-slow evidence lint type format docs

# one thread, unless the caller says otherwise
test test-slow docs: export OMP_NUM_THREADS ?= 1

demo: $(INSTALLED)  ## train, compare and plot; ARGS="--quick" for a short look
	$(BIN)/python -m benchmarks.demo $(ARGS)

test: $(INSTALLED)  ## the fast tests, in two processes
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(ARGS)

test-slow: $(INSTALLED)  ## the tests that train to published figures
	$(BIN)/python -m pytest -m slow $(ARGS)

evidence: $(INSTALLED)  ## reruns a row of the published tables; fails where a figure has drifted
	$(BIN)/python -m benchmarks.evidence --jobs 2 $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)  ## the site, in build/site; a warning is an error
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs build/site

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[tests,docs]"
	touch $@
