"""The probabilistic model: relations, potentials, objectives, inference. Needs torch alone."""

from contextcrf.crf.dense import DenseCRF
from contextcrf.crf.explanation import Explanation, explain
from contextcrf.crf.likelihoods import mean_field_nll, pseudo_likelihood_nll, unrolled_nll
from contextcrf.crf.meanfield import elbo, energy, icm, mean_field
from contextcrf.crf.potentials import PairwisePotential, UnaryPotential
from contextcrf.crf.relations import RangeBox, Relation
from contextcrf.crf.unaries import logits_from_labels, logits_from_probabilities

__all__ = [
    "DenseCRF",
    "Explanation",
    "PairwisePotential",
    "RangeBox",
    "Relation",
    "UnaryPotential",
    "elbo",
    "energy",
    "explain",
    "icm",
    "logits_from_labels",
    "logits_from_probabilities",
    "mean_field",
    "mean_field_nll",
    "pseudo_likelihood_nll",
    "unrolled_nll",
]
