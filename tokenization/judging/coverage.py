"""What an encoder's neighbours have in common: LGSID's table 3 and figure 3 (arXiv 2511.14221, section 6.2).

For the K nearest items of an item by cosine: **similarity** is their mean cosine, and province, city and town coverage
(P@K, C@K, T@K) the share of them in the item's own province, city, district. The paper does not say in which embedding
the similarity of an aligned encoder is measured; both are here: in its own, and, given ``reference``, in that of the
encoder that it started from, which says whether what is retrieved still means the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ..codes.kmeans import SEEDS_PER_CENTRE, kmeans, nearest
from ..ranks import Ranks
from ..text.store import embedding_rows
from ..text.vectors import Vectors, blocks, check_vectors
from .measures import Ints, RegionOfRows, nmi

AT = (5, 10, 100)
_MOST_CLUSTERS = 1024
_PAIRS = 1 << 16  # whose cosine is taken at once


def nearest_neighbours(
    vectors: Vectors, rows: Tensor, count: int, *, block_rows: int = 16_384, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """The ``count`` items of largest cosine to each query, itself left out: exact, all N in blocks.

    Args:
        rows: row numbers of the queries, int64 [Q].

    Returns:
        Row numbers int64 [Q, count] and cosines float32 [Q, count], the nearest first; of equal cosines at the
        end of the list, any. Memory: Q x (count + block_rows) numbers.
    """
    device = torch.device(device)
    queries = normalize(embedding_rows(vectors, rows).to(device), dim=1)
    best = torch.full((len(rows), count), -torch.inf, device=device)
    at = torch.full((len(rows), count), -1, dtype=torch.int64, device=device)
    rows = rows.to(device)
    for first, x in blocks(vectors, block_rows, device):
        cosine = queries @ normalize(x, dim=1).T
        inside = ((rows >= first) & (rows < first + len(x))).nonzero().flatten()
        cosine[inside, rows[inside] - first] = -torch.inf
        near, where = cosine.topk(min(count, len(x)), dim=1)
        both, numbers = torch.cat([best, near], dim=1), torch.cat([at, where + first], dim=1)
        order = both.argsort(dim=1, descending=True, stable=True)[:, :count]
        best, at = both.gather(1, order), numbers.gather(1, order)
    return at.cpu(), best.cpu()


def neighbour_coverage(
    vectors: Vectors,
    regions: Mapping[str, Ints | RegionOfRows],
    *,
    at: Sequence[int] = AT,
    queries: int = 2_000,
    seed: int = 0,
    reference: Vectors | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Similarity and coverage at each K, over random queries among all items.

    Args:
        vectors: embeddings [N, D].
        regions: name -> labels [N], -1 unknown, or what gives those of rows. A query without a label is left out of
            that region's coverage; a neighbour without one is elsewhere.
        queries: how many, at most N.
        reference: embeddings of the same items by the encoder before alignment, [N, D'].

    Returns:
        ``queries``; ``similarity`` {K: mean cosine}; ``reference_similarity`` if there is a reference; and the name of
        each region {K: share}. A K of N or more is left out.

    Raises:
        ValueError: a reference of another number of items.
    """
    check_vectors(vectors)
    if reference is not None and len(reference) != len(vectors):
        raise ValueError(
            f"reference: got {len(reference):,} embeddings, expected one for each of the {len(vectors):,} items"
        )
    at = [k for k in at if k < len(vectors)]
    out: dict[str, Any] = {"queries": 0, "similarity": {}, **{name: {} for name in regions}}
    if not at:
        return out
    g = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(vectors), generator=g)[:queries].sort().values
    found, cosine = nearest_neighbours(vectors, rows, max(at), device=device)
    out["queries"] = len(rows)
    other = None if reference is None else _cosines(reference, rows, found)
    if other is not None:
        out["reference_similarity"] = {k: float(other[:, :k].mean()) for k in at}
    for k in at:
        out["similarity"][k] = float(cosine[:, :k].mean())
        for name, label in regions.items():
            own = label[rows.numpy()]
            same = label[found[:, :k].numpy()] == own[:, None]
            out[name][k] = float(same[own >= 0].mean()) if (own >= 0).any() else None
    return out


def _cosines(vectors: Vectors, rows: Tensor, others: Tensor) -> Tensor:
    """Cosine of each row [Q] with its others [Q, K]."""
    each = max(1, _PAIRS // others.shape[1])
    parts = []
    for some, many in zip(rows.split(each), others.split(each), strict=True):
        wanted, back = many.unique(return_inverse=True)
        x = normalize(embedding_rows(vectors, wanted), dim=1)[back]
        parts.append((x * normalize(embedding_rows(vectors, some), dim=1)[:, None]).sum(2))
    return torch.cat(parts)


def cluster_nmi(
    vectors: Vectors,
    regions: Mapping[str, Ints | RegionOfRows],
    *,
    rows: int = 20_000,
    iterations: int = 15,
    seed: int = 0,
) -> dict[str, float | None]:
    """NMI of k-means clusters of the embeddings with each region, with as many clusters as the region has values.

    Figure 3 of the paper gives NMI "around cluster centroids" and no number of clusters; as many as there are labels is
    what lets a perfect encoder reach 1. At most 1,024, on at most ``rows`` random items.
    """
    g = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(vectors), generator=g)[:rows]
    x = normalize(embedding_rows(vectors, chosen), dim=1)
    out: dict[str, float | None] = {}
    for name, label in regions.items():
        mine = label[chosen.numpy()]
        known: NDArray[np.int64] = np.flatnonzero(mine >= 0)
        values, number = np.unique(mine[known], return_inverse=True)
        count = min(len(values), _MOST_CLUSTERS)
        if count < 2:
            out[name] = None
            continue
        some = x[torch.from_numpy(known)]
        centres = kmeans(some, some[: SEEDS_PER_CENTRE * count], count, iterations, g, Ranks())
        out[name] = nmi(nearest(some, centres).numpy(), number)
    return out
