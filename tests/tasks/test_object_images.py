"""The task of objects in images: what it optimises, measures and draws."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, DataError
from slotzoo.metrics.segmentation import segmentation_scores
from slotzoo.tasks.object_images import ObjectImagesConfig, ObjectImagesTask
from slotzoo.tasks.pixels import to_range
from tests.tasks.objects import Toy, ToyConfig


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def batch():
    """Grey squares on black, and white ones: three brightnesses, so the toy is right everywhere."""
    mask = np.zeros((3, 8, 8), np.uint8)
    mask[:, 1:4, 1:4], mask[:, 5:7, 2:8] = 1, 2
    mask[2] = 0  # an image without objects: FG-ARI is not defined there
    image = np.asarray([0, 128, 255], np.uint8)[mask][..., None].repeat(3, -1)
    visible = np.asarray([[1, 1], [1, 1], [0, 0]], np.uint8)
    return {"image": image, "mask": mask, "visible": visible}


def evaluate(task, model, batches, folder, should_stop=lambda: False):
    folder.mkdir(parents=True, exist_ok=True)
    key = jax.random.key(3)
    return task.evaluate(model, None, batches, key=key, step=1, folder=folder, should_stop=should_stop)


def test_loss_is_the_mean_over_images(batch):
    model, task = Toy(), ObjectImagesTask()
    loss, terms = eqx.filter_jit(task.loss)(model, None, batch, key=jax.random.key(0), step=jnp.asarray(0))
    images = to_range(jnp.asarray(batch["image"]), model.config)
    each = [model.loss(image, key=jax.random.key(1), step=0)[0] for image in images]
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)
    assert set(terms) == {"mse"}
    np.testing.assert_allclose(to_range(jnp.asarray([0, 255], jnp.uint8), ToyConfig(low=0.0)), [0.0, 1.0])


def test_evaluation(batch, tmp_path):
    task = ObjectImagesTask(ObjectImagesConfig(pictures=2))
    numbers = evaluate(task, Toy(), [batch], tmp_path / "a")
    assert numbers["fg_ari"] == numbers["ari"] == numbers["miou"] == numbers["covering"] == 1.0
    assert numbers["slots_in_use"] == pytest.approx((3 + 3 + 1) / 3)
    assert numbers["count_accuracy"] == 1.0 and numbers["psnr"] > 30
    tables = json.loads((tmp_path / "a" / "table.json").read_text())["tables"]
    assert [row["name"] for row in tables[0]["rows"]] == ["model", "all one segment", "vertical stripes"]
    assert tables[0]["rows"][0]["FG-ARI"] == 1.0 and tables[0]["rows"][1]["FG-ARI"] == 0.0
    assert (tmp_path / "a" / "objects.png").is_file() and (tmp_path / "a" / "segments.png").is_file()

    # What fills up a batch does not count, nor does how images are dealt out to batches.
    filled = {name: np.concatenate([x[:2], 0 * x[:1]]) for name, x in batch.items()}
    first = filled | {"valid": np.asarray([True, True, False])}
    last = {name: np.concatenate([x[2:], 0 * x[:2]]) for name, x in batch.items()}
    second = last | {"valid": np.asarray([True, False, False])}
    other = evaluate(task, Toy(), [first, second], tmp_path / "b")
    assert other == pytest.approx(numbers, rel=1e-6)


def test_a_loss_that_is_not_finite_is_not_left_out(batch, tmp_path):
    broken = eqx.tree_at(lambda toy: toy.centres, Toy(), jnp.full(3, jnp.nan))
    numbers = evaluate(ObjectImagesTask(ObjectImagesConfig(pictures=1)), broken, [batch], tmp_path)
    assert np.isnan(numbers["loss"]) and np.isfinite(numbers["ari"])
    assert "NaN" not in (tmp_path / "table.json").read_text()


def test_counts_are_those_of_the_objects_in_the_picture(batch, tmp_path):
    """A model that counts is asked for the objects that the mask shows, not for one that a crop left out."""
    cropped = batch | {"mask": np.where(batch["mask"] == 2, 0, batch["mask"]).astype(np.uint8)}
    task = ObjectImagesTask(ObjectImagesConfig(pictures=0))
    assert evaluate(task, Toy(count=1), [cropped], tmp_path)["count_accuracy"] == pytest.approx(2 / 3)


def test_labels_of_data_without_visible_are_scored_the_same(batch, tmp_path):
    task = ObjectImagesTask(ObjectImagesConfig(pictures=0, most_objects=5))
    plain = {name: batch[name] for name in ("image", "mask")}
    assert evaluate(task, Toy(), [plain], tmp_path)["fg_ari"] == 1.0
    assert not (tmp_path / "objects.png").exists()


def test_without_masks_there_is_a_sentence(batch, tmp_path):
    numbers = evaluate(ObjectImagesTask(), Toy(), [{"image": batch["image"]}], tmp_path)
    assert "fg_ari" not in numbers and numbers["psnr"] > 30
    assert "no masks" in (tmp_path / "table.json").read_text()


def test_stops_and_refuses_nothing(batch, tmp_path):
    task = ObjectImagesTask()
    assert evaluate(task, Toy(), [batch], tmp_path, should_stop=lambda: True) == {}
    with pytest.raises(DataError, match=r"raise eval\.clips"):
        evaluate(task, Toy(), [], tmp_path)
    with pytest.raises(ConfigError, match="threshold"):
        ObjectImagesConfig(threshold=2.0)


def test_more_slots_than_in_training(batch):
    task, keys = ObjectImagesTask(), jax.random.split(jax.random.key(0), 3)
    rows = task.apart(Toy(), batch["image"], task.explain(Toy(), batch["image"], keys, slots=5, iterations=7))
    assert rows[0].masks.shape == (5, 8, 8) and rows[0].true is None
    assert rows[0].pictures.min() == 0.0 and rows[0].pictures.max() == 1.0


def test_scores_are_those_of_the_labels(batch, tmp_path):
    """A model that sees two of three brightnesses."""
    numbers = evaluate(ObjectImagesTask(), Toy(ToyConfig(num_slots=2)), [batch], tmp_path)
    labels = (batch["image"][:2, ..., 0] > 127.5).astype(np.int32)
    expected = [
        segmentation_scores(jnp.asarray(t, jnp.int32), jnp.asarray(p), true_count=3, predicted_count=2)
        for t, p in zip(batch["mask"][:2], labels, strict=True)
    ]
    assert numbers["miou"] == pytest.approx(np.mean([e.miou for e in expected]), rel=1e-5)
    assert numbers["fg_ari"] == 0.0
