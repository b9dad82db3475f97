"""`experiments.prepare` on clips of moving objects: MOVi's own layout, and ArrayRecord made of that."""

import pytest
from hydra import compose, initialize_config_dir

from experiments import schema
from experiments.prepare import prepare
from experiments.validate import CONF
from slotzoo.data import open_source
from slotzoo.data.sources.movi import MoviFiles
from slotzoo.errors import ConfigError


SMALL = ("data.clips=3", "data.test_clips=2", "data.size=16", "data.length=4")


def run(*overrides):
    schema.register()
    with initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
        config = compose("prepare", list(overrides))
    assert prepare(config) == 0


def test_movi_in_its_own_layout_and_then_as_records(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run("data=movi_a", f"out={tmp_path / 'movi'}", "format=published", *SMALL)
    files = MoviFiles("movi_a", tmp_path / "movi", "train")
    assert len(files) == 3
    assert "forward_flow" in files.features(0)  # more than a cache of records would hold
    assert not (tmp_path / "home").exists()
    run("data=movi_a", f"data.root={tmp_path / 'movi'}", f"out={tmp_path / 'records'}", "data.cache=null")
    for split, count in (("train", 3), ("test", 2)):
        stored = open_source("movi_a", split, root=tmp_path / "records", size=8, depth=True)  # type: ignore[arg-type]
        direct = open_source("movi_a", split, root=tmp_path / "movi", size=8, depth=True)  # type: ignore[arg-type]
        assert len(stored) == count
        assert stored.provenance == direct.provenance == "embedded double"
        for name, value in direct[1].items():
            assert (stored[1][name] == value).all(), name


def test_tokens_have_no_published_layout_here(tmp_path):
    with pytest.raises(ConfigError, match="format=published writes frames; leave tokenizer and encode out"):
        run("data=movi_a", f"out={tmp_path}", "format=published", "tokenizer=x")
