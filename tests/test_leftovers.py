"""What a run that was killed leaves: nothing that cannot be read, and nothing for long."""

from __future__ import annotations

import functools
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType

import pytest
import tensorflow as tf

from kapps import InputError
from kapps._files import atomic_write, temporary_folder
from kapps.tools import checkpoints as module
from kapps.tools.checkpoints import Checkpoints
from kapps.tools.distribution import Devices
from kapps.tools.preemption import handled
from kapps.tools.run_lock import RunLock


class Killed(BaseException):
    pass


def opened(folder: Path, *, worker: int = 0) -> tuple[Checkpoints, tf.Variable]:
    variable = tf.Variable(0.0)
    devices = Devices(tf.distribute.get_strategy(), worker)
    checkpoints = Checkpoints(folder, devices, {"model": {"x": variable}}, kept=2)
    checkpoints.restore()
    return checkpoints, variable


def save(checkpoints: Checkpoints, variable: tf.Variable, step: int) -> None:
    variable.assign(step)
    checkpoints.state.step = step
    checkpoints.save()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files_of(*steps: int) -> set[str]:
    parts = ("index", "data-00000-of-00001")
    return {"checkpoint"} | {f"ckpt-{step}.{part}" for step in steps for part in parts}


def kill_after(moves: int, patch: pytest.MonkeyPatch) -> None:
    """From now on Checkpoints move so many files, and no more; nothing is cleared away."""
    left = iter(range(moves))

    def replace(source: Path, target: Path) -> None:
        if next(left, None) is None:
            raise Killed
        os.rename(source, target)

    patch.setattr(module.os, "replace", replace)
    patch.setattr(module.shutil, "rmtree", lambda *arguments, **keywords: None)


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_save_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    """TensorFlow empties an index in its place before it writes it: such a run was refused."""
    checkpoints, variable = opened(tmp_path)
    for step in (1, 2, 3):
        save(checkpoints, variable, step)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(moves, patch)
        save(checkpoints, variable, 4)
    checkpoints, variable = opened(tmp_path)
    step = 4 if moves == 2 else 3  # data, then the index, then TensorFlow's record
    assert checkpoints.state.step == variable.numpy() == step
    assert names(tmp_path) == files_of(step - 1, step)
    save(checkpoints, variable, 5)
    assert names(tmp_path) == files_of(step, 5)


def test_what_earlier_versions_left_goes(tmp_path: Path) -> None:
    """Half a save, half a record, and checkpoints that no record named."""
    checkpoints, variable = opened(tmp_path)
    for step in (1, 2, 3):
        save(checkpoints, variable, step)
    (tmp_path / "ckpt-4_temp").mkdir()
    for name in ("ckpt-4_temp/part", "checkpoint.tmp0", "ckpt-4.data-00000-of-00001"):
        (tmp_path / name).write_bytes(b"")
    for part in ("index", "data-00000-of-00001"):
        (tmp_path / f"ckpt-1.{part}").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("a user's")
    opened(tmp_path)
    assert names(tmp_path) == files_of(2, 3) | {"notes.txt"}


def test_the_other_workers_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, temporary = tmp_path / "run", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    checkpoints, variable = opened(run, worker=1)
    save(checkpoints, variable, 1)
    assert not run.exists() and names(temporary) == set()
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", lambda *arguments, **keywords: None)
        save(checkpoints, variable, 2)  # as if killed at its end
    assert len(names(temporary)) == 1
    opened(tmp_path / "other", worker=1)
    assert len(names(temporary)) == 1
    opened(run, worker=1)
    assert names(temporary) == set()


def test_a_place_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name can be guessed: what another user has put there is not written to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    checkpoints, variable = opened(tmp_path / "run", worker=1)
    monkeypatch.setattr(module.shutil, "rmtree", lambda *arguments, **keywords: None)
    save(checkpoints, variable, 1)
    with pytest.raises(InputError, match="cannot write a checkpoint to .*File exists"):
        save(checkpoints, variable, 2)


def test_temporary_files_of_a_run_go_with_the_next_start(tmp_path: Path) -> None:
    """Of every name that a run writes; those of other programs may be in use."""
    own = ["config.json", "result.json", "head.json", "features/train-0123.labels.npy"]
    weights = [f"{name}.safetensors" for name in ("best", "last", "weights")]
    own += [*weights, *(f"{name}.sha256" for name in weights)]
    other = ["model.tflite", "report.json", ".config-2026.json"]
    kept = []
    for name in (*own, *other):
        with pytest.raises(RuntimeError), atomic_write(tmp_path / name) as temporary:
            raise RuntimeError
        temporary.write_bytes(b"half of it")
        if name in other:
            kept.append(temporary.name)
    with RunLock(tmp_path):
        pass
    assert names(tmp_path) == {"lock", "features", *kept}
    assert not names(tmp_path / "features")


# What a moment before the signal was opened to be read is closed without a `with` of its own.
@pytest.mark.filterwarnings("ignore:.*FileIO|.*Scandir:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("manager", [atomic_write, temporary_folder])
def test_a_signal_at_any_moment_leaves_nothing(
    tmp_path: Path, manager: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    """Also between the making of a file and the `with` block that removes it, and in removing."""
    moments = 0
    while True:
        folder = tmp_path / str(moments)
        folder.mkdir()
        target = folder / "new" if manager is atomic_write else folder
        done = _is_done(functools.partial(_use, manager, target), before=moments)
        assert names(folder) <= {"new"}, moments
        if done:
            break
        moments += 1
    assert moments > 200
    assert names(folder) == ({"new"} if manager is atomic_write else set())


def _use(manager: Callable[[Path], AbstractContextManager[Path]], target: Path) -> None:
    with manager(target) as path:
        if path.is_dir():
            (path / "within").touch()


def _is_done(work: Callable[[], None], *, before: int) -> bool:
    """Whether it takes fewer steps of Python's; else a signal ends it at this one."""
    left = iter(range(before))

    def trace(frame: FrameType, event: str, argument: object) -> object:
        frame.f_trace_opcodes = True
        if event == "opcode" and next(left, None) is None:
            sys.settrace(None)
            signal.raise_signal(signal.SIGUSR1)
        return trace

    def end(number: int, frame: FrameType | None) -> None:
        raise Killed

    with handled([signal.SIGUSR1], end):
        try:
            sys.settrace(trace)
            work()
            return True
        except (Killed, OSError) as error:  # OSError: shutil's rmtree can close a folder twice
            assert isinstance(error, Killed) or isinstance(error.__context__, Killed)
            traceback.clear_frames(error.__traceback__)
            return False
        finally:
            sys.settrace(None)
