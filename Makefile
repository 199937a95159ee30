# make demo    set up, then distil the digits: the main job on data that every machine has
# make test    set up, then lint, types and all tests; CI runs exactly this
# make check   the quick part of it: lint, types and the tests that take no time
# make clean   remove what was set up (the runs stay)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
VENV := .venv
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip --disable-pip-version-check -qq

.PHONY: help demo test check lint chromium clean
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(VENV)/.core
	$(VENV)/bin/understudy run digits

test: $(VENV)/.dev lint chromium
	$(RUN) pytest -n $(JOBS) --dist loadfile

check: $(VENV)/.dev lint
	$(RUN) pytest -n $(JOBS) --dist loadfile -m "not slow"

lint: $(VENV)/.dev
	$(RUN) ruff check src tests benchmarks docs runtime
	$(RUN) mypy

# The tests of the page that `export: [web]` writes need a browser: Debian's, where one may install it. Without it they skip.
chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  { echo "installing chromium for the tests of the web page (once)"; apt-get update -qq && apt-get install -qq --no-install-recommends chromium >/dev/null; }; } || \
	  echo "no chromium: the tests of the web page skip"

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache

# The stamps stand for "installed from these two files"; set-up that was interrupted is done again, and what is there is kept. Packages
# come from where pip is configured to look; on Linux that may bring gigabytes of CUDA with torch, and then it is said.
$(VENV)/.core: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once; about two minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "understudy needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt setuptools
	@[ "$$(uname -s)" != Linux ] || [ -e /dev/nvidia0 ] || $(PIP) install --dry-run --ignore-installed --no-deps --report - -c constraints.txt torch \
	  2>/dev/null | grep -q '+cpu"' || echo "pip finds no CPU build of torch, and takes one with gigabytes of CUDA: README.md, Install, has the way around"
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[export]'
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[all,dev]'
	@touch $@
