"""Confusion matrices and the scores of them."""

import pytest
import torch

from contextcrf.evaluation.metrics import ConfusionMatrix, confusion, image_scores, intersection_over_union, mean_iou


def test_iou_is_intersection_over_union_of_sets_of_pixels():
    truth, prediction = torch.randint(0, 4, (3, 20, 20)), torch.randint(0, 4, (3, 20, 20))
    truth[:, :5] = 255
    matrix = ConfusionMatrix(5)
    for image in range(3):
        matrix.update(prediction[image : image + 1], truth[image : image + 1])
    known = truth != 255
    for k in range(4):
        a, b = (truth == k) & known, (prediction == k) & known
        assert matrix.iou()[k].item() == pytest.approx((a & b).sum().item() / (a | b).sum().item())
    assert matrix.iou()[4].isnan()
    assert matrix.mean_iou() == pytest.approx(matrix.iou()[:4].mean().item())
    assert matrix.pixel_accuracy() == pytest.approx((truth == prediction)[known].double().mean().item())
    assert torch.equal(matrix.counts, confusion(prediction, truth, 5))
    assert torch.equal(matrix.compute(), matrix.counts)
    matrix.reset()
    assert int(matrix.counts.sum()) == 0


def test_rows_are_the_truth_and_columns_the_prediction():
    truth, prediction = torch.tensor([[0, 0, 1, 255]]), torch.tensor([[0, 1, 2, 2]])
    assert confusion(prediction, truth, 3).tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_the_mean_is_over_the_classes_of_the_ground_truth():
    counts = torch.tensor([[[3, 0, 1], [0, 2, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [1, 0, 3]]])
    assert mean_iou(counts).tolist() == [(3 / 4 + 1) / 2, 3 / 4]
    assert ConfusionMatrix.of(counts[0]).mean_iou() == (3 / 4 + 1) / 2
    assert ConfusionMatrix.of(counts[0]).iou().tolist() == [3 / 4, 1, 0]
    assert mean_iou(torch.zeros(3, 3)).isnan()


def test_a_matrix_of_counts_has_their_scores():
    counts = torch.tensor([[3, 1, 0], [1, 2, 0], [0, 0, 0]])
    matrix = ConfusionMatrix.of(counts)
    assert matrix.iou()[:2].tolist() == pytest.approx([3 / 5, 2 / 4])
    assert matrix.mean_iou() == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert matrix.pixel_accuracy() == pytest.approx(5 / 7)
    # It can be counted on.
    matrix.update(torch.tensor([[2]]), torch.tensor([[2]]))
    assert matrix.counts[2, 2] == 1


def test_scores_of_several_images_are_those_of_each():
    counts = torch.randint(0, 9, (4, 3, 3))
    counts[1] = 0
    scores = image_scores(counts)
    for image in (0, 2, 3):
        assert scores[image].item() == pytest.approx(ConfusionMatrix.of(counts[image]).mean_iou())
    assert scores[1].isnan()
    assert intersection_over_union(counts).shape == (4, 3)


def test_without_a_known_pixel_there_is_no_score():
    matrix = ConfusionMatrix.of(torch.zeros(2, 2, dtype=torch.int64))
    assert matrix.iou().isnan().all()
    assert matrix.mean_iou() != matrix.mean_iou()
    assert matrix.pixel_accuracy() != matrix.pixel_accuracy()
