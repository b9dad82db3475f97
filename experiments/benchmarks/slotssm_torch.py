"""SlotSSM in PyTorch's eager mode, for comparison where torch is installed. Nothing needs it.

The networks of `slotzoo.models.slotssm` with a vision transformer on either side, as the suite `slotssm_step` trains
them, from the formulas of the papers and torch's own layers: a clip that is one chunk of Mamba-2 as one masked product
(nothing is charged for padding or for a last state that training does not read), Mamba-1's scan as a loop over steps.
"""

import importlib
import math
import os
from collections.abc import Callable
from typing import Any


def step(config: Any, batch: int, frames: int) -> Callable[[], None]:
    """A training step on fixed clips: gradient of the squared error, clipped to a norm of 1, Adam."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    parts, loss = network(config)
    parameters = list(parts.parameters())
    optimizer = torch.optim.Adam(parameters, lr=3e-4)
    clips = torch.rand(batch, frames, config.in_channels, config.resolution, config.resolution)

    def train() -> None:
        optimizer.zero_grad()
        loss(clips).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return train


def network(config: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The parts of a network, and its loss as a function of clips (batch, time, channel, height, width)."""
    torch: Any = importlib.import_module("torch")
    nn, c = torch.nn, config
    side = c.resolution // c.encoder_patch
    encoder, encode = _encoder(nn, torch, c, side)
    decoder, decode = _decoder(nn, torch, c)
    blocks = [_block(nn, torch, c) for _ in range(c.blocks)]
    parts = nn.ModuleDict(
        {
            "encoder": encoder,
            "decoder": decoder,
            "start": nn.Embedding(c.num_slots, c.dim),
            "blocks": nn.ModuleList([block for block, _ in blocks]),
        }
    )

    def loss(clips: Any) -> Any:
        frames = clips.flatten(0, 1)
        tokens = encode(frames)
        slots = parts["start"].weight.expand(len(frames), -1, -1)
        for _, run in blocks:
            slots = run(slots, tokens, clips.shape[1])
        return nn.functional.mse_loss(decode(slots), frames)

    return parts, loss


def _transformer(nn: Any, dim: int, layers: int, heads: int, mlp: int, activation: str, pre: bool) -> Any:
    layer = nn.TransformerEncoderLayer(
        dim, heads, mlp, dropout=0.0, activation=activation, batch_first=True, norm_first=pre
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def _encoder(nn: Any, torch: Any, c: Any, side: int) -> tuple[Any, Any]:
    parts = nn.ModuleDict(
        {
            "patches": nn.Conv2d(c.in_channels, c.encoder_dim, c.encoder_patch, c.encoder_patch),
            "places": nn.Embedding(c.encoder_class_tokens + side**2, c.encoder_dim),
            "first": nn.Embedding(c.encoder_class_tokens, c.encoder_dim),
            "layers": _transformer(
                nn,
                c.encoder_dim,
                c.encoder_layers,
                c.encoder_heads,
                c.encoder_mlp or 4 * c.encoder_dim,
                "gelu",
                False,
            ),
            "out": nn.Linear(c.encoder_dim, c.token_dim),
        }
    )

    def encode(frames: Any) -> Any:
        tokens = parts["patches"](frames).flatten(2).transpose(1, 2)
        first = parts["first"].weight.expand(len(frames), -1, -1)
        x = torch.cat([first, tokens], 1) + parts["places"].weight
        return parts["out"](parts["layers"](x))[:, c.encoder_class_tokens :]

    return parts, encode


def _decoder(nn: Any, torch: Any, c: Any) -> tuple[Any, Any]:
    side, patch, dim = c.out_resolution // c.decoder_patch, c.decoder_patch, c.decoder_dim
    parts = nn.ModuleDict(
        {
            "project": nn.Linear(c.slot_dim, dim),
            "mask": nn.Embedding(1, dim),
            "layers": _transformer(
                nn, dim, c.decoder_layers, c.decoder_heads, c.decoder_mlp or 4 * dim, "relu", True
            ),
            "out": nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, patch**2 * c.out_channels)),
        }
    )
    places = torch.randn(side**2, dim)  # fixed: what they are does not change the time

    def decode(slots: Any) -> Any:
        masks = (parts["mask"].weight + places).expand(len(slots), -1, -1)
        x = parts["layers"](torch.cat([parts["project"](slots), masks], 1))
        x = parts["out"](x[:, slots.shape[1] :]).unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    return parts, decode


