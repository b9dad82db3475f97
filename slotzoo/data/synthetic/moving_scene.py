"""A scene of moving solids rendered frame by frame, and everything that MOVi says about such a clip."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from slotzoo.data.movi_layout import (
    CATEGORIES,
    COLORS,
    FPS,
    KUBASIC,
    MATERIALS,
    SHAPES,
    Layout,
    quantized,
    ragged_boxes,
)
from slotzoo.data.synthetic.clevr import COLORS as CLEVR_COLORS, MATERIALS as CLEVR_MATERIALS, Surface, shade
from slotzoo.data.synthetic.motion import RESTITUTION, Motion
from slotzoo.data.synthetic.raytrace import (
    CUBE,
    Camera,
    Hits,
    Planes,
    Solids,
    average,
    centre_height,
    majority,
    trace,
)


FOCAL, SENSOR = 35.0, 32.0
_NAMES = ("cube", "sphere", "cylinder")  # in the ray tracer's order
_HALF_EDGE = 0.70710678


class Scene(NamedTuple):
    """What a clip shows. `motion` and `cameras` have a frame more before the first and after the last."""

    shape: np.ndarray  # (n,) of the ray tracer
    radius: np.ndarray
    size: np.ndarray  # (n,) 0 small, 1 large
    color: np.ndarray  # (n,) of CLEVR's colours
    mass: np.ndarray
    friction: np.ndarray
    dynamic: np.ndarray
    surface: Surface
    motion: Motion
    cameras: list[Camera]

    def solids(self, frame: int) -> Solids:
        """The objects at a frame of the clip; -1 is the one before it."""
        place, turn = self.motion.position[frame + 1], self.motion.turn[frame + 1]
        # Rounded, so that the last bit of a platform's libm cannot change a picture.
        cos, sin = np.round(np.cos(turn), 6), np.round(np.sin(turn), 6)
        height = centre_height(self.shape, self.radius)
        return Solids(self.shape, place[:, 0], place[:, 1], height, self.radius, cos, sin)

    def camera(self, frame: int) -> Camera:
        return self.cameras[frame + 1]


class Rendered(NamedTuple):
    """Frames (time, height, width, ...): what is seen, whose it is, how far, and where it comes from and goes."""

    video: UInt8[np.ndarray, "time height width 3"]
    label: UInt8[np.ndarray, "time height width"]
    distance: Float32[np.ndarray, "time height width"]
    backward: Float32[np.ndarray, "time height width 2"]  # rows, columns to the same point a frame earlier
    forward: Float32[np.ndarray, "time height width 2"]
    normal: Float32[np.ndarray, "time height width 3"] | None
    coordinates: Float32[np.ndarray, "time height width 3"] | None  # in the object's box, 0 to 1


def picture(scene: Scene, frame: int, size: int) -> tuple[UInt8[np.ndarray, "height width 3"], Hits]:
    """What the camera sees at a frame, and which sample hits what."""
    solids = scene.solids(frame)
    hits = trace(solids, scene.camera(frame), size)
    return average(shade(solids, hits, scene.surface)), hits


def render(scene: Scene, frames: int, size: int, *, full: bool) -> Rendered:
    """All frames of a scene; with `full` normals and object coordinates too."""
    shape = (frames, size, size)
    out = Rendered(
        np.empty((*shape, 3), np.uint8),
        np.empty(shape, np.uint8),
        np.empty(shape, np.float32),
        np.empty((*shape, 2), np.float32),
        np.empty((*shape, 2), np.float32),
        np.empty((*shape, 3), np.float32) if full else None,
        np.empty((*shape, 3), np.float32) if full else None,
    )
    reach = np.concatenate([[1.0], scene.radius]).astype(np.float32)
    for t in range(frames):
        solids, camera = scene.solids(t), scene.camera(t)
        out.video[t], hits = picture(scene, t, size)
        label = out.label[t] = majority(hits.label)
        # Of the samples of a pixel the first that shows what the pixel is said to show.
        pick = np.argmax(hits.label == label[None], axis=0)[None]
        out.distance[t] = _picked(hits.distance, pick)
        point = _all_picked(hits.point, pick)
        local = _local(solids, label, point)
        here = _pixels(camera, point, size)
        for flow, other in ((out.backward, t - 1), (out.forward, t + 1)):
            there = _pixels(scene.camera(other), _world(scene.solids(other), label, local), size)
            flow[t] = np.stack([there[0] - here[0], there[1] - here[1]], axis=-1)
        if out.normal is not None and out.coordinates is not None:
            out.normal[t] = np.stack(_all_picked(hits.normal, pick), axis=-1)
            scale = (label > 0) / (2 * reach[label])
            inside = [np.clip(plane * scale + np.float32(0.5), 0, 1) * (label > 0) for plane in local]
            out.coordinates[t] = np.stack(inside, axis=-1)
    return out


def _picked(plane: np.ndarray, pick: np.ndarray) -> np.ndarray:
    return np.take_along_axis(plane, pick, axis=0)[0]


def _all_picked(planes: Planes, pick: np.ndarray) -> Planes:
    x, y, z = (_picked(plane, pick) for plane in planes)
    return x, y, z


def _poses(solids: Solids, label: np.ndarray) -> tuple[np.ndarray, ...]:
    """Centre and turn of what every pixel shows; the floor stays where it is."""
    rest = ((0.0, solids.x), (0.0, solids.y), (0.0, solids.z), (1.0, solids.cos), (0.0, solids.sin))
    return tuple(np.concatenate([[floor], of]).astype(np.float32)[label] for floor, of in rest)


def _local(solids: Solids, label: np.ndarray, point: Planes) -> Planes:
    """Points in the coordinates of the objects they belong to."""
    cx, cy, cz, cos, sin = _poses(solids, label)
    x, y = point[0] - cx, point[1] - cy
    return cos * x + sin * y, cos * y - sin * x, point[2] - cz


def _world(solids: Solids, label: np.ndarray, local: Planes) -> Planes:
    cx, cy, cz, cos, sin = _poses(solids, label)
    return cos * local[0] - sin * local[1] + cx, sin * local[0] + cos * local[1] + cy, local[2] + cz


def _pixels(camera: Camera, point: Planes, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of points of the world, in pixels."""
    p = [point[i] - np.float32(camera.eye[i]) for i in range(3)]
    along = lambda way: sum(p[i] * np.float32(way[i]) for i in range(3))
    depth = np.maximum(along(camera.forward), np.float32(1e-3))
    across, above = along(camera.right) / depth, along(camera.up) / depth
    column = (across - np.float32(camera.left)) * np.float32(size / camera.width)
    row = (np.float32(camera.top) - above) * np.float32(size / camera.height)
    return row, column


