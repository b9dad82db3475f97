"""GNM as object-discovery-pytorch and as its authors (JindongJiang/GNM) name and lay out its parameters.

Theirs are channels first: a vector of a whole map is flattened (channel, row, column), ours (row, column, channel);
channels that become a square of pixels are ordered (filter, row, column), ours (row, column, filter). Only the
hidden states that enter the two networks of the global latent are flattened channels last there as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from slotzoo.errors import WeightsError
from slotzoo.models.gnm_config import GNMConfig
from slotzoo.nn.celu_stacks import Stage
from slotzoo.weights.convert.rules import Layout, Rule, under
from slotzoo.weights.convert.torch_rules import VECTOR, layer, norm


# Stored beside the parameters, never trained; all follow from the sizes.
BUFFERS = ("aux_p_", "background", "global_struct_draw.dec_step_0", "local_latent_sampler.offset")


def parameters(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The trained parameters of a state dict."""
    return {name: array for name, array in state.items() if not name.startswith(BUFFERS)}


def config(hyper: Mapping[str, Any]) -> GNMConfig:
    """The configuration from the seed's nested one (its argparse.Namespace objects as dictionaries).

    **Raises** `WeightsError` for what is missing, and for variants that the zoo does not have.
    """
    if not hyper:
        raise WeightsError(
            "the checkpoint has no hyper-parameters, which tell the sizes of a GNM: those of object-discovery-pytorch "
            "have them, those of GNM's authors (.pth) have not."
        )
    try:
        return _config(hyper)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise WeightsError(f"the hyper-parameters do not describe a GNM: {error!r}.") from error


def _config(hyper: Mapping[str, Any]) -> GNMConfig:
    arch, z, const, train = hyper["arch"], hyper["z"], hyper["const"], hyper["train"]
    conv, mlp, draw, pwdw = arch["conv"], arch["mlp"], arch["structdraw"], arch["pwdw"]
    cells, features = int(arch["num_cell"]), int(arch["img_enc_dim"])
    filters = tuple(draw["hid_to_dec_filters"])
    odd = {
        "a global decoder other than an MLP": arch.get("p_global_decoder_type", "MLP") != "MLP",
        "a graph network": any(arch.get(f"phase_graph_net_on_global_{k}") for k in ("encoder", "decoder")),
        "images that are not square": hyper["data"]["img_h"] != hyper["data"]["img_w"],
        "several layers after the decoder's LSTM": filters != (features,),
        "strides in the cells' heads": any(stride > 1 for stride in pwdw["pwdw_strides"]),
        "a global decoder of another width": mlp["p_global_decoder_filters"][-1] != cells**2 * features,
    }
    for what, found in odd.items():
        if found:
            raise WeightsError(f"the checkpoint is a GNM with {what}, which the zoo does not have.")

    def stack(name: str) -> dict[str, tuple[int, ...]]:
        return {part: tuple(conv[f"{name}_{part}"]) for part in ("filters", "kernel_sizes", "groups")}

    def schedule(name: str) -> tuple[float, ...]:
        values = [train[f"{name}_anneal_{part}_value"] for part in ("start", "end")]
        steps = [train[f"{name}_anneal_{part}_step"] for part in ("start", "end")]
        return tuple(float(x) for x in (*values, *steps))

    encoder, what, behind = stack("img_encoder"), stack("p_what_decoder"), stack("p_bg_decoder")
    betas = {"presence": "pres", "where": "where", "what": "what", "depth": "depth", "background": "bg"}
    weights: dict[str, Any] = {f"beta_{ours}": schedule(f"beta_{name}") for ours, name in betas.items()}
    weights |= {f"beta_aux_{ours}": schedule(f"beta_aux_{name}") for ours, name in betas.items()}
    sigma = hyper.get("std")
    return GNMConfig(
        resolution=int(hyper["data"]["img_h"]),
        in_channels=int(hyper["data"]["inp_channel"]),
        cells=cells,
        overlap=bool(arch["phase_overlap"]),
        background=bool(arch["phase_background"]),
        draws=int(arch["draw_step"]),
        global_dim=int(z["z_global_dim"]),
        what_dim=int(z["z_what_dim"]),
        background_dim=int(z["z_bg_dim"]),
        features=features,
        encoder_filters=encoder["filters"],
        encoder_kernels=encoder["kernel_sizes"],
        encoder_strides=tuple(conv["img_encoder_strides"]),
        encoder_groups=encoder["groups"],
        what_filters=what["filters"][:-1],
        what_kernels=what["kernel_sizes"],
        what_upscales=tuple(conv["p_what_decoder_upscales"]),
        what_groups=what["groups"][:-1],
        background_filters=behind["filters"][:-1],
        background_kernels=behind["kernel_sizes"],
        background_upscales=tuple(conv["p_bg_decoder_upscales"]),
        background_groups=behind["groups"][:-1],
        head_filters=tuple(pwdw["pwdw_filters"]),
        head_kernels=tuple(pwdw["pwdw_kernel_sizes"]),
        head_groups=tuple(pwdw["pwdw_groups"]),
        encoder_hidden=int(draw["rnn_encoder_hid_dim"]),
        decoder_hidden=int(draw["rnn_decoder_hid_dim"]),
        cell_kernel=int(draw["kernel_size"]),
        residual_kernel=int(draw["hid_to_dec_kernel_sizes"][0]),
        posterior_widths=tuple(mlp["q_global_encoder_filters"][:-1]),
        prior_widths=tuple(mlp["p_global_encoder_filters"][:-1]),
        global_decoder_widths=tuple(mlp["p_global_decoder_filters"][:-1]),
        background_widths=tuple(mlp["q_bg_encoder_filters"][:-1]),
        background_prior_widths=tuple(mlp["p_bg_generator_filters"][:-1]),
        sigma=float(const["likelihood_sigma"] if sigma is None else sigma),
        presence_scale=float(const["pres_logit_scale"]),
        scale_mean=float(const["scale_mean"]),
        scale_std=float(const["scale_std"]),
        ratio_mean=float(const["ratio_mean"]),
        ratio_std=float(const["ratio_std"]),
        shift_std=float(const["shift_std"]),
        temperature=schedule("tau_pres"),
        presence_prior=schedule("p_pres"),
        beta_global=schedule("beta_global"),
        **weights,
        curriculum_steps=tuple(train["bg_alpha_curriculum_period"])
        if train["phase_bg_alpha_curriculum"]
        else (),
        curriculum_alpha=float(train["bg_alpha_curriculum_value"]),
    )


