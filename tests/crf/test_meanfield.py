"""Mean field, its bound and energies are compared with enumeration."""

import numpy as np
import pytest
import torch

import exact
from contextcrf import PairwisePotential, RangeBox, mean_field
from contextcrf.crf import elbo, energy

K = 2


def crf(height=2, width=3, scale=1.0):
    """A tiny CRF of two relations: unary logits, (potential, features) pairs, and the same as explicit tables."""
    boxes = [RangeBox.surrounding(1.0), RangeBox.above(0.5, 2.0)]
    maps = torch.randn(1, 4, height, width, dtype=torch.float64)
    unary = torch.randn(1, K, height, width, dtype=torch.float64)
    pairs = [(PairwisePotential(4, K, box, 6).double(), maps) for box in boxes]
    for potential, _ in pairs:
        with torch.no_grad():
            for parameter in potential.last.parameters():
                parameter.mul_(scale)
    tables = []
    for potential, features in pairs:
        edges, logits = potential.pair_logits(features)
        tables.append((edges, logits[0].detach()))
    return unary, pairs, tables


def flat(maps):
    return maps[0].flatten(1).T.detach()


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_updates_are_those_of_enumeration(iterations):
    unary, pairs, tables = crf()
    weights = [0.7, 1.6]
    marginals = flat(unary).softmax(1)
    for _ in range(iterations):
        marginals = exact.mean_field_update(marginals, flat(unary), tables, weights)
    torch.testing.assert_close(flat(mean_field(unary, pairs, iterations, weights)), marginals)


def test_weights_default_to_the_model_itself():
    unary, pairs, tables = crf()
    marginals = exact.mean_field_update(flat(unary).softmax(1), flat(unary), tables)
    torch.testing.assert_close(flat(mean_field(unary, pairs, 1)), marginals)


def test_what_it_converges_to_is_a_fixed_point_and_no_neighbor_has_a_higher_elbo():
    unary, pairs, tables = crf()
    marginals = flat(mean_field(unary, pairs, iterations=300, damping=0.5))
    torch.testing.assert_close(exact.mean_field_update(marginals, flat(unary), tables), marginals)
    best = exact.elbo(marginals, flat(unary), tables)
    for _ in range(10):
        moved = (marginals.log() + 0.05 * torch.randn_like(marginals)).softmax(1)
        assert exact.elbo(moved, flat(unary), tables) < best + 1e-12


def test_the_elbo_is_below_log_z_at_every_iteration():
    unary, pairs, tables = crf()
    log_z = exact.log_partition(flat(unary), tables)
    for iterations in range(6):
        assert exact.elbo(flat(mean_field(unary, pairs, iterations)), flat(unary), tables) < log_z


def test_exact_when_the_pairwise_terms_vanish():
    unary, pairs, tables = crf(scale=0.0)
    torch.testing.assert_close(mean_field(unary, pairs, 3), unary.softmax(1))
    torch.testing.assert_close(flat(mean_field(unary, pairs, 3)), exact.marginals(flat(unary), tables))


def test_close_to_exact_when_the_pairwise_terms_are_weak():
    unary, pairs, tables = crf(scale=0.05)
    approximate = flat(mean_field(unary, pairs, 20))
    truth = exact.marginals(flat(unary), tables)
    assert (approximate - truth).abs().max() < 2e-3
    assert (flat(unary).softmax(1) - truth).abs().max() > 5e-3  # the pairwise terms do matter here


def test_the_start_and_damping_are_used():
    unary, pairs, tables = crf()
    start = torch.full_like(unary, 1 / K)
    expected = exact.mean_field_update(flat(start), flat(unary), tables)
    torch.testing.assert_close(flat(mean_field(unary, pairs, 1, start=start)), expected)
    damped = mean_field(unary, pairs, 1, damping=0.25, start=start)
    torch.testing.assert_close(flat(damped), 0.25 * flat(start) + 0.75 * expected)
    torch.testing.assert_close(mean_field(unary, pairs, 0, start=start), start)


