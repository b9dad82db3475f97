"""Layers over drawn sizes, 1 included: output shapes, parallel == step, equivariance to the batch."""

import equinox as eqx
import jax
import jax.numpy as jnp
from hypothesis import example, given, settings, strategies as st

from slotzoo.models import ConvS5Pixels, ConvS5PixelsConfig
from slotzoo.nn.conv import Conv
from slotzoo.nn.conv_ssm import ConvSSM
from slotzoo.nn.conv_ssm_stack import ConvSSMLayer, ConvSSMStack
from slotzoo.nn.norm import GroupNorm
from tests.tolerance import assert_close


SIZES = st.integers(1, 5)
KEY = jax.random.key(0)


@given(
    time=SIZES,
    height=SIZES,
    width=SIZES,
    channels=st.sampled_from([2, 4, 6]),
    states=st.integers(1, 4),
    head=st.sampled_from(["resnet", "standard", "half_glu", "none"]),
    kernels=st.tuples(*[st.sampled_from([1, 3, 5])] * 3),
)
@example(time=1, height=1, width=1, channels=2, states=1, head="resnet", kernels=(3, 3, 3))
def test_conv_ssm_shapes(time, height, width, channels, states, head, kernels):
    layer = ConvSSM(
        channels,
        2 * states,
        kernel_b=kernels[0],
        kernel_c=kernels[1],
        kernel_d=kernels[2],
        head=head,
        groups=2,
        squeeze_excite=True,
        key=KEY,
    )
    y, state = eqx.filter_eval_shape(layer, jnp.zeros((time, height, width, channels)))
    assert y.shape == (time, height, width, channels)
    assert state.shape == (height, width, 2 * states)


@settings(max_examples=4)
@given(time=SIZES, side=SIZES, layers=st.integers(1, 3), scan=st.booleans(), prenorm=st.booleans())
@example(time=1, side=1, layers=1, scan=True, prenorm=False)
def test_stack_in_parallel_equals_steps(time, side, layers, scan, prenorm):
    keys = jax.random.split(KEY, layers)
    stack = ConvSSMStack(
        tuple(ConvSSMLayer(ConvSSM(4, 4, groups=2, key=key), prenorm=prenorm) for key in keys), scan_layers=scan
    )
    u = jax.random.normal(KEY, (time, side, side, 4))
    x0 = jax.random.normal(KEY, (layers, side, side, 4))
    out = eqx.filter_jit(stack)(u, x0)

    @eqx.filter_jit
    def steps(stack):
        def body(state, u):
            out = stack.step(u, state)
            return out.state, out.output

        return jax.lax.scan(body, x0, u)

    state, ys = steps(stack)
    assert_close(ys, out.output, rtol=2e-5, what="outputs")
    assert_close(state, out.state, rtol=2e-5, what="states")


@settings(max_examples=4)
@given(batch=st.permutations(range(3)), side=SIZES)
def test_batch_permutation(batch, side):
    layer = ConvSSM(4, 2, groups=2, key=KEY)
    u = jax.random.normal(KEY, (3, 2, side, side, 4))
    run = eqx.filter_jit(lambda u: jax.vmap(layer)(u)[0])
    order = jnp.asarray(batch)
    assert_close(run(u[order]), run(u)[order], rtol=1e-6)


@given(channels=SIZES, out=SIZES, kernel=st.sampled_from([1, 2, 3, 4]), stride=SIZES, height=SIZES, width=SIZES)
def test_conv_shapes(channels, out, kernel, stride, height, width):
    conv = Conv(channels, out, kernel, stride=stride, key=KEY)
    y = eqx.filter_eval_shape(conv, jnp.zeros((2, height, width, channels)))
    assert y.shape == (2, -(-height // stride), -(-width // stride), out)


@given(groups=st.integers(1, 4), size=st.integers(1, 3), height=SIZES, width=SIZES)
def test_group_norm_shapes(groups, size, height, width):
    norm = GroupNorm(groups, groups * size)
    x = jnp.zeros((2, height, width, groups * size))
    assert eqx.filter_eval_shape(norm, x).shape == x.shape


@given(
    time=st.integers(2, 4),
    channels=SIZES,
    levels=st.integers(1, 3),
    cells=st.integers(1, 2),
    actions=st.booleans(),
)
def test_model_shapes(time, channels, levels, cells, actions):
    side = cells * 2 ** (levels - 1)
    config = ConvS5PixelsConfig(
        height=side,
        width=2 * side,
        channels=channels,
        encoder_depths=(4,) * levels,
        decoder_depths=(4,) * levels,
        norm_groups=2,
        layers=2,
        d_model=4,
        ssm_size=4,
        ssm_groups=2,
        use_actions=actions,
        num_actions=3,
    )
    model = eqx.filter_eval_shape(lambda key: ConvS5Pixels(config, key=key), KEY)
    video = jax.ShapeDtypeStruct((time, side, 2 * side, channels), jnp.float32)
    given_actions = jax.ShapeDtypeStruct((time,), jnp.int32)
    out = eqx.filter_eval_shape(lambda m, v, a: m(v, a), model, video, given_actions)
    assert out.prediction.shape == (time - 1, side, 2 * side, channels)
    assert out.state.shape == (2, cells, 2 * cells, 4)
    rolled = eqx.filter_eval_shape(lambda m, v: m.generate(v, None, time + 2), model, video)
    assert rolled.shape == (time + 2, side, 2 * side, channels)
