from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from slotzoo.nn.broadcast_decoder import SpatialBroadcastDecoder, rectified
from tests.tolerance import assert_close, tolerance


def decoder(**options) -> SpatialBroadcastDecoder:
    options = dict[str, Any](grid=(7, 6), size=(7, 6), widths=(5, 3), strides=(1, 1)) | options
    made = SpatialBroadcastDecoder(4, 2, key=jax.random.key(0), **options)
    # A bias that would show if it were added twice.
    return eqx.tree_at(lambda d: d.layers[0].bias, made, jnp.linspace(-1, 1, 5))


def painted(model: SpatialBroadcastDecoder, slots):
    """Every layer over the whole grid."""
    x = model.position(jnp.broadcast_to(slots[:, None, None, :], (len(slots), *model.grid, model.slot_dim)))
    for layer in model.layers:
        x = rectified(layer(x), model.activation)
    return model.last(x[:, : model.size[0], : model.size[1]])[..., :-1]


@pytest.mark.parametrize("options", [{"padding": "SAME"}, {"kernel": 3, "remat": True}])
def test_a_first_layer_of_constant_maps_is_the_layer_over_the_whole_grid(options):
    model, slots = decoder(**options), jax.random.normal(jax.random.key(1), (3, 4))

    def gradients(form):
        loss = lambda args: jnp.square(form(*args)).sum()
        return jax.tree.leaves(eqx.filter_jit(eqx.filter_value_and_grad(loss))((model, slots)))

    found = gradients(lambda model, slots: model(slots).pictures)
    for a, b in zip(found, gradients(painted), strict=True):
        assert_close(a, b, rtol=tolerance(jnp.float32, 400))


def products(model: SpatialBroadcastDecoder) -> int:
    slots = jax.ShapeDtypeStruct((30, 4), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda slots: model(slots).pictures)(slots)
    shapes = [e.invars[0].aval.shape for e in jaxpr.eqns if e.primitive.name == "convolution"]
    return sum(shape[0] * shape[1] * shape[2] for shape in shapes)


def test_the_whole_grid_is_convolved_only_once_for_all_slots():
    pixels = 7 * 6
    assert products(decoder()) == pixels + 30 * 25 + 2 * 30 * pixels
    # As it was: a grid no larger than the kernel, a stride, a kernel without a middle.
    assert products(decoder(kernel=7)) == 3 * 30 * pixels
    assert products(decoder(strides=(2, 1), size=(14, 12))) == 30 * (1 + 4 + 4) * pixels
    assert products(decoder(kernel=4, padding="SAME")) == 3 * 30 * pixels
