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
    "ListsConfig",
    "LoraSettings",
    "ObjectivesConfig",
    "OneRecConfig",
    "OptimizerConfig",
    "OptimizerSettings",
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
    from .api.results import (
        Aligned,
        Evaluated,
        Exported,
        Generated,
        Prepared,
        Simulated,
        Tokenized,
        Trained,
    )
    from .api.steps import (
        align,
        apply,
        evaluate,
        export,
        generate,
        prepare,
        simulate,
        tokenize,
        train,
    )
    from .data.batches.features import FeatureConfig
    from .data.city.simulate import SimulateConfig
    from .data.preparation.settings import PrepareConfig
    from .embeddings.delta import ApplyConfig
    from .evaluation.evaluate import EvaluateConfig
    from .evaluation.generate import GenerateConfig
    from .evaluation.measure_lists import ListsConfig
    from .rankers.dense import RankerConfig
    from .rankers.generative.config import (
        GeneratorConfig,
        OneRecConfig,
        TigerConfig,
    )
    from .rankers.objectives import ObjectivesConfig
    from .rankers.plugins.akt import AktConfig
    from .rankers.plugins.rest import RestConfig
    from .rankers.rank import Ranker, load
    from .tokenization.align import AlignConfig
    from .tokenization.alignment.behaviour import BehaviourConfig
    from .tokenization.alignment.finetune import OptimizerSettings
    from .tokenization.alignment.gdpo import GDPOConfig
    from .tokenization.alignment.lora import LoraSettings
    from .tokenization.alignment.reward import RewardConfig
    from .tokenization.codes.hgit import HGITOptions
    from .tokenization.codes.residual_kmeans import KMeansOptions
    from .tokenization.codes.rqvae import RQVAEOptions
    from .tokenization.codes.tokenizer import TokenizerConfig
    from .tokenization.judging.tokenize_report import ReportConfig
    from .tokenization.text.districts import DistrictConfig
    from .tokenization.text.encoders import EncoderConfig
    from .tokenization.text.prompts import PromptConfig
    from .tokenization.tokenize import TokenizeConfig
    from .training.export import ExportConfig
    from .training.model import OptimizerConfig
    from .training.sharding import ShardingConfig
    from .training.train import TrainConfig

_LAZY = {
    ".api.results": ("Aligned", "Evaluated", "Exported", "Generated", "Prepared", "Simulated", "Tokenized", "Trained"),
    ".api.steps": ("align", "apply", "evaluate", "export", "generate", "prepare", "simulate", "tokenize", "train"),
    ".data.batches.features": ("FeatureConfig",),
    ".data.city.simulate": ("SimulateConfig",),
    ".data.preparation.settings": ("PrepareConfig",),
    ".embeddings.delta": ("ApplyConfig",),
    ".evaluation.evaluate": ("EvaluateConfig",),
    ".evaluation.generate": ("GenerateConfig",),
    ".evaluation.measure_lists": ("ListsConfig",),
    ".rankers.dense": ("RankerConfig",),
    ".rankers.generative.config": ("GeneratorConfig", "OneRecConfig", "TigerConfig"),
    ".rankers.objectives": ("ObjectivesConfig",),
    ".rankers.plugins.akt": ("AktConfig",),
    ".rankers.plugins.rest": ("RestConfig",),
    ".rankers.rank": ("Ranker", "load"),
    ".tokenization.align": ("AlignConfig",),
    ".tokenization.alignment.behaviour": ("BehaviourConfig",),
    ".tokenization.alignment.finetune": ("OptimizerSettings",),
    ".tokenization.alignment.gdpo": ("GDPOConfig",),
    ".tokenization.alignment.lora": ("LoraSettings",),
    ".tokenization.alignment.reward": ("RewardConfig",),
    ".tokenization.codes.hgit": ("HGITOptions",),
    ".tokenization.codes.residual_kmeans": ("KMeansOptions",),
    ".tokenization.codes.rqvae": ("RQVAEOptions",),
    ".tokenization.codes.tokenizer": ("TokenizerConfig",),
    ".tokenization.judging.tokenize_report": ("ReportConfig",),
    ".tokenization.text.districts": ("DistrictConfig",),
    ".tokenization.text.encoders": ("EncoderConfig",),
    ".tokenization.text.prompts": ("PromptConfig",),
    ".tokenization.tokenize": ("TokenizeConfig",),
    ".training.export": ("ExportConfig",),
    ".training.model": ("OptimizerConfig",),
    ".training.sharding": ("ShardingConfig",),
    ".training.train": ("TrainConfig",),
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
