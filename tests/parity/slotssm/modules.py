"""Mixers, attentions, blocks and the stack: outputs, gradients, states, single steps."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.models.slotssm_blocks import SlotBlock, SlotStack, make_mixer
from slotzoo.models.slotssm_config import SlotSSMConfig
from slotzoo.nn.attention import MultiHeadAttention
from slotzoo.nn.inverted_attention import Attended, InvertedAttention, attention_map
from slotzoo.nn.mamba import GatedRMSNorm, Mamba, Mamba2, MambaState
from slotzoo.weights.convert.rules import SAME, Rule, from_seed, to_seed, under
from slotzoo.weights.convert.slotssm_rules import (
    ATTENTION,
    BLOCK,
    CROSS_ATTENTION,
    MAMBA,
    SELF_ATTENTION,
    STACK,
    packed,
    pieces,
    unpacked,
)
from tests.parity.harness import Case, checks
from tests.parity.slotssm.scans import weighted
from tests.tolerance import assert_close


SINGLE, WHOLE = 1e-5, 1e-4


def filled(build: Callable[[], Any], params: Mapping[str, np.ndarray], rules: tuple[Rule, ...]) -> Any:
    """What `build()` makes, with the seed's parameters, every one used once."""
    return from_seed(unpacked(params), eqx.filter_eval_shape(build), rules, what="recorded case")


def in_seed(grads: Any, names, rules: tuple[Rule, ...]) -> dict[str, np.ndarray]:
    """Gradients under the seed's own names."""
    parts = to_seed(grads, [piece for name in names for piece in pieces(name)], rules)
    return packed(parts, names)


def check_all(
    case: Case,
    model: Any,
    rules: tuple[Rule, ...],
    run: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
    *,
    rtol: float = SINGLE,
    zero: tuple[str, ...] = (),
) -> dict[str, jax.Array]:
    """Every recorded output of `run(model, inputs)`, the loss, and the gradients of parameters and inputs."""
    inputs = {name: jnp.asarray(array) for name, array in case.inputs.items()}
    floats = {name: array for name, array in inputs.items() if array.dtype == jnp.float32}

    def loss(arguments):
        model, floats = arguments
        outs = run(model, inputs | floats)
        return sum(weighted(outs[name]) for name in case.meta["loss_over"]), outs

    (value, outs), (grads, grad_inputs) = jax.jit(jax.value_and_grad(loss, has_aux=True))((model, floats))
    for name, out in outs.items():
        case.compare(out, name, rtol=rtol)
    # The recorded loss is a sum of either sign, which may cancel: what counts is the size of its terms.
    size = max(float(np.sqrt(np.square(case.outputs[name]).mean())) for name in case.meta["loss_over"])
    assert abs(float(value) - float(case.outputs["loss"])) <= rtol * size, f"{case.path.name}: loss"
    found = in_seed(grads, [name for name in case.grads if not name.startswith("input:")], rules)
    found |= {f"input:{name}": grad for name, grad in grad_inputs.items() if f"input:{name}" in case.grads}
    # Those of biases sum over all pixels of all slots, twice as many terms with rounding as any output has.
    case.compare_grads(found, rtol=2 * rtol, zero=zero)
    return outs


def unseen(*, inverted: bool, heads: int) -> tuple[str, ...]:
    """Biases whose gradient is zero: a softmax over tokens does not see what is added to every key, one over the
    queries of a single head not what is added to every query.
    """
    if not inverted:
        return ("*proj_k.bias",)
    return ("*proj_q.bias", "*cross_attn_input_norm.bias") if heads == 1 else ()


@checks("rmsnorm_*.npz")
def check_norm(case: Case):
    c = case.config
    groups = 1 if c["group_size"] is None else c["dim"] // c["group_size"]
    build = lambda: GatedRMSNorm(c["dim"], groups=groups, eps=c["eps"], norm_first=c["norm_before_gate"])
    rules = (Rule("weight", "scale", SAME),)
    norm = filled(build, case.params, rules)
    check_all(case, norm, rules, lambda norm, i: {"y": norm(i["x"], i["z"])})


