import json
import logging
import os
import shutil
import signal
import sys
import threading
import types

import equinox as eqx
import jax
import numpy as np
import pytest

from slotzoo.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from slotzoo.train import FitConfig, RunLogger, load_model, saved_steps
from slotzoo.train.prefetch import Prefetch
from slotzoo.train.resume import check_resume
from slotzoo.train.signals import Signals
from tests.train.small import Batches, Linear, Regression, run_linear


def lines(folder):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in read:
        line.pop("steps_per_second", None), line.pop("data_wait", None)
    return read


class StopAt(Batches):
    """Asks to stop when a batch is drawn, as a signal at that moment does."""

    def __init__(self, index, signals, number=signal.SIGTERM):
        super().__init__()
        self.at, self.signals, self.number = index, signals, number

    def __next__(self):
        if self.index == self.at:
            os.kill(os.getpid(), self.number) if self.signals is None else self.signals.request("SIGTERM")
        return super().__next__()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, run_linear(folder, ema_decay=0.9)


def test_finishes_with_logs_pictures_and_checkpoints(straight):
    folder, result = straight
    assert result.status == "finished" and result.step == 12 and result.metrics["error"] < 0.5
    assert [(line["step"], line["split"]) for line in lines(folder)] == [
        *((s, "train") for s in range(1, 7)),
        (6, "eval"),
        *((s, "train") for s in range(7, 13)),
        (12, "eval"),
    ]
    assert {"loss", "error", "grad_norm", "learning_rate"} <= set(lines(folder)[0])
    assert (folder / "evaluation" / "step_12" / "picture.txt").exists()
    text = (folder / "train.log").read_text()
    assert "36 parameters" in text and "One step needs" in text and "GFLOP" in text
    model, step = load_model(
        folder / "checkpoints", eqx.filter_eval_shape(lambda k: Linear(key=k), jax.random.key(0))
    )
    assert step == 12
    np.testing.assert_array_equal(model.weight, result.state.averaged().weight)


def test_begins_with_what_it_is_given_and_goes_on_with_its_own(tmp_path):
    # The first update has the rate zero.
    given = {"weight": np.full((8, 4), 0.5, np.float32)}
    state = run_linear(tmp_path, steps=1, ema_decay=0.9, initial=given).state
    for model in (state.model, state.averaged()):
        np.testing.assert_array_equal(model.weight, given["weight"])
    again = run_linear(tmp_path, steps=1, ema_decay=0.9, initial={"weight": 0 * given["weight"]})
    np.testing.assert_array_equal(again.state.model.weight, given["weight"])


def test_finished_run_is_left_alone(straight):
    folder, result = straight
    before = lines(folder)
    task = Regression()
    again = run_linear(folder, task=task, ema_decay=0.9)
    assert again.status == "finished" and again.metrics == result.metrics
    assert task.evaluated == [] and lines(folder) == before


@pytest.mark.parametrize("at", [3, 7])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(straight, tmp_path, at):
    folder, result = straight
    signals = Signals()
    first = run_linear(tmp_path, data=StopAt(at, signals), signals=signals, ema_decay=0.9)
    assert first.status == "stopped" and first.signal == "SIGTERM" and 0 <= first.step <= at
    second = run_linear(tmp_path, ema_decay=0.9)
    assert second.status == "finished"
    for a, b in zip(jax.tree.leaves(result.state), jax.tree.leaves(second.state), strict=True):
        np.testing.assert_array_equal(a, b) if eqx.is_array(a) else None
    assert lines(tmp_path) == lines(folder)
    assert "Going on from the checkpoint" in (tmp_path / "train.log").read_text() or first.step == 0


def test_torn_newest_checkpoint_costs_its_steps_and_nothing_else(straight, tmp_path):
    folder = tmp_path / "torn"
    shutil.copytree(straight[0], folder)
    for data in (folder / "checkpoints" / "12").glob("*/d"):
        shutil.rmtree(data)
    again = run_linear(folder, ema_decay=0.9)
    assert again.status == "finished" and saved_steps(folder / "checkpoints") == [4, 8, 12]
    np.testing.assert_array_equal(again.state.model.weight, straight[1].state.model.weight)
    assert lines(folder) == lines(straight[0])
    assert "checkpoint of step 12 cannot be read" in (folder / "train.log").read_text()


