"""Context scenes: the two classes of a pair look alike, and only what is around or above tells them apart."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from contextcrf.data.classes import Classes
from contextcrf.data.synthetic import (
    BOAT,
    CANOPY,
    CLASSES,
    GRASS,
    ROOF,
    SHEEP,
    TRUNK,
    WALL,
    WATER,
    ContextScenes,
    write_scenes,
)

PAIRS = [(SHEEP, BOAT), (WALL, TRUNK)]
STRIDE = 8
# What gives an ambiguous class away, and what gives its twin away.
OWN_AND_TWIN_CONTEXT = {SHEEP: (GRASS, WATER), BOAT: (WATER, GRASS), WALL: (ROOF, CANOPY), TRUNK: (CANOPY, ROOF)}


def draw(count, **arguments):
    scenes = ContextScenes(count, **arguments)
    return [scenes.render(index) for index in range(count)]


@pytest.fixture(scope="module")
def drawn():
    return draw(80)


@pytest.fixture(scope="module")
def small():
    return draw(300, height=64, width=96)


def nodes(labels):
    """(class, y, x) of each ambiguous node of the stride-8 grid, with the labels [h, w] on that grid."""
    grid = labels[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    ys, xs = np.nonzero(grid >= SHEEP)
    return grid, [(int(grid[y, x]), y, x) for y, x in zip(ys, xs, strict=True)]


def objects(image, labels, label):
    """The pixels [n, 3] of each object of a class, without its rim. Objects are runs of columns."""
    inside = labels == label
    for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
        inside = inside & np.roll(labels == label, 2 * shift, axis)
    columns = np.flatnonzero(inside.any(axis=0))
    if columns.size:
        for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
            yield image[:, run][inside[:, run]].astype(float)


def test_items(drawn):
    scenes = ContextScenes(3, split="val", height=64, width=80)
    image, mask = scenes[2]
    assert isinstance(image, tv_tensors.Image)
    assert isinstance(mask, tv_tensors.Mask)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 64, 80))
    assert (mask.dtype, mask.shape) == (torch.int64, (64, 80))
    assert (len(scenes), scenes.split, scenes.classes) == (3, "val", CLASSES)
    assert set(np.unique([labels for _, labels in drawn])) == set(range(len(CLASSES)))
    with pytest.raises(IndexError):
        scenes[3]


def test_deterministic():
    first, again = draw(3), draw(3)
    for (image, labels), (other_image, other_labels) in zip(first, again, strict=True):
        np.testing.assert_array_equal(image, other_image)
        np.testing.assert_array_equal(labels, other_labels)
    # Item 1 does not depend on item 0 having been drawn, nor on the size.
    np.testing.assert_array_equal(ContextScenes(2).render(1)[0], first[1][0])


def test_splits_and_seeds_differ():
    images = [*draw(3), *draw(3, split="val"), *draw(3, seed=1)]
    assert len({image.tobytes() for image, _ in images}) == 9


@pytest.mark.parametrize(
    "arguments",
    [{"size": -1}, {"seed": -1}, {"split": "test"}, {"height": 32}, {"width": 100}, {"ambiguity": 1.5}],
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="expected"):
        ContextScenes(**arguments)


@pytest.mark.parametrize("pair", PAIRS, ids=["disc", "planks"])
def test_twins_look_the_same(drawn, pair):
    """The mean and the spread of the colors of an object have the same distribution for both classes."""
    features = []
    for label in pair:
        pixels = [p for image, labels in drawn for p in objects(image, labels, label)]
        features.append(np.array([[*p.mean(axis=0), *p.std(axis=0)] for p in pixels]))
    first, second = features
    error = np.sqrt(first.var(axis=0) / len(first) + second.var(axis=0) / len(second))
    assert (np.abs(first.mean(axis=0) - second.mean(axis=0)) < 3.5 * error).all()
    np.testing.assert_allclose(first.std(axis=0), second.std(axis=0), rtol=0.35)


@pytest.mark.parametrize("pair", PAIRS, ids=["disc", "planks"])
def test_twins_differ_without_ambiguity(pair):
    distances = []
    for ambiguity in (0.0, 0.5, 1.0):
        drawn = draw(20, ambiguity=ambiguity)
        first, second = (np.concatenate([image[labels == c] for image, labels in drawn]).mean(axis=0) for c in pair)
        distances.append(np.abs(first - second).max())
    assert distances[0] > 60
    assert distances[1] == pytest.approx(distances[0] / 2, rel=0.2)
    assert distances[2] < 6


@pytest.mark.parametrize("pair", PAIRS, ids=["disc", "planks"])
def test_twins_stand_at_the_same_places_equally_often(small, pair):
    """Balanced over all, and in the left, middle and right of the scene; the rows are the same too."""
    stack = np.stack([labels for _, labels in small])
    first, second = (stack == label for label in pair)
    # Tolerances are four standard deviations of the share of heads: 900 objects, 300 in a third of the width.
    assert first.sum() / (first | second).sum() == pytest.approx(0.5, abs=0.07)
    for part in np.array_split(np.arange(stack.shape[2]), 3):
        assert first[:, :, part].sum() / (first | second)[:, :, part].sum() == pytest.approx(0.5, abs=0.12)
    rows = np.arange(stack.shape[1])
    heights = [np.average(rows, weights=which.sum(axis=(0, 2))) for which in (first, second)]
    assert heights[0] == pytest.approx(heights[1], abs=0.5)


def test_most_of_an_object_shows_no_context(drawn):
    """At least half of the cells of each ambiguous class have none of the deciding context within 12 px."""
    for label in OWN_AND_TWIN_CONTEXT:
        hidden = []
        for _, labels in drawn[:30]:
            for which, y, x in nodes(labels)[1]:
                cy, cx = STRIDE * y + STRIDE // 2, STRIDE * x + STRIDE // 2
                view = labels[max(0, cy - 12) : cy + 12, max(0, cx - 12) : cx + 12]
                if which == label:
                    hidden.append(not np.isin(view, OWN_AND_TWIN_CONTEXT[label]).any())
        assert np.mean(hidden) >= 0.5


def test_context_decides():
    """An oracle that counts the context labels in the boxes of the relations is right nearly always."""
    right = []
    for _, labels in draw(40, split="val"):
        grid, ambiguous = nodes(labels)
        a = min(grid.shape)
        side, up = int(0.2 * a), int(0.3 * a)
        for label, y, x in ambiguous:
            bottom = y + side + 1 if label in (SHEEP, BOAT) else y
            top = y - side if label in (SHEEP, BOAT) else y - up
            box = grid[max(0, top) : bottom, max(0, x - side) : x + side + 1]
            own, twin = OWN_AND_TWIN_CONTEXT[label]
            right.append((box == own).sum() > (box == twin).sum())
    assert np.mean(right) >= 0.99


def test_write_scenes(tmp_path):
    root = write_scenes(tmp_path / "scenes", train=2, val=1, height=64, width=96)
    assert Classes.from_yaml(root / "classes.yaml") == (CLASSES, 255)
    assert (root / "splits" / "train.txt").read_text() == "train_0000\ntrain_0001\n"
    assert (root / "splits" / "val.txt").read_text() == "val_0000\n"
    image, labels = ContextScenes(1, "val", height=64, width=96).render(0)
    with Image.open(root / "images" / "val_0000.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), image)
    with Image.open(root / "masks" / "val_0000.png") as stored:
        assert stored.mode == "P"
        np.testing.assert_array_equal(np.asarray(stored), labels)
        np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), np.array(CLASSES.palette, np.uint8)[labels])
