"""Differences between systems, against what can be counted by hand."""

import numpy as np
import pytest
import torch

from contextcrf.cli.main import main
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.comparison import (
    COUNTS,
    Difference,
    compare,
    gains,
    paired_bootstrap,
    read_counts,
    write_counts,
)
from contextcrf.evaluation.evaluate import default_systems, evaluate
from contextcrf.evaluation.metrics import mean_iou
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.serialization import save
from contextcrf.utils.errors import DataError


def matrices(images: int, hits: float, seed: int = 0) -> torch.Tensor:
    """Two classes of 50 pixels each in every image, about `hits` of them right."""
    right = torch.distributions.Binomial(50, torch.tensor(hits))
    torch.manual_seed(seed)
    found = right.sample((images, 2)).long()
    return torch.diag_embed(found) + torch.diag_embed(50 - found).flip(-1)


def test_mean_iou_is_that_of_the_evaluation(tiny_model, scenes):
    data = open_dataset(scenes, "val")
    for result in evaluate(Predictor(tiny_model), data, default_systems(tiny_model)):
        found = paired_bootstrap(result.counts, result.counts)
        assert found.first == pytest.approx(result.matrix.mean_iou(), abs=1e-12)


def test_a_class_that_occurs_nowhere_and_an_image_without_truth_do_not_count():
    # Class 2 in neither truth nor prediction: (3 / 5 + 2 / 4) / 2.
    image = torch.tensor([[3, 1, 0], [1, 2, 0], [0, 0, 0]])
    counts = torch.stack([image, torch.zeros_like(image), image])
    assert paired_bootstrap(counts, counts) == Difference(0.55, 0.55, 0.0, 0.0)


def test_trainings_of_one_system_are_averaged():
    counts = torch.stack([matrices(30, hits, seed) for seed, hits in enumerate((0.5, 0.6, 0.7, 0.9))])
    singles = [paired_bootstrap(counts[i], counts[3]) for i in range(3)]
    together = paired_bootstrap(counts[:3], counts[3])
    assert together.first == pytest.approx(sum(single.first for single in singles) / 3)
    assert together.second == pytest.approx(singles[0].second)
    # The mean of three moves less than each of them.
    assert 0 < together.high - together.low < max(single.high - single.low for single in singles)
    assert together.low < sum(single.second - single.first for single in singles) / 3 < together.high
    counts[2, 7] += 1
    with pytest.raises(ValueError, match="ground truth of image 7 differs"):
        paired_bootstrap(counts[:3], counts[3])


@pytest.mark.parametrize(("known", "found"), [(0, "0 images"), (1, "1 image")])
def test_one_image_has_no_interval(known, found):
    counts = matrices(3, 0.5)
    counts[known:] = 0
    with pytest.raises(ValueError, match=f"Only {found} with labeled pixels: expected 2 or more"):
        paired_bootstrap(counts, counts)


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
    # The other class is predicted and never true, so that the mean IoU is the IoU of the first.
    paired = (shares[1] - shares[0]).double() / 100
    error = 1.96 * float(paired.std()) / 20
    assert found.second - found.first == pytest.approx(float(paired.mean()), abs=1e-12)
    assert found.low == pytest.approx(float(paired.mean()) - error, abs=0.1 * error)
    assert found.high == pytest.approx(float(paired.mean()) + error, abs=0.1 * error)


def test_a_class_without_ground_truth_does_not_change_which_classes_are_averaged():
    """A stray pixel of such a class once halved the mean IoU of one of the two systems."""
    stray = torch.tensor([[[6000, 400, 0], [400, 3199, 1], [0, 0, 0]]]).repeat(8, 1, 1)
    right = torch.tensor([[[6000, 400, 0], [400, 3200, 0], [0, 0, 0]]]).repeat(8, 1, 1)
    found = paired_bootstrap(stray, right, samples=100)
    assert 0 < found.second - found.first < 2e-4
    assert (found.first, found.second) == pytest.approx((mean_iou(stray.sum(0)).item(), mean_iou(right.sum(0)).item()))


