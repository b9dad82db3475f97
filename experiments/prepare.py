"""`python -m experiments.prepare data=dmlab data.root=... out=...`: convert a data set once to ArrayRecord."""

import dataclasses
from pathlib import Path

from omegaconf import DictConfig

from experiments import cli
from experiments.schema import DataSettings


def _own_tokenizer(data: DataSettings, runs: Path) -> str:
    """The folder of the finished run of the data set's own VQ-GAN, at the published scale if there is one.

    Not one that was trained on the double where the real set is to be encoded, nor the other way round.
    """
    from experiments.compose import experiments
    from experiments.first_stage import WEIGHTS, other_clips
    from experiments.folder import RunFolder
    from slotzoo.errors import ConfigError

    name = f"vqgan_{data.name}"
    if name not in experiments():
        raise ConfigError(
            f"encode=vqgan: no experiment trains a VQ-GAN on data={data.name}; give tokenizer=FOLDER or tokenizer=FILE."
        )
    other = None
    for folder in (runs / name, runs / f"{name}_tiny"):
        for path in sorted(folder.glob(f"seed*/{WEIGHTS}")):
            differ = other_clips(data, RunFolder(path.parent))
            if differ is None:
                print(f"Tokenizer: {path.parent}")
                return str(path.parent)
            other = other or f"{path.parent} is of {differ[0]}, this is {differ[1]}"
    there = f"there is no finished run {runs / name} or {runs / name}_tiny"
    raise ConfigError(
        f"encode=vqgan: {other or there}; train one on these clips first (python -m experiments.train +exp={name} with "
        "this data), or give tokenizer=FOLDER or tokenizer=FILE."
    )


def prepare(config: DictConfig) -> int:
    """Write every asked split to `out/<split>`; stopped at any time, the same command goes on."""
    from experiments import build, validate
    from experiments.schema import PrepareSettings
    from slotzoo.data.export import export_published
    from slotzoo.data.preparation import prepare as write
    from slotzoo.errors import ConfigError

    asked = validate.settings(config, PrepareSettings)
    out = Path(asked.out).expanduser()
    if asked.encode is not None and asked.tokenizer is None:
        asked.tokenizer = _own_tokenizer(asked.data, Path(asked.runs_dir).expanduser())
    if asked.tokenizer is not None and asked.format != "array_record":
        raise ConfigError(
            f"format={asked.format} writes frames; leave tokenizer and encode out, or take format=array_record."
        )
    published = asked.format in ("published", "teco")
    for split in asked.splits:
        # A published layout may hold more than the records that a cache keeps.
        source = build.source(dataclasses.replace(asked.data, cache=None) if published else asked.data, split)
        if asked.tokenizer is not None:
            from experiments.encode import EncodedClips
            from experiments.first_stage import load_tokenizer

            source = EncodedClips(source, load_tokenizer(asked.tokenizer))
        if published:
            export_published(source, out, split)
        else:
            workers = 1 if asked.tokenizer is not None else asked.workers
            write(
                source,
                out / split,
                workers=workers,
                on_error=asked.data.on_error,  # type: ignore[arg-type]
                max_skips=asked.data.max_skips,
                progress=cli.progress(split),
            )
        where = out if published else out / split
        print(f"{split}: {len(source)} clips of {source.name} ({source.provenance}) in {where}")
    return 0


main = cli.command("prepare", prepare)


if __name__ == "__main__":
    main()
