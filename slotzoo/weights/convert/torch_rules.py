"""Rules (see `rules`) for layers in PyTorch's layout, and for slot attention in object-discovery-pytorch."""

import numpy as np

from slotzoo.weights.convert.rules import Layout, Rule, under


def _kernel_to_ours(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return kernel.T if kernel.ndim == 2 else kernel.transpose(2, 3, 1, 0)


def _kernel_to_torch(kernel: np.ndarray) -> np.ndarray:
    return kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)


# (out, in) -> (in, out), and (out, in, height, width) -> (height, width, in, out)
KERNEL = Layout(_kernel_to_ours, _kernel_to_torch)
VECTOR = Layout(lambda x, shape: x.reshape(shape), lambda x: x)
# Vectors and tables that stand under leading axes of size 1.
BATCHED_VECTOR = Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(1, 1, -1))
BATCHED_TABLE = Layout(lambda x, shape: x.reshape(shape), lambda x: x[None])


def layer(seed: str, ours: str) -> tuple[Rule, ...]:
    """A linear layer or a convolution, with or without bias; `seed` is a regular expression."""
    return (Rule(rf"{seed}\.weight", f"{ours}.weight", KERNEL), Rule(rf"{seed}\.bias", f"{ours}.bias", VECTOR))


def norm(seed: str, ours: str) -> tuple[Rule, ...]:
    """A layer or group norm with scale and bias."""
    return (Rule(rf"{seed}\.weight", f"{ours}.scale", VECTOR), Rule(rf"{seed}\.bias", f"{ours}.bias", VECTOR))


GRU = (
    Rule("weight_ih", "weight_input", KERNEL),
    Rule("weight_hh", "weight_hidden", KERNEL),
    Rule("bias_ih", "bias_input", VECTOR),
    Rule("bias_hh", "bias_hidden", VECTOR),
)

_START = (
    Rule("slot_mu", "mean", BATCHED_VECTOR),
    Rule("slot_log_sigma", "log_scale", BATCHED_VECTOR),
)
_STEP = (
    *norm("norm_inputs", "norm_inputs"),
    *norm("norm_slots", "norm_slots"),
    *norm("norm_mlp", "norm_mlp"),
    *layer("project_q", "query"),
    *layer("project_k", "key"),
    *layer("project_v", "value"),
    *under(r"gru\.", "gru.", GRU),
    *layer(r"mlp\.0", "mlp.first"),
    *layer(r"mlp\.2", "mlp.second"),
)

# The module of object-discovery-pytorch, and the encoder of SLATE's authors, which nests it.
SLOT_ATTENTION = (
    *_START,
    *norm("input_layer_norm", "input_norm"),
    *layer(r"input_mlp\.0", "input_mlp.first"),
    *layer(r"input_mlp\.2", "input_mlp.second"),
    *_STEP,
)
SLATE_SLOT_ENCODER = (
    *_START,
    *norm("layer_norm", "input_norm"),
    *layer(r"mlp\.0", "input_mlp.first"),
    *layer(r"mlp\.2", "input_mlp.second"),
    *under(r"slot_attention\.", "", _STEP),
)
