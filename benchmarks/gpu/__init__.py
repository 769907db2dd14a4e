"""One command for a machine with a GPU: ``make gpu-check``, ``placerank bench gpu``.

``check.py`` starts each part in a process of its own (``part.py``), so that one that hangs, crashes or spoils its CUDA
context takes nothing else with it. A part is a module here with ``cases``; what it finds goes through ``report.py`` to
disk at once. Imports no TorchRec and no fbgemm, but for the part that trains.
"""
