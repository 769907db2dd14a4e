"""What tests of rankers share."""

from programs import traced_once  # noqa: F401
