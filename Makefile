# Two commands for a fresh machine: `make serve` and `make test`. Everything they need is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where the CPU build of torch comes from if the configured package index has none.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ADDRESS ?= 127.0.0.1:8000

.PHONY: serve test test-tools test-browser test-package docs lint types format mutants bench bench-peers clean

serve: $(VENV)/installed
	$(BIN)/tidegate serve examples/image_classification.py --http $(ADDRESS)

test: lint types
	$(BIN)/python -m pytest

# Programs that some examples and recipes are tried with; where they are missing and may not be installed, those tests
# are skipped.
test-tools: .cache/promtool
	@command -v espeak-ng >/dev/null && command -v jq >/dev/null && command -v parallel >/dev/null || \
		apt-get install -y -qq --no-install-recommends espeak-ng jq parallel || \
		echo "no espeak-ng, jq or parallel, and no leave to install them: what needs them is skipped"

# Out of Debian's package, which is not installed: it would start a server.
.cache/promtool:
	@mkdir -p .cache/prometheus
	@cd .cache/prometheus && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb . && \
		mv usr/bin/promtool .. && rm -r ../prometheus || echo "no promtool to be had: its checks are skipped"

# A real browser at /docs and at the WebSocket door. Where Chromium is missing it is installed if that is allowed.
test-browser: $(VENV)/installed
	@command -v chromium chromium-browser google-chrome >/dev/null || apt-get install -y -qq --no-install-recommends chromium || \
		echo "no Chromium, and no leave to install it: these tests are skipped"
	$(BIN)/python -m pytest tests/browser -m browser

# The wheel and the source distribution: what is in them, and a new user's first minutes with nothing but the wheel.
test-package: $(VENV)/installed
	$(BIN)/python -m pytest tests/test_packaging.py -m package

# Into docs/_build/html; a warning is an error.
docs: $(VENV)/installed
	$(BIN)/python docs/_ext/tables.py
	$(BIN)/python -m sphinx -b html -W --keep-going docs docs/_build/html

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/installed
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Breaks the core on purpose, one way after another, and demands that its tests notice each.
mutants: $(VENV)/installed
	$(BIN)/python tests/mutants.py

bench: $(VENV)/installed
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=min,median,stddev

# Side by side with LitServe, Mosec and servers without batching, each in an environment of its own under .bench/. About
# half an hour; PEERS="--quick" takes ten minutes, PEERS="--only echo,tidegate,mosec" less. wrk makes the load where it is
# installed or may be; else benchmarks/peers/load.py does.
PEERS ?=
bench-peers:
	@command -v wrk >/dev/null || apt-get install -y -qq --no-install-recommends wrk || echo "no wrk: a generator in Python makes the load"
	$(PYTHON) benchmarks/peers/environments.py
	.bench/tidegate/bin/python benchmarks/peers/compare.py $(PEERS)

# torch first and alone: a plain `torch` would bring gigabytes of CUDA libraries, so the constraints name the CPU build.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch || \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt torch --extra-index-url $(TORCH_INDEX)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	touch $@

clean:
	rm -rf $(VENV) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