def features(scene: Scene, rendered: Rendered, layout: Layout, index: int) -> dict[str, np.ndarray]:
    """MOVi's features of a clip. Objects are those that are seen, the most visible first."""
    frames, height, width = rendered.label.shape
    count = len(scene.shape)
    counts = np.stack([np.bincount(frame.ravel(), minlength=count + 1)[1:] for frame in rendered.label], axis=1)
    total = counts.sum(axis=1)
    order = np.argsort(-total, kind="stable")[: int((total > 0).sum())]
    rank = np.zeros(count + 1, np.uint8)
    rank[order + 1] = np.arange(1, len(order) + 1)
    label = rank[rendered.label]
    depth, depth_range = quantized(rendered.distance)
    forward, forward_range = quantized(rendered.forward)
    backward, backward_range = quantized(rendered.backward)
    out = {
        "video": rendered.video,
        "segmentations": label[..., None],
        "depth": depth[..., None],
        "forward_flow": forward,
        "backward_flow": backward,
        "metadata/video_name": np.asarray(f"{index}"),
        "metadata/width": np.asarray(width, np.int32),
        "metadata/height": np.asarray(height, np.int32),
        "metadata/num_frames": np.asarray(frames, np.int32),
        "metadata/num_instances": np.asarray(len(order), np.uint16),
        "metadata/depth_range": depth_range,
        "metadata/forward_flow_range": forward_range,
        "metadata/backward_flow_range": backward_range,
    }
    if rendered.normal is not None and rendered.coordinates is not None:
        out["normal"] = np.rint((rendered.normal + 1) * 32767.5).astype(np.uint16)
        out["object_coordinates"] = np.rint(rendered.coordinates * 65535).astype(np.uint16)
    out |= ragged_boxes(label, len(order))
    out["instances/visibility"] = counts[order].astype(np.uint16)
    out |= _camera_features(scene, frames) | _states(scene, order, frames) | _kinds(scene, order, layout)
    return out | _collisions(scene, order, frames)


