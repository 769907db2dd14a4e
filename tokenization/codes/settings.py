"""Settings of the tokenizers."""

import math
from dataclasses import dataclass, field

from ...data import OWN
from ...data.plain import check_numbers

TOKENIZERS = ("hgit", "res_kmeans", "rqvae", "unified_sid", "rqvae_ngram")
"""Names of those that come with placerank."""


def codes_for(items: int) -> int:
    """Codes a level for so many items: the power of two nearest to a 64th of them, from 16 to 512, the papers' number.

    Codes of a few items each leave clusters that know no more than their items (docs/papers.md, "How many codes").
    """
    return min(max(16, min(512, 2 ** round(math.log2(max(items, 1) / 64)))), items)


@dataclass(kw_only=True)
class TokenizerConfig:
    """What every tokenizer has."""

    levels: int = 3
    """Codes of an item, coarse to fine (L)."""
    codes: int = 0
    """Different codes of a level (K); 0: as ``codes_for`` has it by the number of items, 64 for 3,000 to 5,700."""
    sample_rows: int = 131_072
    """Items to learn from, at most, chosen at random; 256 a code are plenty. All items are encoded."""
    capacity: float = 0.0
    """Balance: on the sample no code takes more than so many times its even share, N / K; 0: as it comes."""
    seed: int = 0
    """Decides the sample and every random choice."""

    def __post_init__(self) -> None:
        check_numbers(self, "codebook", least={"levels": 1, "codes": 0, "sample_rows": 1}, levels=64, codes=1_000_000)
        if self.capacity and not self.capacity > 1:
            raise ValueError(
                f"codebook.capacity={self.capacity}: expected more than 1 (twice the even share is 2), or 0 for none"
            )
        if self.seed < 0:
            raise ValueError(f"codebook.seed={self.seed}: expected 0 or more")


@dataclass(kw_only=True)
class HGITOptions:
    """Settings of HGIT."""

    w_admin: float = 1.0
    """Weight of province, city, district in the first code."""
    w_geo: float = 4.0
    """Weight of the coordinates."""
    w_category: float = 0.5
    """Weight of the primary and secondary category."""
    w_brand: float = 0.25
    """Weight of the brand."""
    w_own: dict[str, float] = field(default_factory=dict)
    """Weights of items' own columns, categories or lists, by the name that prepare gave them; the others have none."""
    admin_scale: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])
    """Fixed factors of province, city, district within their block."""
    category_scale: list[float] = field(default_factory=lambda: [1.0, 1.0])
    """Fixed factors of primary and secondary category within their block."""
    cluster_epochs: int = 10
    """Passes of mini-batch k-means over the attributes of sample_rows items."""
    iterations: int = 10
    """Lloyd's iterations that each further level starts from."""
    epochs: int = 4
    """Passes over the sample that train levels 2 and on; 0: k-means alone."""
    batch_rows: int = 8_192
    """Items a step."""
    epoch_steps: int = 16
    """Steps of an epoch, at least: a small sample is passed through more than once."""
    lr: float = 0.02
    """Adam's rate, in units of the residual's root mean square."""
    lambda_reg: float = 0.05
    """Weight of the evenness of usage against the share of variance lost."""
    temperature: float = 0.05
    """Of the soft usage, in units of a level's mean squared error."""

    def __post_init__(self) -> None:
        check_numbers(
            self, "hgit", least=dict.fromkeys(("cluster_epochs", "iterations", "batch_rows", "epoch_steps"), 1)
        )
        for name in ("w_admin", "w_geo", "w_category", "w_brand", "lambda_reg"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"hgit.{name}={getattr(self, name)}: expected 0 or more")
        for name, count in (("admin_scale", 3), ("category_scale", 2)):
            value = getattr(self, name)
            if len(value) != count or not all(v >= 0 for v in value) or not any(value):
                raise ValueError(f"hgit.{name}={value}: expected {count} numbers of 0 or more, not all 0")
        for name, weight in self.w_own.items():
            if not weight >= 0:
                raise ValueError(f"hgit.w_own {name}={weight}: expected 0 or more")
        if self.epochs < 0:
            raise ValueError(f"hgit.epochs={self.epochs}: expected 0 or more")
        for name in ("lr", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"hgit.{name}={getattr(self, name)}: expected more than 0")

    @property
    def weights(self) -> dict[str, float]:
        own = {OWN + name: self.w_own[name] for name in sorted(self.w_own)}
        return {"admin": self.w_admin, "geo": self.w_geo, "category": self.w_category, "brand": self.w_brand, **own}


@dataclass(kw_only=True)
class KMeansOptions:
    """Settings of Res-KMeans."""

    iterations: int = 15
    """Lloyd's iterations of each level."""

    def __post_init__(self) -> None:
        check_numbers(self, "kmeans", least={"iterations": 1})


@dataclass(kw_only=True)
class RQVAEOptions:
    """Settings of RQ-VAE and of the tokenizers that are one."""

    hidden: list[int] = field(default_factory=lambda: [512, 256, 128])
    """Widths of the encoder's hidden layers; the decoder has them in reverse."""
    latent: int = 32
    """Numbers of the latent that is quantized."""
    epochs: int = 20
    """Passes over the sample."""
    batch_rows: int = 1_024
    """Items a step."""
    epoch_steps: int = 128
    """Steps of an epoch, at least: a small sample is passed through more than once."""
    lr: float = 1e-3
    """Adam's rate."""
    beta: float = 0.25
    """Weight of the commitment: how firmly latents are held near their centres."""
    iterations: int = 10
    """Lloyd's iterations of the k-means that codebooks start from."""

    def __post_init__(self) -> None:
        check_numbers(
            self,
            "rqvae",
            least=dict.fromkeys(("latent", "epochs", "batch_rows", "epoch_steps", "iterations"), 1),
            hidden=65_536,
            latent=65_536,
        )
        if not all(width >= 1 for width in self.hidden):
            raise ValueError(f"rqvae.hidden={self.hidden}: expected widths of at least 1")
        if not self.lr > 0:
            raise ValueError(f"rqvae.lr={self.lr}: expected more than 0")
        if not self.beta >= 0:
            raise ValueError(f"rqvae.beta={self.beta}: expected 0 or more")
