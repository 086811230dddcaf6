"""Learning rates beside those of PyTorch and timm (tests/make_optimizer_goldens.py)."""

from __future__ import annotations

import dataclasses
import json

import keras
import make_optimizer_goldens as problem
import numpy as np
import pytest
import tensorflow as tf

from kapps import InputError
from kapps.tools.schedules import Plateau, PlateauState, Schedule

GOLDENS = np.load(problem.GOLDENS)
STEPS = problem.EPOCHS * problem.STEPS_PER_EPOCH


def rates(schedule: Schedule, steps: int = STEPS) -> np.ndarray:
    compiled = tf.function(schedule)
    return np.array([compiled(tf.constant(step, tf.int64)).numpy() for step in range(steps)])


def make(kind: str, **settings: object) -> Schedule:
    return Schedule(
        kind,
        problem.RATE,
        epochs=problem.EPOCHS,
        steps_per_epoch=problem.STEPS_PER_EPOCH,
        **settings,
    )


@pytest.mark.parametrize("name", problem.SCHEDULES)
def test_rates_are_those_of_the_peer(name: str) -> None:
    settings = problem.SCHEDULES[name]
    golden = GOLDENS[f"schedule/{name}"]
    if settings.get("by_epoch"):
        golden = np.repeat(golden, problem.STEPS_PER_EPOCH)
    # The rate is handed on as float32, which resolves 6e-8.
    np.testing.assert_allclose(rates(make(**settings)), golden, rtol=1e-6)


def test_linear_falls_from_the_end_of_warm_up() -> None:
    found = rates(make("linear", warmup_epochs=10, final=0.0)) / problem.RATE
    warm = 10 * problem.STEPS_PER_EPOCH
    np.testing.assert_allclose(found[:warm], np.arange(warm) / warm, rtol=1e-6)
    np.testing.assert_allclose(found[warm:], np.linspace(1, 0, STEPS - warm + 1)[:-1], rtol=1e-6)


def test_steps_divide_at_fractions_of_an_epoch() -> None:
    found = rates(make("steps", boundaries=(0.1, 1.2), factor=0.5)) / problem.RATE
    np.testing.assert_allclose(found, [1.0] + [0.5] * 11 + [0.25] * (STEPS - 12), rtol=1e-6)


def test_a_staircase_falls_at_the_very_step() -> None:
    """2.4 epochs of 5,005 steps are 12,012 steps; 2.4 is no binary fraction."""
    schedule = Schedule(
        "exponential", 1.0, epochs=350, steps_per_epoch=5005, factor=0.5, decay_epochs=2.4
    )
    for times in range(1, 20):
        assert float(schedule(12012 * times - 1)) == 0.5 ** (times - 1)
        assert float(schedule(12012 * times)) == 0.5**times


def test_after_the_last_epoch_the_final_rate_stays() -> None:
    assert float(make("cosine", final=0.25)(10 * STEPS)) == pytest.approx(0.25 * problem.RATE)


def test_a_warm_up_may_be_all_there_is() -> None:
    """As in the shortened recipes, which try whether training runs at all."""
    found = rates(make("cosine", warmup_epochs=problem.EPOCHS))
    assert np.isfinite(found).all() and (np.diff(found) > 0).all()


def test_many_steps_are_told_apart() -> None:
    """float32 counts to 2^24, some 13 epochs of a large data set at a small batch."""
    schedule = Schedule("linear", 1.0, epochs=2, steps_per_epoch=2**25)
    step = 2**26 - 2
    assert float(schedule(step)) == 2 * float(schedule(step + 1)) > 0


def test_scale_multiplies_the_rate_of_a_compiled_step() -> None:
    scale = keras.Variable(1.0, trainable=False)
    compiled = tf.function(make("plateau", scale=scale))
    assert float(compiled(tf.constant(3))) == pytest.approx(problem.RATE)
    scale.assign(0.1)
    assert float(compiled(tf.constant(3))) == pytest.approx(0.1 * problem.RATE)


def test_unknown_curves_are_refused() -> None:
    with pytest.raises(InputError, match="unknown schedule 'cosin'; did you mean cosine"):
        make("cosin")


def test_plateaus_are_found_when_the_peer_finds_them() -> None:
    """Through JSON after each epoch, as if the run were killed then."""
    plateau, state, scales = Plateau(**problem.PLATEAU), PlateauState(), []
    for figure in problem.figures():
        state = plateau.update(state, float(figure))
        scales.append(state.scale)
        state = PlateauState(**json.loads(json.dumps(dataclasses.asdict(state))))
    np.testing.assert_allclose(scales, GOLDENS["plateau"], rtol=1e-12)
