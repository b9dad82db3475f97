"""The image models in PyTorch's eager mode, for comparison where torch is installed. Nothing needs it.

The networks of `slotzoo.models`, at the sizes of the suite `images`, written with torch's own layers the plain way:
what a step of them costs on the machine that measures. GNM's network is in `image_torch_gnm.py`.
"""

import importlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import image_torch_gnm


def installed() -> bool:
    """Whether torch can be imported."""
    return importlib.util.find_spec("torch") is not None


def seconds(step: Callable[[], None], repeats: int) -> list[float]:
    """Of single steps, after one that is not counted."""
    step()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return found


def median(*series: list[float]) -> float:
    """Of all the times of several series."""
    return statistics.median([value for times in series for value in times])


def step(name: str, config: Any, batch: int, *, logs: bool = True) -> Callable[[], None]:
    """A training step on one fixed batch: gradient, clipping where the published code clips, Adam or RMSprop.

    Without `logs` nothing is computed that is only logged, which GNM's published step does.
    """
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    parts, loss = network(name, config, logs=logs)
    parameters = list(parts.parameters())
    kind = torch.optim.RMSprop if name == "gnm" else torch.optim.Adam
    optimizer = kind(parameters, lr=4e-4 if name == "slot_attention" else 1e-4)
    images = torch.rand(batch, 3, config.resolution, config.resolution)
    images = config.low + (config.high - config.low) * images

    def train() -> None:
        optimizer.zero_grad()
        loss(images).backward()
        if name != "slot_attention":
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return train


def network(name: str, config: Any, *, logs: bool = True) -> tuple[Any, Callable[[Any], Any]]:
    """The parts of a network, and its loss as a function of images (batch, channel, height, width)."""
    torch = importlib.import_module("torch")
    if name == "gnm":
        return image_torch_gnm.network(torch, config, logs=logs)
    return {"slot_attention": _slot_attention, "slate": _slate}[name](torch, config)


def _competition(torch: Any, inputs: int, dim: int, hidden: int, iterations: int) -> tuple[Any, Any]:
    """Slot attention, of which the last of `iterations + 1` steps is differentiated."""
    nn, functional = torch.nn, torch.nn.functional
    parts = nn.ModuleDict(
        {
            "norm_inputs": nn.LayerNorm(inputs),
            "norm_slots": nn.LayerNorm(dim),
            "query": nn.Linear(dim, dim, bias=False),
            "key": nn.Linear(inputs, dim, bias=False),
            "value": nn.Linear(inputs, dim, bias=False),
            "gru": nn.GRUCell(dim, dim),
            "mlp": nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim)),
            "initial": nn.Embedding(2, dim),  # mean, and logarithm of the scale
        }
    )

    def refine(key: Any, value: Any, slots: Any) -> Any:
        query = parts["query"](parts["norm_slots"](slots)) * dim**-0.5
        shares = functional.softmax(key @ query.transpose(1, 2), dim=-1) + 1e-8
        updates = (shares / shares.sum(1, keepdim=True)).transpose(1, 2) @ value
        slots = parts["gru"](updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        return slots + parts["mlp"](slots)

    def attend(tokens: Any, count: int) -> Any:
        tokens = parts["norm_inputs"](tokens)
        # Once for all iterations, as the published code does.
        key, value = parts["key"](tokens), parts["value"](tokens)
        mean, log_scale = parts["initial"].weight
        slots = mean + log_scale.exp() * torch.randn(len(tokens), count, dim)
        with torch.no_grad():
            for _ in range(iterations):
                slots = refine(key, value, slots)
        return refine(key, value, slots.detach())

    return parts, attend


def _slot_attention(torch: Any, config: Any) -> tuple[Any, Any]:
    nn, functional = torch.nn, torch.nn.functional
    c, pad = config, config.kernel // 2
    encoder, width = [], c.in_channels
    for out, stride in zip(c.encoder_widths, c.encoder_strides, strict=True):
        encoder += [nn.Conv2d(width, out, c.kernel, stride, pad), nn.LeakyReLU()]
        width = out
    decoder, inner = [], c.slot_dim
    for out, stride in zip(c.decoder_widths, c.decoder_strides, strict=True):
        decoder += [nn.ConvTranspose2d(inner, out, c.kernel, stride, pad, stride - 1), nn.LeakyReLU()]
        inner = out
    decoder.append(nn.ConvTranspose2d(inner, c.in_channels + 1, 3, 1, 1))
    slots, attend = _competition(torch, width, c.slot_dim, c.mlp_dim, c.num_iterations)
    parts = nn.ModuleDict(
        {
            "encoder": nn.Sequential(*encoder),
            "decoder": nn.Sequential(*decoder),
            "place": nn.Linear(4, width),
            "place_slots": nn.Linear(4, c.slot_dim),
            "mlp": nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width)),
            "slots": slots,
        }
    )

    def places(side: int) -> Any:
        line = torch.linspace(0, 1, side)
        rows, columns = torch.meshgrid(line, line, indexing="ij")
        return torch.stack([rows, columns, 1 - rows, 1 - columns], -1)

    def loss(images: Any) -> Any:
        features = parts["encoder"](images).permute(0, 2, 3, 1)
        features = parts["mlp"](features + parts["place"](places(features.shape[1])))
        found = attend(features.flatten(1, 2), c.num_slots)
        side = c.decoder_grid
        grid = found.reshape(-1, 1, 1, c.slot_dim).expand(-1, side, side, -1)
        # Channels first in memory too, as the published code repeats its slots: what is permuted alone makes torch
        # decode with channels last, which takes three quarters of the time.
        grid = (grid + parts["place_slots"](places(side))).permute(0, 3, 1, 2).contiguous()
        decoded = parts["decoder"](grid).unflatten(0, found.shape[:2])
        masks = functional.softmax(decoded[:, :, -1:], dim=1)
        return functional.mse_loss((masks * decoded[:, :, :-1]).sum(1), images)

    return parts, loss


