"""The error for invalid data files."""


class DataError(ValueError):
    """An error that is raised if files on disk do not contain valid data.

    The message names each file, the value that was found and the expected value.

    Example:
        >>> from contextcrf.utils.errors import DataError
        >>> issubclass(DataError, ValueError)
        True
    """
