"""Compose an experiment from Python: for the first stage of a two-stage system, and for tests."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments import schema
from experiments.validate import CONF
from slotzoo.errors import ConfigError


def experiment(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that `python -m experiments.train +exp=<name> <overrides>` composes.

    **Raises** `ConfigError` when there is no such experiment or an override does not fit.
    """
    schema.register()
    # Hydra keeps one instance per process: that of the command which this may be running in is put back after.
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
            return compose("train", [f"+exp={name}", *overrides])
    except MissingConfigException as error:
        known = ", ".join(experiments())
        raise ConfigError(f"There is no experiment '{name}' in conf/exp; there are: {known}.") from error
    except (ConfigCompositionException, OmegaConfBaseException) as error:
        raise ConfigError(f"The experiment '{name}' does not compose: {str(error).splitlines()[0]}") from error
    finally:
        GlobalHydra.instance().clear()
        if outer is not None:
            GlobalHydra.instance().initialize(outer)


def experiments() -> list[str]:
    """The names of `conf/exp`, sorted."""
    return sorted(path.stem for path in (CONF / "exp").glob("*.yaml"))