def rules(c: GNMConfig) -> tuple[Rule, ...]:
    """The table for a model of given sizes."""
    mapped = _flattened(c.cells, c.features)
    draw = (
        *mlp_rules(r"p_global_decoder_net\.mlp", "decoder", len(c.global_decoder_widths) + 1, last=mapped),
        *mlp_rules(r"p_global_net\.mlp", "prior", len(c.prior_widths) + 1),
        *mlp_rules(r"q_global_net\.mlp", "posterior", len(c.posterior_widths) + 1),
        *under(r"rnn_enc\.", "encoder_cell.", LSTM),
        *under(r"rnn_dec\.", "decoder_cell.", LSTM),
        *layer(r"hid_to_dec_net\.conv\.0", "residual"),
    )
    heads = [
        rule for name in ("pres", "where", "depth", "what") for rule in layer(f"q_{name}_net", _HEADS[name])
    ]
    found = [
        *conv_rules(r"img_encoder\.conv", "encoder", c.encoder_stages()),
        *under(r"global_struct_draw\.", "scene.", draw),
        *under(
            r"p_z_given_x_or_g_net\.",
            "heads.",
            (*conv_rules(r"pwdw_net\.conv", "body", c.head_stages()), *heads),
        ),
        *conv_rules(
            r"local_latent_sampler\.z_what_decoder_net\.conv", "what_decoder", c.what_stages(), sub_pixel=True
        ),
    ]
    if c.background:
        count = len(c.background_widths) + 1
        found += [
            *conv_rules(
                r"p_bg_decoder\.p_bg_decoder\.conv",
                "background.decoder",
                c.background_stages(),
                sub_pixel=True,
            ),
            *mlp_rules(
                r"p_bg_given_g_net\.p_bg_generator\.mlp", "background.prior", len(c.background_prior_widths) + 1
            ),
            *mlp_rules(r"q_bg_given_x_net\.p_bg_encoder\.mlp", "background.posterior", count, first=mapped),
        ]
    return tuple(found)


