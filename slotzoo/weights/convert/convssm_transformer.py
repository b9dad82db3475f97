"""The Transformer of TECO and ConvSSM as the seed names and lays out its parameters.

The seed keeps heads as an axis of their own, so the rules are made for a number of heads.
"""

from slotzoo.weights.convert.rules import Layout, Rule, same, under


def transformer(heads: int) -> tuple[Rule, ...]:
    """The rules of a `slotzoo.nn.transformer.Transformer` with `heads` heads."""
    # (in, head, dim) <-> (in, head * dim);  (head, dim) <-> (head * dim);  (head, dim, out) <-> (head * dim, out)
    split = Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(*x.shape[:-1], heads, -1))
    joined = Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(heads, -1, x.shape[-1]))
    layer = (
        *same(
            (r"LayerNorm_0/(scale|bias)", "norm_1.{}"),
            (r"LayerNorm_1/(scale|bias)", "norm_2.{}"),
            ("MlpBlock_0/wi/kernel", "wi.weight"),
            ("MlpBlock_0/wi/bias", "wi.bias"),
            ("MlpBlock_0/wo/kernel", "wo.weight"),
            ("MlpBlock_0/wo_bias/bias", "wo.bias"),
            ("MultiHeadAttention_0/out_bias/bias", "attention.out.bias"),
        ),
        Rule("MultiHeadAttention_0/(query|key|value)/kernel", "attention.{}.weight", split),
        Rule("MultiHeadAttention_0/(query|key|value)/bias", "attention.{}.bias", split),
        Rule("MultiHeadAttention_0/out/kernel", "attention.out.weight", joined),
    )
    return (
        *under(r"TransformerLayer_(\d+)/", "layers.{}.", layer),
        *same(
            ("Dense_0/kernel", "project_in.weight"),
            ("Dense_0/bias", "project_in.bias"),
            ("Dense_1/kernel", "project_out.weight"),
            ("Dense_1/bias", "project_out.bias"),
            (r"LayerNorm_0/(scale|bias)", "norm.{}"),
            (r"BroadcastPositionBiases_0/d_(\d+)", "tables.{}"),
        ),
    )


def maskgit(heads: int) -> tuple[Rule, ...]:
    """The rules of a `slotzoo.models.maskgit.MaskGIT` with `heads` heads."""
    return (
        *under("net/", "net.", transformer(heads)),
        *same(
            ("token_embed", "embedding"),
            ("mlm/Dense_0/kernel", "head.weight"),
            ("mlm/Dense_0/bias", "head.bias"),
            (r"mlm/LayerNorm_0/(scale|bias)", "head_norm.{}"),
            ("mlm/AddBias_0/bias", "head_bias"),
        ),
    )
