"""ReST's contrastive plug-in: items in reach that share an attribute come together, near ones that differ go apart.

Jiang et al., A Plug-and-Play Spatially-Constrained Representation Enhancement Framework for Local-Life Recommendation
(arXiv 2511.12947). Shapes: N distinct items of a batch, F attributes, D columns, K negatives.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ...embeddings.centres import Centres, attribute_mean
from ...kernels.hard_negatives import hard_negatives
from ...kernels.places import Places, gather_places
from .rows import rows_to_take
from .settings import ATTRIBUTES, RestConfig

log = logging.getLogger(__name__)


def rest_preset(name: str) -> RestConfig:
    """A row of the paper's ablation (its section 5.4) by name.

    rest: all of it; rest-1: without dynamic alignment; rest-2: without the brand's loss; rest-3: without the
    category's loss; rest-4: without warm-up, the default of ``RestConfig``. The text tells what rest-2, -3 and -4 are;
    rest-1 is what is left.

    Raises:
        ValueError: no such row.
    """
    whole = RestConfig(enabled=True, warm_up=True)
    presets = {
        "rest": whole,
        "rest-1": replace(whole, align=False),
        "rest-2": replace(whole, contrast=["category"]),
        "rest-3": replace(whole, contrast=["brand"]),
        "rest-4": RestConfig(enabled=True),
    }
    if name not in presets:
        raise ValueError(f"preset {name!r} does not exist; there are {', '.join(presets)}")
    return presets[name]


class ContrastItems(NamedTuple):
    """Distinct items of a batch, row by row the same item.

    Attributes:
        vectors: their (warmed-up) embeddings, [N, D]; gradients flow into them.
        rows: of each attribute's table, 0 where unknown, int64 [N, F].
        attributes: embeddings of those, [N, F, D]; no gradient flows into them.
        places: unit vectors, NaN where unknown, float32 [N, 3].
        ids: of the items, the same on all ranks, int64 [N].
        radius_scale: ``density_scale`` of the items, float32 [N]; None: all 1.
    """

    vectors: Tensor
    rows: Tensor
    attributes: Tensor
    places: Tensor
    ids: Tensor
    radius_scale: Tensor | None = None


class SpatialContrast(nn.Module):
    """SIDENet (section 4.3): for each attribute a, over the items i that have a positive p and negatives n,

        L_a = mean_i  alpha_i · -log( e^{s(i,p)/t} / (e^{s(i,p)/t} + sum_n e^{s(i,n)/t}) ),   s = cosine,
        alpha_i = 1 - (cos(E_i, R_M) + 1) / 2   (equation 10),

    and the loss is weight · sum_a L_a. The positive of i is the least similar of the items with the same value of a
    within ``positive_km``; its negatives are the K most similar of those with another value within ``negative_km``
    (``kernels/hard_negatives.py``). R_M is the centre nearest to the mean of the item's attribute embeddings.

    The text is silent on these: one search an attribute, so that what the brand calls a positive is never the
    category's question; an item whose value is unknown is neither anchor, positive nor negative for that attribute;
    an item without a negative is no anchor; alpha is a weight, so no gradient flows through it.

    Anchors are the items of this rank's batch, and so are what they are compared with; with ``across_ranks`` those are
    the items of all ranks' batches, each once. The loss is then what one process with all of them gives for these
    anchors, and the gradient is that of this rank's items: none flows to another rank's.

    Args:
        dim: D.
        config: what to contrast and how.
        attributes: names of the columns of rows and attributes, in their order.

    Raises:
        ValueError: none of the attributes to contrast is among ``attributes``.
    """

    def __init__(self, dim: int, config: RestConfig, attributes: Sequence[str] = ATTRIBUTES) -> None:
        super().__init__()
        self.config = config
        self.columns = {name: i for i, name in enumerate(attributes) if name in config.contrast}
        missing = sorted(set(config.contrast) - set(self.columns))
        if unknown := [name for name in missing if name not in ATTRIBUTES]:
            raise ValueError(
                f"rest.contrast: got {unknown[0]!r}, target and history have {', '.join(attributes) or 'none'}; name "
                "one of them, or add it to features.history_attributes"
            )
        if not self.columns:
            raise ValueError(
                f"rest.contrast={config.contrast}: these items have {', '.join(attributes) or 'no attributes'}; "
                "contrast one that they have, or leave the plug-in out"
            )
        if missing:
            log.warning("rest.contrast: no item has a %s, so it makes no loss", " or a ".join(missing))
        self.centres = Centres(config.centres, dim)

    def due(self, step: int) -> bool:
        """Whether the centres are to be refreshed before this step, counted from 0.

        Attributes move most at the start, and those of step 0 are random: before the first ``refresh_every`` steps are
        over it is due each time that their number has doubled.
        """
        every = self.config.refresh_every
        doubled = step < every and step & (step - 1) == 0
        return self.config.align and (doubled or step % every == 0)

    def refresh(self, attributes: Tensor, known: Tensor, counts: Tensor | None = None) -> None:
        """Fit the centres to the attributes of all items; all ranks call it, see ``Centres.refresh``.

        Args:
            attributes: embeddings of all combinations of attributes, [M, F, D].
            known: bool [M, F]; combinations of which nothing is known are left out.
            counts: items of each combination, [M]; None: one.
        """
        used = known.any(dim=1)
        vectors = attribute_mean(attributes[used], known[used])
        self.centres.refresh(vectors, None if counts is None else counts[used])

    def alpha(self, items: ContrastItems) -> Tensor:
        """Equation 10, float32 [N]: 0 where a vector points to its centre, 1 where it points away; 1 without align."""
        if not self.config.align:
            return items.vectors.new_ones(len(items.vectors), dtype=torch.float32)
        centre = self.centres.nearest(attribute_mean(items.attributes, items.rows > 0))
        return 1 - (F.cosine_similarity(items.vectors.detach().float(), centre, dim=1) + 1) / 2

    def forward(self, items: ContrastItems, most: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss, a scalar, and numbers to log.

        Logged for each attribute: ``<attribute>_loss`` before the weight, and ``<attribute>_positives``, the share of
        items with a known value that found a positive; ``alpha``, its mean over the items; ``drift`` of the centres at
        their last refresh. No items, or none with both a positive and a negative: the loss is 0.

        Args:
            items: this rank's.
            most: items that any rank may have, the same number on all ranks; asked for ``across_ranks`` alone.
        """
        alpha = self.alpha(items)
        unit = F.normalize(items.vectors.float(), dim=1)
        loss = unit.sum() * 0  # so that there is a gradient, zero, even where no attribute has an anchor
        logged = {"alpha": alpha.sum() / max(1, len(alpha)), "drift": self.centres.drift.clone()}
        across = self.config.across_ranks and dist.is_initialized() and dist.get_world_size() > 1
        names, none = list(self.columns), torch.full_like(items.ids, -1)
        for i in range(0, len(names), 2):  # places carry two attributes
            pair = names[i : i + 2]
            values = [items.rows[:, self.columns[name]] for name in pair]
            met, every = Places(items.ids, items.places, unit.detach(), *values, *[none] * (2 - len(pair))), unit
            if across:
                assert most is not None
                others = gather_places(met, most)
                met = _each_once(Places(*map(torch.cat, zip(met, others, strict=True))))
                every = torch.cat([unit, others.embeddings])
            for name, of_met in zip(pair, (met.categories, met.brands), strict=False):
                own, share = self._attribute_loss(every, alpha, met, of_met, items.radius_scale)
                loss = loss + own
                logged |= {f"{name}_loss": own.detach(), f"{name}_positives": share}
        return self.config.weight * loss, logged

    def _attribute_loss(
        self, unit: Tensor, alpha: Tensor, met: Places, values: Tensor, radius_scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """L_a for the attribute, and the share of items of a known value that have a positive.

        Args:
            unit: vectors of length 1, [M, D]; the first N of M are this rank's.
            alpha: [N].
            met: who they are, M.
            values: of the attribute, [M].
            radius_scale: [N], or None.
        """
        known, count = values > 0, len(alpha)
        rows, asked = rows_to_take(known), rows_to_take(known[:count])  # the second are the first of the first
        # without a place an item is neither found nor looked for
        positions = met.positions.masked_fill(~known[:, None], torch.nan)
        columns = met.items, positions, met.embeddings, values, torch.full_like(values, -1)
        candidates = Places(*(x.index_select(0, rows) for x in columns))
        scale = 1.0 if radius_scale is None else radius_scale[asked]
        found = hard_negatives(
            Places(*(x[: len(asked)] for x in candidates)),
            candidates if len(unit) > count else None,
            k=self.config.negatives,
            positive_km=self.config.positive_km * scale,
            negative_km=self.config.negative_km * scale,
        )
        usable = found.positives_valid & found.negatives_valid.any(dim=1)
        chosen = rows_to_take(usable)
        anchors, valid, counts = asked[chosen], found.negatives_valid[chosen], usable[chosen]
        # what doesn't count is compared with itself, so that gradients of 0 are not all added to one row
        positives = rows[found.positives[chosen]].where(counts, anchors)
        negatives = rows[found.negatives[chosen]].where(valid, anchors[:, None])
        own = info_nce(unit, anchors, positives, negatives, valid, self.config.temperature)
        share = found.positives_valid.sum() / known[:count].sum().clamp(min=1)
        return (alpha[anchors] * own).where(counts, 0).sum() / counts.sum().clamp(min=1), share


def _each_once(places: Places) -> Places:
    """The places, with no position where the item has come before."""
    ids, rows = places.items.sort(stable=True)
    again = F.pad(ids[1:] == ids[:-1], (1, 0))[: len(ids)]
    again = torch.empty_like(again).scatter_(0, rows, again)
    return places._replace(positions=places.positions.masked_fill(again[:, None], torch.nan))


def info_nce(
    unit: Tensor, anchors: Tensor, positives: Tensor, negatives: Tensor, valid: Tensor, temperature: float
) -> Tensor:
    """-log of the share that an anchor's positive has beside its negatives, [A].

    Args:
        unit: vectors of length 1, [N, D].
        anchors, positives: rows, int64 [A].
        negatives: rows, int64 [A, K].
        valid: bool [A, K], which negatives count.
        temperature: cosines are divided by it.
    """
    others = torch.cat([positives[:, None], negatives], dim=1)
    compared = unit.index_select(0, others.flatten()).unflatten(0, others.shape)
    cosines = torch.linalg.vecdot(compared, unit.index_select(0, anchors)[:, None])
    logits = (cosines / temperature).masked_fill(F.pad(~valid, (1, 0)), -torch.inf)
    return -logits.log_softmax(dim=1)[:, 0]
