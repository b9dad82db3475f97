"""`python -m experiments.report run=runs/NAME/seed0`: write the run's report.html again."""

import hydra
from omegaconf import DictConfig

from experiments import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def _main(config: DictConfig) -> None:
    with cli.sentences():
        from experiments.run import report

        raise SystemExit(report(config))


def main() -> None:
    cli.prepare("report")
    _main()


if __name__ == "__main__":
    main()
