"""Settings of ``train``, ``adapt`` and ``export``."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..data.batches.settings import FeatureConfig
from ..data.plain import check_numbers, set_places
from ..data.urls import Url
from ..embeddings.settings import check_format
from ..rankers.adapter.config import AdapterConfig, LanguageConfig
from ..rankers.generative.config import PreferenceConfig
from ..rankers.settings import RankerConfig

CPU_TYPES = ("table_wise", "row_wise", "column_wise", "data_parallel")
CUDA_TYPES = (*CPU_TYPES, "table_row_wise", "table_column_wise", "grid_shard")
KERNELS = ("fused", "fused_uvm", "fused_uvm_caching")
CATALOGS = ("replicated", "sharded")
PRECISIONS = ("fp32", "fp16", "bf16")
NewRows = Literal["known", "random"]
Tracker = Literal["tensorboard", "mlflow", "wandb"]


@dataclass(kw_only=True)
class ShardingConfig:
    """How tables are spread over ranks."""

    default: str = "auto"
    """Sharding of every table not named below: auto (table_wise; large ones row_wise where the planner finds it better,
    those of 1 GiB always; on CUDA it may replicate those under 256 MiB), table_wise, row_wise, column_wise,
    data_parallel (each rank has the whole table); on CUDA, for pooled tables, also table_row_wise, table_column_wise
    and grid_shard."""
    tables: dict[str, str] = field(default_factory=dict)
    """Sharding of single tables, by name."""
    column_shards: int = 2
    """Pieces of a table that is cut by columns. Row-wise Adagrad then keeps one state per row and piece."""
    kernel: str = "auto"
    """Where rows lie: auto (fused; large tables that don't fit as fused_uvm_caching), fused (on the device),
    fused_uvm (in host memory, read through unified memory), fused_uvm_caching (the same, with a cache of the rows in
    use on the device). The last two need CUDA."""
    kernels: dict[str, str] = field(default_factory=dict)
    """Where rows of single tables lie, by name."""
    cache_load_factor: float = 0.2
    """Share of a fused_uvm_caching table's rows that its cache holds."""
    replicas: int = 1
    """Groups of ranks that hold all tables each (2D parallelism, CUDA only). A group trains its tables on its own
    batches, and every sync_every steps the groups average theirs."""
    sync_every: int = 1
    """See replicas; they also meet before each validation and checkpoint."""
    catalog: str = "replicated"
    """The items' columns: replicated (each device has all), or sharded (cut over the devices, for items beyond what
    one holds; each batch then waits once for where its items lie)."""
    forward_comms: str = "fp32"
    """What rows travel as from rank to rank: fp32, fp16 or, on CUDA, bf16."""
    backward_comms: str = "fp32"
    """What their gradients travel as: the same choices."""

    def __post_init__(self) -> None:
        check_numbers(self, "sharding", least={"column_shards": 1, "replicas": 1, "sync_every": 1})
        for where, value in [("default", self.default), *self.tables.items()]:
            if value not in ("auto", *CUDA_TYPES):
                raise ValueError(f"sharding.{where}={value!r}: expected one of auto, {', '.join(CUDA_TYPES)}")
        for where, value in [("kernel", self.kernel), *((f"kernels.{n}", k) for n, k in self.kernels.items())]:
            if value not in ("auto", *KERNELS):
                raise ValueError(f"sharding.{where}={value!r}: expected one of auto, {', '.join(KERNELS)}")
        for name in ("forward_comms", "backward_comms"):
            if getattr(self, name) not in PRECISIONS:
                raise ValueError(f"sharding.{name}={getattr(self, name)!r}: expected one of {', '.join(PRECISIONS)}")
        if self.catalog not in CATALOGS:
            raise ValueError(f"sharding.catalog={self.catalog!r}: expected one of {', '.join(CATALOGS)}")
        if not 0 < self.cache_load_factor <= 1:
            raise ValueError(f"sharding.cache_load_factor={self.cache_load_factor}: expected more than 0, at most 1")


@dataclass(kw_only=True)
class OptimizerConfig:
    """Row-wise Adagrad for tables, fused into their backward; AdamW with StepLR for the dense part."""

    table_lr: float = 0.1
    """Learning rate of the tables."""
    dense_lr: float = 3e-3
    """Learning rate of the dense part at the start."""
    weight_decay: float = 1e-5
    """AdamW's weight decay, dense part only."""
    lr_step: int = 500
    """The dense learning rate is multiplied by lr_gamma every so many steps."""
    lr_gamma: float = 0.9
    """See lr_step."""

    def __post_init__(self) -> None:
        check_numbers(self, "optimizer")
        for name in ("table_lr", "dense_lr", "lr_gamma", "lr_step"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: expected a positive number")
        if not self.weight_decay >= 0:
            raise ValueError(f"optimizer.weight_decay={self.weight_decay}: expected 0 or more")


@dataclass(kw_only=True)
class TrainConfig:
    """Train a ranker on prepared data."""

    data: Path
    """Folder that `placerank prepare` made."""
    run: Path
    """Folder of this run: config, metrics, checkpoints. Behind a URL it is kept as far as checkpoints are whole."""
    warm_start: Path | None = None
    """Run to go on from: rows and states of the optimizer by raw id, the dense part as it is (see docs/day-two.md)."""
    new_rows: NewRows = "known"
    """Only for warm_start. known: a new place starts as newcomers did, which share a row; without newcomers a new id at
    the mean of the trained rows that it shares most with, by semantic ID, category, brand; random: as in a new run."""
    newcomers: float = 0.0
    """Share of a batch's places that training takes for new ones, as if nobody had been there yet (docs/day-two.md).
    Not for generative rankers."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """Which features the ranker sees."""
    ranker: RankerConfig = field(default_factory=RankerConfig)
    """The dense part."""
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    """Only with warm_start, of a generative ranker: alignment with a reward model (docs/generative.md)."""
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    """How tables are spread over ranks."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Learning rates."""
    batch_size: int = 1024
    """Samples a step and rank; visits of a generative ranker."""
    epochs: int = 5
    """Passes over the training split, at most."""
    validate_every: int = 0
    """Steps between validations; 0: at the end of each epoch."""
    patience: int = 2
    """Stop after so many validations in a row without a better AUC (a generative ranker: likelihood); 0: never."""
    checkpoint_every: int = 0
    """Steps between checkpoints, besides the one at each validation; 0: none besides."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept; the best one is kept besides."""
    log_every: int = 50
    """Steps between lines in metrics.jsonl."""
    track: Tracker = "tensorboard"
    """Where the numbers of metrics.jsonl are shown too: tensorboard, mlflow or wandb. The last two are packages that
    you install, and configure by their own environment variables (MLFLOW_TRACKING_URI, WANDB_PROJECT, ...)."""
    precision: str = "fp32"
    """fp32, or bf16 for the dense part (CUDA only)."""
    pipelined: bool | None = None
    """Copy the next batches and exchange their ids between ranks while one is computed. Default: on CUDA, if there are
    several ranks."""
    seed: int = 0
    """Of initial weights and of the order of samples."""
    resume: bool = False
    """Go on from the newest undamaged checkpoint of the run."""
    overwrite: bool = False
    """Remove what the run folder holds and start anew."""

    def __post_init__(self) -> None:
        check_numbers(
            self,
            "",
            least=dict.fromkeys(("batch_size", "epochs", "keep_checkpoints", "log_every"), 1),
            batch_size=10_000_000,
        )
        set_places(self)
        for name in ("validate_every", "patience", "checkpoint_every", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")
        if not 0 <= self.newcomers < 1:
            raise ValueError(f"newcomers={self.newcomers}: expected a share in [0, 1)")
        if self.newcomers and self.ranker.generates:
            raise ValueError(f"newcomers={self.newcomers} is for rankers of candidates; leave it out")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={self.precision!r}: expected fp32 or bf16")
        if self.warm_start is not None and self.warm_start.resolve() == self.run.resolve():
            raise ValueError(
                f"run={self.run} is the run to go on from; choose another folder, or --resume for the same"
            )
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite are both set; choose one")
        if self.preference.ranker is not None:
            self._check_preference()
        if self.ranker.akt.enabled is None:
            enabled = self.features.semantic_ids is not None and not self.ranker.generates
            akt = replace(self.ranker.akt, enabled=enabled)
            self.ranker = replace(self.ranker, akt=akt)
        if self.ranker.akt.users is None:
            akt = replace(self.ranker.akt, users=self.features.user_semantic_ids is not None)
            self.ranker = replace(self.ranker, akt=akt)
        if self.features.user_semantic_ids is not None and not (self.ranker.akt.enabled and self.ranker.akt.users):
            raise ValueError(
                f"features.user_semantic_ids={self.features.user_semantic_ids} makes clusters of users, and "
                "ranker.akt.enabled or ranker.akt.users is off: give items' semantic IDs too (features.semantic_ids), "
                "leave both settings on, or leave these IDs out"
            )
        if self.ranker.generates and self.features.semantic_ids is None:
            raise ValueError(
                f"ranker.kind={self.ranker.kind} generates semantic IDs; name with features.semantic_ids the folder "
                "that `placerank tokenize` made"
            )

    def _check_preference(self) -> None:
        where = f"preference.ranker={self.preference.ranker}"
        if not self.ranker.generates:
            raise ValueError(f"{where} aligns generative rankers, and ranker.kind={self.ranker.kind}; leave it out")
        if self.warm_start is None:
            raise ValueError(f"{where} aligns a ranker that is trained; name its run with warm_start")
        if self.pipelined:
            raise ValueError(f"{where} asks the model for its own places before each step; leave pipelined out")


@dataclass(kw_only=True)
class AdaptConfig:
    """Train RecLLM-Adapter: a teacher, then a student that is distilled from it and becomes the advisor."""

    data: Path
    """Folder that `placerank prepare` made."""
    run: Path
    """Folder of this run, on this machine: config, metrics, checkpoints, and at the end advisor/."""
    teacher: LanguageConfig = field(default_factory=lambda: LanguageConfig(columns=96, layers=2, hidden=192))
    """Its language model."""
    student: LanguageConfig = field(default_factory=LanguageConfig)
    """Its language model."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """What is added to both."""
    steps: int = 1000
    """Of the teacher, and again of the student."""
    batch_size: int = 64
    """Visits a step; visits with about equally long histories share one."""
    reasons: int = 12
    """Of these, so many have their reason learned, and its question's intent."""
    learning_rate: float = 3e-3
    """AdamW's at the start; it falls to 0 in a straight line."""
    generation_weight: float = 0.3
    """Of the cross-entropy of reasons and intents, beside 1 of that of places."""
    distillation_weight: float = 1.0
    """Of the KL divergence from the teacher's scores and, where both have one tokenizer, tokens; 0: no teacher."""
    temperature: float = 2.0
    """At which both are compared."""
    checkpoint_every: int = 200
    """Steps between checkpoints, and between validations; the step with the best NDCG@10 is kept, be it the start."""
    seed: int = 0
    """Of initial weights, of the order of visits and of what is drawn for them."""
    resume: bool = False
    """Go on where the run was ended."""
    overwrite: bool = False
    """Remove what the run folder holds and start anew."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("steps", "batch_size", "reasons", "checkpoint_every"), 1)
        check_numbers(self, "", least=least | {"seed": 0}, batch_size=1_000_000)
        set_places(self)
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a positive number")
        for name in ("generation_weight", "distillation_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")
        if self.reasons > self.batch_size:
            raise ValueError(f"reasons={self.reasons}: expected at most batch_size={self.batch_size}")
        if isinstance(self.run, Url):
            raise ValueError(f"run={self.run}: expected a folder on this machine")
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite are both set; choose one")


@dataclass(kw_only=True)
class ExportConfig:
    """Export a trained ranker for serving."""

    run: Path
    """Folder of the run."""
    out: Path
    """Folder to write; see placerank/rankers/exported.py for what it holds."""
    data: Path | None = None
    """The prepared folder that the run was trained on, where it has moved since, or one over the same ids."""
    semantic_ids: Path | None = None
    """The semantic IDs that it was trained with, where they have moved since, or have more items by now."""
    user_semantic_ids: Path | None = None
    """The same of users' semantic IDs."""
    checkpoint: str = "best"
    """best (by validation AUC), latest, or a step number."""
    tables: list[str] | None = None
    """Tables to export; default: all. Scoring from the folder needs all but item_final and user_final, which hold the
    vectors that plug-ins make of the others: see placerank/rankers/final_vectors.py."""
    format: str = "parquet"
    """parquet, safetensors, npy, or an index that finds rows by inner product: faiss (exact), faiss-hnsw."""
    dtype: str = "fp32"
    """fp32, fp16, int8 or int4 (row-wise scale and bias); FAISS: fp32 or fp16."""
    block_rows: int = 65_536
    """Rows of a table in memory at a time (faiss holds the whole table)."""
    since: Path | None = None
    """An earlier export. Then ``out`` gets a delta, what changed since: ``placerank apply`` makes the whole of both."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def __post_init__(self) -> None:
        check_numbers(self, "", least={"block_rows": 1})
        set_places(self)
        check_format(self.format, self.dtype)
        if self.since is not None and self.format == "faiss-hnsw":
            raise ValueError(
                f"since with format={self.format}: what a delta makes is compared to the byte, and such an index is "
                "made by several threads; export the whole"
            )
        if self.tables is not None and (not self.tables or len(set(self.tables)) != len(self.tables)):
            raise ValueError(f"tables={self.tables}: expected one or more names, each once")
