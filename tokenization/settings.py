"""Settings of ``align`` and ``tokenize``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data.plain import check_numbers, set_places
from .alignment.settings import BehaviourConfig, GDPOConfig, LoraSettings, RewardConfig
from .codes.settings import TOKENIZERS, HGITOptions, KMeansOptions, RQVAEOptions, TokenizerConfig
from .judging.settings import ReportConfig
from .text.settings import DistrictConfig, EncoderConfig, PromptConfig

Rung = Literal["none", "dpo-pr", "dpo-lr", "dpo-lrd", "dpo-lrdm", "dpo-lrdms", "g-dpo"]


@dataclass(kw_only=True)
class AlignConfig:
    """Teach a language model where places are, and encode all items with it."""

    data: Path
    """Folder that `placerank prepare` made; or one with items.parquet, which has no visits to learn from."""
    out: Path
    """Folder to make; it appears when it is whole."""
    items: Path | None = None
    """Raw items (folder or file) for columns that prepared data leaves out: description, image."""
    adapter: Path | None = None
    """Folder of an earlier align: its encoder, prompts, districts and adapter encode these items; no training."""
    rung: Rung = "g-dpo"
    """How much of G-DPO: the paper's ladder from dpo-pr to g-dpo; none leaves the geographic alignment out, and with
    behaviour.pairs 0 encodes with the model as it is."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The language model."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    """How items become text."""
    districts: DistrictConfig = field(default_factory=DistrictConfig)
    """Districts from coordinates, where the items have none."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """The adapter."""
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)
    """What is visited together."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """What goes where."""
    gdpo: GDPOConfig = field(default_factory=GDPOConfig)
    """The alignment with distance."""
    shard_rows: int = 8192
    """Items a shard of embeddings: what a killed run encodes again."""
    queries: int = 1_000
    """Items whose neighbours are looked up for the report; 0: none."""
    device: str = "auto"
    """auto: this rank's GPU or the CPU; or a device by torch's name."""
    seed: int = 0
    """Of everything that is drawn."""
    resume: bool = False
    """Go on with a run that was killed, if there is one."""
    overwrite: bool = False
    """Replace the output folder if it exists, and forget an unfinished one."""

    def __post_init__(self) -> None:
        check_numbers(self, "", least={"shard_rows": 1, "queries": 0, "seed": 0})
        set_places(self)
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite are both set; choose one")
        if self.adapter is not None:
            plain = AlignConfig(data=self.data, out=self.out)
            parts = ("rung", "encoder", "prompts", "districts", "lora", "behaviour", "reward", "gdpo")
            idle = [name for name in parts if getattr(self, name) != getattr(plain, name)]
            if idle:
                raise ValueError(f"{', '.join(idle)}: set, and adapter={self.adapter} brings its own; drop one")


@dataclass(kw_only=True)
class TokenizeConfig:
    """Turn embeddings of items, or of users, into semantic IDs."""

    data: Path
    """Folder that `placerank prepare` made, or one with items.parquet."""
    embeddings: Path
    """Embeddings of its items: the folder that `placerank align` made, or one that write_embeddings wrote. Or of its
    users: the folder users in the one that align made."""
    out: Path
    """Folder to make; it appears when it is whole."""
    tokenizer: str | None = None
    """hgit, res_kmeans, rqvae, unified_sid or rqvae_ngram. Default: hgit for items, res_kmeans for users, of whom hgit
    has no attributes to look at."""
    codebook: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Levels, codes and what else every tokenizer has."""
    hgit: HGITOptions = field(default_factory=HGITOptions)
    """Settings of hgit."""
    kmeans: KMeansOptions = field(default_factory=KMeansOptions)
    """Settings of res_kmeans."""
    rqvae: RQVAEOptions = field(default_factory=RQVAEOptions)
    """Settings of rqvae, unified_sid and rqvae_ngram."""
    districts: DistrictConfig = field(default_factory=DistrictConfig)
    """Districts from coordinates, where the items have none."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """What is measured and drawn."""
    add: Path | None = None
    """Folder of tokens to go on from: its codebooks encode, its items keep their IDs, new ones get theirs."""
    block_rows: int = 65_536
    """Items encoded at a time: bounds memory, and is what a killed run loses."""
    device: str = "auto"
    """auto: this rank's GPU or the CPU; or a device by torch's name."""
    resume: bool = False
    """Go on with a run that was killed, if there is one."""
    overwrite: bool = False
    """Replace the output folder if it exists."""

    def __post_init__(self) -> None:
        check_numbers(self, "", least={"block_rows": 1})
        set_places(self)
        if self.tokenizer is not None and self.tokenizer not in TOKENIZERS:
            from .codes.tokenizers import tokenizer_type

            tokenizer_type(self.tokenizer)  # one that somebody registered, or none
