"""Pictures whose masked content is determined by what lies far from the mask.

A stripe continues, a mirror image repeats its twin, a lattice repeats its cell: a model that looks far can
fill a hole exactly, one that looks only near the hole cannot. Every function here draws one kind at
`size` x `size` pixels in float RGB, 0-255, from a random generator and nothing else.
"""

from __future__ import annotations

import colorsys
import string
from collections.abc import Callable

import cv2
import numpy as np

Rng = np.random.Generator
TILE = 128  # pixels after which every lattice closes on itself, at any size of picture: far, and the same everywhere
SUBPIXEL_BITS = 4  # OpenCV draws with fixed-point coordinates of 1/16 pixel
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX)


def colour(rng: Rng) -> np.ndarray:
    """One RGB colour, 0-255, from dark to light and from grey to vivid."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.random() ** 0.7, rng.uniform(0.15, 1.0))
    return np.array(rgb, np.float32) * 255


def palette(rng: Rng, count: int) -> np.ndarray:
    """`count` colours (count, 3), each at least 110 levels of RGB distance away from the one before."""
    colours = [colour(rng)]
    while len(colours) < count:
        candidate = colour(rng)
        if np.linalg.norm(candidate - colours[-1]) > 110:
            colours.append(candidate)
    return np.stack(colours)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel-centre coordinates (y, x), each (size, size), with the picture's centre at 0."""
    axis = np.arange(size, dtype=np.float32) - (size - 1) / 2
    return np.meshgrid(axis, axis, indexing="ij")


def rotated(rng: Rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The grid turned by a random angle and moved by a random offset."""
    y, x = grid(size)
    angle = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    oy, ox = rng.uniform(-size, size, 2).astype(np.float32)
    return cos * y - sin * x + oy, sin * y + cos * x + ox


def square_wave(phase: np.ndarray, pixels_per_turn: float | np.ndarray, duty: float = 0.5) -> np.ndarray:
    """1 on the first `duty` of every turn of `phase`, else 0, with edges one pixel soft."""
    turn = phase - np.floor(phase)
    edge = np.minimum(np.minimum(turn, np.abs(duty - turn)), 1 - turn) * pixels_per_turn
    inside = turn < duty
    return np.clip(np.where(inside, 0.5 + edge, 0.5 - edge), 0, 1)


def mix(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours (or pictures) a to b by weight (H, W) in 0-1."""
    return a + (b - a) * weight[..., None]


def ramp(rng: Rng, size: int) -> np.ndarray:
    """A linear gradient between two colours across the whole picture."""
    y, _ = rotated(rng, size)
    first, last = palette(rng, 2)
    return mix(first, last, (y - y.min()) / np.ptp(y))


def dots(rng: Rng, size: int, count: int, low: float, high: float) -> np.ndarray:
    """Centres (count, 2) drawn evenly between two fractions of the picture's side."""
    return rng.uniform(low * size, high * size, (count, 2))


def polygon(rng: Rng, radius: float) -> np.ndarray:
    """A random star-shaped polygon (n, 2) round the origin."""
    corners = int(rng.integers(3, 8))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = radius * rng.uniform(0.5, 1.0, corners)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]