@checks("mha_*.npz")
def check_attention(case: Case):
    c = case.config
    inverted, heads = c.get("inverted", False), c["num_heads"]
    options = dict(
        heads=heads,
        head_dim=c.get("d_model_hidden", c["d_model"]) // heads,
        use_bias=c.get("bias", True),
        key=jax.random.key(0),
    )
    if inverted:
        build = lambda: InvertedAttention(c["d_model"], normalise=c.get("norm_over_input", True), **options)
        rules = under("", "project.", ATTENTION)
    else:
        build = lambda: MultiHeadAttention(c["d_model"], use_out_bias=options["use_bias"], **options)
        rules = ATTENTION

    def run(model, inputs):
        mask = ~inputs["attn_mask"] if "attn_mask" in inputs else None

        def one(q, k, v):
            if inverted:
                return model(q, k, v, mask=mask, bias=inputs.get("attn_bias"))
            keys, _ = model.project(k)
            _, values = model.project(v)
            return Attended(model.attend(q, keys, values, mask=mask), attention_map(model, q, k, mask=mask))

        y, shares = jax.vmap(one)(inputs["q"], inputs["k"], inputs["v"])
        return {"y": y, "attn": shares}

    model = filled(build, case.params, rules)
    check_all(case, model, rules, run, zero=unseen(inverted=inverted, heads=heads))


@checks("flashmha_*.npz")
def check_packed_attention(case: Case):
    c = case.config
    build = lambda: MultiHeadAttention(
        c["embed_dim"], heads=c["num_heads"], use_bias=True, use_out_bias=True, key=jax.random.key(0)
    )
    rules = CROSS_ATTENTION if c.get("cross_attn") else SELF_ATTENTION
    model = filled(build, case.params, rules)
    run = lambda model, i: {"y": jax.vmap(model)(i["x"], i.get("x_kv", i["x"]))}
    check_all(case, model, rules, run)


def mixer(case: Case) -> Mamba | Mamba2:
    """The mixer that the case was recorded of."""
    c = dict(case.config)
    names = {"d_state": "state", "d_conv": "conv_width", "headdim": "head_dim", "ngroups": "groups"}
    names |= {"d_ssm": "ssm_dim", "D_has_hdim": "d_per_channel", "rmsnorm": "norm", "chunk_size": "chunk"}
    options = {names.get(name, name): value for name, value in c.items() if name != "d_model"}
    if "dt_limit" in options:
        options["dt_limit"] = tuple(options["dt_limit"])
    kind = {"Mamba": Mamba, "Mamba2": Mamba2}[case.meta["cls"]]
    return filled(lambda: kind(c["d_model"], **options, key=jax.random.key(0)), case.params, MAMBA)


def recorded(case: Case, when: str, block: str = "") -> tuple[np.ndarray, np.ndarray]:
    """A state of the seed, (convolution, state-space model) as ours: it keeps one input more, which nobody reads."""
    conv, ssm = (case.outputs[f"{when}_{kind}_state{block}"] for kind in ("conv", "ssm"))
    return np.moveaxis(conv, 1, 2)[:, 1:], ssm


def check_state(case: Case, state: MambaState, when: str, block: str = "") -> None:
    for kind, ours, theirs in zip(("conv", "ssm"), state, recorded(case, when, block), strict=True):
        if kind == "ssm" and theirs.ndim == 3:  # Mamba-1, where ours is (slot, state, channel)
            ours = np.swapaxes(ours, -1, -2)
        ours = np.asarray(ours).reshape(theirs.shape)
        assert_close(ours, theirs, rtol=SINGLE, what=f"{case.path.name}: {when} {kind} state")