def test_signal_in_evaluation_repeats_the_evaluation(straight, tmp_path):
    signals = Signals()

    class Interrupted(Regression):
        def evaluate(self, *args, step, **kwargs):
            if step == 12:
                signals.request("SIGUSR1")
            return super().evaluate(*args, step=step, **kwargs)

    first = run_linear(tmp_path, task=Interrupted(), signals=signals, ema_decay=0.9)
    assert first.status == "stopped" and first.step == 12
    second = run_linear(tmp_path, ema_decay=0.9)
    assert second.status == "finished" and second.metrics == straight[1].metrics
    assert lines(tmp_path) == lines(straight[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda n: n.name)
def test_real_signal_saves_stops_and_handlers_are_put_back(tmp_path, number):
    before = signal.getsignal(number)
    result = run_linear(tmp_path, data=StopAt(6, None, number))
    assert result.status == "stopped" and result.signal == number.name and 1 <= result.step <= 6
    assert saved_steps(tmp_path / "checkpoints")[-1] == result.step
    assert signal.getsignal(number) is before


def test_second_interrupt_quits_at_once():
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background of a shell
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.stop_requested and signals.received == "SIGINT"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


def test_not_finite_stops_with_its_place_and_keeps_the_good_checkpoint(tmp_path):
    with pytest.raises(
        NonFiniteError,
        match=r"at step 7 in error \(learning rate .*, loss nan, gradient norm nan\).* of step 4 is kept",
    ):
        run_linear(tmp_path, task=Regression(poison=6), log_every=100)
    assert run_linear(tmp_path).status == "finished"


def test_fewer_steps_than_were_done_end_with_an_evaluation(tmp_path):
    with pytest.raises(NonFiniteError):
        run_linear(tmp_path, task=Regression(poison=5))
    result = run_linear(tmp_path, steps=3)
    assert result.status == "finished" and result.step == 4 and "error" in result.metrics
    assert (tmp_path / "evaluation" / "step_4" / "picture.txt").is_file()


def test_data_that_ends_or_breaks_is_told(tmp_path):
    class Short(Batches):
        def __next__(self):
            if self.index == 3:
                raise StopIteration
            return super().__next__()

    class Broken(Batches):
        def __next__(self):
            if self.index == 3:
                raise DataError("clip 3 of a.npz is broken")
            return super().__next__()

    with pytest.raises(DataError, match="training data ended"):
        run_linear(tmp_path / "a", data=Short())
    assert saved_steps(tmp_path / "a" / "checkpoints") == [3]  # nothing that was trained is lost
    broken = Broken()
    with pytest.raises(DataError, match="clip 3 of a.npz is broken"):
        run_linear(tmp_path / "b", data=broken)
    assert broken.closed and not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_error_in_evaluation_loses_nothing(tmp_path):
    class Broken(Regression):
        def evaluate(self, *args, **kwargs):
            raise RuntimeError("no picture today")

    with pytest.raises(RuntimeError, match="no picture today"):
        run_linear(tmp_path, task=Broken(), save_every=100)
    assert saved_steps(tmp_path / "checkpoints") == [6]


def test_exhausted_memory_is_a_sentence(tmp_path):
    class Big(Regression):
        def evaluate(self, *args, **kwargs):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")

    with pytest.raises(ConfigError, match="memory of the device is exhausted: take a smaller train.batch_size"):
        run_linear(tmp_path, task=Big(), evaluate_every=1)


def test_wrong_numbers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="train.log_every is 0"):
        FitConfig(steps=1, batch_size=4, log_every=0)
    with pytest.raises(ConfigError, match=r"hold \{'x': 8, 'y': 8\} examples.*batch_size is 4"):
        run_linear(tmp_path, batch_size=4)
    with pytest.raises(ConfigError, match="cannot be split over 4 devices"):
        run_linear(tmp_path, batch_size=6)


