"""Every system of the paper, and its competitors, on one data set by one command: `contextcrf reproduce`.

A study says what is trained, and how; its workshop makes the networks; each row of the tables is a system that is made
of them and measured once.
"""

from contextcrf.reproduction.rows import ROWS, Row, check, measure, rows_of
from contextcrf.reproduction.runner import Workshop
from contextcrf.reproduction.study import STUDIES, Study, open_study, shape_of, through_dense
from contextcrf.reproduction.tables import write_all

__all__ = [
    "ROWS",
    "STUDIES",
    "Row",
    "Study",
    "Workshop",
    "check",
    "measure",
    "open_study",
    "rows_of",
    "shape_of",
    "through_dense",
    "write_all",
]
