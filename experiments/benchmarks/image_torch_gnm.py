"""GNM in PyTorch's eager mode, for comparison: the formulas of Jiang and Ahn (NeurIPS 2020) in torch's own layers.

Glimpses are pasted by `grid_sample`, all of their channels at once. With `logs`, the published default, the scene is
decoded and rendered once more from what the global latent predicts: the published step does so for what it logs.
"""

import itertools
from typing import Any


TINY = 1e-15


def network(torch: Any, config: Any, *, logs: bool = True) -> tuple[Any, Any]:
    """The parts of the network, and its loss as a function of images (batch, channel, height, width)."""
    nn, functional = torch.nn, torch.nn.functional
    c, cells, dim = config, config.cells, config.features

    def convs(inputs: int, stages: Any, bare: bool = False) -> Any:
        layers = []
        for i, (out, size, stride, scale, groups) in enumerate(stages):
            pad = (size - 1) // 2 if stride else 0
            layers.append(nn.Conv2d(inputs, out * scale**2, size, max(stride, 1), pad))
            if scale > 1:
                layers.append(nn.PixelShuffle(scale))
            if not (bare and i == len(stages) - 1):
                layers += [nn.CELU(), nn.GroupNorm(groups, out)]
            inputs = out
        return nn.Sequential(*layers)

    def mlp(*sizes: int, bare: bool = True) -> Any:
        layers = []
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            layers.append(nn.Linear(a, b))
            if not (bare and i == len(sizes) - 2):
                layers += [nn.CELU(), nn.LayerNorm(b)]
        return nn.Sequential(*layers)

    def lstm(inputs: int, hidden: int) -> Any:
        gates = nn.Conv2d(inputs + hidden, 4 * hidden, c.cell_kernel, padding=(c.cell_kernel - 1) // 2)
        start = nn.ParameterList([torch.zeros(1, hidden, cells, cells) for _ in range(2)])
        return nn.ModuleDict({"gates": gates, "start": start})

    encoder, decoder, glimpse = c.encoder_hidden, c.decoder_hidden, c.in_channels + c.opacity
    width = c.head_filters[-1]
    parts = nn.ModuleDict(
        {
            "encoder": convs(c.in_channels, c.encoder_stages()),
            "posterior": mlp(cells**2 * encoder, *c.posterior_widths, 2 * c.global_dim),
            "prior": mlp(cells**2 * decoder, *c.prior_widths, 2 * c.global_dim),
            "decoder": mlp(c.global_dim, *c.global_decoder_widths, cells**2 * dim, bare=False),
            "encoder_cell": lstm(2 * dim + decoder, encoder),
            "decoder_cell": lstm(2 * dim, decoder),
            "residual": nn.Conv2d(decoder, dim, c.residual_kernel, padding=(c.residual_kernel - 1) // 2),
            "heads": convs(dim, c.head_stages()),
            "latents": nn.ModuleList([nn.Conv2d(width, n, 1) for n in (1, 8, 2, 2 * c.what_dim)]),
            "what": convs(c.what_dim, c.what_stages(), bare=True),
            "background_posterior": mlp(cells**2 * dim, *c.background_widths, 2 * c.background_dim),
            "background_prior": mlp(c.draws * c.global_dim, *c.background_prior_widths, 2 * c.background_dim),
            "background": convs(c.background_dim, c.background_stages(), bare=True),
        }
    )

    def normal(x: Any) -> tuple[Any, Any]:
        mean, raw = x.chunk(2, 1)
        return mean, functional.softplus(raw)

    def sample(distribution: tuple[Any, Any]) -> Any:
        mean, std = distribution
        return mean + std * torch.randn_like(std)

    def divergence(q: tuple[Any, Any], p: tuple[Any, Any]) -> Any:
        ratio = (q[1] / p[1]) ** 2
        return 0.5 * (ratio + ((q[0] - p[0]) / p[1]) ** 2 - 1 - ratio.log())

    def bernoulli(q: Any, p: Any) -> Any:
        of = functional.logsigmoid
        return q.sigmoid() * (of(q) - of(p)) + (-q).sigmoid() * (of(-q) - of(-p))

    def step(cell: Any, x: Any, state: Any) -> Any:
        i, f, o, g = cell["gates"](torch.cat([x, state[0]], 1)).chunk(4, 1)
        memory = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * memory.tanh(), memory

    def draw(x: Any) -> tuple[Any, Any, Any]:
        begin = lambda name: [start.expand(len(x), -1, -1, -1) for start in parts[name]["start"]]
        inner, outer = begin("encoder_cell"), begin("decoder_cell")
        canvas, found, cost = torch.zeros_like(x), [], torch.zeros(())
        for _ in range(c.draws):
            prior = normal(parts["prior"](outer[0].flatten(1)))
            inner = step(parts["encoder_cell"], torch.cat([x, x - canvas, outer[0]], 1), inner)
            posterior = normal(parts["posterior"](inner[0].flatten(1)))
            found.append(sample(posterior))
            made = parts["decoder"](found[-1]).view_as(x)
            outer = step(parts["decoder_cell"], torch.cat([made, canvas], 1), outer)
            canvas = canvas + parts["residual"](outer[0])
            cost = cost + divergence(posterior, prior).sum()
        return torch.cat(found, 1), canvas, cost

    def distributions(x: Any) -> tuple[Any, ...]:
        presence, *others = (layer(parts["heads"](x)) for layer in parts["latents"])
        return c.presence_scale * presence.tanh(), *(normal(x) for x in others)

    index = torch.arange(cells, dtype=torch.float32)
    rows, columns = torch.meshgrid(index, index, indexing="ij")
    place = torch.stack([columns, rows])
    fixed = (
        torch.tensor([c.scale_mean, c.ratio_mean, 0, 0]),
        torch.tensor([c.scale_std, c.ratio_std, c.shift_std, c.shift_std]),
    )
    fixed = tuple(x.view(1, 4, 1, 1) for x in fixed)
    unit = torch.zeros(()), torch.ones(())

    def paste(glimpses: Any, scale: Any, shift: Any) -> Any:
        theta = torch.cat([torch.diag_embed(1 / scale), (-shift / scale)[..., None]], -1)
        size = (len(theta), glimpses.shape[1], c.resolution, c.resolution)
        grid = functional.affine_grid(theta, size, align_corners=False)
        return functional.grid_sample(glimpses, grid, align_corners=False)

    each = lambda x: x.permute(0, 2, 3, 1).flatten(0, 2)

    def render(distribution: tuple[Any, ...], backdrop: Any) -> tuple[Any, Any]:
        """The picture, and the presence of objects."""
        logits, *others = distribution
        uniform = torch.rand_like(logits).clamp(1e-7, 1 - 1e-7)
        presence = (uniform.logit() + logits) / c.temperature[0]
        presence = presence.sigmoid().clamp(TINY, 1 - 1e-7)
        where, depth, what = (sample(x) for x in others)
        scale, ratio = where[:, :1].sigmoid(), (0.5 * where[:, 1:2]).exp()
        scale = torch.cat([scale / ratio, scale * ratio], 1)
        shift = 2 / cells * (place + 0.5 + where[:, 2:].tanh()) - 1
        decoded = parts["what"](each(what)[..., None, None]).sigmoid()
        colour, alpha = decoded.split([c.in_channels, glimpse - c.in_channels], 1)
        stacked = paste(torch.cat([colour * alpha, alpha], 1), each(scale), each(shift))
        stacked = (stacked * each(presence)[..., None, None]).unflatten(0, (-1, cells**2))
        opacity = stacked[:, :, -1:]
        near = opacity * (-depth).sigmoid().flatten(1)[..., None, None, None]
        foreground = (stacked[:, :, :-1] * near / (near.sum(1, keepdim=True) + TINY)).sum(1)
        background = parts["background"](sample(backdrop)[..., None, None]).sigmoid()
        total = opacity.sum(1)
        total = total + (total.clamp(TINY, 1) - total).detach()
        return foreground + (1 - total) * background, presence

    def loss(images: Any) -> Any:
        x = parts["encoder"](images)
        scene, canvas, cost = draw(x)
        q_back = normal(parts["background_posterior"](x.flatten(1)))
        p_back = normal(parts["background_prior"](scene))
        q, p = distributions(x), distributions(canvas)
        made, presence = render(q, q_back)
        if logs:
            render(p, p_back)
        likelihood = -0.5 * ((images - made) / c.sigma) ** 2
        present = presence.clamp(min=1e-5)
        cost = cost + bernoulli(q[0], p[0]).sum()
        cost = cost + bernoulli(q[0], torch.full_like(q[0], c.presence_prior[0]).logit()).sum()
        cost = cost + sum(divergence(a, b).sum() for a, b in zip(q[1:], p[1:], strict=True))
        priors = zip(q[1:], (fixed, unit, unit), strict=True)
        cost = cost + sum((divergence(a, b) * present).sum() for a, b in priors)
        cost = cost + divergence(q_back, p_back).sum() + divergence(q_back, unit).sum()
        return (cost - likelihood.sum()) / len(images)

    return parts, loss
