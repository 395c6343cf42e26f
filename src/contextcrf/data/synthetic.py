"""Context scenes: synthetic landscapes in which some classes look the same and differ only in their context.

Two pairs of classes have the same local appearance, because their color and texture have the same distribution:

* *sheep* and *boat*: a white woolly disc in the middle of a patch of sand. If the sand is surrounded by grass, the disc
  is a sheep. If the sand is surrounded by water, the disc is a boat. The relation *surrounding* distinguishes them.
* *wall* and *trunk*: a block of brown planks with sky at its sides. A block under a red roof is a wall, and a block
  under a green canopy is a trunk. The relation *above* distinguishes them.

A classifier with a receptive field of 24 pixels can only guess inside these objects. The boxes of the relations
*surrounding* and *above* contain the decisive context on a feature map of stride 8. A CRF with contextual pairwise
potentials can therefore label the objects. Each object belongs to either class of its pair with probability 1/2,
independently of the rest of the scene.

At the default height of 160 pixels, a disc is 26 pixels wide, and the sand extends to about 26 pixels from the center
of the disc. A wall is about 30 pixels wide and 34 pixels high. The boxes extend 32 pixels to all sides and 48 pixels
upwards. All lengths are proportional to the height.
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

#: The ten classes of the scenes.
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

# The color of each class at ambiguity 0. At ambiguity 1, both classes of a pair have their color in _PAIR_COLORS.
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
    """A data set of scenes that are drawn on access. Item i depends only on i and the arguments.

    An item is a pair `(image, mask)`. The image is uint8 RGB [3, H, W], and the mask is int64 [H, W]. All pixels are
    labeled.

    Args:
        size: the number of scenes.
        split: "train" or "val". The two splits use independent random numbers.
        height: the height of the scenes in pixels, at least 64.
        width: the width of the scenes in pixels, at least `height`.
        seed: the seed of the random numbers, 0 or more.
        ambiguity: how similar the colors of sheep and boat are, and those of wall and trunk. 1 draws both classes of
            such a pair in the same color, 0 in two distinct colors, and values in between interpolate linearly.

    Attributes:
        classes: the names and colors of the classes, `CLASSES`.

    Raises:
        ValueError: If an argument is outside its range.

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
            raise ValueError(f"The size is {size} and the seed is {seed}, but both are expected to be 0 or more.")
        if split not in get_args(Split):
            raise ValueError(f"The split is {split!r}, but 'train' or 'val' is expected.")
        if not 64 <= height <= width:
            raise ValueError(f"The height is {height} and the width is {width}, but 64 <= height <= width is expected.")
        if not 0 <= ambiguity <= 1:
            raise ValueError(f"The ambiguity is {ambiguity}, but a value from 0 to 1 is expected.")
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
        """Draw the scene `index` as uint8 arrays.

        Args:
            index: the number of the scene.

        Returns:
            The image [H, W, 3] and the labels [H, W].

        Raises:
            IndexError: If `index` is not in 0..size-1.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"The index {index} is out of range for a data set of length {self.size}.")
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
    """Write context scenes as a data set that `open_dataset` and the commands can read.

    The folder contains `images/<stem>.png`, `masks/<stem>.png` (class indices with a palette), `splits/train.txt` and
    `splits/val.txt` (one stem per line) and `classes.yaml`. Existing files with these names are replaced.

    Args:
        root: the folder, which is created if necessary.
        train: the number of scenes in the split train.
        val: the number of scenes in the split val.
        height: the height of the scenes in pixels, at least 64.
        width: the width of the scenes in pixels, at least `height`.
        seed: the seed of the random numbers, 0 or more.
        ambiguity: how similar the colors of classes that differ only in their surroundings are, from 0 to 1 (see
            `ContextScenes`).

    Returns:
        The folder `root`.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> root = write_scenes("scenes", train=2, val=1, height=64, width=96)
        >>> sorted(path.name for path in root.iterdir())
        ['classes.yaml', 'images', 'masks', 'splits']
        >>> (root / "splits" / "train.txt").read_text().split()
        ['train_0000', 'train_0001']
    """
    root = Path(root)
    CLASSES.to_yaml(root / "classes.yaml")
    sizes: dict[Split, int] = {"train": train, "val": val}
    for split, size in sizes.items():
        scenes = ContextScenes(size, split, height, width, seed, ambiguity)
        stems = [f"{split}_{index:04d}" for index in range(size)]
        for index, stem in track(list(enumerate(stems)), f"Drawing the scenes of the split {split}"):
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
    """A rectangle of the canvas, with its coordinates in pixels and its noise, [h, w] each."""

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
    """An image and its labels while they are drawn. `unit` is the length of one pixel in a scene 160 pixels high."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, ambiguity: float) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.unit = height / 160
        self.image: Floats = np.zeros((3, height, width), np.float32)
        self.labels = np.zeros((height, width), np.uint8)
        # All materials use the same three noise maps, which have three grain sizes and a standard deviation of about 1.
        self.fine: Floats = rng.standard_normal((height, width), dtype=np.float32)
        self.soft = self.smooth_noise(3, 3)
        self.broad = self.smooth_noise(16, 16)
        self.colors = {label: _color(color) for label, color in _COLORS.items()}
        for pair, color in _PAIR_COLORS.items():
            for label in pair:
                self.colors[label] += np.float32(ambiguity) * (_color(color) - self.colors[label])

    def smooth_noise(self, high: float, wide: float) -> Floats:
        """Return noise [H, W] with grains of about `high` x `wide` units."""
        rows, columns = int(self.height / (high * self.unit)) + 2, int(self.width / (wide * self.unit)) + 2
        coarse = Image.fromarray(self.rng.standard_normal((rows, columns), dtype=np.float32))
        return np.asarray(coarse.resize((self.width, self.height), Image.Resampling.BICUBIC))

    def window(self, top: float, bottom: float, left: float, right: float) -> _Window:
        """Return a rectangle of the canvas."""
        return _Window(self, top, bottom, left, right)

    def paint(self, label: int, window: _Window, depth: Floats, shade: Floats) -> None:
        """Paint a material over the pixels with `depth` > 0.

        Args:
            label: the class of the material.
            window: the rectangle of the canvas.
            depth: the distance to the boundary in pixels [h, w], positive inside. Boundary pixels are blended in
                proportion.
            shade: the offset from the color of the class, [h, w] or [3, h, w].
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
    """Draw fields of grass and water side by side below the shore line, with an islet and its disc in each field."""
    rng, unit = canvas.rng, canvas.unit
    count = max(1, round(canvas.width / (78 * unit)))
    pitch = canvas.width / count
    line = _wave(canvas, np.arange(canvas.width, dtype=np.float32)[None, :], height=1.5, length=60)
    kinds = rng.integers(0, 2, count)
    for index, kind in enumerate(kinds):
        # Each field covers everything to the right of its left edge. The next field is then painted over it.
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
    """Draw an islet of sand with a white disc in its center. The sand is wider than a small receptive field."""
    unit = canvas.unit
    radius = canvas.rng.uniform(12.5, 14) * unit
    reach = radius + 13 * unit
    phase = np.float32(canvas.rng.uniform(0, 2 * np.pi))
    window = canvas.window(y - reach - 3 * unit, y + reach + 3 * unit, x - reach - 3 * unit, x + reach + 3 * unit)
    dy, dx = window.y - np.float32(y), window.x - np.float32(x)
    # Receptive fields are square, so the islet is a superellipse, which is closer to a square than a circle.
    islet = (dy**4 + dx**4) ** np.float32(0.25) + np.float32(unit) * np.sin(3 * np.arctan2(dy, dx) + phase)
    canvas.paint(SAND, window, np.float32(reach) - islet, _sand_shade(window))
    depth = np.float32(radius) - np.hypot(dy, dx)
    # The disc is lit from the upper left and darker towards the boundary, like a ball of wool.
    ball = -7 * (dx + dy) / np.float32(radius) - 8 * (1 - np.clip(depth / np.float32(radius), 0, 1)) ** 2
    canvas.paint(label, window, depth, ball + 8 * window.soft + 3 * window.fine)


def _draw_buildings(canvas: _Canvas, horizon: float) -> None:
    """Draw houses and trees side by side on the horizon."""
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
    # The ridge of the hipped roof is 0.4 times as long as its eaves, so that roof and canopy have similar areas.
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
    # The lower side is flat, so that a canopy ends at the same height as a roof.
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
    """Return a sine curve with a random phase. `height` and `length` are in units, `along` is in pixels."""
    phase = canvas.rng.uniform(0, 2 * np.pi)
    turns = along * np.float32(2 * np.pi / (length * canvas.unit)) + np.float32(phase)
    return np.float32(height * canvas.unit) * np.sin(turns)


def _box_depth(window: _Window, top: float, bottom: float, left: float, right: float) -> Floats:
    across = np.minimum(window.x - np.float32(left), np.float32(right) - window.x)
    return np.minimum(np.minimum(window.y - np.float32(top), np.float32(bottom) - window.y), across)