@checks("mamba1_*.npz", "mamba2_*.npz")
def check_mixer(case: Case):
    """The batch of the case are our slots: sequences of their own."""
    model = mixer(case)
    swap = lambda x: jnp.swapaxes(x, 0, 1)
    check_all(case, model, MAMBA, lambda model, i: {"y": swap(model(swap(i["x"]))[0])})
    # Where the seed's own steps fail, ours have to agree with its whole pass.
    expected = case.outputs.get("y_step", case.outputs["y"])
    x, prefill = swap(jnp.asarray(case.inputs["x"])), case.meta["prefill"] or 0

    @jax.jit
    def stream(model, x):
        state = model.init_state(x.shape[1])
        first, before = model(x[:prefill], state) if prefill else (x[:0], state)
        last, rest = jax.lax.scan(lambda s, x: model.step(x, s)[::-1], before, x[prefill:])
        return jnp.concatenate([first, rest]), before, last

    y, before, last = stream(model, x)
    assert_close(swap(y), expected, rtol=SINGLE, what=f"{case.path.name}: steps")
    if prefill:
        check_state(case, before, "prefill")
    if "final_conv_state" in case.outputs:
        check_state(case, last, "final")


def stack_config(c: Mapping[str, Any]) -> SlotSSMConfig:
    """The configuration of the seed's blocks; what it leaves out has the seed's default."""
    return SlotSSMConfig(
        num_slots=c.get("num_slots", 3),
        dim=c["d_model"],
        token_dim=c["input_d_model"],
        blocks=c.get("num_blocks", 1),
        cross="inverted" if c.get("use_inverted_attention") else "attention",
        cross_heads=c["encoder_attn_num_heads"],
        slot_heads=c["space_attn_num_heads"],
        ffn=c.get("use_ffn", False),
        mixer=c.get("mamba_version", "mamba2"),
        expand=float(c.get("mamba_expand", 2)),
        ssm_state=c["mamba_d_state"],
        ssm_head_dim=c.get("mamba_headdim", 64),
        conv_width=c.get("mamba_d_conv", 4),
    )


@checks("block_*.npz")
def check_block(case: Case):
    config = stack_config(case.config)

    def build():
        key = jax.random.key(0)
        return SlotBlock(
            config.dim,
            config.token_dim,
            mixer=make_mixer(config, config.num_slots, key=key),
            cross=config.cross if case.config.get("use_cross_attn", True) else None,
            cross_heads=config.cross_heads,
            slot_heads=config.slot_heads,
            ffn=config.ffn,
            key=key,
        )

    def run(block, inputs):
        slots, shares, _ = jax.vmap(block)(inputs["input"], inputs.get("ref"))
        outs = {"y": slots}
        if "attn" in case.outputs:
            outs["attn"] = shares.reshape(-1, *shares.shape[2:])
        return outs

    zero = unseen(inverted=config.cross == "inverted", heads=config.cross_heads)
    check_all(case, filled(build, case.params, BLOCK), BLOCK, run, zero=zero)


@checks("slotssm_*.npz")
def check_stack(case: Case):
    config, prefill = stack_config(case.config), case.meta["prefill"]
    model = filled(lambda: SlotStack(config, key=jax.random.key(0)), case.params, STACK)

    def run(model, inputs):
        slots, shares, _ = jax.vmap(model)(inputs["ref"])
        maps = {f"attn_{i}": m.reshape(-1, *m.shape[2:]) for i, m in enumerate(shares)}
        return {"slots": slots} | maps

    zero = unseen(inverted=config.cross == "inverted", heads=config.cross_heads)
    check_all(case, model, STACK, run, zero=zero)

    @jax.jit
    @jax.vmap
    def stream(tokens):
        first = model(tokens[:prefill])

        def one(state, tokens):
            found = model.step(tokens, state)
            return found.state, found.slots

        last, rest = jax.lax.scan(one, first.state, tokens[prefill:])
        return jnp.concatenate([first.slots, rest]), first.state, last

    slots, before, last = stream(jnp.asarray(case.inputs["ref"]))
    case.compare(slots, "slots_step", rtol=SINGLE)
    for i in range(config.blocks):
        check_state(case, before[i], "prefill", f"_{i}")
        check_state(case, last[i], "final", f"_{i}")
