"""An export folder as huggingface_hub's mixin takes models. Imported where asked for: that costs most of a second."""

import json
import shutil
from pathlib import Path
from typing import Any, Self

from huggingface_hub import EvalResult, ModelCard, ModelCardData, ModelHubMixin, snapshot_download

from ..data.manifest import MANIFEST, content_hash, read_manifest, verify_files, whole_file
from .model_card import card_text, read_data, read_evaluation

_CARD, _CONFIG = "README.md", "config.json"
_TAGS = ["recommendation", "ranking", "geospatial"]
_TASK = "ranking"


class ExportFolder(ModelHubMixin):
    """What ``placerank export`` wrote.

    Args:
        folder: on this disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _save_pretrained(self, save_directory: Path) -> None:
        """Copy the files; the manifest comes last, so that a folder that has one is whole."""
        manifest = read_manifest(self.folder, "export")
        if save_directory.resolve() != self.folder.resolve():
            if content_hash(save_directory) != manifest["content_hash"]:
                (save_directory / _CARD).unlink(missing_ok=True)  # the card of another export
            (save_directory / MANIFEST).unlink(missing_ok=True)
            for name in manifest["files"]:
                (save_directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, save_directory / name)
            verify_files(save_directory, manifest["files"], "save it again, from a whole export")
            with whole_file(save_directory / MANIFEST) as tmp:
                shutil.copyfile(self.folder / MANIFEST, tmp)
        about = {"library_name": "placerank", "step": manifest.get("step"), "ranker": manifest.get("ranker")}
        (save_directory / _CONFIG).write_text(json.dumps(about, indent=2) + "\n")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> Self:
        folder = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return cls(Path(folder))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card; takes ``evaluation`` and ``data``, see ``OnTheHub.save_pretrained``."""
        return _card(self.folder, *args, **kwargs)


def _card(folder: Path, evaluation: Path | None = None, data: Path | None = None) -> ModelCard:
    export = read_manifest(folder, "export")
    metrics = None if evaluation is None else read_evaluation(Path(evaluation), export)
    prepared = None if data is None else read_data(Path(data), export)
    about: dict[str, Any] = {}
    if metrics is not None:
        named = f"prepared data {export['made_from'].get('prepared', '')[:12]}"
        model = metrics["scorers"]["model"]
        about["model_name"] = "placerank"
        about["eval_results"] = [
            EvalResult(
                task_type=_TASK,
                dataset_type="placerank",
                dataset_name=named,
                dataset_split=metrics["split"],
                metric_type=name,
                metric_value=model[name],
            )
            for name in ("auc", "gauc", "ndcg@10", "log_loss")
            if model.get(name) is not None
        ]
    meta = ModelCardData(library_name="placerank", tags=[*_TAGS, "model_hub_mixin"], **about)
    return ModelCard(f"---\n{meta.to_yaml()}\n---\n\n{card_text(folder, metrics, prepared)}")
