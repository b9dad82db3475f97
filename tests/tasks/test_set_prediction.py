"""The task of set prediction, and average precision."""

import dataclasses
import json
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, DataError
from slotzoo.metrics.detection import average_precision
from slotzoo.tasks.set_prediction import SetPredictionConfig, SetPredictionTask


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@dataclasses.dataclass(frozen=True)
class Config:
    low: float = -1.0
    high: float = 1.0


class Output(NamedTuple):
    prediction: jax.Array


class Reader(eqx.Module):
    """Reads its prediction off the picture, whose first pixels hold it; `noise` spoils the coordinates."""

    noise: jax.Array
    slots: int = eqx.field(static=True)
    config: Config = eqx.field(static=True, default=Config())

    def draw(self, key):
        return jax.random.permutation(key, self.slots)

    def __call__(self, image, *, draws=None, key=None):
        del key
        rows = ((image[..., 0] + 1) / 2)[: self.slots, :19]
        return Output((rows + self.noise * jnp.eye(1, 19)[0][None, :])[draws])


def images_of(targets):
    image = np.zeros((len(targets), 24, 24, 3), np.uint8)
    image[:, : targets.shape[1], :19] = np.round(255 * targets)[..., None]
    return image


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    targets = np.zeros((4, 3, 19), np.float32)
    for image in range(4):
        for row in range(min(image + 1, 3)):
            targets[image, row, :3] = np.round(255 * rng.random(3)) / 255
            for start, size in ((3, 2), (5, 2), (7, 3), (10, 8)):
                targets[image, row, start + rng.integers(size)] = 1
            targets[image, row, 18] = 1
    return {"image": images_of(targets), "targets": targets}


def evaluate(model, batches, folder, should_stop=lambda: False, pictures=1):
    task = SetPredictionTask(SetPredictionConfig(pictures=pictures))
    key = jax.random.key(0)
    return task.evaluate(model, None, batches, key=key, step=1, folder=folder, should_stop=should_stop)


def test_order_does_not_matter(batch, tmp_path):
    model = Reader(jnp.zeros(()), 3)
    loss, _ = SetPredictionTask().loss(model, None, batch, key=jax.random.key(1), step=jnp.asarray(0))
    assert loss == pytest.approx(0.0, abs=1e-6)
    numbers = evaluate(model, [batch], tmp_path)
    assert [numbers[name] for name in ("ap", "ap_1", "ap_0.5", "ap_0.25", "ap_0.125")] == [1.0] * 5
    table = json.loads((tmp_path / "table.json").read_text())
    assert [row["name"] for row in table["rows"]] == ["model", "the mean object, everywhere"]
    assert table["rows"][1]["any distance"] < 1
    assert (tmp_path / "predictions.png").is_file()


def test_slots_beyond_the_targets_learn_that_they_hold_nothing(batch):
    """Two slots for every row: a second copy of an object costs as much as it differs from zeros."""
    image = np.concatenate([batch["image"][:, :3], batch["image"][:, :3], batch["image"][:, 6:]], axis=1)
    loss = SetPredictionTask().loss
    options = dict(key=jax.random.key(1), step=jnp.asarray(0))
    zeros, _ = loss(Reader(jnp.zeros(()), 6), None, batch, **options)
    copies, _ = loss(Reader(jnp.zeros(()), 6), None, batch | {"image": image}, **options)
    assert zeros == pytest.approx(0.0, abs=1e-6)
    huber = (0.5 * np.square(batch["targets"])).mean(-1).sum(-1).mean()
    assert copies == pytest.approx(huber, rel=1e-4)


def test_distance_and_filled_up_batches(batch, tmp_path):
    model = Reader(jnp.asarray(0.05), 3)  # 0.3 in the units of the scenes
    whole = evaluate(model, [batch], tmp_path)
    assert whole["ap_0.5"] == 1.0 and whole["ap_0.25"] == 0.0
    parts = [
        {name: x[[0, 1, 2]] for name, x in batch.items()} | {"valid": np.asarray([True, True, True])},
        {name: x[[3, 0, 0]] for name, x in batch.items()} | {"valid": np.asarray([True, False, False])},
    ]
    assert evaluate(model, parts, tmp_path, pictures=0) == pytest.approx(whole, rel=1e-5)


def test_sentences(batch, tmp_path):
    task = SetPredictionTask()
    step, key = jnp.asarray(0), jax.random.key(0)
    with pytest.raises(ConfigError, match="predicts 2 objects of 19 features, the data set has up to 3"):
        task.loss(Reader(jnp.zeros(()), 2), None, batch, key=key, step=step)
    with pytest.raises(ConfigError, match=r"data\.options\.attributes=true"):
        task.loss(Reader(jnp.zeros(()), 3), None, {"image": batch["image"]}, key=key, step=step)
    with pytest.raises(DataError, match=r"raise eval\.clips"):
        evaluate(Reader(jnp.zeros(()), 3), [], tmp_path)
    assert evaluate(Reader(jnp.zeros(()), 3), [batch], tmp_path, should_stop=lambda: True) == {}
    with pytest.raises(ConfigError, match="thresholds are positive"):
        SetPredictionConfig(thresholds=(0.0,))


def test_each_object_is_found_once(batch):
    """A second, less sure copy of a right prediction is wrong; a surer wrong one costs precision."""
    target = batch["targets"][:1, :1]
    twice = np.concatenate([target, target], axis=1)
    twice[0, 1, -1] = 0.9
    np.testing.assert_allclose(average_precision(twice, target, [np.inf]), [1.0])
    twice[0, 1, 3:5] = twice[0, 1, 4:2:-1]  # another size
    twice[0, 1, -1] = 1.1
    np.testing.assert_allclose(average_precision(twice, target, [np.inf]), [0.5])
    assert np.isnan(average_precision(twice, np.zeros_like(target), [np.inf]))
