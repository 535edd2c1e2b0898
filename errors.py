"""What ends a run or a call with one clear line instead of a traceback."""


class RunError(ValueError):
    """Something a run needs is missing or does not fit; the message says what to do."""


class DataError(ValueError):
    """Unusable data; the message is one line that names the file, the record and the remedy."""


def require(condition: object, message: str) -> None:
    """ValueError unless `condition`: a value or a combination of flags that makes no sense."""
    if not condition:
        raise ValueError(message)
