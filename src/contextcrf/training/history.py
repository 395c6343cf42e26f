"""The entries of the training runs in the metadata of a model.

A model that was trained further has the entries of all its training runs: "fit", "fit 2" and so on for training without
the CRF, "end-to-end" for training through mean field or the dense CRF, and "fit-heads" for its heads.
"""

from collections.abc import Mapping
from typing import Any

END_TO_END = "end-to-end"


def next_entry(metadata: Mapping[str, Any], kind: str) -> str:
    """Return the name of the entry of another training run.

    Args:
        metadata: the metadata of the model before the run.
        kind: "fit" or "end-to-end".

    Example:
        >>> next_entry({}, "fit"), next_entry({"fit": {}}, "fit"), next_entry({"fit": {}, "fit 2": {}}, "fit")
        ('fit', 'fit 2', 'fit 3')
    """
    name, number = kind, 1
    while name in metadata:
        number += 1
        name = f"{kind} {number}"
    return name


def last_training(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry of the last run that trained the network, or an empty one. `fit-heads` does not train it.

    Example:
        >>> last_training({"fit": {"split": "train"}, "end-to-end": {"split": "all"}, "fit-heads": {"split": "train"}})
        {'split': 'all'}
    """
    entries = [entry for name, entry in metadata.items() if name.partition(" ")[0] in ("fit", END_TO_END)]
    return entries[-1] if entries and isinstance(entries[-1], Mapping) else {}
