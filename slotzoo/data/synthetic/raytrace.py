"""A ray tracer in numpy for spheres, cubes, cylinders and cones on a floor: colour, label map and what is hit where.

All samples of a picture at once, as planes (sample, height, width) of float32; an object is tested only inside
the rectangle that its bounding sphere covers. Nothing but additions, products, quotients, square roots and
comparisons touches a pixel: those are rounded alike on every processor, so a picture is a picture everywhere.
Lengths are in CLEVR's units, z points up, the floor is z = 0.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8


CUBE, SPHERE, CYLINDER, CONE = range(4)  # the first three in the order of TFDS's `clevr`
_FAR = np.float32(1e9)
_NEAR = np.float32(1e-3)
_HALF_EDGE = 0.70710678  # CLEVR divides a cube's size by the root of two, so that its diagonal is the size
_SAMPLES = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))  # of a pixel: right, down

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]


class Solids(NamedTuple):
    """Objects of a scene. `cos`, `sin` (n,) of the turn about z; an object's centre is `radius` above 0."""

    shape: np.ndarray  # (n,) CUBE, SPHERE, CYLINDER or CONE
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    radius: np.ndarray
    cos: np.ndarray
    sin: np.ndarray

    def __len__(self) -> int:
        return len(self.shape)


class Camera(NamedTuple):
    """Eye, directions of the picture's axes, and what the picture shows at distance 1: left, top, width, height."""

    eye: np.ndarray
    right: np.ndarray
    up: np.ndarray
    forward: np.ndarray
    left: float
    top: float
    width: float
    height: float

    def project(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """Column and row, 0 to 1 inside the picture, and the distance along the viewing axis."""
        p = np.asarray([x, y, z]) - self.eye
        depth = float((p * self.forward).sum())
        across, above = float((p * self.right).sum()) / depth, float((p * self.up).sum()) / depth
        return (across - self.left) / self.width, (self.top - above) / self.height, depth


class Hits(NamedTuple):
    """What every sample sees: `label` (0 floor or nothing, k object k), `distance`, point and normal."""

    label: np.ndarray
    distance: np.ndarray
    point: Planes
    normal: Planes
    ray: Planes


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum())


def look_at(
    eye: np.ndarray, target: np.ndarray, *, left: float, top: float, width: float, height: float | None = None
) -> Camera:
    """A camera at `eye` that looks at `target`, z upwards; as high as wide unless `height` is given."""
    forward = _unit(target - eye)
    right = _unit(np.asarray([forward[1], -forward[0], 0.0]))
    up = np.asarray(
        [
            right[1] * forward[2] - right[2] * forward[1],
            right[2] * forward[0] - right[0] * forward[2],
            right[0] * forward[1] - right[1] * forward[0],
        ]
    )
    return Camera(eye, right, up, forward, left, top, width, width if height is None else height)


