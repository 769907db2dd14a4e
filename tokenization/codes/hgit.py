"""HGIT: hierarchical geographic item tokenization (LGSID, arXiv 2511.14221, section 4.3).

The first code says where an item is and what it is; the codes after it say what its embedding adds.

* Level 1 clusters attributes, not embeddings: mini-batch k-means on F (``attributes``, eq. 9). Its centres mu^(1) are
  the mean embeddings of the clusters' items, over all items.
* Levels 2 to L are learnable centres on the residual (eqs. 10-12), nearest by Euclidean distance. They start from
  k-means, level by level, and are then trained together on

      |X - sum_l Q_l|^2 / var(X) + lambda_reg * sum_{l >= 2} KL(p_l || uniform)

  (eqs. 13-16). The paper's p_l counts codes and so has no gradient; here it is the soft usage, the mean of
  softmax(-|R - mu|^2 / T). T is ``temperature`` times the level's mean squared error. Dividing by the variance of
  the embeddings makes lambda_reg a number without a unit: the first term is 1 - explained variance, the second nats.
  The gradient of the second term reaches the level's own centres alone: earlier levels are not bent to even out later
  ones. It looks at a few rows a centre of each batch, which is a third of its time and does as well.
* Centres that no item chose in an epoch are re-seeded where the error is, and at last until none of the sample is left
  without items.

The paper gives neither lambda_reg nor the weights of F ("empirically chosen"); the defaults are ours. Coordinates weigh
much more than in proportion, because what they vary by is mostly said by the administrative levels already; what they
add is where in its district an item is. That parts items whose text, and so whose embedding, is the same.
"""

from functools import partial

import pyarrow as pa
import torch
from torch import Tensor

from ...kernels.codebook import residual_encode, residual_lookup, soft_usage
from ..ranks import Ranks
from ..text.item_table import take_rows
from ..text.vectors import ahead, block
from .attributes import AttributeFeatures
from .balance import fit_prices, with_prices
from .kmeans import SEEDS_PER_CENTRE, add_level, minibatch_kmeans, nearest, seed_centres, sum_by_code
from .learning import PREFIX, batches, keep_adam, restore_adam, step
from .settings import HGITOptions
from .tokenizer import FitData, Round, State, Tokenizer

_BATCH_ROWS = 4_096  # of mini-batch k-means, at least; 16 a centre where there are many
_BLOCK_ROWS = 32_768
_START_ROWS = 128  # rows a centre of the k-means that levels 2 and on start from: they are trained after it
_EVEN_ROWS = 4  # rows a centre, of each batch, that the entropy term's gradient is taken from
_REPAIRS = 8  # times that centres without items are looked for at last
_ATTRIBUTES = "attributes."


