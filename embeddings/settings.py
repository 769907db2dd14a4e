"""Settings of exports: formats and dtypes, and those of ``apply``."""

from dataclasses import dataclass
from pathlib import Path

from ..data.plain import check_types, set_places

FORMATS = ("parquet", "safetensors", "npy", "faiss", "faiss-hnsw")
DTYPES = ("fp32", "fp16", "int8", "int4")


def check_format(format: str, dtype: str) -> None:
    """Raises ValueError for an unknown format or dtype, or a pair that does not go together."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: expected one of {', '.join(FORMATS)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    if format.startswith("faiss") and dtype not in ("fp32", "fp16"):
        raise ValueError(f"dtype={dtype!r}: a FAISS index takes fp32 or fp16; choose one of them, or another format")


@dataclass(kw_only=True)
class ApplyConfig:
    """Make the export after a delta of the one before."""

    base: Path
    """The export before: the one that the delta was made against."""
    delta: Path
    """What ``placerank export --since`` wrote."""
    out: Path
    """Folder to write; may be the base's, with --overwrite."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def __post_init__(self) -> None:
        check_types(self, "")
        set_places(self)