def _camera_features(scene: Scene, frames: int) -> dict[str, np.ndarray]:
    cameras = [scene.camera(t) for t in range(frames)]
    # The camera looks along its -z, its y is up: the columns of the rotation are right, up and backward.
    turns = [_quaternion(np.stack([c.right, c.up, -c.forward], axis=1)) for c in cameras]
    return {
        "camera/focal_length": np.asarray(FOCAL, np.float32),
        "camera/sensor_width": np.asarray(SENSOR, np.float32),
        "camera/field_of_view": np.asarray(2 * np.arctan(SENSOR / (2 * FOCAL)), np.float32),
        "camera/positions": np.stack([c.eye for c in cameras]).astype(np.float32),
        "camera/quaternions": np.stack(turns).astype(np.float32),
    }


def _quaternion(r: np.ndarray) -> np.ndarray:
    """w, x, y, z of a rotation, from the largest of the four, so that nothing is divided by almost zero."""
    squares = np.asarray(
        [
            1 + r[0, 0] + r[1, 1] + r[2, 2],
            1 + r[0, 0] - r[1, 1] - r[2, 2],
            1 - r[0, 0] + r[1, 1] - r[2, 2],
            1 - r[0, 0] - r[1, 1] + r[2, 2],
        ]
    )
    k = int(np.argmax(squares))
    rows = (
        (squares[0], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]),
        (r[2, 1] - r[1, 2], squares[1], r[1, 0] + r[0, 1], r[0, 2] + r[2, 0]),
        (r[0, 2] - r[2, 0], r[1, 0] + r[0, 1], squares[2], r[2, 1] + r[1, 2]),
        (r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[2, 1] + r[1, 2], squares[3]),
    )
    return np.asarray(rows[k]) / (2 * np.sqrt(squares[k]))