class HGIT(Tokenizer):
    """Hierarchical geographic item tokenization. See the module."""

    name = "hgit"
    options_type = HGITOptions
    options: HGITOptions
    needs_items = True

    def _rounds(self, data: FitData) -> list[Round]:
        levels, options = self.config.levels, self.options
        rounds = [Round("level 1: clusters", self._cluster), Round("level 1: centres", self._centres)]
        rounds += [Round(f"level {level + 1}: k-means", self._start) for level in range(1, levels)]
        if levels > 1:
            rounds += [
                Round(f"epoch {epoch + 1}", partial(self._epoch, epoch == options.epochs - 1))
                for epoch in range(options.epochs)
            ]
            rounds.append(Round("dead centres", self._repair))
        return rounds

    def _features(self, items: pa.Table, state: State) -> Tensor:
        kept = {n.removeprefix(_ATTRIBUTES): t.cpu() for n, t in state.items() if n.startswith(_ATTRIBUTES)}
        return AttributeFeatures.from_state(kept)(items).to(self.device)

    def _cluster(self, state: State, data: FitData, generator: torch.Generator) -> State:
        """Clusters of the attributes of as many random items as the sample has; their F, a few hundred bytes each, is
        held by every rank."""
        assert data.items is not None
        o, config = self.options, self.config
        chosen = torch.randperm(len(data.items), generator=generator)[: config.sample_rows]
        items = take_rows(data.items, chosen.numpy())
        features = AttributeFeatures.fit(items, o.weights, o.admin_scale, o.category_scale)
        state |= {_ATTRIBUTES + name: tensor.to(self.device) for name, tensor in features.state().items()}
        seen = features(items).to(self.device)
        state["clusters"] = minibatch_kmeans(
            lambda rows: seen[rows],
            len(seen),
            seen[: SEEDS_PER_CENTRE * config.codes],
            config.codes,
            epochs=o.cluster_epochs,
            batch_rows=max(_BATCH_ROWS, SEEDS_PER_CENTRE * config.codes),
            generator=generator,
            ranks=data.ranks,
        )
        return state

    def _centres(self, state: State, data: FitData, generator: torch.Generator) -> State:
        """mu^(1): the mean embedding of each cluster's items, over all items; the blocks are dealt out to the ranks."""
        assert data.items is not None
        if self.config.capacity:
            seen = self._features(take_rows(data.items, data.sample.rows.numpy()), state)
            clusters = state["clusters"][None]
            state["cluster_prices"] = fit_prices(seen, clusters, self.config.capacity, data.sample.total, data.ranks)
        sums = torch.zeros(self.config.codes, self.dim + 1, dtype=torch.float64, device=self.device)
        count = len(data.vectors)
        starts = range(data.ranks.rank * _BLOCK_ROWS, count, data.ranks.world * _BLOCK_ROWS)
        mine = ((i, block(data.vectors, i, min(i + _BLOCK_ROWS, count), self.device)) for i in starts)
        for first, x in ahead(mine):
            codes = self._first_codes(data.items.slice(first, len(x)), state)
            part, counts = sum_by_code(x, codes, self.config.codes)
            sums += torch.cat([part, counts[:, None]], dim=1)
        data.ranks.sum_(sums)
        counts = sums[:, -1:]
        mean = sums[:, :-1].sum(0) / counts.sum()
        state["codebooks"] = torch.where(counts > 0, sums[:, :-1] / counts.clamp(min=1), mean).float()[None]
        return state

    def _first_codes(self, items: pa.Table, state: State) -> Tensor:
        features, clusters = self._features(items, state), state["clusters"][None]
        if "cluster_prices" in state:
            features, clusters = with_prices(features, clusters, state["cluster_prices"])
        return residual_encode(features, clusters)[:, 0]

    def _residuals(self, state: State, data: FitData) -> tuple[Tensor, Tensor]:
        """What level 1 leaves over of the sample and of its seeds."""
        assert data.items is not None
        first, out = state["codebooks"][0], []
        for rows, x in ((data.sample.rows, data.sample.x), (data.sample.seed_rows, data.sample.seeds)):
            codes = self._first_codes(take_rows(data.items, rows.numpy()), state)
            out.append(x - first[codes])
        return out[0], out[1]

    def _start(self, state: State, data: FitData, generator: torch.Generator) -> State:
        x, seeds = self._residuals(state, data)
        x = x[: -(-_START_ROWS * self.config.codes // data.ranks.world)]
        first, rest = state["codebooks"][:1], state["codebooks"][1:]
        books = add_level(
            rest if len(rest) else None, x, seeds, self.config.codes, self.options.iterations, generator, data.ranks
        )
        state["codebooks"] = torch.cat([first, books])
        return state

    def _epoch(self, last: bool, state: State, data: FitData, generator: torch.Generator) -> State:
        o, ranks, count = self.options, data.ranks, self.config.codes
        x, seeds = self._residuals(state, data)
        books = state["codebooks"][1:].clone().requires_grad_()
        temperatures, scale = self._errors(x, books.detach(), data)
        optimizer = restore_adam({"levels": books}, state, lr=o.lr * scale)
        used = torch.zeros(books.shape[:2], dtype=torch.float64, device=self.device)
        variance = max(data.sample.variance, 1e-30)
        for number, (rows, total) in enumerate(
            batches(data.sample.total, o.batch_rows, o.epoch_steps, generator, ranks)
        ):
            r = x[rows]
            # Others in each step, and the same whatever the number of ranks.
            some = (rows * ranks.world + ranks.rank + number) % max(1, total // (_EVEN_ROWS * count)) == 0
            codes = residual_encode(r, books)
            loss = (r - residual_lookup(codes, books, deterministic=True)).square().sum() / (total * variance)
            for level in range(len(books)):
                used[level] += torch.bincount(codes[:, level], minlength=count)
                if o.lambda_reg:
                    loss = loss + o.lambda_reg * _evenness(r[some], books[level], temperatures[level], ranks)
                r = r - books.detach()[level, codes[:, level]]
            step(loss, [books], optimizer, ranks)
        ranks.sum_(used)
        keep_adam(optimizer, {"levels": books}, state)
        state["codebooks"] = torch.cat([state["codebooks"][:1], books.detach()])
        if not last:  # what is re-seeded is trained before it is used
            self._revive(state, used, seeds, generator)
        return state

    def _errors(self, x: Tensor, books: Tensor, data: FitData) -> tuple[list[float], float]:
        """Temperature of each level's soft usage; the residual's root mean square a number."""
        errors, start = [], x.square().sum().double()
        codes = residual_encode(x, books)
        for level, book in enumerate(books):
            x = x - book[codes[:, level]]
            errors.append(x.square().sum().double())
        sums = torch.stack([start, *errors])
        data.ranks.sum_(sums)
        mean = (sums / data.sample.total).tolist()
        floor = 1e-6 * max(data.sample.variance, 1e-30)
        return [self.options.temperature * max(e, floor) for e in mean[1:]], max(mean[0] / self.dim, floor) ** 0.5

    def _revive(self, state: State, used: Tensor, seeds: Tensor, generator: torch.Generator) -> None:
        """Put centres that nobody chose where the seeds' error is, and forget their momentum."""
        books = state["codebooks"][1:].clone()
        for level, counts in enumerate(used):
            dead = (counts == 0).nonzero().flatten()
            if len(dead):
                books[level, dead] = seed_centres(seeds, len(dead), generator, books[level][counts > 0])
                for moment in ("exp_avg", "exp_avg_sq"):
                    state[f"{PREFIX}levels.{moment}"][level, dead] = 0
            seeds = seeds - books[level, nearest(seeds, books[level])]
        state["codebooks"] = torch.cat([state["codebooks"][:1], books])

    def _repair(self, state: State, data: FitData, generator: torch.Generator) -> State:
        """Put centres without items where the seeds' error is, level by level, until each has one of the sample.

        A new centre lies on a seed, which then chooses it; it may leave another without its only item, so that is
        looked at again, a few times at most.
        """
        x, seeds = self._residuals(state, data)
        books = state["codebooks"].clone()
        for book in books[1:]:
            for _ in range(_REPAIRS):
                counts = torch.bincount(nearest(x, book), minlength=len(book))
                data.ranks.sum_(counts)
                dead = (counts == 0).nonzero().flatten()
                if not len(dead):
                    break
                book[dead] = seed_centres(seeds, len(dead), generator, book[counts > 0])
            x, seeds = x - book[nearest(x, book)], seeds - book[nearest(seeds, book)]
        state["codebooks"] = books
        return state

    def _balance(self, state: State, data: FitData, generator: torch.Generator) -> State:
        """Prices of level 2 and on; those of level 1 are over its clusters, and its centres depend on them."""
        books = state["codebooks"]
        state["prices"] = torch.zeros(books.shape[:2], device=self.device)
        if len(books) > 1:
            x, _ = self._residuals(state, data)
            state["prices"][1:] = fit_prices(x, books[1:], self.config.capacity, data.sample.total, data.ranks)
        return state

    def _codes(self, x: Tensor, items: pa.Table | None, state: State) -> Tensor:
        assert items is not None
        first = self._first_codes(items, state)[:, None]
        if self.config.levels == 1:
            return first
        return torch.cat([first, self._quantize(x - state["codebooks"][0, first[:, 0]], state, 1)], dim=1)


def _evenness(some: Tensor, centres: Tensor, temperature: float, ranks: Ranks) -> Tensor:
    """KL(p || uniform) with p the soft usage over the rows [n, D] of all ranks; gradients to the centres.

    What is returned has the value's gradient: with p summed over ranks, dKL = sum_k (log(K p_k) + 1) dp_k, and each
    rank's part of dp is its own.
    """
    own = soft_usage(some, centres, temperature) * len(some) if len(some) else centres.sum(1) * 0
    p, taken = own.detach().clone(), own.new_tensor([len(some)])
    ranks.sum_(p, taken)
    slope = (p / taken).clamp(min=1e-12).mul(len(centres)).log() + 1
    return (own * slope / taken).sum()
