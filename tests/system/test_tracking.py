"""Commands of objects in videos, fed with what does not fit: a sentence, and the exit code of its kind."""

import pytest

from tests.system.test_bad_input import refused


SMALL = (
    "+exp=savi_small_movi_a",
    "scale=tiny",
    *("data.clips=4", "data.test_clips=4", "data.length=6", "data.options.max_objects=2", "data.cache=null"),
    *("train.steps=1", "train.batch_size=4", "eval.clips=4", "eval.batch_size=4", "eval.pictures=0"),
)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["model.num_slots=2"], ["model.num_slots=2", "up to 2 objects", "data.options.max_objects=1"]),
        (["model.targets=[flow,depth]"], ["no 'depth'", "data.options.depth=true"]),
    ],
    ids=["more boxes than slots", "missing feature"],
)
def test_what_does_not_fit(tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    line = refused("train", *SMALL, *arguments)
    for part in parts:
        assert part in line
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("checkpoints/*"))