def fill(picture: np.ndarray, points: np.ndarray, paint: np.ndarray) -> None:
    """Fill polygon `points` (n, 2) as (x, y) on the picture, smoothly edged, in place."""
    fixed = np.round(points * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(picture, [fixed], paint.tolist(), cv2.LINE_AA, SUBPIXEL_BITS)


def scatter_shapes(rng: Rng, picture: np.ndarray, count: int, radius: float) -> None:
    """Draw random polygons, discs and strokes all over the picture, in place."""
    size = picture.shape[0]
    for centre in dots(rng, size, count, 0, 1):
        r, paint = radius * rng.uniform(0.5, 1.2), colour(rng)
        match rng.integers(3):
            case 0:
                fill(picture, polygon(rng, r) + centre, paint)
            case 1:
                middle, axes = tuple(int(v) for v in centre), (int(r), max(2, int(r * rng.uniform(0.4, 1))))
                cv2.ellipse(picture, middle, axes, rng.uniform(0, 180), 0, 360, paint.tolist(), -1, cv2.LINE_AA)
            case _:
                ends = centre + polygon(rng, 2 * r)[:2]
                first, last = ([int(v) for v in end] for end in ends)
                cv2.line(picture, first, last, paint.tolist(), max(2, int(r / 4)), cv2.LINE_AA)


def canvas(picture: np.ndarray) -> np.ndarray:
    """A contiguous uint8 copy: OpenCV smooths edges on 8-bit pictures only."""
    return np.ascontiguousarray(np.clip(picture, 0, 255).astype(np.uint8))


def lattice(rng: Rng, size: int, steps: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray, float, bool]:
    """Two coordinates at a right angle, in turns of a lattice that closes on itself after `TILE` pixels both ways.

    Args:
        steps: turns down and across a tile to choose from; they give the lattice its angle and its width.

    Returns:
        Both coordinates (size, size), the width of a turn in pixels, and whether a chequered colouring closes too.
    """
    down, across = steps[rng.integers(len(steps))]
    if rng.random() < 0.5:
        across = -across
    y, x = grid(size)
    u = (down * y + across * x) / TILE + np.float32(rng.random())
    v = (down * x - across * y) / TILE + np.float32(rng.random())
    return u, v, TILE / float(np.hypot(down, across)), (down + across) % 2 == 0


def gradients(rng: Rng, size: int) -> np.ndarray:
    """Colour waves along a line, along two lines at a right angle, or in rings round every point of a lattice."""
    first, second = palette(rng, 2)
    steps = ((1, 1), (1, 2), (2, 1), (2, 2), (0, 2), (2, 0), (1, 3), (3, 1))
    match rng.integers(3):
        case 0:
            u, _, _, _ = lattice(rng, size, steps)
            wave = np.cos(2 * np.pi * u)
        case 1:
            u, v, _, _ = lattice(rng, size, steps)
            wave = (np.cos(2 * np.pi * u) + np.cos(2 * np.pi * v)) / 2
        case _:
            u, v, _, _ = lattice(rng, size, ((1, 0), (1, 1), (1, 2), (2, 1), (2, 0)))
            rings = rng.uniform(1, 3)
            wave = np.cos(2 * np.pi * rings * np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5))
    return mix(first, second, 0.5 - 0.5 * wave)


def lighting(rng: Rng, size: int) -> np.ndarray:
    """A lattice of balls under one lamp: place, colour and shading follow from any other ball."""
    u, v, step, chequered = lattice(rng, size, ((1, 1), (2, 0), (2, 1), (1, 2), (2, 2)))
    row, column = np.floor(u), np.floor(v)
    radius = rng.uniform(0.32, 0.47)
    across, down = (v - column - 0.5) / radius, (u - row - 0.5) / radius
    square = across * across + down * down
    lamp_angle, lamp_height = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.8)
    reach = np.sqrt(1 - lamp_height**2)
    height = np.sqrt(np.clip(1 - square, 0, 1))
    light = down * np.sin(lamp_angle) * reach + across * np.cos(lamp_angle) * reach + height * lamp_height
    ground, first, second = palette(rng, 3)
    balls = mix(first, second, np.mod(row + column, 2) * chequered) * (0.2 + 0.8 * np.clip(light, 0, 1))[..., None]
    return mix(
        lit(rng, np.broadcast_to(ground, balls.shape)),
        balls,
        np.clip((1 - np.sqrt(square)) * radius * step + 0.5, 0, 1),
    )


