"""State, step, sharding, optimiser, checkpoints, loop, logs and signals: knows protocols, no concrete model."""

from slotzoo.train.checkpoint import Checkpointer, load_model, read_card, saved_steps
from slotzoo.train.distributed import initialize, is_main
from slotzoo.train.logging import RunLogger
from slotzoo.train.loop import FitConfig, FitResult, fit
from slotzoo.train.mesh import check_batch_size, make_mesh, shard_batch
from slotzoo.train.optimizer import OptimizerConfig, learning_rate, make_optimizer
from slotzoo.train.protocols import Batch, DataIterator, Task
from slotzoo.train.resume import check_resume
from slotzoo.train.signals import STOPPED_EXIT_CODE, Signals
from slotzoo.train.state import TrainState, init_state, trainable
from slotzoo.train.step import make_train_step


__all__ = [
    "STOPPED_EXIT_CODE",
    "Batch",
    "Checkpointer",
    "DataIterator",
    "FitConfig",
    "FitResult",
    "OptimizerConfig",
    "RunLogger",
    "Signals",
    "Task",
    "TrainState",
    "check_batch_size",
    "check_resume",
    "fit",
    "init_state",
    "initialize",
    "is_main",
    "learning_rate",
    "load_model",
    "make_mesh",
    "make_optimizer",
    "make_train_step",
    "read_card",
    "saved_steps",
    "shard_batch",
    "trainable",
]