def test_full_disk_is_one_sentence_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    real = shutil.disk_usage
    saved = tmp_path / "checkpoints" / "4"
    monkeypatch.setattr(
        shutil, "disk_usage", lambda p: real(p)._replace(free=100) if saved.exists() else real(p)
    )
    with pytest.raises(
        CheckpointError, match=r"step 8 could not .* disk is full \(\d+ bytes .* 100 are free\).* is step 4;"
    ):
        run_linear(tmp_path)
    monkeypatch.undo()
    assert run_linear(tmp_path).status == "finished"


def test_prefetch_does_not_run_ahead_of_its_state():
    data = Prefetch(Batches(), lambda b: b, depth=3)
    first = data.peek()
    assert data.get_state() == {"next_index": 0}
    np.testing.assert_array_equal(next(data)["x"], first["x"])
    assert data.get_state() == {"next_index": 1}
    second = next(data)
    data.set_state({"next_index": 1})
    np.testing.assert_array_equal(next(data)["x"], second["x"])
    data.close()


def test_changed_configuration_is_refused_with_the_difference():
    old = {"train": {"steps": 10, "log_every": 5}, "model": {"depths": (1, 2)}, "name": "a"}
    new = {"train": {"steps": 20, "log_every": 5}, "model": {"depths": [1, 2]}, "name": "a"}
    assert check_resume(old, old) == []
    assert check_resume(old, new, ["train.steps"]) == ["train.steps"]
    with pytest.raises(
        ConfigError, match=r"(?s)another configuration.*train.steps: 10 -> 20.*another name or seed"
    ):
        check_resume(old, new, ["logger.*"])
    with pytest.raises(ConfigError, match=r"extra: \(absent\) -> 1"):
        check_resume(old, {**old, "extra": 1})


def test_log_survives_a_line_cut_short(tmp_path):
    with RunLogger(tmp_path, progress="plain") as logger:
        for step in (1, 2, 3):
            logger.metrics(step, "train", {"loss": float("nan") if step == 2 else 1.0})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "spl')
        logger.resume(2)
    assert lines(tmp_path) == [
        {"step": 1, "split": "train", "loss": 1.0},
        {"step": 2, "split": "train", "loss": None},
    ]
    assert not logging.getLogger("slotzoo").handlers


def test_wandb_goes_on_in_the_same_charts(tmp_path, monkeypatch):
    calls = []

    class Fake:
        def log(self, values, step):
            calls.append((values, step))

        def finish(self):
            calls.append("finish")

    module = types.SimpleNamespace(init=lambda **kwargs: calls.append(kwargs) or Fake())
    monkeypatch.setitem(sys.modules, "wandb", module)
    folder = tmp_path / "linear" / "seed0"
    with RunLogger(folder, wandb=True, progress="plain", config={"a": 1}) as logger:
        logger.metrics(3, "eval", {"error": 0.5})
    assert calls[0]["id"] == "linear-seed0" and calls[0]["resume"] == "allow" and calls[0]["config"] == {"a": 1}
    assert calls[1:] == [({"eval/error": 0.5}, 3), "finish"]


def test_log_that_cannot_be_written_is_told(tmp_path):
    with RunLogger(tmp_path, progress="plain") as logger:
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(CheckpointError, match="metrics.jsonl could not be written .*goes on from the last"):
            logger.metrics(1, "train", {"loss": 1.0})


def test_tensorboard_and_bar(tmp_path):
    pytest.importorskip("tensorboardX")
    with RunLogger(tmp_path, tensorboard=True, progress="bar") as logger:
        logger.start(0, 10)
        logger.metrics(1, "train", {"loss": 1.0})
        logger.progress(1, 1.0, 2.0, 0.1)
        logger.say("hello [not markup]")
    assert list((tmp_path / "tensorboard").iterdir())
    with pytest.raises(ConfigError, match="logger.progress is 'fancy'"):
        RunLogger(tmp_path, progress="fancy")