def test_draws_without_a_class_average_the_same_classes_for_both_systems():
    """Half of the images have class 2, and only the first system predicts it in the others."""
    rare = torch.tensor([[90, 10, 0], [10, 90, 0], [0, 0, 50]])
    common = torch.tensor([[[90, 10, 0], [10, 89, 1], [0, 0, 0]], [[90, 10, 0], [10, 90, 0], [0, 0, 0]]])
    counts = [torch.stack([rare, *[matrix] * 3]) for matrix in common]
    found = paired_bootstrap(*counts, samples=2000)
    assert found.high < 0.05


def test_pairs_give_a_narrower_interval_than_two_samples():
    first = matrices(60, 0.7)
    better = first.clone()
    # Every image gains one pixel of the first class.
    better[:, 0, 0] += 1
    better[:, 0, 1] -= 1
    paired = paired_bootstrap(first, better)
    shuffled = paired_bootstrap(first, better[torch.randperm(60)])
    assert paired.low > 0
    assert shuffled.high - shuffled.low > 5 * (paired.high - paired.low)


def test_frames_that_repeat_each_other_count_as_one():
    first, second = matrices(12, 0.6), matrices(12, 0.7)
    single = paired_bootstrap(first, second)
    # Every image four times, one after the other: blocks of them give the interval of the images.
    frames = [counts.repeat_interleave(4, 0) for counts in (first, second)]
    assert paired_bootstrap(*frames, block=4) == single
    alone = paired_bootstrap(*frames)
    assert alone.high - alone.low < 0.6 * (single.high - single.low)
    # The last block may be shorter.
    assert paired_bootstrap(*frames, block=5).second == pytest.approx(single.second)
    with pytest.raises(ValueError, match="1 block of 48 images"):
        paired_bootstrap(*frames, block=48)
    with pytest.raises(ValueError, match="block=0"):
        paired_bootstrap(*frames, block=0)


def test_a_system_does_not_beat_itself():
    counts = matrices(20, 0.8)
    found = paired_bootstrap(counts, counts)
    assert found == Difference(found.first, found.first, 0.0, 0.0)
    assert 0.5 < found.first < 0.8


def test_shapes_and_truths_must_agree():
    first = matrices(3, 0.5)
    second = first.clone()
    second[1] = second[1].T + torch.tensor([[1, 0], [0, 0]])
    with pytest.raises(ValueError, match="ground truth of image 1 differs"):
        paired_bootstrap(first, second)
    with pytest.raises(ValueError, match=r"\[3, 2, 2\] and \[4, 2, 2\]"):
        paired_bootstrap(matrices(3, 0.5), matrices(4, 0.5))


def test_the_command_line_compares_systems_of_one_evaluation(tiny_model, scenes, tmp_path, capsys):
    save(tiny_model, tmp_path / "model")
    out = tmp_path / "val"
    main(["evaluate", str(tmp_path / "model"), "--data", str(scenes), "--out", str(out), "--pictures", "1"])
    images, systems = read_counts(out / COUNTS)
    assert images == [f"images/{path.name}" for path, _ in open_dataset(scenes, "val").pairs]
    assert list(systems) == ["unary", "surrounding", "above", "unary+pairwise"]
    capsys.readouterr()
    main(["compare", str(out), str(out), "--first-system", "unary", "--second-system", "unary+pairwise"])
    expected = paired_bootstrap(systems["unary"], systems["unary+pairwise"])
    assert capsys.readouterr().out == f"{expected}\n"


def test_a_difference_is_printed_in_percent():
    assert str(Difference(0.5, 0.525, -0.001, 0.051)) == "50.00 -> 52.50: +2.50 [-0.10, +5.10]"


def test_only_classes_of_enough_images_count(tmp_path):
    counts, better = torch.zeros(2, 4, 3, 3, dtype=torch.int64)
    counts[:, 0, 0] = 8
    counts[:2, 1] = torch.tensor([3, 5, 0])
    counts[0, 2] = torch.tensor([4, 0, 0])
    better[:] = counts
    better[0, 2] = torch.tensor([0, 0, 4])
    write_counts(tmp_path / COUNTS, list("abcd"), {"first": counts, "second": better})
    found = [compare(tmp_path, tmp_path, "first", "second", min_images=least) for least in (0, 1, 2, 4)]
    assert [found[k].second for k in range(3)] == pytest.approx(
        [(32 / 38 + 10 / 16 + 1) / 3, (32 / 38 + 10 / 16 + 1) / 3, (32 / 38 + 10 / 16) / 2]
    )
    assert (found[3].first, found[3].second) == pytest.approx((32 / 42, 32 / 38))
    with pytest.raises(DataError, match="no class occurs in 5 or more of the 4 images"):
        compare(tmp_path, tmp_path, "first", "second", min_images=5)


