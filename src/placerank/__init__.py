"""placerank: ranking models for places, on TorchRec sharded tables.

The steps are functions of typed settings, see ``api/steps.py``, and what they return shows itself in a notebook::

    import placerank as pr

    runs = Path("runs/mine")
    data = pr.prepare(pr.PrepareConfig(input=Path("my_data"), out=runs / "data"))
    run = pr.train(pr.TrainConfig(data=data.folder, run=runs / "ranker", epochs=2))

What takes seconds to import is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "AdaptConfig",
    "Adapted",
    "AdapterConfig",
    "AktConfig",
    "AlignConfig",
    "Aligned",
    "ApplyConfig",
    "BehaviourConfig",
    "DistrictConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "Evaluated",
    "ExportConfig",
    "Exported",
    "FeatureConfig",
    "GDPOConfig",
    "GenerateConfig",
    "Generated",
    "GeneratorConfig",
    "HGITOptions",
    "KMeansOptions",
    "LanguageConfig",
    "ListsConfig",
    "LoraSettings",
    "ObjectivesConfig",
    "OneRecConfig",
    "OptimizerConfig",
    "OptimizerSettings",
    "PreferenceConfig",
    "PrepareConfig",
    "Prepared",
    "PromptConfig",
    "RQVAEOptions",
    "Ranker",
    "RankerConfig",
    "ReportConfig",
    "RestConfig",
    "RewardConfig",
    "ShardingConfig",
    "SimulateConfig",
    "Simulated",
    "TigerConfig",
    "TokenizeConfig",
    "Tokenized",
    "TokenizerConfig",
    "TrainConfig",
    "Trained",
    "__version__",
    "adapt",
    "align",
    "apply",
    "evaluate",
    "export",
    "generate",
    "load",
    "prepare",
    "simulate",
    "tokenize",
    "train",
]

# Names are said for type checkers and editors, which don't run the code below, and for Python; a test holds them equal.
if TYPE_CHECKING:
    from .api.results import Adapted, Aligned, Evaluated, Exported, Generated, Prepared, Simulated, Tokenized, Trained
    from .api.steps import adapt, align, apply, evaluate, export, generate, prepare, simulate, tokenize, train
    from .data.batches.settings import FeatureConfig
    from .data.city.settings import SimulateConfig
    from .data.preparation.settings import PrepareConfig
    from .embeddings.settings import ApplyConfig
    from .evaluation.settings import EvaluateConfig, GenerateConfig, ListsConfig
    from .rankers.adapter.config import AdapterConfig, LanguageConfig
    from .rankers.generative.config import GeneratorConfig, OneRecConfig, PreferenceConfig, TigerConfig
    from .rankers.plugins.settings import AktConfig, RestConfig
    from .rankers.rank import Ranker, load
    from .rankers.settings import ObjectivesConfig, RankerConfig
    from .tokenization.alignment.settings import (
        BehaviourConfig,
        GDPOConfig,
        LoraSettings,
        OptimizerSettings,
        RewardConfig,
    )
    from .tokenization.codes.settings import HGITOptions, KMeansOptions, RQVAEOptions, TokenizerConfig
    from .tokenization.judging.settings import ReportConfig
    from .tokenization.settings import AlignConfig, TokenizeConfig
    from .tokenization.text.settings import DistrictConfig, EncoderConfig, PromptConfig
    from .training.settings import AdaptConfig, ExportConfig, OptimizerConfig, ShardingConfig, TrainConfig

_LAZY = {
    ".api.results": (
        "Adapted",
        "Aligned",
        "Evaluated",
        "Exported",
        "Generated",
        "Prepared",
        "Simulated",
        "Tokenized",
        "Trained",
    ),
    ".api.steps": (
        "adapt",
        "align",
        "apply",
        "evaluate",
        "export",
        "generate",
        "prepare",
        "simulate",
        "tokenize",
        "train",
    ),
    ".data.batches.settings": ("FeatureConfig",),
    ".data.city.settings": ("SimulateConfig",),
    ".data.preparation.settings": ("PrepareConfig",),
    ".embeddings.settings": ("ApplyConfig",),
    ".evaluation.settings": ("EvaluateConfig", "GenerateConfig", "ListsConfig"),
    ".rankers.adapter.config": ("AdapterConfig", "LanguageConfig"),
    ".rankers.generative.config": ("GeneratorConfig", "OneRecConfig", "PreferenceConfig", "TigerConfig"),
    ".rankers.plugins.settings": ("AktConfig", "RestConfig"),
    ".rankers.rank": ("Ranker", "load"),
    ".rankers.settings": ("ObjectivesConfig", "RankerConfig"),
    ".tokenization.alignment.settings": (
        "BehaviourConfig",
        "GDPOConfig",
        "LoraSettings",
        "OptimizerSettings",
        "RewardConfig",
    ),
    ".tokenization.codes.settings": ("HGITOptions", "KMeansOptions", "RQVAEOptions", "TokenizerConfig"),
    ".tokenization.judging.settings": ("ReportConfig",),
    ".tokenization.settings": ("AlignConfig", "TokenizeConfig"),
    ".tokenization.text.settings": ("DistrictConfig", "EncoderConfig", "PromptConfig"),
    ".training.settings": ("AdaptConfig", "ExportConfig", "OptimizerConfig", "ShardingConfig", "TrainConfig"),
}
_HOMES = {name: module for module, names in _LAZY.items() for name in names}

if not TYPE_CHECKING:  # or a name that is none would be one of type Any

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(_HOMES[name], __name__), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
