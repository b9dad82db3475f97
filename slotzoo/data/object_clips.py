"""Clips of objects that move, as trackers are trained on them: MOVi's records, cut, resized and coloured.

A record of `movi_a` to `movi_e` (published or double), and with a leading axis a batch, has

| field | dtype, shape | values |
|---|---|---|
| `video` | uint8 (time, size, size, 3) | RGB, 0 to 255 |
| `mask` | uint8 (time, size, size) | 0 background, k + 1 the object of row k of `boxes` |
| `boxes` | float32 (time, max_objects, 4) | ymin, xmin, ymax, xmax over height and width, 0 to 1; zeros where unseen |
| `visible` | uint8 (max_objects,) | 1 if a pixel of any frame of the record has the label k + 1 |
| `flow` (`flow=true`) | uint8 (time, size, size, 3) | backward flow on the colour wheel, white at rest |
| `depth` (`depth=true`) | float32 (time, size, size, 1) | `depth_scale` of the distance to the camera, at least 0 |

There is no row for the background in `boxes`, and no `centers`: a model makes them of the boxes, the middle
((ymin + ymax) / 2, (xmin + xmax) / 2). Objects are sorted by how much of the clip shows them, so those beyond
`max_objects` are the least visible; their pixels count as background. The targets of SAVi are `flow / 255`, `depth`
and `video / 255`, all 0 to 1 but `depth`, which is log(1 + metres) with `depth_scale=log_plus`.
Sources: Greff et al., "Kubric" (CVPR 2022); Kipf et al., "Conditional Object-Centric Learning from Video" (ICLR
2022) and Elsayed et al., "SAVi++" (NeurIPS 2022), whose preprocessing this is.
"""

from slotzoo.data.spec import FieldSpec


MOST_OBJECTS = 23


def clip_spec(
    size: int | None = 64, objects: int = 10, *, flow: bool = True, depth: bool = False
) -> dict[str, FieldSpec]:
    """Fields of a record with boxes for `objects` objects."""
    fields = {
        "video": FieldSpec((None, size, size, 3), "uint8", 0, 255, "RGB frames, 0 to 255"),
        "mask": FieldSpec(
            (None, size, size), "uint8", 0, objects, "label of every pixel, 0 is background, k + 1 box k"
        ),
        "boxes": FieldSpec(
            (None, objects, 4), "float32", 0, 1, "ymin, xmin, ymax, xmax of every object, zeros where unseen"
        ),
        "visible": FieldSpec(
            (objects,), "uint8", 0, 1, "whether the object with label k + 1 is seen in the clip", time=False
        ),
    }
    if flow:
        fields["flow"] = FieldSpec(
            (None, size, size, 3), "uint8", 0, 255, "backward optical flow as colours, white at rest"
        )
    if depth:
        fields["depth"] = FieldSpec(
            (None, size, size, 1), "float32", 0, None, "distance to the camera, transformed"
        )
    return fields
