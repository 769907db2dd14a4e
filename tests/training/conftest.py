"""What tests of training share."""

from programs import traced_once  # noqa: F401