@functools.lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of all samples, 0 to 1: (sample, 1, width) and (sample, height, 1)."""
    centre = np.arange(size) + 0.5
    columns = np.stack([(centre + dx) / size for dx, _ in _SAMPLES])[:, None, :]
    rows = np.stack([(centre + dy) / size for _, dy in _SAMPLES])[:, :, None]
    return columns.astype(np.float32), rows.astype(np.float32)


def rays(camera: Camera, size: int) -> Planes:
    """Unit directions of all samples, three planes (sample, size, size)."""
    columns, rows = _grid(size)
    across = np.float32(camera.left) + np.float32(camera.width) * columns
    above = np.float32(camera.top) - np.float32(camera.height) * rows
    right, up, forward = (v.astype(np.float32) for v in (camera.right, camera.up, camera.forward))
    x, y, z = (forward[i] + across * right[i] + above * up[i] for i in range(3))
    length = 1 / np.sqrt(x * x + y * y + z * z)
    return x * length, y * length, z * length


def _sphere(o: Planes, d: Planes, radius: float) -> tuple[np.ndarray, Planes]:
    b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    c = o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - np.float32(radius * radius)
    inside = b * b - c
    t = -b - np.sqrt(np.maximum(inside, 0))
    t = np.where((inside > 0) & (t > _NEAR), t, _FAR)
    scale = np.float32(1 / radius)
    x, y, z = ((o[i] + t * d[i]) * scale for i in range(3))
    return t, (x, y, z)


def _cube(o: Planes, d: Planes, half: np.float32) -> tuple[np.ndarray, Planes]:
    near, far = [], []
    for origin, direction in zip(o, d, strict=True):
        # A ray along a face divides by a tiny number of the same sign instead of zero.
        safe = np.where(np.abs(direction) < 1e-9, np.float32(1e-9), direction)
        a, b = (-half - origin) / safe, (half - origin) / safe
        near.append(np.minimum(a, b))
        far.append(np.maximum(a, b))
    t = np.maximum(np.maximum(near[0], near[1]), near[2])
    leaves = np.minimum(np.minimum(far[0], far[1]), far[2])
    axis = [near[0] >= t, near[1] >= t]
    axis[1] &= ~axis[0]
    axis.append(~(axis[0] | axis[1]))
    x, y, z = (np.where(on, -np.sign(direction), np.float32(0)) for on, direction in zip(axis, d, strict=True))
    return np.where((t < leaves) & (t > _NEAR), t, _FAR), (x, y, z)


def _cylinder(o: Planes, d: Planes, radius: np.float32) -> tuple[np.ndarray, Planes]:
    a = np.maximum(d[0] * d[0] + d[1] * d[1], np.float32(1e-12))
    b = o[0] * d[0] + o[1] * d[1]
    c = o[0] * o[0] + o[1] * o[1] - radius * radius
    inside = b * b - a * c
    wall = (-b - np.sqrt(np.maximum(inside, 0))) / a
    height = o[2] + wall * d[2]
    wall = np.where((inside > 0) & (np.abs(height) < radius) & (wall > _NEAR), wall, _FAR)
    # The end that faces the ray: the top, but for rays that come from below.
    end = np.where(d[2] < 0, radius, -radius)
    safe = np.where(np.abs(d[2]) < 1e-9, np.float32(1e-9), d[2])
    lid = (end - o[2]) / safe
    x, y = o[0] + lid * d[0], o[1] + lid * d[1]
    lid = np.where((x * x + y * y < radius * radius) & (lid > _NEAR), lid, _FAR)
    t = np.minimum(wall, lid)
    flat = lid < wall
    zero, scale = np.float32(0), 1 / radius
    nx, ny = (np.where(flat, zero, (o[i] + t * d[i]) * scale) for i in (0, 1))
    return t, (nx, ny, np.where(flat, np.where(d[2] < 0, np.float32(1), np.float32(-1)), zero))


def _cone(o: Planes, d: Planes, radius: np.float32) -> tuple[np.ndarray, Planes]:
    """As high as two radii, its tip `radius` above the centre: x^2 + y^2 = ((radius - z) / 2)^2."""
    tip = radius - o[2]
    quarter = np.float32(0.25)
    a = d[0] * d[0] + d[1] * d[1] - quarter * d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] + quarter * tip * d[2]
    c = o[0] * o[0] + o[1] * o[1] - quarter * tip * tip
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    # A ray along the wall divides by a tiny number of the same sign instead of zero.
    safe = np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
    wall = np.full(a.shape, _FAR, np.float32)
    for t in ((-b - root) / safe, (-b + root) / safe):
        z = o[2] + t * d[2]
        wall = np.where((inside > 0) & (t > _NEAR) & (np.abs(z) < radius) & (t < wall), t, wall)
    down = np.where(np.abs(d[2]) < 1e-9, np.float32(1e-9), d[2])
    base = (-radius - o[2]) / down
    x, y = o[0] + base * d[0], o[1] + base * d[1]
    base = np.where((x * x + y * y < radius * radius) & (base > _NEAR), base, _FAR)
    t = np.minimum(wall, base)
    flat = base < wall
    x, y, z = (o[i] + t * d[i] for i in range(3))
    # Of the wall's gradient (x, y, (radius - z) / 4), made a unit vector.
    up = quarter * (radius - z)
    length = 1 / np.sqrt(np.maximum(x * x + y * y + up * up, np.float32(1e-12)))
    zero = np.float32(0)
    nx, ny = (np.where(flat, zero, v * length) for v in (x, y))
    return t, (nx, ny, np.where(flat, np.float32(-1), up * length))


def bound(solids: Solids, k: int) -> float:
    """Radius of a sphere around the centre that holds the object."""
    factor = {SPHERE: 1.0, CUBE: 1.7320509 * _HALF_EDGE, CYLINDER: 1.4142136, CONE: 1.4142136}[
        int(solids.shape[k])
    ]
    return factor * float(solids.radius[k])


def centre_height(shape: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Height of the centre of an object that stands on the floor."""
    return np.where(shape == CUBE, _HALF_EDGE, 1.0) * radius


def intersect(solids: Solids, k: int, origin: Planes, ray: Planes) -> tuple[np.ndarray, Planes]:
    """Distance to object `k` (1e9 where a ray misses it) and its normal there."""
    cos, sin = np.float32(solids.cos[k]), np.float32(solids.sin[k])
    place = [np.float32(v[k]) for v in (solids.x, solids.y, solids.z)]
    o = [origin[i] - place[i] for i in range(3)]
    radius = float(solids.radius[k])
    if solids.shape[k] == SPHERE:
        return _sphere((o[0], o[1], o[2]), ray, radius)
    turned_o = (cos * o[0] + sin * o[1], cos * o[1] - sin * o[0], o[2])
    turned_d = (cos * ray[0] + sin * ray[1], cos * ray[1] - sin * ray[0], ray[2])
    if solids.shape[k] == CUBE:
        t, (x, y, z) = _cube(turned_o, turned_d, np.float32(radius * _HALF_EDGE))
    elif solids.shape[k] == CONE:
        t, (x, y, z) = _cone(turned_o, turned_d, np.float32(radius))
    else:
        t, (x, y, z) = _cylinder(turned_o, turned_d, np.float32(radius))
    return t, (cos * x - sin * y, sin * x + cos * y, z)