def stripes(rng: Rng, size: int) -> np.ndarray:
    """Stripes of two or three colours at many angles, sometimes under light that falls off."""
    u, _, step, _ = lattice(rng, size, ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1)))
    colours = palette(rng, 3)
    picture = mix(colours[0], colours[1], square_wave(u, step, rng.uniform(0.35, 0.65)))
    if rng.random() < 0.5:
        picture = mix(picture, np.broadcast_to(colours[2], picture.shape), square_wave(u + rng.random(), step, 0.25))
    return lit(rng, picture)


def checkers(rng: Rng, size: int) -> np.ndarray:
    """A chequerboard at many angles."""
    u, v, step, _ = lattice(rng, size, ((1, 0), (1, 1), (1, 2), (2, 1), (2, 0)))
    a, b = square_wave(u, step), square_wave(v, step)
    first, second = palette(rng, 2)
    return lit(rng, mix(first, second, a * (1 - b) + b * (1 - a)))


def lit(rng: Rng, picture: np.ndarray) -> np.ndarray:
    """The picture under light that falls off across it, one time in four."""
    if rng.random() < 0.75:
        return picture
    y, _ = rotated(rng, picture.shape[0])
    return picture * (1 - rng.uniform(0.2, 0.5) * (y - y.min()) / np.ptp(y))[..., None]


def mirror(rng: Rng, size: int) -> np.ndarray:
    """A kaleidoscope: shapes in one half of a tile, mirrored left-right, top-bottom or across a diagonal; the tile
    repeats, so that a masked part follows from its mirror image and from its twin."""
    half = canvas(ramp(rng, TILE))
    scatter_shapes(rng, half, int(rng.integers(8, 16)), rng.uniform(14, 28))
    y, x = grid(TILE)
    match rng.integers(4):
        case 0:
            tile = np.where((x < 0)[..., None], half, half[:, ::-1])
        case 1:
            tile = np.where((y < 0)[..., None], half, half[::-1])
        case 2:
            tile = np.where((x < y)[..., None], half, half.transpose(1, 0, 2))
        case _:
            tile = np.where((x < -y)[..., None], half, half[::-1, ::-1].transpose(1, 0, 2))
    return repeat(rng, tile, size)


def rotation(rng: Rng, size: int) -> np.ndarray:
    """Rosettes, one a tile: shapes repeated 2 to 8 times round a centre."""
    fold = int(rng.choice([2, 3, 4, 5, 6, 8]))
    y, x = grid(TILE)
    first, last = palette(rng, 2)
    tile = canvas(mix(first, last, np.clip(np.hypot(y, x) / (TILE * 0.5), 0, 1)))
    for radius in np.sort(rng.uniform(0.1, 0.42, int(rng.integers(3, 6))))[::-1] * TILE:
        reach = min(np.pi * radius / fold * 1.3, TILE * 0.22)
        outline, paint = polygon(rng, reach * rng.uniform(0.7, 1.2)), colour(rng)
        start = rng.uniform(0, 2 * np.pi)
        for turn in range(fold):
            angle = start + 2 * np.pi * turn / fold
            cos, sin = np.cos(angle), np.sin(angle)
            points = (outline + np.array([radius, 0.0])) @ np.array([[cos, sin], [-sin, cos]])
            fill(tile, points + (TILE - 1) / 2, paint)
    return repeat(rng, tile, size)