def test_the_gains_of_the_pairwise_terms_and_of_the_dense_crf_are_put_into_words():
    names = ("unary", "unary+pairwise", "unary+pairwise+dense")

    def sentences(*shares):
        return gains(dict(zip(names, (matrices(20, share) for share in shares), strict=False)))

    better, worse = sentences(0.5, 0.7, 0.6)
    expected = paired_bootstrap(matrices(20, 0.5), matrices(20, 0.7))
    assert (better.first, better.second, better.difference) == ("unary", "unary+pairwise", expected)
    assert better.verdict == "The pairwise terms raise the mean IoU."
    assert (worse.first, worse.second) == ("unary+pairwise", "unary+pairwise+dense")
    assert worse.verdict == (
        "The dense CRF lowers the mean IoU. Choose its parameters with `contextcrf tune --dense`, on images that the "
        "network was not trained on."
    )
    [worse] = sentences(0.7, 0.5)
    assert worse.verdict == (
        "The pairwise terms lower the mean IoU. Choose their weights with `contextcrf tune`, on images that the "
        "network was not trained on."
    )
    tuned = gains({"unary": matrices(20, 0.9), "unary+pairwise": matrices(20, 0.5)}, tuned=True)
    assert "contextcrf tune" not in tuned[0].verdict
    assert 'switch them off with "relation_weights" of 0 in config.json of the model.' in tuned[0].verdict
    [chance] = gains({"unary": matrices(20, 0.5), "unary+pairwise+dense": matrices(20, 0.5, seed=1)})
    assert (chance.first, chance.second) == ("unary", "unary+pairwise+dense")
    assert chance.verdict == "The interval contains 0, so the effect of the dense CRF may be due to chance."
    [same] = sentences(0.5, 0.5)
    assert str(same).endswith(
        "gain +0.00, 95% CI [+0.00, +0.00]. Both systems have the same counts for every image, as with weights of 0 of "
        "the pairwise terms."
    )
    assert gains({"unary": matrices(1, 0.5), "unary+pairwise": matrices(1, 0.9)}) == []
    assert gains({"deeplab": matrices(20, 0.5)}) == []


def test_what_cannot_be_compared_is_refused_by_name(tmp_path):
    for name, images, classes in (
        ("a", ["1.png", "2.png"], 2),
        ("b", ["1.png", "3.png"], 2),
        ("c", ["1.png", "2.png"], 3),
    ):
        (tmp_path / name).mkdir()
        counts = torch.ones(2, classes, classes, dtype=torch.int64)
        write_counts(tmp_path / name / COUNTS, images, {"unary": counts, "above": counts})
    a, b, c = (tmp_path / name for name in "abc")
    with pytest.raises(DataError, match=r"no system 'full'. Choose one of unary, above"):
        compare(a, a, "unary", "full")
    with pytest.raises(DataError, match=r"several systems: unary, above. Choose one with --first-system"):
        compare(a, a, None, "above")
    with pytest.raises(DataError, match=r"do not have the same images: 2\.png is in only one of them"):
        compare(a, b, "unary", "unary")
    with pytest.raises(DataError, match="2 and 3 classes"):
        compare(a, c, "unary", "unary")
    with pytest.raises(DataError, match=r"nowhere.images\.npz does not exist. Write it with `contextcrf evaluate`"):
        compare(tmp_path / "nowhere", a, "unary", "unary")
    # The name may be left out where there is one system.
    write_counts(b / COUNTS, ["1.png", "2.png"], {"unary": torch.ones(2, 2, 2, dtype=torch.int64)})
    assert compare(a, b, "above") == Difference(1 / 3, 1 / 3, 0.0, 0.0)
    write_counts(b / COUNTS, ["1.png", "2.png", "2.png"], {"unary": torch.ones(3, 2, 2, dtype=torch.int64)})
    with pytest.raises(DataError, match="their order or number differs"):
        compare(a, b, "unary", "unary")


