"""Commands on a run that is not there, or not one of theirs: a sentence before anything is loaded."""

import dataclasses
import importlib
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from experiments import build, cli, compare, evaluate, predict, report, run, sample, schema, train, validate
from experiments.folder import RunFolder
from slotzoo.errors import CheckpointError, ConfigError
from slotzoo.models import registry
from slotzoo.tasks import video_prediction
from slotzoo.tasks.first_stage import FirstStage
from slotzoo.train.mesh import make_mesh
from slotzoo.train.signals import Signals
from tests.experiments import small


COMMANDS = {
    "evaluate": (evaluate.evaluate, schema.EvaluateSettings),
    "predict": (predict.predict, schema.PredictSettings),
    "sample": (sample.sample, schema.SampleSettings),
    "report": (report.report, schema.ReportSettings),
}


def begun(exp, path, *typed):
    """The folder of a run that was begun, and has no checkpoint yet."""
    run = small.settings(exp, f"runs_dir={path}", *typed)
    folder = RunFolder.of(run)
    folder.write_settings(run)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_run(name, tmp_path):
    command, settings = COMMANDS[name]
    (tmp_path / "file").write_text("no run")
    for place in ("nowhere", "file"):
        with pytest.raises(ConfigError, match=f"run=.*{place}: no such folder; give the folder of a run"):
            command(OmegaConf.structured(settings(run=str(tmp_path / place))))
    with pytest.raises(ConfigError, match="it is not the folder of a run; give the one that experiments.train"):
        command(OmegaConf.structured(settings(run=str(tmp_path))))


def test_runs_to_compare_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="it is not the folder of a run"):
        asked = schema.CompareSettings(runs=[str(tmp_path)], out=str(tmp_path / "out"))
        compare.compare(OmegaConf.structured(asked))


@pytest.mark.parametrize(
    ("exp", "instead"),
    [
        ("slot_attention_tetrominoes", r"experiments\.predict run=.* images=FOLDER"),
        ("savi_small_movi_a", r"experiments\.predict run=.* video=FILE"),
        ("slotssm_video_prediction", r"experiments\.evaluate run=.* its rollouts"),
        ("vqgan_dmlab", "give the run of a model that predicts videos"),
    ],
)
def test_runs_without_rollouts_name_the_command_that_takes_them(exp, instead, tmp_path):
    folder = begun(exp, tmp_path)
    with pytest.raises(ConfigError, match=f"nothing to sample from a run of .*{instead}"):
        sample.sample(OmegaConf.structured(schema.SampleSettings(run=str(folder.path))))


@pytest.mark.parametrize("code", [0, 75])
def test_a_sweep_does_all_its_jobs_until_one_is_stopped(code, tmp_path, monkeypatch):
    seeds = []

    def trained(config, overrides):
        seeds.append(config.seed)
        return code if config.seed == 1 else 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "train", trained)
    monkeypatch.setattr(sys, "argv", ["train", "-m", "+exp=vqgan_dmlab", "seed=0,1,2"])
    if code:
        with pytest.raises(SystemExit) as left:
            train.main()
        assert left.value.code == code and seeds == [0, 1]
    else:
        train.main()
        assert seeds == [0, 1, 2]


def test_a_context_of_ones_own_may_be_longer_than_what_is_measured(tmp_path, monkeypatch):
    folder = begun("convs5_mnist300", tmp_path, "eval.rollouts=[{context:4,actions:false,length:8}]")
    opened = []

    def open_run(folder, settings, **options):
        opened.append(settings)
        raise ConfigError("far enough")

    monkeypatch.setattr(run, "open_run", open_run)
    asked = schema.SampleSettings(run=str(folder.path), context=40, actions=False)
    with pytest.raises(ConfigError, match="far enough"):
        sample.sample(OmegaConf.structured(asked))
    assert build._held_out_length(opened[0]) == 128 == folder.read_settings().data.test_length


