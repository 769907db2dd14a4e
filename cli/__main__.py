"""``python -m placerank.cli``, which is what torchrun starts, is the same as ``placerank``.

``python -m`` puts the current folder on the import path, the console script does not. Run from a checkout's root, our
folders would then shadow other packages (``kernels`` of Hugging Face), so that entry is taken off again.
"""

import os
import sys

if not sys.flags.safe_path and sys.path and sys.path[0] == os.getcwd():
    del sys.path[0]

from .main import main

sys.exit(main())
