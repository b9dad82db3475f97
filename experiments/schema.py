"""The shape of every configuration file: typed fields with defaults, imported by Hydra before anything heavy.

jax is not imported here, so that `--help`, `--cfg job` and tab completion answer at once. `slots=True` turns a
misspelt assignment into an error instead of a silently new attribute.
"""

import dataclasses
import functools
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclasses.dataclass(slots=True)
class DataSettings:
    """Where the clips or images come from and how they are batched."""

    name: str = MISSING  # a source of slotzoo.data: dmlab, dmlab_encoded
    root: str | None = None  # the published data set (folder or file); without it a double is generated
    length: int = 300  # frames of a training clip
    test_length: int | None = None  # frames of a held-out clip, for longer rollouts; default: length
    stride: int = 1  # frames between the places where a training clip may begin
    size: int = 64  # side of a frame in pixels (of the double; a real set has its own)
    clips: int = 2000  # training clips of the double
    test_clips: int = 64  # held-out clips of the double
    seed: int = 0  # of the double: another seed is another data set
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of this data set alone, real or double
    cache: str | None = "~/.cache/slotzoo"  # where doubles and converted sets are kept; null keeps nothing
    frames_per_clip: int | None = None  # read only so many frames of a clip (the tokenizer sees single frames)
    threads: int = 2  # reading threads per process
    workers: int = 0  # reading processes; threads are faster for everything but Python-heavy sources
    prefetch: int = 2  # batches kept ready
    on_error: str = "raise"  # raise | skip: what a corrupted record does
    max_skips: int = 100  # with skip: give up after so many


@dataclasses.dataclass(slots=True)
class OptimSettings:
    """The optimiser and its schedule; learning rates are those of the published configuration."""

    learning_rate: float = MISSING
    optimizer: str = "adamw"  # adamw (with weight_decay=0: Adam) | rmsprop
    schedule: str = "warmup_cosine"  # warmup_cosine | constant | linear | exponential (all warm up linearly)
    warmup_steps: int = 5000
    warmup_offset: int = 0  # 1: the first update has the rate 1 / warmup_steps, not 0
    no_warmup: list[str] = dataclasses.field(
        default_factory=list
    )  # leaf-path patterns that start at the full rate
    decay_rate: float = 0.5  # of the exponential schedule: the factor of every decay_steps updates
    decay_steps: int | None = None
    seed_schedule: bool = False  # end the cosine `warmup_steps` early, as the authors' code does
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-5
    decay_all: bool = True  # False: no decay on norms, biases and state-space parameters
    clip_norm: float | None = None
    clip_kind: str = (
        "norm"  # what clip_norm limits: norm | largest (the largest entry) | value (entries, cut off)
    )
    plateau_patience: int | None = None  # halve the rate after so many measurements without a lower loss
    plateau_every: int = 1000  # updates of one measurement
    rates: dict[str, float] = dataclasses.field(default_factory=dict)  # leaf-path pattern -> factor on the rate


@dataclasses.dataclass(slots=True)
class TrainSettings:
    """The loop."""

    steps: int = MISSING
    batch_size: int = MISSING  # global: over all devices and processes
    accumulate: int = 1  # microbatches of a step
    precision: str = "float32"  # float32 | bfloat16
    remat: bool = False  # recompute activations in the backward pass: less memory, about a third more time
    ema_decay: float | None = None
    log_every: int = 100
    evaluate_every: int = 2000
    save_every: int = 2000
    keep: int = 3  # newest checkpoints kept
    keep_every: int | None = 20000  # and every so many steps, for good
    # A number of the evaluations: saved at each, the checkpoint where it is lowest is kept too; -psnr: the largest.
    monitor: str | None = None


@dataclasses.dataclass(slots=True)
class RolloutSettings:
    """One kind of rollout of the evaluation."""

    context: int = MISSING  # frames the model sees
    actions: bool = True  # whether it is told the actions
    length: int | None = None  # frames in all, the given ones included; default: the held-out clip's


