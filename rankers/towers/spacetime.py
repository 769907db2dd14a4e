"""Places and hours as vectors, for towers that know where and when.

Shapes: N places or hours, C cells that hold a place (one a size), E columns of an embedding.
"""

import math

import torch
from torch import Tensor, nn

from ...data.batches.features import HOURS_PER_WEEK
from ...kernels.haversine import EARTH_RADIUS_KM, unit_vectors_km

_PRIMES = (73_856_093, 19_349_663, 83_492_791)  # Teschner et al., Optimized Spatial Hashing, 2003


class CellEmbedding(nn.Module):
    """Embeddings of the cells that hold a place, one for each size: what a geohash prefix is in the papers.

    A cell is a cube of so many km that the sphere passes through, so poles and the antimeridian are places like any
    other: they, the equator and Greenwich lie in the middle of cells. Cells are hashed into the table's rows; row 0 is
    the unknown place, always zeros. Rows start with a length of about 1, so the product of two places' rows starts near
    1 in the same cell and near 0 otherwise.

    Args:
        dim: columns E.
        sizes_km: edges of the cells.
        rows: of the table, shared by all sizes. Cells that collide share a row: keep it above the number of cells.
    """

    def __init__(self, dim: int, sizes_km: tuple[float, ...] = (1.0, 5.0, 25.0), rows: int = 16384) -> None:
        super().__init__()
        self.rows = rows
        self.sizes_km = sizes_km
        self.table = nn.Embedding(rows, dim, padding_idx=0)
        with torch.no_grad():
            nn.init.normal_(self.table.weight, std=dim**-0.5)[0] = 0

    def cells(self, place: Tensor) -> Tensor:
        """Unit vectors [N, 3] to rows of the table, int64 [N, C]; 0 where the place is NaN."""
        rows = []
        for i, size in enumerate(self.sizes_km):
            x, y, z = (place.nan_to_num(0).float() * (EARTH_RADIUS_KM / size)).round().long().unbind(1)
            hashed = (x * _PRIMES[0]) ^ (y * _PRIMES[1]) ^ (z * _PRIMES[2]) ^ i
            rows.append(1 + hashed.remainder(self.rows - 1))
        return torch.stack(rows, dim=1) * known(place)[:, None]

    def forward(self, cells: Tensor) -> Tensor:
        """Rows [N, C] of ``cells`` to embeddings [N, C, E]."""
        embedded: Tensor = self.table(cells)
        return embedded


class HourEmbedding(nn.Module):
    """Embedding of the hour of the week, [168, 8]; hours near on the clock start near.

    It starts as sine and cosine of a day, half a day, a week and half a week, scaled to a length of 1.
    """

    dim = 8

    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(HOURS_PER_WEEK)[:, None] * (2 * math.pi / torch.tensor([24.0, 12.0, 168.0, 84.0]))
        self.table = nn.Embedding.from_pretrained(torch.cat([angle.sin(), angle.cos()], dim=1) / 2, freeze=False)

    def forward(self, hour: Tensor) -> Tensor:
        """Hours of the week, int64 [N], to [N, 8]."""
        embedded: Tensor = self.table(hour)
        return embedded


def known(place: Tensor) -> Tensor:
    """Whether places [N, 3] are known, bool [N]."""
    return ~place.isnan().any(dim=1)


def nearness(a: Tensor, b: Tensor) -> Tensor:
    """log(1 + km) between unit vectors [N, 3], and 1 if both are known, else 0 and 0; float32 [N, 2]."""
    km = unit_vectors_km(a.float(), b.float())
    return torch.stack([km.nan_to_num(0).log1p(), (~km.isnan()).float()], dim=1)


def hours_apart(a: Tensor, b: Tensor) -> Tensor:
    """Hours between two hours of the day, either way round the clock, 0 to 12; int64 [N] each."""
    apart = (a - b).remainder(24)
    return torch.minimum(apart, 24 - apart)
