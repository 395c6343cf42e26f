"""The probabilistic model: relations, potentials, objectives, inference. Needs torch alone."""

from contextcrf.crf.dense import DenseCRF
from contextcrf.crf.explanation import Explanation, explain
from contextcrf.crf.likelihood import mean_field_nll, pseudo_likelihood_nll
from contextcrf.crf.meanfield import elbo, energy, icm, mean_field
from contextcrf.crf.potentials import PairwisePotential, UnaryPotential
from contextcrf.crf.relations import RangeBox, Relation

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
    "mean_field",
    "mean_field_nll",
    "pseudo_likelihood_nll",
]
