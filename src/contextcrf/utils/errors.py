"""The error that bad data raise."""


class DataError(ValueError):
    """Files on disk are not the data they should be; the message names each file and what was expected of it."""
