import contextlib
import errno
import logging
import shutil
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from slotzoo.data import FieldSpec
from slotzoo.data.pipeline import make_pipeline
from slotzoo.errors import CheckpointError, ConfigError, DataError
from slotzoo.train import OptimizerConfig, init_state, make_optimizer
from slotzoo.train.checkpoint import Checkpointer, _own_position, load_model, read_card, saved_steps
from slotzoo.train.mesh import make_mesh, shard_batch
from slotzoo.train.sharding import abstract, init_sharded
from slotzoo.train.signals import Signals
from slotzoo.train.step import make_train_step
from tests.train.small import Batches, Linear, Regression, run_linear


KEY = jax.random.key(3)
OPTIMIZER = make_optimizer(OptimizerConfig(0.1, steps=10, warmup_steps=0))


def make(mesh, strategy="replicated", ema=True, size=(8, 4)):
    return init_sharded(
        lambda k: init_state(lambda q: Linear(*size, key=q), OPTIMIZER, key=k, ema=ema),
        KEY,
        mesh=mesh,
        strategy=strategy,
    )


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if eqx.is_array(x):
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
        else:
            assert x is y


def save_steps(folder, state, steps, **options):
    data = Batches()
    with Checkpointer(folder, **options) as checkpointer:
        for step in steps:
            data.index = step
            checkpointer.save(step, state, data, {"config": {"name": "linear"}}, {"error": abs(step - 3.0)})
        checkpointer.wait()
        return checkpointer.steps()


def test_roundtrip_is_exact_and_survives_donation(tmp_path):
    mesh = make_mesh()
    state = make(mesh)
    step = make_train_step(Regression(), OPTIMIZER, mesh=mesh, ema_decay=0.9)
    data = Batches()
    state, _ = step(state, None, shard_batch(mesh, next(data)), KEY)
    kept = jax.tree.map(lambda x: np.array(x) if eqx.is_array(x) else x, state)
    with Checkpointer(tmp_path / "c") as checkpointer:
        assert checkpointer.restore_latest(abstract(state, mesh, "replicated")) is None
        checkpointer.save(1, state, data, {"a": [1, "x"]})
        for _ in range(3):  # the buffers just saved are given away while the save is under way
            state, _ = step(state, None, shard_batch(mesh, next(data)), KEY)
        again = Batches()
        found = checkpointer.restore_latest(abstract(state, mesh, "replicated"), again)
    assert found is not None and found.step == 1 and found.card == {"a": [1, "x"]} and again.index == 1
    for x, y in zip(jax.tree.leaves(kept), jax.tree.leaves(found.state), strict=True):
        np.testing.assert_array_equal(x, np.asarray(y)) if isinstance(x, np.ndarray) else None
    assert found.state.model.activation is jnp.tanh
    assert read_card(tmp_path / "c") == {"a": [1, "x"]}


def test_restores_onto_another_mesh_and_strategy(tmp_path, monkeypatch):
    monkeypatch.setattr("slotzoo.train.sharding.FSDP_MINIMUM", 1)
    mesh = make_mesh()
    state = make(mesh, "fsdp")
    save_steps(tmp_path / "c", state, [1])
    for other, strategy, spec in [
        (make_mesh(), "replicated", PartitionSpec()),
        (make_mesh(model=2), "fsdp", PartitionSpec("model", "data")),
    ]:
        with Checkpointer(tmp_path / "c") as checkpointer:
            found = checkpointer.restore_latest(abstract(make(other, strategy), other, strategy))
        assert found is not None
        same(state, found.state)
        assert found.state.model.weight.sharding.spec == spec


def test_keeps_the_newest_the_periodic_and_the_best(tmp_path):
    state = make(make_mesh(), ema=False)
    assert save_steps(tmp_path / "c", state, range(1, 10), keep=2, keep_every=5, monitor="error") == [
        3,
        5,
        8,
        9,
    ]


def tear(folder, step):
    """Lose the data files of a finished checkpoint, as a dying file system does."""
    for data in (folder / str(step) / "model").glob("**/d"):
        shutil.rmtree(data)


