"""What comes before a model meets data: the data are looked at, their classes compared, a device chosen."""

from typing import Any


def check(dataset: Any) -> None:
    """Look at every image and mask of a data set; raises what `check_pairs` does."""
    from contextcrf.data.checks import check_pairs

    check_pairs(dataset.pairs, len(dataset.classes), dataset.void)


def same_classes(network: Any, dataset: Any) -> None:
    """Raises ValueError if a model and a data set know different classes."""
    ours, theirs = network.classes.names, dataset.classes.names
    if ours != theirs:
        raise ValueError(f"the model knows the classes {', '.join(ours)}; the data have {', '.join(theirs)}")


def device() -> Any:
    """Where networks run: the accelerator if there is one."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
