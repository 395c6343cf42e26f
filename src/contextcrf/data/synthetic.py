"""Context scenes: synthetic landscapes in which some classes look alike and only their context distinguishes them.

Two pairs of classes share one local appearance (color and texture are draws from the same distribution):

* *sheep* and *boat*: a white woolly disc in the middle of a patch of sand. It is a sheep where the sand lies in grass
  and a boat where the sand lies in water: what is *around* decides.
* *wall* and *trunk*: a block of brown planks with sky to its sides. It is a wall under a red roof and a trunk under a
  green canopy: what is *above* decides.

A classifier with a receptive field of 24 px can only guess inside these objects. The deciding context is within the
boxes of the relations *surrounding* and *above* on a feature map of stride 8, so a CRF with contextual pairwise
potentials can label them. Each object belongs to either class of its pair with probability 1/2, independently of
everything else in the scene.

At the default height of 160 px a disc is 26 px wide, the sand extends to about 26 px from the center of the disc, and a
wall is about 30 px wide and 34 px high. The boxes extend 32 px to all sides and 48 px upwards. All lengths are
proportional to the height.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from contextcrf.data.classes import Classes, Color
from contextcrf.utils.files import atomic_write, write_text
from contextcrf.utils.progress import track

Split = Literal["train", "val"]
Floats = npt.NDArray[np.float32]

CLASSES = Classes(
    names=("sky", "grass", "water", "sand", "roof", "canopy", "sheep", "boat", "wall", "trunk"),
    palette=(
        (150, 200, 235),
        (125, 190, 85),
        (40, 110, 180),
        (235, 210, 150),
        (200, 60, 50),
        (30, 115, 60),
        (250, 250, 250),
        (245, 150, 30),
        (160, 90, 160),
        (110, 70, 40),
    ),
)
SKY, GRASS, WATER, SAND, ROOF, CANOPY, SHEEP, BOAT, WALL, TRUNK = range(len(CLASSES))

# Color of each class at ambiguity 0. With growing ambiguity, both colors of a pair approach that of _PAIR_COLORS.
_COLORS: dict[int, Color] = {
    SKY: (148, 198, 236),
    GRASS: (124, 180, 82),
    WATER: (62, 128, 186),
    SAND: (230, 207, 158),
    ROOF: (196, 74, 60),
    CANOPY: (58, 128, 68),
    SHEEP: (240, 236, 228),
    BOAT: (226, 140, 60),
    WALL: (208, 164, 112),
    TRUNK: (96, 66, 48),
}
_PAIR_COLORS: dict[tuple[int, int], Color] = {(SHEEP, BOAT): (240, 236, 228), (WALL, TRUNK): (148, 104, 70)}


class ContextScenes(Dataset[tuple[tv_tensors.Image, tv_tensors.Mask]]):
    """Scenes that are drawn on demand; item i depends on (seed, split, i) and the arguments only.

    An item is `(image, mask)`: uint8 RGB [3, H, W] and int64 [H, W]. All pixels are labeled.

    Args:
        size: the number of scenes.
        split: "train" or "val", which use independent random streams.
        height: in pixels, at least 64.
        width: in pixels, at least `height`.
        seed: 0 or more; different seeds give different scenes.
        ambiguity: 1 draws the two classes of a pair in one color, 0 in two distinct colors, linear in between.

    Attributes:
        classes: names and palette.

    Raises:
        ValueError: an argument is outside of its range.

    Example:
        >>> image, mask = ContextScenes(size=1)[0]
        >>> image.shape, mask.shape
        (torch.Size([3, 160, 240]), torch.Size([160, 240]))
    """

    classes = CLASSES

    def __init__(
        self,
        size: int = 200,
        split: Split = "train",
        height: int = 160,
        width: int = 240,
        seed: int = 0,
        ambiguity: float = 1.0,
    ) -> None:
        if size < 0 or seed < 0:
            raise ValueError(f"expected a size and a seed of 0 or more, got size {size}, seed {seed}")
        if split not in get_args(Split):
            raise ValueError(f"expected split 'train' or 'val', got {split!r}")
        if not 64 <= height <= width:
            raise ValueError(f"expected 64 <= height <= width, got {height} x {width}")
        if not 0 <= ambiguity <= 1:
            raise ValueError(f"expected an ambiguity of 0 to 1, got {ambiguity}")
        self.size = size
        self.split: Split = split
        self.height = height
        self.width = width
        self.seed = seed
        self.ambiguity = ambiguity

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, labels = self.render(index)
        mask = torch.from_numpy(labels.astype(np.int64))
        return tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).contiguous()), tv_tensors.Mask(mask)

    def render(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Scene `index` as arrays: image [H, W, 3] and labels [H, W].

        Raises:
            IndexError: `index` is not in 0..size-1.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"scene {index} of {self.size}")
        rng = np.random.default_rng([self.seed, get_args(Split).index(self.split), index])
        return _draw_scene(_Canvas(rng, self.height, self.width, self.ambiguity))


def write_scenes(
    root: str | Path,
    train: int = 200,
    val: int = 50,
    height: int = 160,
    width: int = 240,
    seed: int = 0,
    ambiguity: float = 1.0,
) -> Path:
    """Write scenes as a folder data set, as an example of the layout and of the commands that read it.

    The folder `root` contains `images/<stem>.png`, `masks/<stem>.png` (class indices with a palette),
    `splits/train.txt` and `splits/val.txt` (one stem per line) and `classes.yaml`. Existing files of these names are
    replaced.

    Args:
        root: the folder.
        train: the number of scenes in the split train.
        val: the number of scenes in the split val.
        height: as for `ContextScenes`.
        width: as for `ContextScenes`.
        seed: as for `ContextScenes`.
        ambiguity: as for `ContextScenes`.

    Returns:
        `root`.
    """
    root = Path(root)
    CLASSES.to_yaml(root / "classes.yaml")
    sizes: dict[Split, int] = {"train": train, "val": val}
    for split, size in sizes.items():
        scenes = ContextScenes(size, split, height, width, seed, ambiguity)
        stems = [f"{split}_{index:04d}" for index in range(size)]
        for index, stem in track(list(enumerate(stems)), f"Drawing scenes, {split}"):
            image, labels = scenes.render(index)
            with atomic_write(root / "images" / f"{stem}.png") as partial:
                Image.fromarray(image).save(partial)
            mask = Image.fromarray(labels)
            mask.putpalette([part for color in CLASSES.palette for part in color])
            with atomic_write(root / "masks" / f"{stem}.png") as partial:
                mask.save(partial)
        write_text(root / "splits" / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))
    return root


class _Window:
    """A rectangle of the canvas: its coordinates in px and its noise, all [h, w]."""

    def __init__(self, canvas: _Canvas, top: float, bottom: float, left: float, right: float) -> None:
        self.slices = (
            slice(max(0, int(top) - 2), max(0, min(canvas.height, int(bottom) + 3))),
            slice(max(0, int(left) - 2), max(0, min(canvas.width, int(right) + 3))),
        )
        self.y: Floats = np.arange(self.slices[0].start, self.slices[0].stop, dtype=np.float32)[:, None]
        self.x: Floats = np.arange(self.slices[1].start, self.slices[1].stop, dtype=np.float32)[None, :]
        self.fine = canvas.fine[self.slices]
        self.soft = canvas.soft[self.slices]
        self.broad = canvas.broad[self.slices]


class _Canvas:
    """An image and its labels under construction. `unit` is the length of one px in a scene 160 px high."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, ambiguity: float) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.unit = height / 160
        self.image: Floats = np.zeros((3, height, width), np.float32)
        self.labels = np.zeros((height, width), np.uint8)
        # All materials are textured with the same three noise maps of standard deviation about 1, at three grain sizes.
        self.fine: Floats = rng.standard_normal((height, width), dtype=np.float32)
        self.soft = self.smooth_noise(3, 3)
        self.broad = self.smooth_noise(16, 16)
        self.colors = {label: _color(color) for label, color in _COLORS.items()}
        for pair, color in _PAIR_COLORS.items():
            for label in pair:
                self.colors[label] += np.float32(ambiguity) * (_color(color) - self.colors[label])

    def smooth_noise(self, high: float, wide: float) -> Floats:
        """[H, W] noise whose grains are about `high` x `wide` units."""
        rows, columns = int(self.height / (high * self.unit)) + 2, int(self.width / (wide * self.unit)) + 2
        coarse = Image.fromarray(self.rng.standard_normal((rows, columns), dtype=np.float32))
        return np.asarray(coarse.resize((self.width, self.height), Image.Resampling.BICUBIC))

    def window(self, top: float, bottom: float, left: float, right: float) -> _Window:
        return _Window(self, top, bottom, left, right)

    def paint(self, label: int, window: _Window, depth: Floats, shade: Floats) -> None:
        """Paint a material over the pixels with `depth` > 0.

        Args:
            label: the class of the material.
            window: the pixels that are considered.
            depth: [h, w] distance to the boundary in px, positive inside; boundary pixels are blended proportionally.
            shade: [h, w] or [3, h, w], added to the color of the class.
        """
        cover = np.clip(depth + np.float32(0.5), 0, 1)
        image = self.image[:, *window.slices]
        image += cover * (self.colors[label] + shade - image)
        self.labels[window.slices][depth > 0] = label


