# make serve   install if needed, then serve on http://127.0.0.1:8000 (stop with Ctrl-C; make serve ARGS=-v also shows Ray's log)
# make demo    score a photo with the running service: writes JSON and a picture to demo_output/
# make test    install if needed, then run the tests        make check   spelling, format, lint, types
# make test-slow   run the tests that take minutes each
# make coverage   run the default tests and report the coverage
# make lock    pin dependencies but torch with hashes     make locked  install exactly those, as CI does (Python 3.11)
# make bench   measure the speed against mmdet on this machine        make loadtest   Locust against a service that it starts
# make format  format the code        make clean   remove .venv and demo_output/

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3.11)
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: lock locked serve demo test test-slow coverage check format bench loadtest clean
.DEFAULT_GOAL := serve

# Without an NVIDIA driver, PyTorch's CPU build: the default build for Linux brings gigabytes of CUDA.
TORCH := $(shell sed -n 's/^ *"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)
CPU_TORCH = $(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 2 --index-url https://download.pytorch.org/whl/cpu

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
		{ echo "Python 3.11 or 3.12 is needed; name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into $(VENV): some minutes the first time …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v nvidia-smi > /dev/null || $(CPU_TORCH) $(TORCH) 2> /dev/null || \
		echo "https://download.pytorch.org does not offer $(TORCH) to this machine: installing the default build, gigabytes larger."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(VENV)/.installed-load: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[load]'
	touch $@

lock: $(VENV)/.installed
	$(BIN)/python .ci/lock.py

locked: requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement requirements.lock

serve: $(VENV)/.installed
	@$(BIN)/python -m serve_app.start serve_config.yaml $(ARGS)

demo: $(VENV)/.installed
	$(BIN)/python -m jobs.demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

# Coverage of the installed packages by the default tests; no minimum is enforced.
coverage: $(VENV)/.installed-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(VENV)/.installed-dev
	$(BIN)/codespell
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.bench

loadtest: $(VENV)/.installed-load
	$(BIN)/python -m loadtest locust MixedUser --headless -u 4 --shape ramp --shape-seconds 30

clean:
	rm -rf $(VENV) demo_output
