"""What a checkpoint must share with the data and the config that it is used with: the ranker, and whose its rows are.

Resume and export ask ``Identity.check``. Rows of a table belong to ids only by their number, so each vocabulary's ids,
in the order of their rows, are hashed into the checkpoint. Data of other days over the same vocabularies passes; data
with one item more is refused. Evaluation and a warm start find such rows by id (``rows_by_id``).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..data.batches.features import Features
from ..data.urls import fetched
from ..rankers.dense import RankerConfig
from .inputs import Inputs
from .runtime import on_first_rank

_BLOCK = 1 << 20  # ids turned into text at a time


@dataclass(frozen=True)
class Identity:
    """Made by ``of``.

    Attributes:
        inputs: what it is the identity of.
        signature: tables with their sizes, dense features and the ranker's config, JSON-ready.
        vocabularies: of each vocabulary that a table has rows of, how many ids it has and their hash.
    """

    inputs: Inputs
    signature: dict[str, Any]
    vocabularies: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, inputs: Inputs, ranker: RankerConfig) -> Self:
        """All ranks call it; the first one hashes the vocabularies, in under half a second for 10 million items."""
        return cls(inputs, signature(inputs.features, ranker), on_first_rank(lambda: vocabularies(inputs)))

    def to_save(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON-ready."""
        return {
            "signature": self.signature,
            "vocabularies": self.vocabularies,
            "data": self.inputs.manifest["content_hash"],
            "semantic_ids": self.inputs.semantic_ids,
            "user_semantic_ids": self.inputs.user_semantic_ids,
        }

    def same_rows(self, saved: Mapping[str, Any]) -> bool:
        """Whether a checkpoint's rows are those of the same ids, in tables of as many rows."""
        then, now = saved["vocabularies"], self.vocabularies
        sizes, wanted = ({n: t["rows"] for n, t in x["tables"].items()} for x in (saved["signature"], self.signature))
        same_sizes = all(sizes[n] == wanted[n] for n in sizes.keys() & wanted.keys())
        return same_sizes and all(then[n] == now[n] for n in then.keys() & now.keys())

    def check(self, saved: Mapping[str, Any], where: str) -> None:
        """Compare with what a checkpoint kept.

        Args:
            saved: the checkpoint's manifest.
            where: names it in messages.

        Raises:
            ValueError: its rows belong to other ids, it is another ranker, or was trained with other semantic IDs.
        """
        then, now = saved["vocabularies"], self.vocabularies
        others = [n for n in sorted(then.keys() & now.keys()) if then[n] != now[n]]
        if others:
            listed = ", ".join(f"{n} ({then[n]['ids']:,} ids, now {now[n]['ids']:,} others)" for n in others)
            raise ValueError(
                f"{where} was trained on other ids than {self.inputs.folder} has, so its rows are not theirs: {listed}"
                ". Name with --data the folder that it was trained on, or one prepared with the same ids, or train "
                "anew; train --warm-start goes on with the rows that are known"
            )
        check_signature(saved["signature"], self.signature, where)
        self.inputs.check_semantic_ids(saved, where)


def vocabularies(inputs: Inputs) -> dict[str, dict[str, Any]]:
    """Size and hash of the ids that the rows of tables stand for, by vocabulary: item, user, category, ..."""
    names = {"category" if t.name == "category_path" else t.name for t in inputs.features.tables}
    found = {}
    for name in sorted(names & inputs.manifest["tables"].keys()):  # the others' rows are numbers by themselves: hours
        if f"{_where(name)[0]}.parquet" not in inputs.manifest["files"]:
            continue  # hashed
        ids = read_ids(inputs, name)
        found[name] = {"ids": len(ids) - 1, "sha256": hash_in_order(ids)}
    return found


def _where(name: str) -> tuple[str, str]:
    return {"item": ("catalog", "item_id"), "user": ("users", "user_id")}.get(name, (f"vocab/{name}", "value"))


def read_ids(inputs: Inputs, name: str, folder: Path | None = None) -> pa.ChunkedArray:
    """Ids of a vocabulary by row, null in row 0; of the inputs' prepared folder, or of another one."""
    file, column = _where(name)
    return pq.read_table(fetched((folder or inputs.folder) / f"{file}.parquet"), columns=[column])[column]


def hash_in_order(ids: pa.ChunkedArray) -> str:
    """SHA-256 of ids as text, null apart from the empty text; the same however the column is cut or stored."""
    lengths, texts = hashlib.sha256(), hashlib.sha256()
    for chunk in ids.chunks:
        for start in range(0, len(chunk), _BLOCK):
            text = pc.cast(chunk.slice(start, _BLOCK), pa.large_string())
            lengths.update(pc.fill_null(pc.binary_length(text), -1).to_numpy(zero_copy_only=False).astype("<i8"))
            text = pc.fill_null(text, "")  # what lies under a null is anybody's
            _, offsets, content = text.buffers()
            at = memoryview(offsets).cast("q")[text.offset :]
            if content is not None:
                texts.update(memoryview(content)[at[0] : at[len(text)]])
    return hashlib.sha256(lengths.digest() + texts.digest()).hexdigest()


def signature(features: Features, config: RankerConfig) -> dict[str, Any]:
    """What must be equal for a checkpoint to fit a ranker, JSON-ready."""
    tables = {t.name: {"rows": t.rows, "dim": t.dim, "features": list(t.features)} for t in features.tables}
    own = {"own": {o.name: [o.of, o.form] for o in features.own}} if features.own else {}
    return {"tables": tables, "dense": list(features.dense), **own, "ranker": asdict(config)}


def check_signature(saved: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Raises ValueError that lists every difference between a checkpoint's signature and this config's.

    Settings of the ranker that the checkpoint does not know, since an older version wrote it, had their defaults.
    """

    def flat(node: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}

    a, b = flat(saved), flat(wanted)
    a = {k: v for k, v in flat({"ranker": asdict(RankerConfig())}).items() if k in b} | a
    differences = [f"{k}: saved {a.get(k)}, now {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
    if differences:
        raise ValueError(
            f"{where} was made with another config; "
            + "; ".join(differences)
            + ". Use the saved config or another run folder"
        )