def _draw_scene(canvas: _Canvas) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    rng, unit = canvas.rng, canvas.unit
    horizon = rng.uniform(66, 74) * unit
    shore = horizon + rng.uniform(12, 16) * unit
    _draw_sky(canvas, horizon)
    _draw_sand(canvas, horizon)
    _draw_fields(canvas, shore)
    _draw_buildings(canvas, horizon)
    light = rng.uniform(0.92, 1.06)
    image = np.clip(canvas.image * np.float32(light), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return image, canvas.labels


def _draw_sky(canvas: _Canvas, horizon: float) -> None:
    window = canvas.window(0, horizon + 4 * canvas.unit, 0, canvas.width)
    clouds = canvas.smooth_noise(11, 34)[window.slices] + np.float32(0.25) * window.soft - np.float32(0.4)
    haze = np.float32(0.35) * window.y / np.float32(horizon)
    white = np.clip(np.float32(0.5) * np.clip(clouds, 0, 1.2) + haze, 0, 0.75)
    to_white = _color((252, 252, 252)) - canvas.colors[SKY]
    canvas.paint(SKY, window, np.ones_like(white), white * to_white + np.float32(1.5) * window.fine)


def _draw_sand(canvas: _Canvas, horizon: float) -> None:
    window = canvas.window(horizon - 4 * canvas.unit, canvas.height, 0, canvas.width)
    depth = window.y - np.float32(horizon) + _wave(canvas, window.x, height=1.5, length=90)
    canvas.paint(SAND, window, depth, _sand_shade(window))


def _draw_fields(canvas: _Canvas, shore: float) -> None:
    """Fields of grass and water side by side below the shore line, with an islet and its disc in each."""
    rng, unit = canvas.rng, canvas.unit
    count = max(1, round(canvas.width / (78 * unit)))
    pitch = canvas.width / count
    line = _wave(canvas, np.arange(canvas.width, dtype=np.float32)[None, :], height=1.5, length=60)
    kinds = rng.integers(0, 2, count)
    for index, kind in enumerate(kinds):
        # Each field covers everything to the right of its left edge, and the next field is painted over it.
        window = canvas.window(shore - 4 * unit, canvas.height, index * pitch - 6 * unit, canvas.width)
        depth = window.y - np.float32(shore) + line[:, window.slices[1]]
        if index:
            edge = np.float32(index * pitch) + _wave(canvas, window.y, height=2.5, length=50)
            depth = np.minimum(depth, window.x - edge)
        if kind:
            canvas.paint(WATER, window, depth, _water_shade(canvas, window))
        else:
            canvas.paint(GRASS, window, depth, 9 * window.soft + 7 * window.broad + 6 * window.fine)
    for index, kind in enumerate(kinds):
        x = (index + 0.5) * pitch + rng.uniform(-5, 5) * unit
        y = rng.uniform(shore + 31 * unit, canvas.height - 29 * unit)
        _draw_disc(canvas, BOAT if kind else SHEEP, y, x)


def _draw_disc(canvas: _Canvas, label: int, y: float, x: float) -> None:
    """An islet of sand with a white disc in its center; the sand is wider than a small receptive field."""
    unit = canvas.unit
    radius = canvas.rng.uniform(12.5, 14) * unit
    reach = radius + 13 * unit
    phase = np.float32(canvas.rng.uniform(0, 2 * np.pi))
    window = canvas.window(y - reach - 3 * unit, y + reach + 3 * unit, x - reach - 3 * unit, x + reach + 3 * unit)
    dy, dx = window.y - np.float32(y), window.x - np.float32(x)
    # A superellipse, closer to a square than a circle is, since receptive fields are square.
    islet = (dy**4 + dx**4) ** np.float32(0.25) + np.float32(unit) * np.sin(3 * np.arctan2(dy, dx) + phase)
    canvas.paint(SAND, window, np.float32(reach) - islet, _sand_shade(window))
    depth = np.float32(radius) - np.hypot(dy, dx)
    # Light from the upper left, darker towards the boundary, as on a ball of wool.
    ball = -7 * (dx + dy) / np.float32(radius) - 8 * (1 - np.clip(depth / np.float32(radius), 0, 1)) ** 2
    canvas.paint(label, window, depth, ball + 8 * window.soft + 3 * window.fine)


def _draw_buildings(canvas: _Canvas, horizon: float) -> None:
    """Houses and trees side by side on the horizon."""
    rng, unit = canvas.rng, canvas.unit
    count = max(1, round(canvas.width / (60 * unit)))
    pitch = canvas.width / count
    for index in range(count):
        kind = rng.integers(0, 2)
        x = (index + 0.5) * pitch + rng.uniform(-5, 5) * unit
        bottom = horizon + rng.uniform(2, 7) * unit
        top = bottom - rng.uniform(32, 36) * unit
        half = rng.uniform(14, 16) * unit
        _draw_planks(canvas, TRUNK if kind else WALL, top, bottom, x - half, x + half)
        draw_top: Callable[[_Canvas, float, float, float], None] = _draw_canopy if kind else _draw_roof
        draw_top(canvas, top, x, half)


def _draw_planks(canvas: _Canvas, label: int, top: float, bottom: float, left: float, right: float) -> None:
    window = canvas.window(top, bottom, left, right)
    depth = _box_depth(window, top, bottom, left, right)
    phase = canvas.rng.uniform(0, 1)
    plank = ((window.x - np.float32(left)) / np.float32(5 * canvas.unit) + np.float32(phase)) % 1
    grooves = -34 * (plank < 0.25)
    canvas.paint(label, window, depth, grooves + 5 * window.soft + 5 * window.fine)


def _draw_roof(canvas: _Canvas, eaves: float, x: float, half: float) -> None:
    unit = canvas.unit
    high, wide = canvas.rng.uniform(20, 25) * unit, half + canvas.rng.uniform(5, 8) * unit
    window = canvas.window(eaves - high, eaves + unit, x - wide, x + wide)
    rise = np.float32(eaves) - window.y
    # A hipped roof whose ridge is 0.4 times as long as its eaves; its area is about that of a canopy.
    lean = np.float32(0.6 * wide / high)
    side = (np.float32(wide) - np.abs(window.x - np.float32(x)) - lean * rise) / np.hypot(1, lean)
    depth = np.minimum(side, np.minimum(rise, np.float32(high) - rise))
    tiles = -22 * ((rise / np.float32(4.5 * unit)) % 1 < 0.25)
    canvas.paint(ROOF, window, depth, tiles + 5 * window.soft + 4 * window.fine)


def _draw_canopy(canvas: _Canvas, bottom: float, x: float, half: float) -> None:
    unit = canvas.unit
    high, wide = canvas.rng.uniform(23, 28) * unit, half + canvas.rng.uniform(6, 9) * unit
    window = canvas.window(bottom - high, bottom + unit, x - wide, x + wide)
    middle, tall = np.float32(bottom - 0.38 * high), np.float32(0.62 * high)
    dy, dx = (window.y - middle) / tall, (window.x - np.float32(x)) / np.float32(wide)
    phase = np.float32(canvas.rng.uniform(0, 2 * np.pi))
    leaves = np.float32(0.06) * np.sin(9 * np.arctan2(dy, dx) + phase)
    depth = (np.float32(0.94) - np.hypot(dy, dx) + leaves) * tall
    # The lower side is flat, so that a canopy ends where a roof does.
    depth = np.minimum(depth, np.float32(bottom) - window.y)
    canvas.paint(CANOPY, window, depth, -12 * (dx + dy) + 12 * window.soft + 5 * window.fine)


def _color(color: Color) -> Floats:
    return np.array(color, np.float32)[:, None, None]


def _sand_shade(window: _Window) -> Floats:
    return 3 * window.soft + 4 * window.broad + 4 * window.fine


def _water_shade(canvas: _Canvas, window: _Window) -> Floats:
    ripple = np.sin(window.y * np.float32(2 * np.pi / (7 * canvas.unit)) + 1.5 * window.broad)
    return 8 * ripple + 4 * window.broad + 2 * window.fine


def _wave(canvas: _Canvas, along: Floats, height: float, length: float) -> Floats:
    """A sine curve with a random phase; `height` and `length` in units, `along` in px."""
    phase = canvas.rng.uniform(0, 2 * np.pi)
    turns = along * np.float32(2 * np.pi / (length * canvas.unit)) + np.float32(phase)
    return np.float32(height * canvas.unit) * np.sin(turns)


def _box_depth(window: _Window, top: float, bottom: float, left: float, right: float) -> Floats:
    across = np.minimum(window.x - np.float32(left), np.float32(right) - window.x)
    return np.minimum(np.minimum(window.y - np.float32(top), np.float32(bottom) - window.y), across)