@pytest.mark.parametrize("lengths", [(8, 12), (8,), (None, 8)])
@pytest.mark.parametrize("length", [12, 14])
def test_rollouts_of_another_length_are_named_by_it(lengths, length, tmp_path, monkeypatch):
    """Those that become equal are one, and beside them stand as many true frames as the clips have."""
    rollouts = ",".join(f"{{context:3,actions:false,length:{n or 'null'}}}" for n in lengths)
    typed = (f"eval.rollouts=[{rollouts}]", "data.length=6", "data.test_length=12", "data.test_clips=2")
    folder = begun("convs5_mnist300", tmp_path, *typed)

    def rollout(module, frozen, batch, rollout, *, key, length=None):
        return np.zeros((len(batch["video"]), 1, length or rollout.length, 64, 64, 3), np.uint8)

    def open_run(folder, settings, **options):
        task = build.task(settings)
        monkeypatch.setattr(task, "rollout", rollout)
        return SimpleNamespace(
            task=task, mesh=make_mesh(), settings=settings, step=1, module=None, frozen=FirstStage(None)
        )

    monkeypatch.setattr(run, "open_run", open_run)
    monkeypatch.setattr(video_prediction, "draw_clip", lambda *arguments: None)
    asked = schema.SampleSettings(run=str(folder.path), length=length, clips=2)
    assert sample.sample(OmegaConf.structured(asked)) == 0
    (written,) = (folder.path / "samples").rglob("*.npz")
    assert written.parent.name == f"samples_3_to_{length}"
    with np.load(written) as file:
        assert file["fake"].shape[1] == length and file["real"].shape[1] == 12


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_rollouts_on_training_clips_end_with_them(command, tmp_path, monkeypatch):
    """Only held-out clips have data.test_length frames, here 128; the others have 32."""
    folder, opened = begun("convs5_mnist300", tmp_path), []

    def open_run(folder, settings, **options):
        opened.append((settings, options["split"]))
        raise ConfigError("far enough")

    monkeypatch.setattr(run, "open_run", open_run)
    module, settings = COMMANDS[command]
    for split in ("test", "train"):
        with pytest.raises(ConfigError, match="far enough"):
            module(OmegaConf.structured(settings(run=str(folder.path), split=split)))
    (held_out, first), (trained, second) = opened
    lengths = lambda settings: [(r.context, r.length) for r in settings.eval.rollouts]
    assert (lengths(held_out), first) == ([(10, 32), (10, 128)], "test")
    assert (lengths(trained), second) == ([(10, 32)], "train")
    assert build._held_out_length(trained) == 32 == len(build.source(trained.data, "train")[0]["video"])
    held_out.data.length = 10
    with pytest.raises(
        ConfigError, match="split=val: its clips have data.length=10 frames, .* a context of 10"
    ):
        build.on_split(held_out, "val")


@pytest.mark.parametrize("option", [{"samples": 4}, {"fvd": True}, {"lpips": False}])
def test_what_only_rollouts_are_measured_with_is_refused_elsewhere(option, tmp_path):
    folder = begun("slot_attention_tetrominoes", tmp_path)
    with pytest.raises(
        ConfigError, match="is for runs that predict videos; that in .* is one of object_images"
    ):
        evaluate.evaluate(OmegaConf.structured(schema.EvaluateSettings(run=str(folder.path), **option)))


@pytest.mark.parametrize(
    ("exp", "said"),
    [
        ("slot_attention_tetrominoes", "images is missing: .* takes pictures; add images=FOLDER"),
        ("savi_small_movi_a", r"video is missing: .* follows objects in videos; add video=clip\.mp4"),
        ("slotssm_depth", "takes neither images nor videos apart; give one of Slot Attention"),
    ],
)
def test_what_a_run_takes_apart_is_said_before_it_is_loaded(exp, said, tmp_path):
    folder = begun(exp, tmp_path)
    with pytest.raises(ConfigError, match=said):
        predict.predict(OmegaConf.structured(schema.PredictSettings(run=str(folder.path))))


def test_a_checkpoint_that_was_not_kept_is_said(tmp_path):
    folder = begun("slot_attention_tetrominoes", tmp_path)
    for step in (2, 10):
        (folder.checkpoints / str(step)).mkdir(parents=True)
    for command, settings in (COMMANDS["evaluate"], COMMANDS["predict"]):
        asked = OmegaConf.structured(settings(run=str(folder.path), step=4))
        if command is predict.predict:
            (tmp_path / "a.png").touch()
            asked.images = str(tmp_path)
        with pytest.raises(
            ConfigError, match=r"step=4: .*seed0 has no such checkpoint; it has those of 2, 10\."
        ):
            command(asked)


def test_a_run_that_goes_on_is_not_finished(tmp_path):
    folder = RunFolder(tmp_path)
    folder.update_card(finished={"step": 2}, name="a")
    folder.update_card(start=True)
    assert folder.read_card().keys() == {"name", "starts"}


PLUGIN = """
import dataclasses
from slotzoo.models import model_card, model_config, register
from slotzoo.models.slot_attention import SlotAttentionAutoencoder

name, ours = "slots_of_a_lab", "slot_attention_tetrominoes"
card = dataclasses.replace(model_card(ours), name=name)
register(name, model_config(ours), SlotAttentionAutoencoder, card, tiny={"num_iterations": 2})
"""


