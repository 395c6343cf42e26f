"""What the command line says of an error: one line, what was expected, and what to do."""

import errno
import re

import torch

# What takes less memory where it is smaller.
SAVING = {
    "fit": "lower --recipe.batch_size, --recipe.crop or --recipe.max_edges",
    "fit-heads": "lower --recipe.batch_size, --recipe.crop, --recipe.max_edges or --views",
    "tune": "lower --limit",
    "evaluate": "give fewer or smaller --scales, or --precision bf16-mixed",
    "reproduce": "lower batch_size, crop or max_edges of the study's recipe or heads, its views or tune_images",
    "predict": "lower --tile (of pictures above 16 megapixels), or give fewer or smaller --scales",
    "voc-submission": "give fewer or smaller --scales",
    "export": "lower --height and --width",
    "demo": "lower --side",
}
# What the system's error numbers mean for a path that was named,
PATH_ERRORS = {
    errno.EACCES: "no permission to read or write it; change its permissions, or name another place",
    errno.EPERM: "no permission to read or write it; change its permissions, or name another place",
    errno.ENOENT: "no such file or folder; is the name right?",
    errno.ENOTDIR: "a part of this path is a file; expected folders down to the last part",
    errno.EISDIR: "is a folder; expected a file",
    errno.EEXIST: "is there already, and is no folder; name another place, or move it away",
    errno.EROFS: "lies on what can only be read; name another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}
# and for any file at all: often the system does not say which.
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; make room, or name another place",
    errno.EDQUOT: "your quota of the disk is used up; make room, or name another place",
    errno.EFBIG: "it grew larger than the file system, or the shell (ulimit -f), lets a file be; raise that limit",
    errno.EMFILE: "too many files are open; allow more (ulimit -n)",
}
# The parser's names of what a value should be.
KINDS = {
    "a <class 'tuple'>": "several values, as in [1, 2]",
    "a <class 'NoneType'>": "null",
    "<class 'int'>": "whole number",
    "<class 'float'>": "number",
    "<class 'bool'>": "value true or false",
    "<class 'str'>": "text",
    "<class 'NoneType'>": "null",
    "<class 'dict'>": "value such as {name: 1}",
    "<class 'list'>": "list, as in [1, 2]",
}


def in_plain_words(message: str) -> str:
    """The argument parser's message without the names of Python's types."""
    for kind, words in KINDS.items():
        message = message.replace(kind, words)
    several = r"Does not validate against any of the Union subtypes\n *Subtypes: \[(.*)\]\n(?s:.*)Given value: "
    message = re.sub(several, lambda found: f"Expected one of: {found[1]}. Got value: ", message)
    return re.sub(r"(?:a )?typing\.Literal\[([^]]*)\]", lambda found: "one of " + found[1].replace("'", ""), message)


def complaint(error: ValueError | OSError | RuntimeError | MemoryError, command: str) -> str | None:
    """The line of an error of the user's or of the machine's; None of any other, which is one of ours.

    Args:
        error: what a command raised.
        command: its name, or "".
    """
    if isinstance(error, OSError):
        return _of_the_system(error, command)
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        where = "the accelerator"
    # The allocator of the machine's memory has no error of its own.
    elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        where = "this machine"
    else:
        return None
    advice = SAVING.get(command, "free some of it, or use smaller pictures")
    return f"the memory of {where} is not enough: {advice}"


def _of_the_system(error: OSError, command: str) -> str:
    """Its errors have a number, and a path at most."""
    known = PATH_ERRORS | DISK_ERRORS
    if error.filename is not None and error.errno in known:
        paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
        return f"{' and '.join(paths)}: {known[error.errno]}"
    return f"a file of {command}: {DISK_ERRORS[error.errno]}" if error.errno in DISK_ERRORS else str(error)
