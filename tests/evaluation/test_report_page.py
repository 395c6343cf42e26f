import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import pytest
import torch
from PIL import Image

from contextcrf.data.classes import Classes
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.comparison import Difference, Gain
from contextcrf.evaluation.evaluate import EvaluationResults, SystemResult, default_systems, evaluate
from contextcrf.evaluation.report import write_report
from contextcrf.evaluation.report_page import Example, pick, render
from contextcrf.inference.predictor import Predictor


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def result_of(name, *counts):
    return SystemResult(name, torch.tensor(counts), 0.25)


def results_of(classes, *results):
    return EvaluationResults(classes.names, results, {"data": "two"})


def image(hits):
    return [[hits, 10 - hits], [10 - hits, hits]]


def test_the_best_the_middle_and_the_worst_images_are_picked_and_none_twice():
    counts = torch.tensor([*(image(hits) for hits in (3, 9, 5, 0, 7, 10, 6)), [[0, 0], [0, 0]]])
    assert pick(counts, 2) == {"Best": [5, 1], "Median": [4, 6], "Worst": [0, 3]}
    assert pick(counts, 1) == {"Best": [5], "Median": [6], "Worst": [3]}
    assert pick(torch.tensor([image(3)]), 2) == {"Best": [0]}
    assert pick(torch.tensor([image(3), image(4)]), 2) == {"Best": [1], "Worst": [0]}


def test_the_page_stands_by_itself_and_has_the_scores_of_the_table(tiny_model, scenes, tmp_path):
    data, systems = open_dataset(scenes, "val"), default_systems(tiny_model)
    measured = evaluate(Predictor(tiny_model), data, systems, keep_labels=(systems[0], systems[-1]))
    results = EvaluationResults(data.classes.names, measured, {"data": "scenes val"})
    write_report(data, results, tmp_path, pictures=3)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert len(sources) == 3 * (5 + 4)  # for three images: the photograph in five columns, four of them covered
    assert all(source.startswith(("data:image/png", "data:image/jpeg")) for source in sources)
    for system in results.systems:
        assert system.name in page.text
        assert f"{100 * system.matrix.mean_iou():.1f}" in page.text
    assert all(path.name in page.text for path, _ in data.pairs)
    assert "Change from unary to unary+pairwise: green pixels have become right" in page.text


def test_confusions_are_shares_of_the_truth():
    classes = Classes(["sea", "<sky>"], [(0, 0, 0), (1, 2, 3)])
    page = render(results_of(classes, result_of("unary", [[30, 10], [0, 60]])), classes, {})
    assert "25.0 % of the sea pixels are labeled &lt;sky&gt; (100.0 % of all errors)" in page
    assert page.count("are labeled &") == 1
    assert re.findall(r"<td style=[^>]*>(\d*)</td>", page) == ["75", "25", "", "100"]
    assert "<sky>" not in page


def test_a_page_without_mistakes_and_pictures_lists_none():
    classes = Classes(["a", "b"], [(0, 0, 0), (1, 2, 3)])
    page = render(results_of(classes, result_of("unary", [[30, 0], [0, 60]])), classes, {})
    assert "are labeled" not in page
    assert "<img" not in page


@pytest.mark.parametrize("known", [True, False])
def test_a_class_that_never_occurs_has_a_dash(known):
    classes = Classes(["a", "b"], [(0, 0, 0), (1, 2, 3)])
    page = render(results_of(classes, result_of("r", [[5, 0], [0, 5 * known]])), classes, {})
    assert ("<td>-</td>" in page) is not known


@pytest.mark.parametrize(
    ("height", "width", "size"), [(900, 1600, (800, 450)), (2000, 50, (20, 800)), (60, 80, (80, 60))]
)
def test_large_pictures_are_embedded_small(height, width, size):
    classes = Classes(["a", "b"], [(10, 20, 30), (200, 100, 0)])
    left = (torch.arange(width) < width // 2).long().expand(height, width)
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    example = Example("x.png", 0.5, pixels, left, {"unary": 1 - left, "crf": left})
    results = results_of(classes, result_of("crf", [[5, 0], [0, 5]]))
    page = Page(render(results, classes, {"Best": [example]}))
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    pictures = [Image.open(BytesIO(base64.b64decode(source.split(",")[1]))) for source in sources]
    assert {picture.size for picture in pictures} == {size}
    # No label is mixed with its neighbor.
    covers = [picture for picture in pictures if picture.format == "PNG"]
    assert [len(cover.getcolors()) for cover in covers] == [2, 2, 2, 1]


def test_settings_are_shown_as_yaml_and_the_gains_as_sentences():
    classes = Classes(["a", "b"], [(0, 0, 0), (1, 2, 3)])
    gain = Gain("unary", "unary+pairwise", Difference(0.5, 0.6, 0.05, 0.15), "The pairwise terms raise the mean IoU.")
    settings = {"iterations": 3, "relation_weights": {"above": None}}
    metadata = {"data": "two", "command": "`contextcrf evaluate`", "inference": settings}
    results = EvaluationResults(classes.names, [result_of("unary", [[5, 0], [0, 5]])], metadata, [gain])
    page = render(results, classes, {})
    assert "<pre>iterations: 3\nrelation_weights:\n  above: null</pre>" in page
    assert '<td style="text-align: left">contextcrf evaluate</td>' in page
    assert "{&#39;" not in page
    assert str(gain).replace(">", "&gt;") in page
    results.gains, results.metadata = (), {"inference": {}}
    page = render(results, classes, {})
    assert "<pre>default</pre>" in page
    assert "mIoU gain" not in page
