"""A training's minutes: by a clock that the test holds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rl4rec_cli.train.time_limit import TimeLimit


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_training_ends_once_the_minutes_are_over(capsys: pytest.CaptureFixture[str]) -> None:
    clock = _Clock()
    limit = TimeLimit(2, clock)
    clock.now = 500  # what was done before training does not count
    state, control = SimpleNamespace(global_step=3, max_steps=9), SimpleNamespace(should_training_stop=False)
    limit.on_train_begin(None, state, control)
    clock.now = 619
    limit.on_step_end(None, state, control)
    assert not control.should_training_stop
    clock.now = 620
    limit.on_step_end(None, state, control)
    assert control.should_training_stop
    assert "2 minutes (trainer.max_minutes) are over after step 3 of at most 9" in capsys.readouterr().err


def test_a_resumed_training_has_the_minutes_that_are_left() -> None:
    clock = _Clock()
    limit = TimeLimit(2, clock)
    limit.set_seconds(90)
    assert limit.share == 0.75
    clock.now += 30
    assert limit.share == 1.0


def test_the_rate_follows_steps_or_minutes_whichever_is_further_on() -> None:
    clock = _Clock()
    limit = TimeLimit(1, clock)
    rate = limit.paced(lambda step: step / 2 if step < 2 else 1 - step / 100, steps=100, warmup=2)
    assert rate(50) == 0.5
    clock.now += 45
    assert rate(50) == pytest.approx(0.25)
    assert rate(90) == pytest.approx(0.1)
    assert rate(1) == 0.5  # warm-up is in steps
    clock.now += 100
    assert rate(50) == 0.0