def _slate(torch: Any, config: Any) -> tuple[Any, Any]:
    nn, functional = torch.nn, torch.nn.functional
    c, dim, length = config, config.d_model, config.side**2

    def block(inputs: int, out: int, size: int = 1, stride: int = 1) -> list[Any]:
        pad = (size - 1) // 2 if stride == 1 else 0
        return [nn.Conv2d(inputs, out, size, stride, pad, bias=False), nn.GroupNorm(1, out), nn.ReLU()]

    w = c.dvae_width
    encoder = [*block(c.in_channels, w, 4, 4), *(layer for _ in range(6) for layer in block(w, w))]
    decoder = block(c.vocab_size, w)
    for _ in range(2):
        decoder += [*block(w, w, 3), *block(w, w), *block(w, w), *block(w, 4 * w), nn.PixelShuffle(2)]
    slots, attend = _competition(torch, dim, c.slot_size, c.mlp_hidden_size, c.num_iterations)
    linear = lambda inputs=dim, out=dim: nn.Linear(inputs, out, bias=False)
    layers = [
        nn.ModuleDict(
            {
                **{f"norm_{i}": nn.LayerNorm(dim) for i in range(3)},
                **{f"{kind}_{name}": linear() for kind in ("self", "cross") for name in ("q", "k", "v", "o")},
                "ffn": nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim)),
            }
        )
        for _ in range(c.num_dec_blocks)
    ]
    parts = nn.ModuleDict(
        {
            "encoder": nn.Sequential(*encoder, nn.Conv2d(w, c.vocab_size, 1)),
            "decoder": nn.Sequential(*decoder, nn.Conv2d(w, c.in_channels, 1)),
            "dictionary": nn.Embedding(c.vocab_size + 1, dim),
            "place": nn.Embedding(1 + length, dim),
            "input_mlp": nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)),
            "slots": slots,
            "slot_proj": linear(c.slot_size),
            "layers": nn.ModuleList(layers),
            "norm": nn.LayerNorm(dim),
            "out": linear(dim, c.vocab_size),
        }
    )
    hidden = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
    drop = lambda x: functional.dropout(x, c.dropout)
    gumbel = lambda x: -torch.log(torch.empty_like(x).exponential_())

    def attention(layer: Any, kind: str, x: Any, tokens: Any, mask: Any) -> Any:
        heads = lambda y: y.unflatten(-1, (c.num_heads, -1)).transpose(1, 2)
        q, k, v = (heads(layer[f"{kind}_{n}"](y)) for n, y in (("q", x), ("k", tokens), ("v", tokens)))
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        logits = logits if mask is None else logits.masked_fill(mask, float("-inf"))
        mixed = drop(functional.softmax(logits, dim=-1)) @ v
        return drop(layer[f"{kind}_o"](mixed.transpose(1, 2).flatten(2)))

    def loss(images: Any) -> Any:
        log_p = functional.log_softmax(parts["encoder"](images), dim=1)
        soft = functional.softmax((log_p + gumbel(log_p)) / c.tau_start, dim=1)
        error = images - parts["decoder"](soft)
        codes = (log_p + gumbel(log_p)).argmax(1).flatten(1)
        rows = torch.cat([torch.zeros_like(codes[:, :1]), codes + 1], 1)
        embedded = drop(parts["dictionary"](rows) + parts["place"].weight)
        context = parts["slot_proj"](attend(parts["input_mlp"](embedded[:, 1:]), c.num_slots))
        x = embedded[:, :-1]
        for i, layer in enumerate(parts["layers"]):
            normal = layer["norm_0"](x)
            x = (x if i else normal) + attention(layer, "self", normal, normal, hidden)
            x = x + attention(layer, "cross", layer["norm_1"](x), context, None)
            x = x + drop(layer["ffn"](layer["norm_2"](x)))
        logits = parts["out"](parts["norm"](x))
        entropy = functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum")
        return (entropy + error.square().sum()) / len(images)

    return parts, loss
