"""What tests of the commands share."""

from programs import traced_once  # noqa: F401
