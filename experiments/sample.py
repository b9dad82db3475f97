"""`python -m experiments.sample run=runs/NAME/seed0`: write rollouts as npz (real, fake) and videos."""

import hydra
from omegaconf import DictConfig

from experiments import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="sample")
def _main(config: DictConfig) -> None:
    with cli.sentences():
        from experiments.run import sample

        raise SystemExit(sample(config))


def main() -> None:
    cli.prepare("sample")
    _main()


if __name__ == "__main__":
    main()
