"""The settings of ``bench kernels``."""

from dataclasses import dataclass
from pathlib import Path

from ...data.plain import check_numbers

KERNELS = (
    "pairwise_within", "hard_negatives", "residual_encode", "residual_lookup", "target_attention", "search_attention",
    "gru", "trie_topk", "tree_attention",
)  # fmt: skip


@dataclass(kw_only=True)
class BenchKernelsConfig:
    """Time the kernels beside what else does the same work, in turn, on this machine."""

    kernel: tuple[str, ...] = KERNELS
    """Which kernels."""
    device: str = "auto"
    """cpu, cuda, or auto: CUDA where there is one."""
    quick: bool = False
    """Small cases only, a minute in all."""
    rounds: int = 7
    """How often every peer of a case is timed, in turn."""
    json: Path | None = None
    """Also write the lines and their conditions to this file."""
    save: bool = False
    """Keep the lines in the checkout's benchmarks/results/kernels.csv and draw its pictures anew."""

    def __post_init__(self) -> None:
        check_numbers(self, "")
        unknown = set(self.kernel) - set(KERNELS)
        if unknown:
            raise ValueError(f"kernel: got {', '.join(sorted(unknown))}, expected some of {', '.join(KERNELS)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device: got {self.device!r}, expected auto, cpu or cuda")
        if self.rounds < 1:
            raise ValueError(f"rounds: got {self.rounds}, expected at least 1")
        if self.save and self.quick:
            raise ValueError("save keeps the figures that are quoted, so it goes without quick")
