"""Differences between systems, against what can be counted by hand."""

import numpy as np
import pytest
import torch

from contextcrf.cli import main
from contextcrf.comparison import COUNTS, Difference, compare, mean_iou, paired_bootstrap, read_counts, write_counts
from contextcrf.data.dataset import open_dataset
from contextcrf.errors import DataError
from contextcrf.evaluation import evaluate, systems
from contextcrf.storage import save


def matrices(images: int, hits: float, seed: int = 0) -> torch.Tensor:
    """Two classes of 50 pixels each in every image, about `hits` of them right."""
    right = torch.distributions.Binomial(50, torch.tensor(hits))
    torch.manual_seed(seed)
    found = right.sample((images, 2)).long()
    return torch.diag_embed(found) + torch.diag_embed(50 - found).flip(-1)


def test_mean_iou_is_that_of_the_evaluation(tiny_model, scenes):
    data = open_dataset(scenes, "val")
    for row in evaluate(tiny_model, data, systems(tiny_model), progress=False):
        assert len(row.images) == len(data)
        counts = torch.stack(row.images)
        torch.testing.assert_close(counts.sum(0), row.matrix.counts)
        assert float(mean_iou(counts.sum(0))) == pytest.approx(row.matrix.mean_iou(), abs=1e-12)


def test_a_class_that_occurs_nowhere_does_not_count():
    # Class 2 in neither truth nor prediction: (3 / 5 + 2 / 4) / 2.
    assert float(mean_iou(torch.tensor([[3, 1, 0], [1, 2, 0], [0, 0, 0]]))) == pytest.approx(0.55)


def test_the_interval_is_that_of_the_mean_where_there_is_a_formula():
    # With one class all of whose pixels are truth, the IoU is the mean of the shares found: the interval of a
    # difference of means is 1.96 standard errors of the paired differences to either side.
    generator = torch.Generator().manual_seed(0)
    shares = torch.randint(40, 61, (2, 400), generator=generator)
    shares[1] += 5 + shares[0] // 4
    first, second = (
        torch.stack([part, 100 - part, torch.zeros_like(part), torch.zeros_like(part)], 1) for part in shares
    )
    counts = [part.view(-1, 2, 2) for part in (first, second)]
    found = paired_bootstrap(*counts, samples=20_000)
    # The other class is predicted and never true: an IoU of 0, so that the mean IoU is half of the first.
    paired = (shares[1] - shares[0]).double() / 100 / 2
    error = 1.96 * float(paired.std()) / 20
    assert found.second - found.first == pytest.approx(float(paired.mean()), abs=1e-12)
    assert found.low == pytest.approx(float(paired.mean()) - error, abs=0.1 * error)
    assert found.high == pytest.approx(float(paired.mean()) + error, abs=0.1 * error)


def test_pairs_tell_more_than_two_samples():
    first = matrices(60, 0.7)
    better = first.clone()
    # Every image gains one pixel of the first class.
    better[:, 0, 0] += 1
    better[:, 0, 1] -= 1
    paired = paired_bootstrap(first, better)
    shuffled = paired_bootstrap(first, better[torch.randperm(60)])
    assert paired.low > 0
    assert shuffled.high - shuffled.low > 5 * (paired.high - paired.low)


def test_a_system_does_not_beat_itself():
    counts = matrices(20, 0.8)
    assert paired_bootstrap(counts, counts) == Difference(*[float(mean_iou(counts.sum(0)))] * 2, 0.0, 0.0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\[3, 2, 2\] and \[4, 2, 2\]"):
        paired_bootstrap(matrices(3, 0.5), matrices(4, 0.5))


def test_the_command_line_compares_rows_of_one_evaluation(tiny_model, scenes, tmp_path, capsys):
    save(tiny_model, tmp_path / "model")
    out = tmp_path / "val"
    main(["evaluate", str(tmp_path / "model"), "--data", str(scenes), "--out", str(out), "--pictures", "1"])
    images, rows = read_counts(out / COUNTS)
    assert images == [path.name for path, _ in open_dataset(scenes, "val").pairs]
    assert list(rows) == ["unary", "pairwise-surrounding", "pairwise-above", "1unary+2pair"]
    capsys.readouterr()
    main(["compare", str(out), str(out), "--first_row", "unary", "--second_row", "1unary+2pair"])
    expected = paired_bootstrap(rows["unary"], rows["1unary+2pair"])
    assert capsys.readouterr().out == f"{expected}\n"


def test_a_difference_is_printed_in_percent():
    assert str(Difference(0.5, 0.525, -0.001, 0.051)) == "50.00 -> 52.50: +2.50 [-0.10, +5.10]"


def test_what_cannot_be_compared_is_refused_by_name(tmp_path):
    for name, images, classes in (
        ("a", ["1.png", "2.png"], 2),
        ("b", ["1.png", "3.png"], 2),
        ("c", ["1.png", "2.png"], 3),
    ):
        (tmp_path / name).mkdir()
        counts = torch.ones(2, classes, classes, dtype=torch.int64)
        write_counts(tmp_path / name / COUNTS, images, {"unary": counts, "crf": counts})
    a, b, c = (tmp_path / name for name in "abc")
    with pytest.raises(DataError, match=r"no row 'full'; expected one of unary, crf"):
        compare(a, a, "unary", "full")
    with pytest.raises(DataError, match=r"no row None; expected one of unary, crf"):
        compare(a, a, None, "crf")
    with pytest.raises(DataError, match=r"expected the same images, but 2\.png is in one only"):
        compare(a, b, "unary", "unary")
    with pytest.raises(DataError, match="2 and 3 classes"):
        compare(a, c, "unary", "unary")
    with pytest.raises(
        DataError, match=r"nowhere.images\.npz: no such file; expected what `contextcrf evaluate` wrote"
    ):
        compare(tmp_path / "nowhere", a, "unary", "unary")
    (b / COUNTS).write_bytes(b"PK")
    with pytest.raises(DataError, match=r"images\.npz: .*expected what `contextcrf evaluate` wrote"):
        compare(a, b, "unary", "unary")
    np.savez(b / COUNTS, other=np.ones(3))
    with pytest.raises(DataError, match=r"holds \['other'\]"):
        compare(a, b, "unary", "unary")
