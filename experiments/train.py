"""`python -m experiments.train +exp=NAME`: train a system; the same command resumes it."""

import hydra
from omegaconf import DictConfig

from experiments import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def _main(config: DictConfig) -> None:
    with cli.sentences():
        from hydra.core.hydra_config import HydraConfig

        from experiments.run import train

        raise SystemExit(train(config, list(HydraConfig.get().overrides.task)))


def main() -> None:
    cli.prepare("train")
    _main()


if __name__ == "__main__":
    main()
