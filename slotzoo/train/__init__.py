"""State, step, sharding, optimiser, checkpoints, loop, logs and signals: knows protocols, no concrete model."""

from slotzoo.train.optimizer import OptimizerConfig, learning_rate, make_optimizer
from slotzoo.train.protocols import Batch, DataIterator, Task
from slotzoo.train.state import TrainState, init_state, trainable


__all__ = [
    "Batch",
    "DataIterator",
    "OptimizerConfig",
    "Task",
    "TrainState",
    "init_state",
    "learning_rate",
    "make_optimizer",
    "trainable",
]