def test_a_batch_is_its_images_one_by_one():
    _, pairs, _ = crf()
    potential = pairs[0][0]
    maps, logits = torch.randn(3, 4, 2, 3, dtype=torch.float64), torch.randn(3, K, 2, 3, dtype=torch.float64)
    together = mean_field(logits, [(potential, maps)])
    alone = torch.cat([mean_field(logits[i : i + 1], [(potential, maps[i : i + 1])]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_training_goes_on_after_inference_mode():
    unary, pairs, _ = crf()
    with torch.inference_mode():
        mean_field(unary, pairs)
    mean_field(unary, pairs).square().sum().backward()
    assert pairs[0][0].last.interaction.weight.grad is not None


def test_half_precision_logits_are_summed_in_single():
    unary, _, _ = crf()
    assert mean_field(unary.bfloat16(), []).dtype == torch.float32


def test_gradients_flow_to_features_and_parameters():
    unary, pairs, _ = crf()
    potential, maps = pairs[0]
    maps = maps.clone().requires_grad_()
    torch.autograd.gradcheck(lambda u, f: mean_field(u, [(potential, f)], 2), (unary.requires_grad_(), maps))


def test_elbo_and_trace_are_those_of_enumeration():
    unary, pairs, tables = crf()
    trace = []
    result = mean_field(unary, pairs, 3, trace=trace)
    torch.testing.assert_close(result, mean_field(unary, pairs, 3))
    expected = [exact.elbo(flat(mean_field(unary, pairs, n)), flat(unary), tables) for n in range(4)]
    torch.testing.assert_close(torch.cat(trace), torch.stack(expected))
    torch.testing.assert_close(elbo(unary, pairs, result)[0], expected[-1])


def test_energy_is_the_negative_score_of_a_labeling():
    unary, pairs, tables = crf()
    weights = [0.7, 1.6]
    every, scores = exact.labelings(6, K), exact.scores(flat(unary), tables, weights)
    for index in (0, 21, 63):
        found = energy(unary, pairs, every[index].view(1, 2, 3), weights)
        torch.testing.assert_close(found[0], -scores[index])


def test_infinite_logits_decide_the_label_without_nan():
    unary, pairs, _ = crf()
    unary[0, 0, 0, 0], unary[0, 1, 1, 2] = torch.inf, -torch.inf
    trace = []
    result = mean_field(unary, pairs, 3, trace=trace)
    assert result[0, 0, 0, 0] == result[0, 0, 1, 2] == 1
    assert result.isfinite().all()
    assert torch.cat(trace).isfinite().all()
    both = mean_field(torch.full_like(unary, -torch.inf), pairs, 2)
    assert both.isfinite().all()


def test_nan_is_refused():
    unary, pairs, _ = crf()
    unary[0, 1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        mean_field(unary, pairs)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1)])
def test_lines_points_and_a_single_class(size):
    maps = torch.randn(1, 4, *size)
    for num_classes in (1, 3):
        unary = torch.randn(1, num_classes, *size)
        pairs = [
            (PairwisePotential(4, num_classes, box, 6), maps) for box in (RangeBox.surrounding(1.0), RangeBox.above())
        ]
        result = mean_field(unary, pairs)
        torch.testing.assert_close(result.sum(1), torch.ones(1, *size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"damping": 1.0}, "damping .* is 1.0"),
        ({"iterations": -1}, "iterations .* is -1"),
        ({"iterations": 1.0}, "iterations must be a whole number >= 0, but is 1.0"),
        ({"iterations": True}, "iterations .* is True"),
        ({"weights": [1.0]}, "has 1 for 2"),
        ({"start": torch.rand(1, K, 9, 9)}, "start"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    unary, pairs, _ = crf()
    with pytest.raises(ValueError, match=message):
        mean_field(unary, pairs, **arguments)


def test_iterations_of_any_integral_type():
    unary, pairs, _ = crf()
    assert torch.equal(mean_field(unary, pairs, iterations=np.int64(3)), mean_field(unary, pairs, iterations=3))


def test_features_of_another_size_are_refused():
    unary, pairs, _ = crf()
    with pytest.raises(ValueError, match=r"does not fit.*CoarseGrid"):
        mean_field(unary, [(pairs[0][0], torch.randn(1, 4, 2, 2, dtype=torch.float64))])


def test_features_of_fewer_images_than_logits_are_refused():
    unary, pairs, _ = crf()
    with pytest.raises(ValueError, match=r"Expected \[B, K, H, W\] = \(1,"):
        mean_field(unary.expand(2, -1, -1, -1), pairs)
