"""One ConvS5 layer, the stack of layers, the HiPPO initialisation and the latent codebook."""

from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.nn import s5
from slotzoo.nn.conv import conv2d
from slotzoo.nn.conv_ssm import ConvSSM
from slotzoo.nn.conv_ssm_stack import ConvSSMLayer, ConvSSMStack
from slotzoo.nn.hippo import (
    Hippo,
    hippo,
    hippo_matrix,
    input_planes,
    log_steps,
    normal_matrix,
    output_planes,
)
from slotzoo.weights.convert.convssm_convs5 import SSM, STACK
from slotzoo.weights.convert.rules import from_seed, to_seed
from tests.parity.harness import Case, checks
from tests.tolerance import assert_close


HEADS = {"diag_resnet": "none"}


def planes(x: np.ndarray) -> jax.Array:
    """A complex array as the halves [re | im] of its last axis."""
    return jnp.concatenate([jnp.asarray(x.real), jnp.asarray(x.imag)], -1)


def layer(config: dict, kernels: tuple[int, int, int], activation: str) -> ConvSSM:
    return ConvSSM(
        config["U"],
        config["ssm_size"],
        blocks=config["blocks"],
        kernel_b=kernels[0],
        kernel_c=kernels[1],
        kernel_d=kernels[2],
        clip_eigenvalues=config["clip_eigs"],
        head=HEADS.get(config["C_D_config"], config["C_D_config"]),
        activation=activation,
        groups=config["num_groups"],
        squeeze_excite=config["squeeze_excite"],
        key=jax.random.key(0),
    )


def time_first(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, 0, 1)