def conv_rules(seed: str, ours: str, stages: Sequence[Stage], *, sub_pixel: bool = False) -> tuple[Rule, ...]:
    """A `ConvStack`. The seed numbers convolution, (pixel shuffle,) activation and norm of every stage."""

    def each() -> Iterator[Rule]:
        place = 0
        for i, stage in enumerate(stages):
            kernel, bias = _shuffled(stage.upscale)
            yield Rule(rf"{seed}\.{place}\.weight", f"{ours}.convs.{i}.weight", kernel)
            yield Rule(rf"{seed}\.{place}\.bias", f"{ours}.convs.{i}.bias", bias)
            step = 4 if sub_pixel and stage.upscale > 1 else 3
            yield from norm(rf"{seed}\.{place + step - 1}", f"{ours}.norms.{i}")
            place += step

    return tuple(each())


def mlp_rules(
    seed: str,
    ours: str,
    layers: int,
    *,
    normed: bool = True,
    first: Layout | None = None,
    last: Layout | None = None,
) -> tuple[Rule, ...]:
    """An `MLPStack`. `first` and `last` reorder what enters the first and leaves the last layer."""

    def each() -> Iterator[Rule]:
        step = 3 if normed else 2
        for i in range(layers):
            before = first if i == 0 else None
            after = last if i == layers - 1 else None
            vector = after or VECTOR
            yield Rule(rf"{seed}\.{step * i}\.weight", f"{ours}.layers.{i}.weight", _linear(before, after))
            yield Rule(rf"{seed}\.{step * i}\.bias", f"{ours}.layers.{i}.bias", vector)
            if normed:
                yield Rule(rf"{seed}\.{step * i + 2}\.weight", f"{ours}.norms.{i}.scale", vector)
                yield Rule(rf"{seed}\.{step * i + 2}\.bias", f"{ours}.norms.{i}.bias", vector)

    return tuple(each())


def _flattened(cells: int, channels: int) -> Layout:
    """A last axis over (channel, row, column) there, (row, column, channel) here."""

    def ours(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return x.reshape(-1, channels, cells**2).swapaxes(-1, -2).reshape(x.shape)

    def seed(x: np.ndarray) -> np.ndarray:
        return x.reshape(-1, cells**2, channels).swapaxes(-1, -2).reshape(x.shape)

    return Layout(ours, seed)


def _linear(before: Layout | None, after: Layout | None) -> Layout:
    """(out, in) there, (in, out) here, with the order of inputs or outputs changed."""

    def ours(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        x = before.ours(x, x.shape) if before else x
        return after.ours(x.T, shape) if after else x.T

    def seed(x: np.ndarray) -> np.ndarray:
        x = after.seed(x).T if after else x.T
        return before.seed(x) if before else x

    return Layout(ours, seed)


def _shuffled(scale: int) -> tuple[Layout, Layout]:
    """Kernel and bias of a convolution whose output channels become squares of pixels."""
    square = scale**2

    def filters_last(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:-1], -1, square).swapaxes(-1, -2).reshape(x.shape)

    def filters_first(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:-1], square, -1).swapaxes(-1, -2).reshape(x.shape)

    kernel = Layout(
        lambda x, shape: filters_last(x.transpose(2, 3, 1, 0)),
        lambda x: filters_first(x).transpose(3, 2, 0, 1),
    )
    return kernel, Layout(lambda x, shape: filters_last(x), filters_first)


# The learned state of the LSTMs: (1, channel, row, column) there.
_STATE = Layout(lambda x, shape: x[0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[None])
LSTM = (
    *layer("conv", "conv"),
    Rule("h_0", "hidden", _STATE),
    Rule("c_0", "cell", _STATE),
)
_HEADS = {"pres": "presence", "where": "where", "depth": "depth", "what": "what"}