def test_torn_newest_is_skipped_with_a_warning_and_its_step_can_be_saved_again(tmp_path, caplog):
    mesh, folder = make_mesh(), tmp_path / "c"
    state = make(mesh)
    save_steps(folder, state, [1, 2])
    tear(folder, 2)
    data = Batches()
    with Checkpointer(folder) as checkpointer, caplog.at_level(logging.WARNING):
        found = checkpointer.restore_latest(abstract(state, mesh, "replicated"), data)
        assert found is not None and found.step == 1 and data.index == 1
        assert (
            "The checkpoint of step 2 cannot be read" in caplog.text and "going on from step 1" in caplog.text
        )
        checkpointer.save(2, state, data, {})
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2]


def test_nothing_readable_is_an_error_not_a_fresh_start(tmp_path):
    mesh, folder = make_mesh(), tmp_path / "c"
    state = make(mesh)
    save_steps(folder, state, [1, 2])
    tear(folder, 1), tear(folder, 2)
    with Checkpointer(folder) as checkpointer:
        with pytest.raises(CheckpointError, match="none can be read.*step 2.*step 1.*does not start over"):
            checkpointer.restore_latest(abstract(state, mesh, "replicated"))
    with pytest.raises(CheckpointError, match="No checkpoint in .* can be read"):
        load_model(folder, state.model)


def test_another_model_is_named(tmp_path):
    mesh = make_mesh()
    save_steps(tmp_path / "c", make(mesh), [1])
    other = make(mesh, size=(8, 12))
    with Checkpointer(tmp_path / "c") as checkpointer:
        with pytest.raises(
            CheckpointError, match=r"model.bias has shape \(4,\) there, and shape \(12,\) is wanted"
        ):
            checkpointer.restore_latest(abstract(other, mesh, "replicated"))


def test_model_alone_and_its_average(tmp_path):
    mesh = make_mesh()
    state = make(mesh)
    state = eqx.tree_at(lambda s: s.ema.weight, state, state.ema.weight + 1)
    save_steps(tmp_path / "c", state, [4])
    shapes = eqx.filter_eval_shape(lambda k: Linear(key=k), KEY)
    model, step = load_model(tmp_path / "c", shapes)
    same(state.averaged(), model)
    assert step == 4
    plain, _ = load_model(tmp_path / "c", shapes, prefer_ema=False)
    same(state.model, plain)
    with pytest.raises(CheckpointError, match="There is no checkpoint in"):
        load_model(tmp_path / "empty", shapes)


def test_leftovers_of_a_killed_save_are_ignored_and_cleaned(tmp_path):
    mesh, folder = make_mesh(), tmp_path / "c"
    state = make(mesh)
    save_steps(folder, state, [1])
    (folder / "2.orbax-checkpoint-tmp").mkdir()
    (folder / "2.orbax-checkpoint-tmp" / "model").mkdir()
    assert load_model(folder, state.model)[1] == 1
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.steps() == [1]
        assert not list(folder.glob("*tmp*"))


def test_the_best_checkpoint_by_the_monitor_is_kept(tmp_path, capsys):
    """Saved where it is measured, though every fourth step alone is saved otherwise, and named in the end."""

    class Worse(Regression):
        def evaluate(self, *args, step, **kwargs):
            return super().evaluate(*args, step=step, **kwargs) | {"psnr": -float(step)}

    def kept(monitor, steps):
        options = {"monitor": monitor, "steps": steps, "evaluate_every": 3, "keep": 1, "keep_every": None}
        run_linear(tmp_path, task=Worse(), **options)
        return saved_steps(tmp_path / "checkpoints")

    said = r"train\.monitor=-psn: .* no 'psn'\. Did you mean 'psnr'\? It gives: error, psnr;"
    with pytest.raises(ConfigError, match=said):
        kept("-psn", 12)
    # With the name mended the same command goes on, and measures what was saved when the evaluation failed.
    assert kept("-psnr", 12) == [3, 12]
    assert "The best checkpoint by -psnr is that of step 3." in capsys.readouterr().out
    assert kept("-psnr", 15) == [3, 15]  # by the numbers that lie beside the checkpoints


