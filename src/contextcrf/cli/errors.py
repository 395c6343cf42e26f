"""The text that the command line prints for an error: the cause, what was expected, and the way out."""

import errno

import torch

# The way to use less memory, by command.
MEMORY_ADVICE = {
    "fit": "Lower --training.batch-size, --training.crop or --training.max-edges.",
    "fit-heads": "Lower --training.batch-size, --training.crop, --training.max-edges or --copies.",
    "tune": "Lower --limit.",
    "evaluate": "Give fewer or smaller --scales, or --precision bf16-mixed.",
    "reproduce": (
        "Lower batch_size, crop or max_edges in the training or heads section of the study, or lower its copies or "
        "tune_images."
    ),
    "predict": "Lower --tile (for images above 2.1 megapixels), or give fewer or smaller --scales.",
    "voc-submission": "Give fewer or smaller --scales.",
    "export": "Lower --height and --width.",
    "demo": "Lower --side.",
}
# The meaning of the operating system's error numbers for the path in the error.
PATH_ERRORS = {
    errno.EACCES: "cannot be accessed, because you have no permission. Change its permissions, or choose another path.",
    errno.EPERM: "cannot be accessed, because you have no permission. Change its permissions, or choose another path.",
    errno.ENOENT: "does not exist. Check the spelling of the path.",
    errno.ENOTDIR: "is not a valid path, because one of its folders is a file. Choose another path.",
    errno.EISDIR: "is a folder, but a file is expected. Give the path of a file.",
    errno.EEXIST: "exists and is not a folder. Choose another path, or move the file.",
    errno.EROFS: "is on a read-only file system. Choose another path.",
    errno.ENAMETOOLONG: "has a name that is too long for the file system. Choose a shorter name.",
}
# The meaning of the numbers of errors that often come without a path.
DISK_ERRORS = {
    errno.ENOSPC: "cannot be written, because the disk is full. Free some space, or choose another disk.",
    errno.EDQUOT: "cannot be written, because your disk quota is used up. Free some space, or choose another disk.",
    errno.EFBIG: "is larger than the file system or the shell allows. Raise the limit (ulimit -f).",
    errno.EMFILE: "cannot be opened, because too many files are open. Raise the limit (ulimit -n).",
}


def describe_error(error: ValueError | OSError | RuntimeError | MemoryError, command: str) -> str | None:
    """Return the text for an error of the user or of the machine; None for any other error, which is a bug.

    Args:
        error: the error that a command has raised.
        command: name of the command; "" before it is known.

    Example:
        >>> describe_error(FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"), "predict")
        'a.png does not exist. Check the spelling of the path.'
    """
    if isinstance(error, OSError):
        return _describe_system_error(error, command)
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        place = "The accelerator"
    # torch raises a plain RuntimeError if the main memory is not sufficient.
    elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        place = "This machine"
    else:
        return None
    advice = MEMORY_ADVICE.get(command, "Free some memory, or use smaller images.")
    return f"{place} does not have enough memory. {advice}"


def _describe_system_error(error: OSError, command: str) -> str:
    """Return the text for an error of the operating system, which has a number, and sometimes paths."""
    known = PATH_ERRORS | DISK_ERRORS
    if error.filename is not None and error.errno in known:
        paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
        return f"{' or '.join(paths)} {known[error.errno]}"
    return f"A file of {command} {DISK_ERRORS[error.errno]}" if error.errno in DISK_ERRORS else str(error)