def motif(rng: Rng, size: int) -> np.ndarray:
    """A small drawing repeated over a lattice, plain or as bricks."""
    cell = TILE // int(rng.integers(1, 3))
    drawing = canvas(np.broadcast_to(colour(rng), (cell, cell, 3)))
    scatter_shapes(rng, drawing, int(rng.integers(5, 10)), cell * rng.uniform(0.2, 0.35))
    row = np.concatenate([drawing] * (TILE // cell), 1)
    if cell < TILE and rng.random() < 0.5:
        tile = np.concatenate([row, np.roll(row, cell // 2, 1)], 0)
    else:
        tile = np.concatenate([row] * (TILE // cell), 0)
    return repeat(rng, tile, size)


def repeat(rng: Rng, tile: np.ndarray, size: int) -> np.ndarray:
    """The tile again and again from a random corner, in float."""
    tile = np.roll(tile, tuple(rng.integers(TILE, size=2)), (0, 1))
    copies = -(-size // TILE)
    return np.tile(tile, (copies, copies, 1))[:size, :size].astype(np.float32)


def glyphs(rng: Rng, size: int) -> np.ndarray:
    """One word written again and again in rows, as on a poster wall."""
    font, thick = FONTS[rng.integers(len(FONTS))], int(rng.integers(2, 6))
    rows, columns = int(rng.choice([2, 3, 4])), int(rng.choice([1, 2]))
    word = "".join(rng.choice(list(string.ascii_uppercase + string.digits), int(rng.integers(1, 5))))
    (width, height), _ = cv2.getTextSize(word, font, 1.0, thick)
    scale = min((TILE / columns - 8) / width, (TILE / rows - 8) / height)
    (width, height), _ = cv2.getTextSize(word, font, scale, thick)
    paper, *inks = palette(rng, 3)
    tile = canvas(np.broadcast_to(paper, (TILE, TILE, 3)))
    slide = int(rng.choice([0, width // 2]))
    high, wide = TILE // rows, TILE // columns
    for row in range(rows):
        ink = inks[row % 2 if rows % 2 == 0 else 0].tolist()
        band = tile[row * high : (row + 1) * high]
        for column in range(columns):
            strip = canvas(np.broadcast_to(paper, (high, wide, 3)))
            cv2.putText(strip, word, (4, height + 4), font, scale, ink, thick, cv2.LINE_AA)
            band[:, column * wide : (column + 1) * wide] = strip
        band[:] = np.roll(band, slide * (row % 2), 1)
    return lit(rng, repeat(rng, tile, size))


def perspective(rng: Rng, size: int) -> np.ndarray:
    """A wall of the same box again and again: a tiled floor to the horizon, or a tiled corridor, in perspective."""
    y, x = grid(TILE)
    x = x - rng.uniform(-0.25, 0.25) * TILE
    tiles = rng.uniform(0.8, 1.6)
    if rng.random() < 0.5:
        depth_below = y + rng.uniform(0.2, 0.45) * TILE
        surface = depth_below > 0
        near = np.where(surface, depth_below, 1.0) / TILE
        across, along = x / TILE / near * tiles, tiles / near
    else:
        y = y - rng.uniform(-0.25, 0.25) * TILE
        near = np.maximum(np.maximum(np.abs(x), np.abs(y)) / TILE, 1e-3)
        surface = near > 0.06
        wall = np.abs(x) > np.abs(y)
        across, along = np.where(wall, y, x) / TILE / near * tiles, tiles * 0.7 / near
    # the narrower of the two footprints a tile has on screen tells where tiles become too small to draw
    pixels = np.minimum(near / tiles, near**2 / tiles) * TILE
    a, b = square_wave(across / 2, 2 * near / tiles * TILE), square_wave(along / 2, 2 * near**2 / tiles * TILE)
    first, second, far = palette(rng, 3)
    check = a * (1 - b) + b * (1 - a)
    sharp = np.clip(pixels / 6 - 0.3, 0, 1)
    drawn = mix(first, second, 0.5 + (check - 0.5) * sharp)
    haze = np.clip(1 - near / 0.25, 0, 1) ** 2
    drawn = mix(drawn, np.broadcast_to(far, drawn.shape), haze)
    sky = np.clip(0.35 - y / TILE * 1.4, 0, 1) * 0.5
    box = np.where(surface[..., None], drawn, mix(far, np.full(3, 255, np.float32), sky))
    return repeat(rng, box, size)


KINDS: dict[str, Callable[[Rng, int], np.ndarray]] = {
    kind.__name__: kind
    for kind in (gradients, lighting, stripes, checkers, mirror, rotation, motif, glyphs, perspective)
}
