"""The MaskGIT prior alone: logits, loss, gradients, and the schedules of how much is hidden."""

import equinox as eqx
import jax
import jax.numpy as jnp

from slotzoo.losses import token_cross_entropy
from slotzoo.models.maskgit import MaskGIT, hidden_share
from slotzoo.weights.convert.convssm_transformer import maskgit
from slotzoo.weights.convert.rules import from_seed, to_seed
from tests.parity.convssm.convs5 import NO_GRADIENT
from tests.parity.harness import Case, checks


@checks("maskgit*.npz")
def check_prior(case: Case) -> None:
    config = case.config
    layout = config["tfm_kwargs"]
    inputs = {name: jnp.asarray(value) for name, value in case.inputs.items()}
    model = MaskGIT(
        config["vocab_size"],
        inputs["cond"].shape[-1],
        tuple(config["shape"]),
        vocab_dim=config["vocab_dim"],
        dim=layout["embed_dim"],
        mlp_dim=layout["mlp_dim"],
        heads=layout["num_heads"],
        layers=layout["num_layers"],
        schedule=config["mask_schedule"],
        key=jax.random.key(0),
    )
    rules = maskgit(layout["num_heads"])
    model = from_seed(case.params, model, rules)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model):
        logits = jax.vmap(model)(inputs["x"], inputs["cond"], inputs["mask"])
        return token_cross_entropy(logits, inputs["x"]).mean(), logits

    (value, logits), grads = loss(model)
    case.compare(logits, "logits", rtol=1e-5)
    case.compare(value, "loss", rtol=1e-5)
    case.compare_grads(to_seed(grads, case.grads, rules), rtol=1e-4, zero=NO_GRADIENT)

    places = config["shape"][0] * config["shape"][1]
    recorded = [name for name in case.outputs if name.startswith("schedule_")]
    assert recorded
    for name in recorded:
        share = hidden_share(inputs["ratios"], name.removeprefix("schedule_"), places)
        case.compare(share, name, rtol=1e-5)
