"""A ranker to and from the Hugging Face hub: an export folder with a model card made of its figures."""

import importlib
from pathlib import Path
from typing import Any, Self


class OnTheHub:
    """What a ranker that was loaded from an export folder can do with the hub.

    The work is huggingface_hub's ``ModelHubMixin``'s, on the folder, see ``hub_folder.py``.

    Attributes:
        folder: the export that it was loaded from, on this disk; None: it was made of parts.
    """

    folder: Path | None = None

    @classmethod
    def from_pretrained(cls, name: str | Path, *, verify: bool = True, **download: Any) -> Self:
        """The ranker in a repository of the hub.

        It runs a program that the repository holds (``scorer.pt2``): load what you trust.

        Args:
            name: ``owner/name``, or a folder that ``save_pretrained`` or ``placerank export`` wrote.
            verify: compare the hash of every file with the manifest's.
            download: ``revision``, ``token``, ``cache_dir``, ``force_download`` and ``local_files_only``, as
                huggingface_hub takes them.

        Raises:
            FileNotFoundError, ValueError: it holds no export, one that is not whole or damaged, or of another kind.
            OSError: the hub can't be reached, or doesn't have it.
        """
        folder = Path(name)
        if not folder.is_dir():
            from .hub_folder import ExportFolder

            folder = ExportFolder.from_pretrained(name, **download).folder
        # which kind of ranker a folder holds is known to a module that imports this one
        found = importlib.import_module(".rank", __package__).load(folder, verify)
        if not isinstance(found, cls):
            raise ValueError(f"{name} holds a {type(found).__name__}, expected a {cls.__name__}; use placerank.load")
        return found

    def save_pretrained(self, folder: Path | str, *, evaluation: Path | None = None, data: Path | None = None) -> None:
        """The export with a model card, ``README.md``, as a repository of the hub has it.

        A card that is there already stays, if it is of this export.

        Args:
            folder: to write to; the export itself gets the card alone.
            evaluation: what ``placerank evaluate`` wrote for this checkpoint. Without it the card says that nothing
                was measured.
            data: what ``placerank prepare`` wrote, for the days and sizes of the splits.

        Raises:
            ValueError: the ranker was not loaded from a folder; evaluation or data are not of this export.
        """
        self._on_disk().save_pretrained(folder, model_card_kwargs={"evaluation": evaluation, "data": data})

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool = True,
        evaluation: Path | None = None,
        data: Path | None = None,
        **commit: Any,
    ) -> str:
        """The same, into a repository of the hub; returns the commit's URL.

        Args:
            name: ``owner/name``; made if it isn't there.
            private: of a repository that is made. An export holds raw ids of users: think before you say False.
            evaluation, data: as ``save_pretrained`` takes them.
            commit: ``commit_message``, ``token``, ``branch``, ``create_pr`` and the patterns of files, as
                huggingface_hub's ``push_to_hub`` takes them.

        Raises:
            ValueError: as ``save_pretrained``.
            OSError: the hub can't be reached, or refuses.
        """
        card = {"evaluation": evaluation, "data": data}
        return str(self._on_disk().push_to_hub(name, private=private, model_card_kwargs=card, **commit))

    def _on_disk(self) -> Any:
        if self.folder is None:
            raise ValueError("this ranker was not loaded from an export folder; load it with placerank.load")
        from .hub_folder import ExportFolder

        return ExportFolder(self.folder)
