"""What the command line prints for an error: one line with the cause, what was expected, and what to do."""

import errno

import torch

# How to use less memory, by command.
MEMORY_ADVICE = {
    "fit": "lower --training.batch-size, --training.crop or --training.max-edges",
    "fit-heads": "lower --training.batch-size, --training.crop, --training.max-edges or --copies",
    "tune": "lower --limit",
    "evaluate": "give fewer or smaller --scales, or --precision bf16-mixed",
    "reproduce": "lower batch_size, crop or max_edges of the study's training or heads, its copies or tune_images",
    "predict": "lower --tile (of images above 16 megapixels), or give fewer or smaller --scales",
    "voc-submission": "give fewer or smaller --scales",
    "export": "lower --height and --width",
    "demo": "lower --side",
}
# The meaning of the operating system's error numbers for a path that the error names.
PATH_ERRORS = {
    errno.EACCES: "no permission to read or write it; change its permissions, or name another place",
    errno.EPERM: "no permission to read or write it; change its permissions, or name another place",
    errno.ENOENT: "no such file or folder; is the name right?",
    errno.ENOTDIR: "a part of this path is a file; expected folders down to the last part",
    errno.EISDIR: "is a folder; expected a file",
    errno.EEXIST: "exists already, and is no folder; name another place, or move it away",
    errno.EROFS: "is on a read-only file system; name another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}
# Their meaning for any file: these errors often come without a path.
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space, or name another place",
    errno.EDQUOT: "your disk quota is used up; free some space, or name another place",
    errno.EFBIG: "it is larger than the file system or the shell (ulimit -f) allows; raise that limit",
    errno.EMFILE: "too many files are open; allow more (ulimit -n)",
}


def describe_error(error: ValueError | OSError | RuntimeError | MemoryError, command: str) -> str | None:
    """The line for an error of the user's or of the machine's; None for any other, which is a bug.

    Args:
        error: raised by a command.
        command: its name, or "".
    """
    if isinstance(error, OSError):
        return _describe_system_error(error, command)
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        place = "the accelerator"
    # The allocator of the machine's memory has no error of its own.
    elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        place = "this machine"
    else:
        return None
    advice = MEMORY_ADVICE.get(command, "free some of it, or use smaller images")
    return f"the memory of {place} is not enough: {advice}"


def _describe_system_error(error: OSError, command: str) -> str:
    """The system's errors have a number, and a path at most."""
    known = PATH_ERRORS | DISK_ERRORS
    if error.filename is not None and error.errno in known:
        paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
        return f"{' and '.join(paths)}: {known[error.errno]}"
    return f"a file of {command}: {DISK_ERRORS[error.errno]}" if error.errno in DISK_ERRORS else str(error)
