"""Experiments as tests take them: composed in this process, and made as small as they can be with every part left."""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from experiments import build, validate
from experiments.compose import experiment, experiments
from experiments.folder import RunFolder, flat_settings
from experiments.run import open_run, train_run
from experiments.schema import RunSettings
from slotzoo.data.spec import FieldSpec
from slotzoo.train.signals import Signals


def settings(name: str, *overrides: str, scale: str = "tiny") -> RunSettings:
    """The settings of `experiments.train +exp=<name> scale=<scale> <overrides>`."""
    return checked(experiment(name, [f"scale={scale}", *overrides]), overrides)


def checked(config: DictConfig, overrides: Sequence[str]) -> RunSettings:
    """The settings of a composed experiment."""
    return validate.settings(validate.with_scale(config, overrides, accelerator=False), RunSettings)


def spec(run: RunSettings) -> dict[str, FieldSpec]:
    """What the records of the run's data set hold."""
    data = dataclasses.replace(run.data, cache=None, clips=2, test_clips=2)
    return build.source(data, "test").spec


def asked(kind: type, **values: Any) -> DictConfig:
    """The settings of a command as Hydra would compose them."""
    config = OmegaConf.structured(kind)
    OmegaConf.set_readonly(config, False)
    for name, value in values.items():
        config[name] = str(value) if isinstance(value, Path) else value
    return config


# The smallest that still has every part of a run: two steps, one evaluation with a rollout, one picture.
SMALL = (
    "train.steps=2",
    "train.batch_size=4",
    "data.clips=8",
    "data.test_clips=4",
    "eval.clips=4",
    "eval.batch_size=4",
    "eval.pictures=1",
    "eval.lpips=false",
)
# Fields of a model's Config that make it compile faster, where it has them.
SHALLOW = {
    "layers": 1,
    "prior_layers": 1,
    "draft": 2,
    "revise": 1,
    "rounds": 1,
    "open_loop_context": 3,
    "blocks": 1,
    "encoder_layers": 1,
    "decoder_layers": 1,
}


def smallest(name: str, folder: Path) -> RunSettings:
    """The settings of an experiment at its tiny scale, made smaller still; data and runs are kept in `folder`."""
    # Composed once: the values that are typed are put in after the tiny section.
    composed = experiment(name, ["scale=tiny"])
    run = checked(composed, SMALL)
    overrides = [*SMALL, f"data.cache={folder / 'cache'}", f"runs_dir={folder / 'runs'}"]
    if run.task == "video_prediction":
        longer = run.eval.rollouts[0].length is not None  # than the training clips
        rollout = {"context": 3, "actions": run.eval.rollouts[0].actions, "length": 8 if longer else None}
        plain = str(rollout).replace("'", "").replace("None", "null")
        overrides += ["data.length=6", f"eval.rollouts=[{plain}]", *(["data.test_length=8"] if longer else ())]
    if run.task == "object_videos":
        overrides += ["data.length=8", "++options.chunk=4"]
    config = build.config_of_model(run)
    overrides += [
        f"++model.{field}={value}" for field, value in SHALLOW.items() if getattr(config, field, value) > value
    ]
    return checked(composed, overrides)


# Experiments that are traced (test_traces.py) and not trained, as each repeats what a trained one does. On MOVi-B to
# MOVi-E the programs are those on MOVi-A, and SAVi-M is SAVi-S at the tiny scale. SAVi++ is trained with the memory of
# STATM, in the larger form; SAVi-L told boxes, and SAVi-S told boxes, segments or nothing: centres are boxes with half
# the numbers. TECO is trained with ConvS5, its other cores without it. Moving-MNIST differs in the published length,
# GNM in sigma, Blinking Color Balls in the rule of the data, CATER's pretraining in the decoder, which is that of
# CLEVRER. The others are the same model on other clips or images.
ALIKE = (
    r"(statm_)?savi_small_movi_[b-e].*|savi_pp_.*|statm_savi_pp_movi_[a-d]"
    r"|savi_medium_.*|savi_large_movi_([b-e].*|a_unconditional)|.*_centers|.*_mnist600"
    r"|(teco_convs5|convs5|vqgan)_(habitat|minecraft)|teco_(s5|transformer)_dmlab|slate_shapes3d|gnm_(ravens|clevrtex6)"
    r"|slot_attention_(boxworld|multi_dsprites|sketchy)|slotssm_(cater_pretraining|bcb_most_frequent)"
)
# The files that train them, each in a process of its own where tests are spread over several: names by what they train.
FILES = {
    "trackers": r"(statm_)?savi_.*|oc_slotssm_.*",
    "slots": r"(slot_attention|slate|gnm|slotssm)_.*",
    "videos": r".*",
}


def alike() -> list[str]:
    """The experiments that the tests trace."""
    return [name for name in experiments() if re.fullmatch(ALIKE, name)]


def trained(file: str) -> list[str]:
    """The experiments that a file trains for two steps; with SLOTZOO_EVERY_EXPERIMENT=1 those that are traced, too."""
    every = os.environ.get("SLOTZOO_EVERY_EXPERIMENT") == "1"
    names = experiments() if every else sorted(set(experiments()) - set(alike()))
    return [
        name for name in names if file == next(f for f, names in FILES.items() if re.fullmatch(names, name))
    ]


def train_two_steps(name: str, folder: Path) -> None:
    """Train an experiment as its command does, its tokenizer before it, and look at what it leaves."""
    run = smallest(name, folder)
    first = run.tokenizer.exp if build.wants_tokens(run) else None
    with Signals() as signals:
        for each in (smallest(first, folder), run) if first else (run,):
            assert train_run(each, signals)
    left = RunFolder.of(run)
    assert (left.path / "report.html").is_file()
    written = json.loads((left.evaluation(2) / "table.json").read_text())
    if run.task == "video_prediction":
        rollout = run.eval.rollouts[0]
        last = written["tables"][-1]["curves"][0]
        assert last["x"] == list(range(rollout.context, rollout.length or run.data.length))
        assert np.isfinite(last["series"]["model"]).all()
    assert open_run(left).step == 2
    assert flat_settings(left.read_settings()) == flat_settings(run)
