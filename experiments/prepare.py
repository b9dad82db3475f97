"""`python -m experiments.prepare data=dmlab data.root=... out=...`: convert a data set once to ArrayRecord."""

import dataclasses
from pathlib import Path

from omegaconf import DictConfig

from experiments import cli


def _own_tokenizer(data: str, runs: Path) -> str:
    """The folder of the finished run of the data set's own VQ-GAN, at the published scale if there is one."""
    from experiments.compose import experiments
    from experiments.first_stage import WEIGHTS
    from slotzoo.errors import ConfigError

    name = f"vqgan_{data}"
    if name not in experiments():
        raise ConfigError(
            f"encode=vqgan: no experiment trains a VQ-GAN on data={data}; give tokenizer=FOLDER or tokenizer=FILE."
        )
    for folder in (runs / name, runs / f"{name}_tiny"):
        found = sorted(folder.glob(f"seed*/{WEIGHTS}"))
        if found:
            print(f"Tokenizer: {found[0].parent}")
            return str(found[0].parent)
    raise ConfigError(
        f"encode=vqgan: there is no finished run {runs / name} or {runs / name}_tiny; train one first (python -m "
        f"experiments.train +exp={name}), or give tokenizer=FOLDER or tokenizer=FILE."
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
        asked.tokenizer = _own_tokenizer(asked.data.name, Path(asked.runs_dir).expanduser())
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
