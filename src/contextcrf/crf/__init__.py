"""The probabilistic model: relations, potentials, inference and training objectives. It imports only torch.

Logits are negative energies: P(y | x) is proportional to exp(sum of unary logits + sum of pairwise logits).
"""

from contextcrf.crf.coarse_grid import CoarseGrid
from contextcrf.crf.dense import DenseCRF
from contextcrf.crf.explanation import Explanation, explain
from contextcrf.crf.likelihoods import mean_field_nll, pseudo_likelihood_nll, unrolled_nll
from contextcrf.crf.meanfield import elbo, energy, mean_field
from contextcrf.crf.potentials import PairwisePotential, UnaryPotential
from contextcrf.crf.relations import RangeBox, Relation
from contextcrf.crf.unaries import logits_from_labels, logits_from_probabilities

__all__ = [
    "CoarseGrid",
    "DenseCRF",
    "Explanation",
    "PairwisePotential",
    "RangeBox",
    "Relation",
    "UnaryPotential",
    "elbo",
    "energy",
    "explain",
    "logits_from_labels",
    "logits_from_probabilities",
    "mean_field",
    "mean_field_nll",
    "pseudo_likelihood_nll",
    "unrolled_nll",
]
