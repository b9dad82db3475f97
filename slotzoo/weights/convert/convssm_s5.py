"""S5 layers as NVlabs/ConvSSM names and lays out their parameters; the rules are read in both directions."""

import numpy as np

from slotzoo.weights.convert.convssm_convs5 import COLUMN
from slotzoo.weights.convert.rules import Layout, Rule, same, under


def _b_to_seed(b: np.ndarray) -> np.ndarray:
    channels, planes = b.shape
    return b.reshape(channels, 2, planes // 2).transpose(2, 0, 1)


def _c_to_seed(c: np.ndarray) -> np.ndarray:
    _, planes, channels = c.shape
    return c.reshape(2, planes // 2, channels).transpose(2, 1, 0)


# (state, channel, re/im) -> channel, [re | im] of state
B_ROWS = Layout(lambda b, shape: b.transpose(1, 2, 0).reshape(shape), _b_to_seed)
# (channel, state, re/im) -> direction, [re | im] of state, channel
C_ROWS = Layout(lambda c, shape: c.transpose(2, 1, 0).reshape(shape), _c_to_seed)

S5_SSM = (
    *same(
        ("Lambda_re", "lambda_re"),
        ("Lambda_im", "lambda_im"),
        ("D", "d"),
        (r"out(\d)/kernel", "out{}.weight"),
        (r"out(\d)/bias", "out{}.bias"),
    ),
    Rule("log_step", "log_step", COLUMN),
    Rule("B", "b", B_ROWS),
    Rule("C", "c", C_ROWS),
)

S5_STACK = (
    *same((r"layers_(\d+)/norm/(scale|bias)", "layers.{}.norm.{}")),
    *under(r"layers_(\d+)/seq/", "layers.{}.ssm.", S5_SSM),
)
