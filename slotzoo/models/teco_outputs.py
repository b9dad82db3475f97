"""What TECO takes and gives: random choices, states, predictions, and what its loss is made of."""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from slotzoo.nn.codebook import CodebookOutput
from slotzoo.nn.resnet import ResamplingKernels


class TECODraws(NamedTuple):
    """The random choices of one training example.

    `drop_actions`: all actions are unknown. `frames`: the predictions in the loss (0 is that of frame 1).
    `hidden`: for each of these, which latent codes the prior must guess.
    """

    drop_actions: Bool[Array, ""]
    frames: Int[Array, " kept"]
    hidden: Bool[Array, "kept latent_height latent_width"]


class TECOState(NamedTuple):
    """What has been seen: the state of the temporal core, the embeddings of the last frame, whether there was one."""

    temporal: Any
    previous: Float[Array, "height width dim"]
    started: Bool[Array, ""]


class TECOOutput(NamedTuple):
    """Predictions of all frames after the first: logits of the codes, with the prior's likeliest latents.

    `weights` sum to one: the share of each prediction in what the clip's task asks for. `features` are those of
    the temporal core, `state` is the one after the last step.
    """

    prediction: Float[Array, "steps height width codes"]
    frames: Int[Array, " steps"]
    weights: Float[Array, " steps"]
    features: Float[Array, "steps latent_height latent_width feature"]
    state: TECOState


class TECOStep(NamedTuple):
    """Logits of the codes of the next frame, and the next state."""

    prediction: Float[Array, "height width codes"]
    state: TECOState


class TECOTraining(NamedTuple):
    """What the loss is made of, for the predictions that were drawn.

    `reconstruction`: logits of the codes of `frames` from the true latents. `prior`: logits of the latent codes
    `codes`, of which `scored` ones count. `latents`: what the core saw. `quantised`: of all frames.
    """

    reconstruction: Float[Array, "kept height width codes"]
    frames: Int[Array, " kept"]
    prior: Float[Array, "kept latent_height latent_width latent_codes"]
    codes: Int[Array, "kept latent_height latent_width"]
    scored: Bool[Array, "kept latent_height latent_width"]
    latents: Float[Array, "steps latent_height latent_width embedding"]
    quantised: CodebookOutput


class Prepared(NamedTuple):
    """What `step` computes from the parameters alone; a loop over steps has it made once, before it."""

    encoder: ResamplingKernels
    temporal: Any
    decoder: ResamplingKernels
