"""``python -m placerank.benchmarks.gpu``: the check where there is no tyro, which the ``placerank`` command needs."""

import signal
import sys

from .check import main

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by an exception, so that the part that runs ends too
sys.exit(main())