def _rectangle(camera: Camera, solids: Solids, k: int, size: int) -> tuple[slice, slice] | None:
    """Rows and columns that the bounding sphere of object `k` can cover, None where it is out of sight."""
    column, row, depth = camera.project(float(solids.x[k]), float(solids.y[k]), float(solids.z[k]))
    reach = bound(solids, k)
    if depth <= reach:
        return slice(0, size), slice(0, size)
    # 1.3: the projection of a sphere away from the axis is an ellipse, a little longer.
    margin = 1.3 * reach / (depth - reach)
    spans = []
    for centre, span in ((row, camera.height), (column, camera.width)):
        low, high = int((centre - margin / span) * size) - 1, int((centre + margin / span) * size) + 2
        low, high = max(0, low), min(size, high)
        if low >= high:
            return None
        spans.append(slice(low, high))
    return spans[0], spans[1]


def trace(solids: Solids, camera: Camera, size: int) -> Hits:
    """Follow all rays of a picture to the nearest object, or to the floor."""
    ray = rays(camera, size)
    eye = camera.eye.astype(np.float32)
    label = np.zeros(ray[0].shape, np.uint8)
    floor = np.where(ray[2] < -1e-6, -eye[2] / np.minimum(ray[2], np.float32(-1e-6)), _FAR)
    distance = floor.copy()
    normal = (np.zeros_like(floor), np.zeros_like(floor), np.ones_like(floor))
    origin = (eye[0].reshape(1, 1, 1), eye[1].reshape(1, 1, 1), eye[2].reshape(1, 1, 1))
    for k in range(len(solids)):
        rectangle = _rectangle(camera, solids, k, size)
        if rectangle is None:
            continue
        part = (slice(None), *rectangle)
        t, n = intersect(solids, k, origin, (ray[0][part], ray[1][part], ray[2][part]))
        nearer = t < distance[part]
        np.copyto(distance[part], t, where=nearer)
        np.copyto(label[part], np.uint8(k + 1), where=nearer)
        for plane, values in zip(normal, n, strict=True):
            np.copyto(plane[part], values, where=nearer)
    np.minimum(distance, np.float32(80), out=distance)
    x, y, z = (eye[i] + distance * ray[i] for i in range(3))
    return Hits(label, distance, (x, y, z), normal, ray)


def shadows(solids: Solids, hits: Hits, to_light: Planes) -> np.ndarray:
    """Whether something stands between a hit and the light, boolean planes like `hits.label`."""
    dark = np.zeros(hits.label.shape, bool)
    start = [hits.point[i] + np.float32(2e-3) * hits.normal[i] for i in range(3)]
    for k in range(len(solids)):
        place = [np.float32(v[k]) for v in (solids.x, solids.y, solids.z)]
        o = [start[i] - place[i] for i in range(3)]
        ahead = o[0] * to_light[0] + o[1] * to_light[1] + o[2] * to_light[2]
        reach = np.float32(bound(solids, k) ** 2)
        near = o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - ahead * ahead < reach
        candidates = np.flatnonzero(near & (ahead < 0) & ~dark)
        if candidates.size:
            picked = [plane.ravel()[candidates] for plane in (*start, *to_light)]
            t, _ = intersect(solids, k, (picked[0], picked[1], picked[2]), (picked[3], picked[4], picked[5]))
            dark.ravel()[candidates[t < _FAR]] = True
    return dark


def majority(label: UInt8[np.ndarray, "4 height width"]) -> UInt8[np.ndarray, "height width"]:
    """The label that most of a pixel's samples have; the first sample's among equals."""
    a, b, c, d = label
    first = (a == b) | (a == c) | (a == d)
    second = (b == c) | (b == d)
    return np.where(first, a, np.where(second, b, np.where(c == d, c, a)))


def average(colour: Planes) -> UInt8[np.ndarray, "height width 3"]:
    """Mean over the samples of three planes in 0..1, as bytes with a gamma of 1/2."""
    out = [(p[0] + p[1] + p[2] + p[3]) * np.float32(0.25) for p in colour]
    picture = np.stack([np.sqrt(np.clip(p, 0, 1)) for p in out], axis=-1)
    return (picture * np.float32(255) + np.float32(0.5)).astype(np.uint8)
