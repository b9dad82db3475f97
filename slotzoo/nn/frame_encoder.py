"""The encoder of SAVi: of every frame tokens, one for each place of its feature map."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.conv_stack import ConvStack
from slotzoo.nn.image_resnet import ImageResNet
from slotzoo.nn.linear import Linear
from slotzoo.nn.position import PositionTable
from slotzoo.nn.slot_transformer import SlotTransformer


class FrameEncoder(eqx.Module):
    """`transformer(relu(W flatten(positions(backbone(frame)))))`; the projection and the transformer are SAVi++'s."""

    backbone: ConvStack | ImageResNet
    position: PositionTable
    project: Linear | None
    transformer: SlotTransformer | None
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)

    def __init__(
        self,
        backbone: ConvStack | ImageResNet,
        *,
        grid: tuple[int, int],
        position_width: int,
        transformer: SlotTransformer | None = None,
        key: PRNGKeyArray,
    ):
        """`grid`: of the backbone's maps; `position_width`: hidden size of the perceptron after the positions."""
        position_key, project_key = jax.random.split(key)
        channels = backbone.out_channels
        self.backbone, self.transformer = backbone, transformer
        self.position = PositionTable(channels, grid, transform_width=position_width, key=position_key)
        self.project = None if transformer is None else Linear(channels, transformer.dim, key=project_key)
        self.in_channels = backbone.in_channels
        self.out_channels = channels if transformer is None else transformer.dim

    def __call__(
        self, frames: Float[Array, "time height width {self.in_channels}"]
    ) -> Float[Array, "time token {self.out_channels}"]:
        """All frames at once, in the dtype of the parameters."""
        x = self.backbone(frames.astype(self.backbone_dtype))
        x = self.position(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        if self.project is None or self.transformer is None:
            return x
        return jax.vmap(self.transformer)(jax.nn.relu(self.project(x)))

    @property
    def backbone_dtype(self):
        """In which pixels are looked at."""
        first = self.backbone.conv if isinstance(self.backbone, ImageResNet) else self.backbone.layers[0]
        return first.weight.dtype