def _states(scene: Scene, order: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """Where the objects are and how they move, (objects, time, ...)."""
    motion = scene.motion
    place, speed = motion.position[1:-1][:, order], motion.velocity[1:-1][:, order]
    turn = motion.turn[1:-1][:, order].T
    spin = (motion.turn[2:] - motion.turn[1:-1])[:, order].T * FPS
    height = centre_height(scene.shape, scene.radius)[order]
    shape, radius = scene.shape[order], scene.radius[order]
    level = np.broadcast_to(height[:, None], (len(order), frames))
    position = np.stack([place[..., 0].T, place[..., 1].T, level], axis=-1)
    zero = np.zeros_like(turn)
    half = np.where(shape == CUBE, _HALF_EDGE, 1.0) * radius
    corners = np.asarray([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    local = half[:, None, None] * corners[None]
    cos, sin = np.cos(turn)[..., None], np.sin(turn)[..., None]
    a, b, c = (local[:, None, :, i] for i in range(3))
    box = np.stack([cos * a - sin * b, sin * a + cos * b, np.broadcast_to(c, (*turn.shape, 8))], axis=-1)
    image = np.empty((len(order), frames, 2))
    for t in range(frames):
        x, y, z = position[:, t].astype(np.float32).T
        row, column = _pixels(scene.camera(t), (x, y, z), 1)
        image[:, t] = np.stack([column, row], axis=-1)
    states = {
        "mass": scene.mass[order],
        "friction": scene.friction[order],
        "restitution": np.full(len(order), RESTITUTION),
        "positions": position,
        "quaternions": np.stack([np.cos(turn / 2), zero, zero, np.sin(turn / 2)], axis=-1),
        "velocities": np.stack([speed[..., 0].T, speed[..., 1].T, zero], axis=-1),
        "angular_velocities": np.stack([zero, zero, spin], axis=-1),
        "bboxes_3d": position[:, :, None, :] + box,
        "image_positions": image,
    }
    return {f"instances/{name}": x.astype(np.float32) for name, x in states.items()}


def _kinds(scene: Scene, order: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    """What the objects are, by the features that each of the five sets has."""
    names = [_NAMES[k] for k in scene.shape[order]]
    shape = np.asarray([SHAPES.index(name) for name in names], np.int64)
    scale = (2 * scene.radius[order]).astype(np.float32)
    rgb = scene.surface.rgb[order].astype(np.float32)
    metal = [CLEVR_MATERIALS[int(m)] for m in scene.surface.metal[order]]
    material = np.asarray([MATERIALS.index(name) for name in metal], np.int64)
    if layout.name == "movi_a":
        color = [COLORS.index(CLEVR_COLORS[k]) for k in scene.color[order]]
        return {
            "instances/shape_label": shape,
            "instances/size_label": scene.size[order].astype(np.int64),
            "instances/color": rgb,
            "instances/color_label": np.asarray(color, np.int64),
            "instances/material_label": material,
        }
    if layout.name == "movi_b":
        return {
            "instances/shape_label": np.asarray([KUBASIC.index(name) for name in names], np.int64),
            "instances/color": rgb,
            "instances/material_label": material,
            "background_color": np.asarray(scene.surface.floor, np.float32),
        }
    out = {
        "instances/asset_id": np.asarray(names),
        "instances/category": np.full(len(order), CATEGORIES.index("None"), np.int64),
        "instances/scale": scale,
        # Where it stands differs: with the metadata in E, on its own in C and D.
        "metadata/background" if layout.name == "movi_e" else "background": np.asarray("floor"),
    }
    if layout.moving is not None:
        out["instances/is_dynamic"] = scene.dynamic[order]
    return out


def _collisions(scene: Scene, order: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """Collisions of objects that are seen, while the clip lasts."""
    rank = {int(k): i for i, k in enumerate(order)}
    found = [
        c for c in scene.motion.collisions if c.first in rank and c.second in rank and 1 <= c.frame <= frames
    ]
    count = len(found)
    height = centre_height(scene.shape, scene.radius)
    place = np.zeros((count, 3))
    image = np.zeros((count, 2))
    for i, c in enumerate(found):
        place[i] = *c.position, min(height[c.first], height[c.second])
        x, y, z = place[i].astype(np.float32)[:, None]
        row, column = _pixels(scene.camera(c.frame - 1), (x, y, z), 1)
        image[i] = column[0], row[0]
    out = {
        "instances": np.asarray([(rank[c.first], rank[c.second]) for c in found], np.uint16).reshape(count, 2),
        "frame": np.asarray([c.frame - 1 for c in found], np.int32),
        "force": np.asarray([c.impulse for c in found], np.float32),
        "position": place.astype(np.float32),
        "image_position": image.astype(np.float32),
        "contact_normal": np.asarray([(*c.normal, 0.0) for c in found], np.float32).reshape(count, 3),
    }
    return {f"events/collisions/{name}": x for name, x in out.items()}
