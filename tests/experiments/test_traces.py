"""Every experiment that the tests do not train: real clips or images, and programs that are traced, not compiled.

What an experiment can get wrong that another one with the same model gets right lies in its settings, its data and
what the model makes of their sizes. All of that is met here; what is left out is the arithmetic of the same programs.
"""

import dataclasses
import sys

import equinox as eqx
import jax
import numpy as np
import pytest

from experiments import build
from slotzoo.models import create_model
from slotzoo.train.mesh import shard_batch
from slotzoo.train.optimizer import learning_rate, make_optimizer
from slotzoo.train.state import init_state
from slotzoo.train.step import make_train_step
from tests.experiments.small import alike, settings, smallest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the doubles are kept that experiments share."""
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def known():
    """The programs that were traced already: experiments on other sets of the same sizes have the same ones."""
    return set()


def abstract_model(run):
    """The model of a run as shapes."""
    make = lambda key: create_model(run.model["name"], key=key, **build.model_overrides(run))
    return eqx.filter_eval_shape(make, jax.random.key(0))


def only_traced(function):
    """The function traced instead of compiled: ones in place of all that it returns."""

    def traced(*arguments):
        shapes = eqx.filter_eval_shape(function, *arguments)
        is_shape = lambda x: isinstance(x, jax.ShapeDtypeStruct)
        return jax.tree.map(lambda x: np.ones(x.shape, x.dtype) if is_shape(x) else x, shapes)

    return traced


def trace_step(run, task, state, frozen, batch):
    """Trace the update as `slotzoo.train.loop` makes it."""
    fit, optimizer = build.fit_config(run), build.optimizer_config(run)
    names = ("strategy", "accumulate", "precision", "ema_decay", "remat")
    update = make_train_step(
        task,
        make_optimizer(optimizer),
        mesh=build.mesh(run),
        learning_rate=learning_rate(optimizer),
        **{name: getattr(fit, name) for name in names},
    )
    arguments = update._arguments(state, frozen, batch, jax.random.key(0))
    with jax.set_mesh(update.mesh):
        new, metrics = update._jitted.eval_shape(*arguments)
    sizes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert sizes(new) == sizes(arguments[2])
    assert {"loss", "grad_norm", "finite", "learning_rate"} <= set(metrics)
    assert all(value.shape == () and value.dtype == np.float32 for value in metrics.values())


def trace_evaluation(task, state, frozen, batches, folder, monkeypatch):
    """Evaluate with what the task compiles traced: everything around these programs runs as it is."""
    module = sys.modules[type(task).__module__]
    for name, value in vars(module).items():
        if callable(value) and hasattr(value, "lower"):  # it can be compiled
            monkeypatch.setattr(module, name, only_traced(value))
    folder.mkdir()
    numbers = task.evaluate(
        state.averaged(),
        frozen,
        iter(batches),
        key=jax.random.key(0),
        step=2,
        folder=folder,
        should_stop=lambda: False,
    )
    assert numbers and (folder / "table.json").is_file()


@pytest.mark.parametrize("name", alike())
def test_traces(name, folder, known, tmp_path, monkeypatch):
    run = smallest(name, folder)
    tokenizer = abstract_model(settings(run.tokenizer.exp)) if build.wants_tokens(run) else None
    source, held_out = (build.source(run.data, split) for split in ("train", "test"))
    full = build.complete(run, tokenizer, source.spec)
    task, mesh = build.task(full), build.mesh(full)
    batch = shard_batch(mesh, next(iter(build.train_batches(full, source, mesh))))
    batches = [shard_batch(mesh, each) for each in build.eval_batches(full, held_out)]
    program = (
        build.config_of_model(full),
        task.config,
        dataclasses.replace(build.fit_config(full), seed=0),
        build.optimizer_config(full),
        jax.tree.map(lambda x: (x.shape, x.dtype), (batch, batches)),
    )
    if repr(program) in known:
        return
    make = lambda key: init_state(
        build.module(full, task),
        make_optimizer(build.optimizer_config(full)),
        key=key,
        ema=full.train.ema_decay is not None,
    )
    state = eqx.filter_eval_shape(make, jax.random.key(0))
    frozen = build.frozen(task, tokenizer)
    trace_step(full, task, state, frozen, batch)
    trace_evaluation(task, state, frozen, batches, tmp_path / "evaluation", monkeypatch)
    known.add(repr(program))