def test_a_model_of_ones_own_package(tmp_path, monkeypatch):
    """Trained with plugins=; without, the commands say which a run needs, and import nothing that it names."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_lab.py").write_text(PLUGIN)
    folder = begun(
        "slot_attention_tetrominoes", tmp_path, "plugins=[a_lab]", "model.name=slots_of_a_lab", "name=ours"
    )
    (tmp_path / "a.png").touch()
    needed = (
        r"ours: its model 'slots_of_a_lab' is not of this zoo; give plugins=\[a_lab\], as it was trained with"
    )
    for asked, command in (
        (schema.EvaluateSettings(run=str(folder.path)), evaluate.evaluate),
        (schema.PredictSettings(run=str(folder.path), images=str(tmp_path)), predict.predict),
        (schema.CompareSettings(runs=[str(folder.path)], out=str(tmp_path / "out")), compare.compare),
    ):
        with pytest.raises(ConfigError, match=needed):
            command(OmegaConf.structured(asked))
        assert "a_lab" not in sys.modules
    asked = schema.EvaluateSettings(run=str(folder.path), plugins=["a_lab"])
    with pytest.raises(CheckpointError, match="There is no checkpoint"):  # it was begun only
        evaluate.evaluate(OmegaConf.structured(asked))
    assert build.config_of_model(folder.read_settings()).num_iterations == 2


def test_a_list_of_one_is_a_list():
    with pytest.raises(ConfigError, match=r"plugins=a_lab: takes a list; write plugins=\[a_lab\]\."):
        validate.check_overrides("evaluate", ["plugins=a_lab"])
    with pytest.raises(ConfigError, match=r"runs=runs/a/seed0: takes a list; write runs=\[runs/a/seed0\]\."):
        validate.check_overrides("compare", ["runs=runs/a/seed0"])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "train +exp=convs5_dmlb",
            r"exp=convs5_dmlb: .* no such file in conf/exp\. Did you mean 'convs5_dmlab'\?",
        ),
        (
            "train +exp=vqgan_dmlab model=vqgan_dmlb",
            r"model=vqgan_dmlb: .*conf/model\. Did you mean 'vqgan_dmlab'\?",
        ),
        ("train -m +exp=vqgan_dmlab data=dmlab,habitad", r"data=habitad: .* Did you mean 'habitat'\?"),
        ("prepare data=dmlabb out=a", r"data=dmlabb: .* Did you mean 'dmlab'\?"),
        ("train +exp=vqgan_dmlab mesh=fspd", r"mesh=fspd: .* There are: auto, fsdp\."),
        ("train vqgan_dmlab", r"vqgan_dmlab: is no key=value; write e\.g\. \+exp=NAME\."),
        ("evaluate runs/a/seed0", r"runs/a/seed0: is no key=value; write e\.g\. run=FOLDER\."),
        ("evaluate run=a data=dmlab", r"Unknown key 'data'"),
        ("evaluate +exp=vqgan_dmlab", r"Unknown key 'exp'"),
        ("sample run=a clips=0", r"clips=0: must be positive"),
        ("train +exp=vqgan_dmlab scale=paper name=", r"name=: is empty; .* give name=NAME or leave it out"),
        (
            "prepare data=dmlab out=a splits=[train,tset]",
            r"splits=train,tset: there is no 'tset'\. Did you mean 'test'",
        ),
        ("predict images=a", r"Missing value: run\. Give run=\.\.\.; --help shows how\."),
    ],
)
def test_mistakes_before_hydra_are_one_sentence(typed, said, tmp_path, monkeypatch, capsys):
    command, *arguments = typed.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"experiments.{command}").main()
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and re.match(f"error: {said}", line)


def test_what_hydra_understands_is_left_to_it():
    for typed in ("exp=vqgan_dmlab", "+exp=vqgan_dmlab"):
        assert validate.check_overrides("train", [typed]) == ["+exp=vqgan_dmlab"]
    options = ["--cfg", "job", "-m", "model=vqgan_dmlab,kl_vae", "~logger", "data=null", "hydra.verbose=true"]
    assert validate.check_overrides("train", options) == options


def test_the_seeds_of_a_run_are_named(tmp_path):
    folder = begun("vqgan_dmlab", tmp_path)
    with pytest.raises(ConfigError, match="holds the seeds of a run; give one of .*seed0"):
        RunFolder(folder.path.parent).read_settings()
    folder.write_settings(dataclasses.replace(folder.read_settings(), name=""))
    assert folder.read_settings().name == ""  # refused now; what was saved so can still be read


def test_a_place_that_cannot_be_used_is_one_sentence(tmp_path, capsys):
    settings = begun("slot_attention_tetrominoes", tmp_path).read_settings()
    (tmp_path / "file").touch()
    with Signals() as signals, pytest.raises(SystemExit) as left, cli.sentences():
        run.train_run(dataclasses.replace(settings, runs_dir=str(tmp_path / "file")), signals)
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 3 and re.match(
        r"error: A file or folder cannot be used: Not a directory \(.*file/", line
    )
    with pytest.raises(IsADirectoryError), cli.sentences():  # what may be a fault of ours keeps its traceback
        tmp_path.read_text()
