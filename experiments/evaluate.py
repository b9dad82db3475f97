"""`python -m experiments.evaluate run=runs/NAME/seed0`: measure a run again, on held-out clips."""

import hydra
from omegaconf import DictConfig

from experiments import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def _main(config: DictConfig) -> None:
    with cli.sentences():
        from experiments.run import evaluate

        raise SystemExit(evaluate(config))


def main() -> None:
    cli.prepare("evaluate")
    _main()


if __name__ == "__main__":
    main()
