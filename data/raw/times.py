"""What whole numbers look like that stand where seconds since 1970 should."""

from datetime import UTC, datetime

YEAR_1990 = 631_152_000  # 1990-01-01 UTC in unix seconds
_YEAR_2100 = 4_102_444_800
_WRITTEN = ("%Y%m%d", "%Y%m%d%H", "%Y%m%d%H%M", "%Y%m%d%H%M%S")
_UNITS = (
    ("milliseconds since 1970: divide them by 1,000", 1e-3),
    ("microseconds since 1970: divide them by 1,000,000", 1e-6),
    ("nanoseconds since 1970: divide them by 1,000,000,000", 1e-9),
    ("minutes since 1970: multiply them by 60", 60),
    ("hours since 1970: multiply them by 3,600", 3600),
    ("days since 1970: multiply them by 86,400", 86_400),
)


def _written(number: int, form: str) -> bool:
    try:
        return 1990 <= datetime.strptime(str(number), form).replace(tzinfo=UTC).year < 2100
    except ValueError:
        return False


def looks_like(*numbers: int) -> str | None:
    """What the numbers are if they are no seconds, and what to do; None if nothing fits all of them.

    Dates written as numbers, such as 20220421, are tried before units: few other numbers read as dates.
    """
    for form in _WRITTEN:
        if all(len(str(n)) == len(datetime(2000, 1, 1).strftime(form)) and _written(n, form) for n in numbers):
            return f"dates written as numbers, such as {numbers[0]}: write dates (2022-04-21) or timestamps instead"
    for words, seconds in _UNITS:
        if all(YEAR_1990 <= n * seconds < _YEAR_2100 for n in numbers):
            return words
    return None


def iso(seconds: int) -> str:
    """Unix seconds as UTC, such as "2022-04-21 10:30"."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
