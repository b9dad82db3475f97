"""`python -m experiments.train +exp=NAME`: train a system; the same command resumes it."""

from omegaconf import DictConfig

from experiments import cli


def train(config: DictConfig) -> int:
    """Train what was composed, or go on with it."""
    from hydra.core.hydra_config import HydraConfig

    from experiments import run

    return run.train(config, list(HydraConfig.get().overrides.task))


main = cli.command("train", train)


if __name__ == "__main__":
    main()