@pytest.mark.parametrize("cut", ["signal", "error"])
def test_the_best_checkpoint_is_kept_though_its_evaluation_was_cut_short(cut, tmp_path, capsys):
    signals, scores, fails = Signals(), {2: 5.0, 4: 9.0}, [4]

    class Scored(Regression):
        def evaluate(self, *args, step, **kwargs):
            if step in fails:
                fails.remove(step)
                if cut == "error":
                    raise RuntimeError("no picture today")
                signals.request("SIGTERM")
            return {"score": scores.get(step, 1.0)}

    options = {"monitor": "-score", "evaluate_every": 2, "save_every": 2, "keep": 2, "keep_every": None}
    with pytest.raises(RuntimeError) if cut == "error" else contextlib.nullcontext():
        run_linear(tmp_path, task=Scored(), signals=signals, **options)
    assert saved_steps(tmp_path / "checkpoints") == [2, 4]
    run_linear(tmp_path, task=Scored(), **options)
    assert saved_steps(tmp_path / "checkpoints") == [4, 10, 12]
    assert "The best checkpoint by -score is that of step 4." in capsys.readouterr().out


def test_a_number_recorded_later_leaves_the_checkpoint_whole(tmp_path, monkeypatch):
    mesh = make_mesh()
    state = make(mesh)
    save_steps(tmp_path / "c", state, [1, 2])  # not monitored: no number lies beside these
    save_steps(tmp_path / "c", state, [5], monitor="error")

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Checkpointer(tmp_path / "c", monitor="error") as checkpointer:
        with (
            monkeypatch.context() as patch,
            pytest.raises(CheckpointError, match=r"error of step 5 .*disk is full"),
        ):
            patch.setattr("pathlib.Path.replace", full)
            checkpointer.record(5, {"error": 0.5})
        assert checkpointer.best() == 5 and checkpointer.steps() == [1, 2, 5]
        checkpointer.record(2, {"error": 0.5})
        checkpointer.record(5, {"error": 0.75})
        assert checkpointer.best() == 2
        found = checkpointer.restore_latest(abstract(state, mesh, "replicated"))
        assert found is not None and found.step == 5
        same(state, found.state)
    with Checkpointer(tmp_path / "c", monitor="error") as again:
        assert again.best() == 2
        assert again._manager.metrics(5) == {"error": 0.75}


def test_processes_that_skipped_other_records_may_become_fewer_or_more(monkeypatch):
    """Two processes that met a corrupted record each go on as one, at the same batch, and as three."""

    class Records:
        name, provenance, fingerprint = "records", "embedded double", "records"
        spec = {"x": FieldSpec((), "int64", None, None, "a number", time=False)}

        def __len__(self):
            return 20

        def __getitem__(self, index):
            if index in (7, 15):
                raise DataError(f"record {index} cannot be read")
            return {"x": np.asarray(index)}

        def close(self):
            """Nothing is held open."""

    def batches(process, processes):
        options = {"process_index": process, "process_count": processes, "on_error": "skip"}
        source: Any = Records()
        return iter(make_pipeline(source, batch_size=12 // processes, seed=1, train=True, **options))

    two = [batches(process, 2) for process in (0, 1)]
    for each in two:
        next(each)
    states = [each.get_state() for each in two]
    assert states[0]["skipped"] != states[1]["skipped"]
    following = np.concatenate([next(each)["x"] for each in two])
    for processes in (1, 3):
        monkeypatch.setattr(jax, "process_count", lambda: processes)  # noqa: B023
        new = [batches(process, processes) for process in range(processes)]
        for each in new:
            each.set_state(_own_position({"states": states}, 1))
            assert each.skipped == {index: f"record {index} cannot be read" for index in (7, 15)}
        np.testing.assert_array_equal(np.concatenate([next(each)["x"] for each in new]), following)
        for each in new:
            each.close()
    for each in two:
        each.close()
    states[1]["next_index"] += 1
    with pytest.raises(CheckpointError, match="positions of 2 processes, which differ"):
        _own_position({"states": states}, 1)
