"""The published configurations of GNM."""

from slotzoo.models.gnm import GNM
from slotzoo.models.gnm_config import GNMConfig
from slotzoo.models.registry import FROM_MEMORY, ModelCard, register


_PAPER = "Jiang, Ahn: Generative Neurosymbolic Machines, NeurIPS 2020"
_PORT = "https://github.com/HHousen/object-discovery-pytorch"
_AUTHORS = "https://github.com/JindongJiang/GNM"

# Narrower networks for images of 64 pixels.
TINY = dict(
    resolution=64,
    draws=2,
    global_dim=16,
    what_dim=32,
    background_dim=8,
    features=64,
    encoder_filters=(16, 32, 32, 64, 64),
    encoder_kernels=(4, 4, 3, 4, 4),
    encoder_strides=(2, 2, 1, 2, 2),
    encoder_groups=(1, 1, 1, 1, 1),
    what_filters=(64, 32, 16),
    what_kernels=(1, 3, 3, 3),
    what_upscales=(4, 2, 2, 1),
    what_groups=(1, 1, 1),
    background_filters=(64, 32, 16),
    background_kernels=(1, 1, 1, 3),
    background_upscales=(4, 4, 4, 1),
    background_groups=(1, 1, 1),
    head_filters=(64,),
    head_kernels=(1,),
    head_groups=(1,),
    encoder_hidden=64,
    decoder_hidden=64,
    posterior_widths=(128,),
    prior_widths=(128,),
    global_decoder_widths=(128,),
    background_widths=(128,),
    background_prior_widths=(64,),
)


def _card(
    name: str,
    title: str,
    section: str,
    parameters: int,
    description: str,
    metrics: dict[str, float],
    source: str,
) -> ModelCard:
    return ModelCard(
        name=name,
        title=title,
        paper=_PAPER,
        section=section,
        licence="Apache-2.0 (object-discovery-pytorch)"
        if source == _PORT
        else "GPL-3.0 (weights of the authors)",
        parameters=parameters,
        source=source,
        metrics=metrics,
        description=description + (FROM_MEMORY if metrics else ""),
    )


_CLEVRTEX = "as evaluated by Karazija et al., ClevrTex, NeurIPS Datasets and Benchmarks 2021"

register(
    "gnm_clevr6",
    GNMConfig(sigma=0.4),
    GNM,
    _card(
        "gnm_clevr6",
        "GNM on CLEVR with at most 6 objects",
        f"3; {_CLEVRTEX}",
        8_636_446,
        "4 x 4 cells, a background, 128 pixels. FG-ARI is that of the ClevrTex paper on CLEVR.",
        {"fg_ari": 0.651},
        _PORT,
    ),
    tiny=TINY,
)

register(
    "gnm_clevrtex6",
    GNMConfig(sigma=0.7),
    GNM,
    _card(
        "gnm_clevrtex6",
        "GNM on ClevrTex with at most 6 objects",
        f"3; {_CLEVRTEX}",
        8_636_446,
        "As gnm_clevr6, with more room for what is not modelled of a pixel.",
        {"fg_ari": 0.534},
        _PORT,
    ),
    tiny=TINY,
)

register(
    "gnm_mnist4",
    GNMConfig(in_channels=1, overlap=False, background=False, curriculum_steps=()),
    GNM,
    _card(
        "gnm_mnist4",
        "GNM on images of four MNIST digits",
        "4, MNIST-4; sizes of gnm_clevr6",
        7_329_311,
        "Grey, black background, strokes that add up. The layers are those of gnm_clevr6 without background; the "
        "authors' model of these images is narrower. Scene structure accuracy in the paper is above 0.96.",
        {},
        _AUTHORS,
    ),
    tiny=TINY,
)
