"""Every system of the paper, and its competitors, on one data set by one command: `contextcrf reproduce`.

A `Study` says what is trained and how; its `Runner` trains the networks; each row of the tables is a system that is
built from them and measured once.
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