@dataclasses.dataclass(slots=True)
class EvalSettings:
    """What is measured during training, by `experiments.evaluate` and by `experiments.sample`."""

    clips: int = 512  # held-out clips
    batch_size: int = 16
    rollouts: list[RolloutSettings] = dataclasses.field(default_factory=list)
    # What experiments.evaluate and experiments.sample make instead, where that is more than training measures.
    protocol: list[RolloutSettings] = dataclasses.field(default_factory=list)
    samples: int = 1  # rollouts per clip; tables have their mean and their best, metrics the mean
    temperature: float = 1.0
    lpips: bool = True
    fvd: bool = False
    pictures: int = 4  # clips drawn


@dataclasses.dataclass(slots=True)
class TokenizerSettings:
    """The first stage of a two-stage system: where its weights are, or which experiment trains them."""

    exp: str | None = None  # trained first, as its own run, when neither `run` nor `weights` is given
    run: str | None = None  # a finished run's folder
    weights: str | None = None  # a converted weights file
    encode: str = "step"  # step: frames are encoded as they are trained on | once: all clips beforehand


@dataclasses.dataclass(slots=True)
class MeshSettings:
    """How devices are laid out, and how processes find each other."""

    strategy: str = "replicated"  # replicated | fsdp
    model: int = 1  # so many devices share a part of the batch, and split the state and its products among them
    distributed: bool = False  # initialise jax.distributed (Slurm and Kubernetes are detected)
    coordinator: str | None = None  # host:port, when nothing detects it
    processes: int | None = None
    process_id: int | None = None


@dataclasses.dataclass(slots=True)
class LoggerSettings:
    """metrics.jsonl is always written; these are extras."""

    tensorboard: bool = False
    wandb: bool = False
    project: str = "slotzoo"
    progress: str = "auto"  # auto | bar | plain


@dataclasses.dataclass(slots=True)
class RunSettings:
    """A whole training run."""

    name: str = MISSING
    task: str = MISSING
    model: dict[str, Any] = MISSING  # name, and any field of the model's Config
    data: DataSettings = MISSING
    optim: OptimSettings = dataclasses.field(default_factory=OptimSettings)
    train: TrainSettings = dataclasses.field(default_factory=TrainSettings)
    eval: EvalSettings = dataclasses.field(default_factory=EvalSettings)
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    logger: LoggerSettings = dataclasses.field(default_factory=LoggerSettings)
    tokenizer: TokenizerSettings = dataclasses.field(default_factory=TokenizerSettings)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the task
    scale: str = "auto"  # auto | paper | tiny
    seed: int = 0
    runs_dir: str = "runs"
    init_from: str | None = None  # a finished run's folder or a weights file, for the parameters to begin with
    # Parts of the model that are taken from it (encoder); none named: all.
    init_parts: list[str] = dataclasses.field(default_factory=list)
    tiny: dict[str, Any] = dataclasses.field(default_factory=dict)  # what scale=tiny changes
    plugins: list[str] = dataclasses.field(default_factory=list)  # modules imported first, to register models


@dataclasses.dataclass(slots=True)
class EvaluateSettings:
    """`experiments.evaluate`: measure a finished (or running) run again."""

    run: str = MISSING
    step: int | None = None  # of a checkpoint that the run kept; the newest by default
    split: str = "test"
    root: str | None = None  # another copy of the data
    clips: int | None = None
    batch_size: int | None = None
    samples: int | None = None
    lpips: bool | None = None
    fvd: bool | None = None
    seed: int = 0
    plugins: list[str] = dataclasses.field(default_factory=list)  # modules imported first, to register models


@dataclasses.dataclass(slots=True)
class SampleSettings:
    """`experiments.sample`: write rollouts as npz (real, fake) and videos."""

    run: str = MISSING
    step: int | None = None  # of a checkpoint that the run kept; the newest by default
    split: str = "test"
    root: str | None = None
    clips: int = 16
    batch_size: int | None = None
    context: int | None = None  # with `actions`, one rollout; without, those of the run's configuration
    actions: bool = True
    length: int | None = None  # frames in all; the clip's own length by default
    samples: int = 1
    temperature: float = 1.0
    seed: int = 0
    plugins: list[str] = dataclasses.field(default_factory=list)  # modules imported first, to register models


