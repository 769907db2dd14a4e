"""Interest towers, one a file, behind the interface of ``tower.py``; registered by name here.

A new tower is a file here and a line below. Imports no other room of ``rankers``.
"""

from .basm import BASM
from .dien import DIEN
from .din import DIN
from .eta import ETA
from .hstu import HSTU
from .sim import SIM, SoftSIM
from .tower import register_tower
from .trisan import TRISAN
from .twin import TWIN
from .twin_v2 import TWINV2

register_tower("din", DIN)
register_tower("dien", DIEN)
register_tower("sim", SIM)
register_tower("sim_soft", SoftSIM)
register_tower("twin", TWIN)
register_tower("twin_v2", TWINV2)
register_tower("eta", ETA)
register_tower("trisan", TRISAN)
register_tower("basm", BASM)
register_tower("hstu", HSTU)