def damaged(whole: bytes) -> dict[str, bytes]:
    middle = len(whole) // 4
    return {
        "nothing": b"",
        "another": b"PK",
        "truncated": whole[:-30],
        "corrupt": whole[:middle] + bytes(20) + whole[middle + 20 :],
    }


@pytest.mark.parametrize("damage", ["nothing", "another", "truncated", "corrupt"])
def test_damaged_files_are_named(tmp_path, damage):
    counts = torch.arange(4000).view(1000, 2, 2) % 7
    write_counts(tmp_path / COUNTS, [f"{i}.png" for i in range(1000)], {"unary": counts})
    (tmp_path / COUNTS).write_bytes(damaged((tmp_path / COUNTS).read_bytes())[damage])
    with pytest.raises(DataError, match=r"images\.npz .*[Ww]rit.* `?contextcrf evaluate`"):
        read_counts(tmp_path / COUNTS)


def test_files_of_others_are_named(tmp_path):
    np.savez(tmp_path / COUNTS, other=np.ones(3))
    with pytest.raises(DataError, match=r"contains the arrays \['other'\]"):
        read_counts(tmp_path / COUNTS)
    with (tmp_path / COUNTS).open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(DataError, match=r"contains the arrays \[\]"):
        read_counts(tmp_path / COUNTS)


def results(folder, images, counts):
    """Write the results of the systems "unary" and "better", where the latter has one more hit in every image."""
    more = counts + torch.tensor([[1, -1], [-1, 1]])
    write_counts(folder / COUNTS, images, {"unary": counts, "better": more})
    return folder


def test_folders_with_different_images_are_pooled(tmp_path):
    counts = matrices(20, 0.6)
    names = [f"{i}.png" for i in range(20)]
    whole = results(tmp_path / "whole", names, counts)
    folds = [results(tmp_path / str(k), names[part], counts[part]) for k, part in enumerate((slice(8), slice(8, 20)))]
    assert compare(folds, folds, "unary", "better") == compare(whole, whole, "unary", "better")
    with pytest.raises(DataError, match=r"10\.png is in only one of them"):
        compare(folds, folds[0], "unary", "better")


def test_folders_with_the_same_images_are_averaged(tmp_path):
    names = [f"{i}.png" for i in range(20)]
    runs = [results(tmp_path / str(seed), names, matrices(20, 0.5 + 0.2 * seed, seed)) for seed in range(2)]
    stacked = [torch.stack([read_counts(run / COUNTS)[1][name] for run in runs]) for name in ("unary", "better")]
    assert compare(runs, runs, "unary", "better") == paired_bootstrap(*stacked)
    assert compare(runs, runs[1], "unary", "better") == paired_bootstrap(stacked[0], stacked[1][1])


def test_folders_that_share_a_part_of_their_images_are_refused(tmp_path):
    first = results(tmp_path / "a", ["0.png", "1.png"], matrices(2, 0.6))
    second = results(tmp_path / "b", ["1.png", "2.png"], matrices(2, 0.6))
    with pytest.raises(DataError, match=r"1\.png is in two folders whose other images differ"):
        compare([first, second], [first, second], "unary", "better")
    with pytest.raises(DataError, match="No folder with results was given"):
        compare([], first, "unary", "better")


def test_folds_with_different_numbers_of_runs_are_refused(tmp_path):
    folders = [
        results(tmp_path / name, [f"{name[0]}{i}.png" for i in range(3)], matrices(3, 0.6))
        for name in ("a0", "a1", "b")
    ]
    with pytest.raises(DataError, match="different numbers of classes or of runs"):
        compare(folders, folders, "unary", "better")


def test_the_command_takes_several_folders(tmp_path, capsys):
    names = [f"{i}.png" for i in range(4)]
    folds = [results(tmp_path / str(k), names[2 * k : 2 * k + 2], matrices(2, 0.6, k)) for k in range(2)]
    listed = f"[{folds[0]}, {folds[1]}]"
    main(["compare", listed, listed, "--first-system", "unary", "--second-system", "better"])
    assert capsys.readouterr().out == f"{compare(folds, folds, 'unary', 'better')}\n"
