"""The pictures that go with results, and pictures of explanations."""

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf import ContextCRF, Predictor, Segmentation
from contextcrf.crf import Explanation
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.evaluate import EvaluationResults, evaluate
from contextcrf.evaluation.report import draw_explanation, draw_messages, write_report
from contextcrf.inference import FULL, UNARY_ONLY, UNARY_PAIRWISE
from models import CLASSES, count_trunk_runs, images, settings, tiny, untrained


@pytest.fixture
def data(scenes):
    return open_dataset(scenes, "val")


def results_of(model, data, systems, keep):
    measured = evaluate(Predictor(model), data, systems, keep_labels=keep)
    return EvaluationResults(data.classes.names, measured, {"data": "val"})


def test_a_report_runs_no_network(tiny_model, data, tmp_path, monkeypatch):
    systems = [UNARY_ONLY, UNARY_PAIRWISE, FULL]
    results = results_of(tiny_model, data, systems, (UNARY_ONLY, FULL))

    def refuse(*_, **__):
        raise AssertionError("a network runs")

    for kind, name in ((Predictor, "predict"), (Predictor, "extract_features"), (ContextCRF, "features")):
        monkeypatch.setattr(kind, name, refuse)
    with count_trunk_runs(tiny_model) as count:
        write_report(data, results, tmp_path / "new", pictures=3)
        assert count() == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["examples.png", "iou.png", "report.html"]
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    for path, _ in data.pairs:
        assert path.name in page


def test_examples_show_the_labels_of_the_first_and_the_last_system(tiny_model, data, tmp_path):
    results = results_of(tiny_model, data, [UNARY_ONLY, UNARY_PAIRWISE, FULL], (UNARY_ONLY, FULL))
    write_report(data, results, tmp_path, pictures=1)
    grid = np.asarray(Image.open(tmp_path / "examples.png").convert("RGB"))
    image, mask = data.sample(0)
    height, width = mask.shape
    palette = np.array([*data.classes.palette, *[(0, 0, 0)] * (255 - len(data.classes)), (224, 224, 192)])
    first, last = (Predictor(tiny_model).segment(torch.as_tensor(image), s).labels for s in (UNARY_ONLY, FULL))
    expected = [image.permute(1, 2, 0).numpy(), *(palette[labels.numpy()] for labels in (mask, first, last))]
    top = 6 * 2 + 13  # below the titles
    for column, picture in enumerate(expected):
        left = 6 + column * (width + 6)
        assert np.array_equal(grid[top : top + height, left : left + width], picture)


def test_without_pictures_no_labels_are_needed(tiny_model, data, tmp_path):
    results = results_of(tiny_model, data, [UNARY_ONLY], ())
    write_report(data, results, tmp_path, pictures=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iou.png", "report.html"]
    with pytest.raises(ValueError, match="labels of system 'unary' were not kept"):
        write_report(data, results, tmp_path, pictures=1)


def test_one_system_is_shown_once(tiny_model, data, tmp_path):
    results = results_of(tiny_model, data.spread(1), [UNARY_PAIRWISE], (UNARY_PAIRWISE,))
    write_report(data.spread(1), results, tmp_path, pictures=6)
    with Image.open(tmp_path / "examples.png") as picture:
        assert picture.width == 3 * 96 + 4 * 6


def test_an_explanation_has_a_picture_for_each_relation():
    model, pixels = tiny(inference=settings(relation_weights={"above": 4.0})), images()[0]
    picture = draw_explanation(Predictor(model), pixels, (20, 30))
    assert picture.width == 3 * 64 + 4 * 6
    other = draw_explanation(Predictor(model, settings(relation_weights={"above": 0.0})), pixels, (20, 30))
    assert picture.tobytes() != other.tobytes()


def test_the_pushes_of_an_explanation_are_those_of_the_label_over_the_second_label():
    marginals = torch.full((3, 40, 40), 0.1)
    marginals[2], marginals[0] = 0.6, 0.3
    segmentation = Segmentation(torch.full((3, 40, 40), 90, dtype=torch.uint8), marginals, CLASSES)
    # One neighbor raises the label over the second one; the third label does not count.
    message = torch.tensor([[0.0, 9.0, 1.0]])
    found = Explanation(torch.tensor([[0, 1]]), torch.tensor([True]), message, size=(2, 2))
    opposed = Explanation(found.neighbors, found.owns, -message, found.size)
    colors = []
    for explanation in (found, opposed):
        grid = np.asarray(draw_messages(segmentation, {"above": explanation}, (39, 0), {"above": 1.0})).astype(int)
        map_ = grid[25:65, 52:92]  # below the titles, in the second column
        assert (map_[5, 5] == 90).all()  # there is no neighbor
        colors.append(map_[5, 30])
    assert colors[0][0] > colors[0][2] + 100  # red
    assert colors[1][2] > colors[1][0] + 100  # blue


@pytest.mark.parametrize(
    "model", [untrained(), tiny(inference=settings(relation_weights={"surrounding": 0.0, "above": 0.0}))]
)
def test_relations_without_effect_have_no_picture(model):
    with pytest.raises(ValueError, match=r"No neighbor changes the label of pixel \(20, 30\): .*above"):
        draw_explanation(Predictor(model), images()[0], (20, 30))


def test_a_pixel_outside_the_image_is_refused():
    with pytest.raises(ValueError, match="pixel"):
        draw_explanation(Predictor(tiny()), images()[0], (48, 0))