def _block(nn: Any, torch: Any, c: Any) -> tuple[Any, Any]:
    dim = c.dim
    mixer, mix = (_mamba2 if c.mixer == "mamba2" else _mamba1)(nn, torch, c)
    parts = nn.ModuleDict(
        {
            "slot_norm": nn.LayerNorm(dim),
            "token_norm": nn.LayerNorm(dim),
            "token": nn.Linear(c.token_dim, dim),
            **{name: nn.Linear(dim, dim) for name in ("query", "key", "value", "read")},
            "mixer_norm": nn.LayerNorm(dim),
            "mixer": mixer,
            "exchange_norm": nn.LayerNorm(dim),
            "exchange": nn.Linear(dim, 3 * dim),
            "exchange_out": nn.Linear(dim, dim),
        }
    )

    def heads(x: Any, count: int) -> Any:
        return x.unflatten(-1, (count, -1)).transpose(-2, -3)

    def read(slots: Any, tokens: Any) -> Any:
        """Heads and slots compete for every token."""
        queries, context = parts["slot_norm"](slots), parts["token_norm"](parts["token"](tokens))
        q = heads(parts["query"](queries), c.cross_heads)
        k, v = (heads(parts[name](context), c.cross_heads) for name in ("key", "value"))
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        shares = logits.flatten(1, 2).softmax(1).view_as(logits)
        shares = shares / (shares.sum(-1, keepdim=True) + 1e-5)
        return parts["read"]((shares @ v).transpose(1, 2).flatten(2))

    def exchange(slots: Any) -> Any:
        q, k, v = (heads(x, c.slot_heads) for x in parts["exchange"](slots).chunk(3, -1))
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
        return parts["exchange_out"]((weights @ v).transpose(1, 2).flatten(2))

    def run(slots: Any, tokens: Any, time: int) -> Any:
        """`slots` (batch and time, slot, dim): each slot is a sequence of its own in the mixer."""
        slots = slots + read(slots, tokens)
        series = parts["mixer_norm"](slots).unflatten(0, (-1, time)).transpose(1, 2).flatten(0, 1)
        mixed = mix(series).unflatten(0, (-1, slots.shape[1])).transpose(1, 2).flatten(0, 1)
        slots = slots + mixed
        return slots + exchange(parts["exchange_norm"](slots))

    return parts, run


def _convolved(nn: Any, conv: Any, x: Any) -> Any:
    """The causal convolution of (batch, time, channel), and its activation."""
    return nn.functional.silu(conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))


def _mamba1(nn: Any, torch: Any, c: Any) -> tuple[Any, Any]:
    inner, rank, states = int(c.expand * c.dim), math.ceil(c.dim / 16), c.ssm_state
    parts = nn.ModuleDict(
        {
            "inward": nn.Linear(c.dim, 2 * inner, bias=False),
            "conv": nn.Conv1d(inner, inner, c.conv_width, groups=inner, padding=c.conv_width - 1),
            "read": nn.Linear(inner, rank + 2 * states, bias=False),
            "length": nn.Linear(rank, inner),
            "rates": nn.Embedding(inner, states),
            "skip": nn.Embedding(1, inner),
            "outward": nn.Linear(inner, c.dim, bias=False),
        }
    )
    nn.init.constant_(parts["length"].bias, -4.6)  # steps of about 0.01

    def mix(x: Any) -> Any:
        h, z = parts["inward"](x).chunk(2, -1)
        h = _convolved(nn, parts["conv"], h)
        length, b, out = parts["read"](h).split([rank, states, states], -1)
        delta = nn.functional.softplus(parts["length"](length))
        decay = torch.exp(delta[..., None] * -torch.exp(parts["rates"].weight))
        entered = (delta * h)[..., None] * b[:, :, None]
        state, states_of_all = torch.zeros_like(entered[:, 0]), []
        for kept, new in zip(decay.unbind(1), entered.unbind(1), strict=True):
            state = kept * state + new
            states_of_all.append(state)
        y = (torch.stack(states_of_all, 1) @ out[..., None])[..., 0] + parts["skip"].weight * h
        return parts["outward"](y * nn.functional.silu(z))

    return parts, mix


def _mamba2(nn: Any, torch: Any, c: Any) -> tuple[Any, Any]:
    inner, states = int(c.expand * c.dim), c.ssm_state
    count, mixed = inner // c.ssm_head_dim, inner + 2 * states
    parts = nn.ModuleDict(
        {
            "inward": nn.Linear(c.dim, inner + mixed + count, bias=False),
            "conv": nn.Conv1d(mixed, mixed, c.conv_width, groups=mixed, padding=c.conv_width - 1),
            "heads": nn.Embedding(3, count),  # bias of the step, logarithm of the rate, what skips the state
            "norm": nn.RMSNorm(inner, eps=1e-5),
            "outward": nn.Linear(inner, c.dim, bias=False),
        }
    )

    def mix(x: Any) -> Any:
        z, xbc, dt = parts["inward"](x).split([inner, mixed, count], -1)
        h, b, out = _convolved(nn, parts["conv"], xbc).split([inner, states, states], -1)
        bias, log_rate, skip = parts["heads"].weight
        dt = nn.functional.softplus(dt - 4.6 + bias)  # steps of about 0.01
        sums = (dt * -torch.exp(log_rate)).cumsum(1).transpose(1, 2)  # (batch, head, time)
        past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        decay = (sums[..., :, None] - sums[..., None, :]).masked_fill(~past, -math.inf).exp()
        weights = (out @ b.transpose(1, 2))[:, None] * decay
        h = h.unflatten(-1, (count, -1))
        y = (weights @ (h * dt[..., None]).transpose(1, 2)).transpose(1, 2) + skip[:, None] * h
        return parts["outward"](parts["norm"](y.flatten(2) * nn.functional.silu(z)))

    return parts, mix
