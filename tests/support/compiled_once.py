"""A loop that several processes want at once is compiled by one of them; the others find it on disk.

Ranks come to the same loop at the same time, and on a fresh checkout each would compile it. Imported for its effect, in
workers and in the server that ranks are forked from. A lock is of the file that the loop is in, so that no two write
into one list of what is on disk either; what a loop calls is compiled under the lock of the loop.
"""

import fcntl
import threading
from typing import Any

try:
    from numba.core.caching import NullCache
    from numba.core.dispatcher import Dispatcher
except ImportError:  # nothing is compiled
    pass
else:
    _compile = Dispatcher.compile
    _compiling = threading.local()

    def _compile_once(self: Any, signature: Any) -> Any:
        if isinstance(self._cache, NullCache) or getattr(_compiling, "now", False):
            return _compile(self, signature)
        with open(self.py_func.__code__.co_filename) as source:
            fcntl.flock(source, fcntl.LOCK_EX)
            _compiling.now = True
            try:
                return _compile(self, signature)
            finally:
                _compiling.now = False

    Dispatcher.compile = _compile_once
