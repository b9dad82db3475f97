"""`python -m experiments.prepare data=dmlab data.root=... out=...`: convert a data set once to ArrayRecord."""

import hydra
from omegaconf import DictConfig

from experiments import cli


def prepare(config: DictConfig) -> int:
    """Write every asked split to `out/<split>`; stopped at any time, the same command goes on."""
    from pathlib import Path

    from experiments import build, validate
    from experiments.schema import PrepareSettings
    from slotzoo.data.export import export_teco
    from slotzoo.data.preparation import prepare as write
    from slotzoo.errors import ConfigError

    asked = validate.settings(config, PrepareSettings)
    out = Path(asked.out).expanduser()
    if asked.tokenizer is not None and asked.format == "teco":
        raise ConfigError("format=teco writes frames; leave tokenizer out, or take format=array_record.")
    for split in asked.splits:
        source = build.source(asked.data, split)
        if asked.tokenizer is not None:
            from experiments.encode import EncodedClips
            from experiments.first_stage import load_tokenizer

            source = EncodedClips(source, load_tokenizer(asked.tokenizer))
        if asked.format == "teco":
            export_teco(source, out, split)
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
        print(f"{split}: {len(source)} clips of {source.name} ({source.provenance}) in {out / split}")
    return 0


@hydra.main(version_base="1.3", config_path="../conf", config_name="prepare")
def _main(config: DictConfig) -> None:
    with cli.sentences():
        raise SystemExit(prepare(config))


def main() -> None:
    cli.prepare("prepare")
    _main()


if __name__ == "__main__":
    main()
