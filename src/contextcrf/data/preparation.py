"""What comes before a model meets data: the data are looked at, their classes compared, a device chosen."""

from typing import Any


def check(dataset: Any) -> None:
    """Look at every image and mask of a data set; raises what `check_pairs` does."""
    from contextcrf.data.validation import check_pairs

    check_pairs(dataset.pairs, len(dataset.classes), dataset.void)


def without_broken(dataset: Any, val: Any = None) -> Any:
    """A data set for training, looked at as by `check`; where broken files are skipped, those are left out and listed.

    Args:
        dataset: to train on.
        val: to measure on, if anything: looked at too. Images that are in both are counted on the terminal.

    Raises:
        DataError: as `check`, of both together; or nothing is left.
    """
    from contextcrf.data.validation import problems_of
    from contextcrf.utils.errors import DataError

    known = {image for image, _ in dataset.pairs}
    measured = [] if val is None else [pair for pair in val.pairs if pair[0] not in known]
    if val is not None and (both := len(val.pairs) - len(measured)):
        print(f"{both} of the {len(val.pairs)} images to measure on are trained on too: what they show flatters")
    if not dataset.skip_broken:
        check(type(dataset)([*dataset.pairs, *measured], dataset.classes, dataset.void))
        return dataset
    if measured:
        check(type(dataset)(measured, dataset.classes, dataset.void))
    problems = problems_of(dataset.pairs, len(dataset.classes), dataset.void)
    report_left_out([line for lines in problems for line in lines])
    kept = [pair for pair, lines in zip(dataset.pairs, problems, strict=True) if not lines]
    if not kept:
        raise DataError(f"{dataset.pairs[0][0]} and all others: none of {len(problems)} pairs can be used")
    return type(dataset)(kept, dataset.classes, dataset.void, dataset.transform, skip_broken=True)


def report_left_out(problems: list[Any]) -> None:
    """Print what is not trained on, if anything."""
    if problems:
        print(f"{len(problems)} left out:", *problems, sep="\n  ")


def same_classes(network: Any, dataset: Any) -> None:
    """Raises ValueError if a model and a data set know different classes."""
    ours, theirs = network.classes.names, dataset.classes.names
    if ours != theirs:
        raise ValueError(f"the model knows the classes {', '.join(ours)}; the data have {', '.join(theirs)}")


def device() -> Any:
    """Where networks run: the accelerator if there is one."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
