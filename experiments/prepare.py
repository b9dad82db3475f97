"""`python -m experiments.prepare data=dmlab data.root=... out=...`: convert a data set once to ArrayRecord."""

import hydra
from omegaconf import DictConfig

from experiments import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="prepare")
def _main(config: DictConfig) -> None:
    with cli.sentences():
        from experiments.convert_data import prepare

        raise SystemExit(prepare(config))


def main() -> None:
    cli.prepare("prepare")
    _main()


if __name__ == "__main__":
    main()
