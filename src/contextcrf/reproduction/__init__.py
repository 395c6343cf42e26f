"""Reproduction of the paper's tables and figures on any data set: `contextcrf reproduce`.

A `Study` contains the configs of the model and of its training. A `Runner` trains the networks of a study. Each row of
the tables is a system that is built from these networks and evaluated once.
"""

from contextcrf.reproduction.rows import ROWS, TableRow, check, measure, rows_of
from contextcrf.reproduction.runner import Runner
from contextcrf.reproduction.study import STUDIES, Study, baseline_config, crf_rnn_config, open_study
from contextcrf.reproduction.tables import write_all

__all__ = [
    "ROWS",
    "STUDIES",
    "Runner",
    "Study",
    "TableRow",
    "baseline_config",
    "check",
    "crf_rnn_config",
    "measure",
    "open_study",
    "rows_of",
    "write_all",
]
