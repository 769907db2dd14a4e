"""Packages that only some steps need: what is missing is said where it is needed, with the command that brings it."""

from importlib.util import find_spec


def require(extra: str, *modules: str, what: str) -> None:
    """Refuse to go on without the modules of an extra. They are looked for, not imported.

    Args:
        extra: its name in setup.py.
        modules: top-level names.
        what: who needs them, as the user knows it.

    Raises:
        ValueError: one that is not installed, in one line.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ValueError(f"{what} needs {' and '.join(missing)}, not installed here; pip install 'placerank[{extra}]'")
