# make run     set up, start a daemon in a directory of its own, run a container, clean up
# make test    set up, check and test everything; make test TESTS=plugins/gc tests a part
SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
SOURCES := aiocontainerd plugins tests integration contrib conftest.py

.PHONY: run serve test lint format bench proto docs lock clean setup setup-test

setup:
	@contrib/quickstart/setup.sh run

setup-test:
	@contrib/quickstart/setup.sh test

# Pass IMAGE, CMD and SNAPSHOTTER verbatim, without make or shell expansion.
unexport IMAGE CMD SNAPSHOTTER
run: export RUN_IMAGE := $(value IMAGE)
run: export RUN_COMMAND := $(value CMD)
run: export RUN_SNAPSHOTTER := $(value SNAPSHOTTER)
run: setup
	@exec $(PY) contrib/quickstart/quickstart.py run --image "$$RUN_IMAGE" --command "$$RUN_COMMAND" \
		--snapshotter "$$RUN_SNAPSHOTTER"

serve: setup
	@exec $(PY) contrib/quickstart/quickstart.py serve

lint: setup-test
	$(VENV)/bin/ruff check --output-format concise $(SOURCES)
	$(VENV)/bin/ruff format --check --quiet $(SOURCES)
	$(VENV)/bin/mypy $(SOURCES)
	$(PY) -m aiocontainerd.api.generate --check
	$(PY) -m aiocontainerd.host.reference --check

test: lint
	$(PY) tests/runner.py -q $(TESTS)

bench: setup-test
	$(PY) integration/bench.py $(BENCH)

proto: setup-test
	$(PY) -m aiocontainerd.api.generate

docs: setup-test
	$(PY) -m aiocontainerd.host.reference

format: setup-test
	$(VENV)/bin/ruff format $(SOURCES)
	$(VENV)/bin/ruff check --fix $(SOURCES)

# Pins and hashes only: the lock names no index.
lock: setup-test
	$(PY) contrib/quickstart/requirements.py | $(VENV)/bin/uv pip compile --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --quiet - -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