@dataclasses.dataclass(slots=True)
class PredictSettings:
    """`experiments.predict`: take pictures or a video of your own apart with a finished run."""

    run: str = MISSING
    step: int | None = None  # of a checkpoint that the run kept; the newest by default
    images: str | None = None  # a folder of pictures, or one picture
    video: str | None = None  # a video file, a GIF or a folder of its frames, for runs that follow objects
    boxes: Any = (
        None  # of the first frame: [[ymin, xmin, ymax, xmax], ...] in pixels or 0 to 1; or a .json or .npy file
    )
    segments: str | None = None  # of the first frame: a picture of labels, 0 the background
    frames: int | None = None  # only the first so many
    out: str | None = None  # default: predictions/ in the folder of the run
    slots: int | None = None  # the run's number by default; more are fine
    iterations: int | None = None
    batch_size: int = 16
    background_detection: str = "spread_out"  # spread_out | concentrated | both
    background_metric: str = "area"  # area | distance, of the hull of a concentrated background
    threshold: float = 0.5  # below it a pixel belongs to no slot
    seed: int = 0
    plugins: list[str] = dataclasses.field(default_factory=list)  # modules imported first, to register models


@dataclasses.dataclass(slots=True)
class ReportSettings:
    """`experiments.report`: write report.html of a run again."""

    run: str = MISSING


@dataclasses.dataclass(slots=True)
class CompareSettings:
    """`experiments.compare`: runs side by side with what was published."""

    runs: list[str] = MISSING  # folders of evaluated runs
    out: str = "comparison"
    plugins: list[str] = dataclasses.field(default_factory=list)  # modules imported first, to register models


@dataclasses.dataclass(slots=True)
class PrepareSettings:
    """`experiments.prepare`: convert a data set once to ArrayRecord."""

    data: DataSettings = MISSING
    out: str = MISSING
    splits: list[str] = dataclasses.field(default_factory=lambda: ["train", "test"])
    workers: int = 2
    format: str = "array_record"  # array_record | published (the layout of the set; teco is another name)
    encode: str | None = (
        None  # vqgan: write tokens, those of `tokenizer`, else of the set's own finished VQ-GAN
    )
    runs_dir: str = "runs"  # where that is looked for
    tokenizer: str | None = None  # a finished run or a weights file: write its tokens instead of the frames


@dataclasses.dataclass(slots=True)
class ConvertSettings:
    """`experiments.convert`: turn a published checkpoint into a weights file of ours."""

    source: str = (
        MISSING  # a run of ConvSSM, TECO, SAVi or STATM or one checkpoint in it; a .ckpt or .pt otherwise
    )
    out: str = MISSING  # a file that ends in .safetensors; its card is written beside it
    model: str = (
        ""  # of SAVi and STATM: a registered name; or, for sizes of one's own, a .json of the authors' `model`
    )
    origin: str = ""  # said in the card: where the checkpoint was published
    licence: str = ""  # said in the card: the checkpoint's, if it is not that of its repository


@dataclasses.dataclass(slots=True)
class BenchmarkSettings:
    """`experiments.benchmark`: measure a suite beside its baseline."""

    suite: str = MISSING  # a module of experiments/benchmarks: linear_scan, convs5_step, ...
    scale: str = "auto"  # paper | tiny | auto: the published sizes on an accelerator, small ones on a CPU
    repeats: int = 9  # rounds; every program runs in each of them
    output: str = "experiments/results"


SCHEMAS = {
    "train": RunSettings,
    "evaluate": EvaluateSettings,
    "sample": SampleSettings,
    "predict": PredictSettings,
    "report": ReportSettings,
    "compare": CompareSettings,
    "prepare": PrepareSettings,
    "convert": ConvertSettings,
    "benchmark": BenchmarkSettings,
}


@functools.cache
def register() -> None:
    """Put every schema where the YAML files of `conf` look for it, once: it takes a third of the time of composing."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
    store.store(group="data", name="schema", node=DataSettings)
    store.store(group="optim", name="schema", node=OptimSettings)
    store.store(group="mesh", name="schema", node=MeshSettings)
    store.store(group="logger", name="schema", node=LoggerSettings)
