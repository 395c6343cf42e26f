"""The probabilistic model: relations, potentials, inference. Needs torch alone."""

from contextcrf.crf.dense import DenseCRF
from contextcrf.crf.meanfield import mean_field
from contextcrf.crf.potentials import PairwisePotential, UnaryPotential
from contextcrf.crf.relations import RangeBox

__all__ = ["DenseCRF", "PairwisePotential", "RangeBox", "UnaryPotential", "mean_field"]