@checks("ssm_*.npz")
def check_layer(case: Case) -> None:
    config = case.config
    ssm = layer(config, (config["k_B"], config["k_C"], config["k_D"]), config["activation"])
    ssm = from_seed(case.params, ssm, SSM)
    us = time_first(jnp.asarray(case.inputs["us"]))
    x0 = planes(case.inputs["x0"].astype(np.complex64))
    weights_y, weights_x = (jnp.asarray(case.inputs[name]) for name in ("loss_w_y", "loss_w_x"))

    kernels = ssm.discretise()
    assert_close(kernels.decay, planes(case.outputs["A_bar"]), rtol=1e-5, what="A_bar")
    assert_close(kernels.b, planes(case.outputs["B_bar"]), rtol=1e-5, what="B_bar")
    c = case.outputs["C_tilde"]
    assert_close(kernels.c, np.concatenate([2 * c.real, -2 * c.imag], -2), rtol=1e-5, what="C_tilde")

    @eqx.filter_jit
    def forward(ssm, us, x0):
        states = jax.vmap(ssm.states)(us, x0)
        return states, conv2d(states, ssm.discretise().c)

    states, readout = forward(ssm, us, x0)
    case.compare(time_first(readout), "ys_pre_CD", rtol=1e-5)
    middle = states[:, us.shape[1] // 2 - 1] if us.shape[1] > 1 else x0
    assert_close(middle, planes(case.outputs["x_mid"]), rtol=1e-5, what="x_mid")

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(inputs):
        ssm, us = inputs
        ys, last = jax.vmap(ssm)(us, x0)
        pairs = jnp.stack(jnp.split(last, 2, -1), -1)
        return jnp.mean(weights_y * time_first(ys)) + jnp.mean((weights_x * pairs).sum(-1)), (ys, last)

    (value, (ys, last)), (grads, grad_us) = loss((ssm, us))
    case.compare(time_first(ys), "ys", rtol=1e-5)
    assert_close(last, planes(case.outputs["x_last"]), rtol=1e-5, what="x_last")
    case.compare(value, "loss", rtol=1e-5)
    case.compare(time_first(grad_us), "grad_us", rtol=1e-5)
    case.compare_grads(to_seed(grads, case.grads, SSM), rtol=1e-5)

    @eqx.filter_jit
    def sequential(ssm, us, x0):
        def body(state, u):
            y, state = jax.vmap(ssm.step)(u, state)
            return state, y

        return jax.lax.scan(body, x0, time_first(us))

    last, ys = sequential(ssm, us, x0)
    case.compare(ys, "ys_sequential", rtol=1e-5)
    assert_close(last, planes(case.outputs["x_last"]), rtol=1e-5, what="x_last, sequential")


@checks("stack_*.npz")
def check_stack(case: Case) -> None:
    config = case.config
    stack = ConvSSMStack(
        tuple(
            ConvSSMLayer(
                layer(config, config["kernels"], config["layer_activation"]),
                dropout=config["dropout"],
                use_norm=config["use_norm"],
                prenorm=config["prenorm"],
                residual=config["per_layer_skip"],
            )
            for _ in range(config["n_layers"])
        ),
        skip_connections=config["skip_connections"],
        scan_layers=True,
    )
    stack = from_seed(case.params, stack, STACK)
    us = time_first(jnp.asarray(case.inputs["us"]))
    x0 = jnp.stack([planes(case.inputs[f"x0/{i}"]) for i in range(config["n_layers"])], 1)
    weights = jnp.asarray(case.inputs["loss_w_y"])

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(stack):
        out = jax.vmap(stack)(us, x0)
        return jnp.mean(weights * time_first(out.output)), out

    (value, out), grads = loss(stack)
    case.compare(time_first(out.output), "ys", rtol=1e-5)
    case.compare(value, "loss", rtol=1e-5)
    for i in range(config["n_layers"]):
        assert_close(out.state[:, i], planes(case.outputs[f"x_last/{i}"]), rtol=1e-5, what=f"x_last/{i}")
    # Twelve layers deep: the bound of a whole model.
    case.compare_grads(to_seed(grads, case.grads, STACK), rtol=1e-4)


@checks("hippo_init*.npz", unchecked={"in/key": "of the seed's own draws, which are recorded"})
def check_hippo(case: Case) -> None:
    config, out = case.config, case.outputs
    size, blocks = config["ssm_size"], config["blocks"]
    case.compare(hippo_matrix(size // blocks), "hippo_A", rtol=1e-6)
    case.compare(normal_matrix(size // blocks), "normal_A", rtol=1e-6)
    full = np.linalg.eigh(-1j * normal_matrix(size // blocks))[0]
    assert_close(full, out["dplr_Lambda"].imag, rtol=1e-5, what="all eigenvalues")

    basis = hippo(size, blocks)
    assert_close(basis.eigenvalues.real, out["Lambda_re"], rtol=1e-5, what="Lambda_re")
    assert_close(basis.eigenvalues.imag, out["Lambda_im"], rtol=1e-5, what="Lambda_im")
    # The columns of V carry an arbitrary phase each: compare what does not depend on it.
    turn = (basis.vectors.conj() * out["V"]).sum(0)
    assert_close(np.abs(turn), np.ones(size // 2), rtol=1e-5, what="|V^H V|")
    assert_close(basis.vectors * turn, out["V"], rtol=1e-4, what="V")
    assert_close(turn.conj()[:, None] * basis.inverse, out["Vinv"], rtol=1e-4, what="Vinv")

    # B and C from the recorded raw draws, in the recorded basis.
    theirs = basis._replace(vectors=out["V"].astype(complex), inverse=out["Vinv"].astype(complex))
    b = jnp.stack(input_planes(jnp.asarray(out["convs5_B_raw"]), theirs), -1)
    case.compare(b, "convs5_B", rtol=1e-5)
    c = jnp.stack(output_planes(jnp.asarray(out["convs5_C_raw"]), theirs), -1)
    k, channels = config["k_C"], config["U"]
    case.compare(c.reshape(channels, k, k, size // 2, 2).transpose(1, 2, 3, 0, 4), "convs5_C", rtol=1e-5)
    case.compare(jnp.stack(input_planes(jnp.asarray(out["s5_B_raw"]), theirs), -1), "s5_B", rtol=1e-5)
    check_s5_output(case, theirs)

    # One block with all of its eigenvalues, which S5 without conjugate symmetry starts from.
    every = hippo(size // blocks, conjugate=False)
    turn = (every.vectors.conj() * out["dplr_V"]).sum(0)
    assert_close(every.eigenvalues, out["dplr_Lambda"], rtol=1e-5, what="dplr_Lambda")
    assert_close(every.vectors * turn, out["dplr_V"], rtol=1e-4, what="dplr_V")
    b = turn.conj() * (every.inverse @ out["dplr_B_orig"])
    assert_close(b, out["dplr_B"], rtol=1e-4, what="dplr_B")

    # Our own draws have the recorded distributions.
    layer = ConvSSM(
        channels, size, blocks=blocks, kernel_b=config["k_B"], kernel_c=k, groups=1, key=jax.random.key(1)
    )
    b_std, c_std = np.std(out["convs5_B"]), np.std(out["convs5_C"])
    assert abs(float(jnp.std(layer.b)) / b_std - 1) < 0.15
    assert abs(float(jnp.std(layer.c)) / c_std - 1) < 0.15
    steps = log_steps(4096, config["dt_min"], config["dt_max"], key=jax.random.key(2))
    low, high = np.log(config["dt_min"]), np.log(config["dt_max"])
    assert low <= float(steps.min()) and float(steps.max()) <= high
    assert abs(float(steps.mean()) - (low + high) / 2) < 0.1
    assert low <= out["log_step"].min() and out["log_step"].max() <= high


def check_s5_output(case: Case, basis: Hippo) -> None:
    """The output matrix that an S5 layer starts with, from the recorded raw draws instead of its own."""
    raw = jnp.moveaxis(jnp.asarray(case.outputs["s5_C_raw"]), -1, 0)
    _, channels, size = raw.shape
    states = len(basis.eigenvalues)
    make = lambda: s5._output("trunc_standard_normal", channels, size, states, basis, key=jax.random.key(1))
    # A normal truncated at 2 has a standard deviation of 0.8796.
    unit = raw * size**0.5 * 0.87962566103423978
    with mock.patch.object(jax.random, "truncated_normal", lambda *_: unit):
        c = make()
    expected = case.outputs["s5_C"]
    assert_close(c.T, planes(expected[..., 0] + 1j * expected[..., 1]), rtol=1e-5, what="s5_C")
    assert abs(float(jnp.std(make())) / np.std(expected) - 1) < 0.15
