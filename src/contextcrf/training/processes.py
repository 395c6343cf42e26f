"""One training on several devices: which of its processes this one is."""

import os

# Set by Lightning for the processes that it starts, by torchrun and by SLURM; the first that is there counts.
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


def rank(processes: int) -> int:
    """The number of this process among those of one training.

    Where there is but one, the environment speaks of something else: of trainings that a launcher started side by side.
    Lightning starts the others by the same command, with LOCAL_RANK and, on several machines, NODE_RANK.
    """
    if processes == 1:
        return 0
    if "RANK" not in os.environ and int(os.environ.get("NODE_RANK", 0)) > 0:
        return int(os.environ["NODE_RANK"]) << 16 | int(os.environ.get("LOCAL_RANK", 0))
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)
