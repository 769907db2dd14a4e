"""Items' pictures: where they lie, and what a model is shown of a text that has one.

A text with a picture is a ``Shown``; whatever encodes texts takes both kinds. Vision-language models (LLaVA, Qwen2-VL,
Gemma 3) read the picture as tokens before the text, in the form that the processor's own chat template gives: one turn
of a user, then the start of an answer, whose last token has seen both. Where a processor has no template, the
picture's token stands before the text, between the marks that the model's config names.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from ...data.urls import Url, place, told


@dataclass(frozen=True)
class Shown:
    """A text with a picture: its path or URL."""

    text: str
    image: str


Input = str | Shown
"""What is encoded: a text, or one with a picture."""


def text_of(one: Input) -> str:
    """The text alone."""
    return one if isinstance(one, str) else one.text


def beside_table(images: pa.Array | pa.ChunkedArray, table: Path) -> pa.Array:
    """Paths of a column ``image`` [N]: relative ones begin at the folder of the table that they were in.

    Args:
        table: the items' file, or the folder of ``items.parquet``.

    Raises:
        ValueError: a URL of another kind than the package reads.
    """
    folder = place(table) if place(table).is_dir() else place(table).parent
    found = [None if not one or not one.strip() else str(_at(folder, one)) for one in images.to_pylist()]
    return pa.array(found, pa.string())


def _at(folder: Path, image: str) -> Path:
    try:
        path = place(image)
    except ValueError as error:
        raise ValueError(f"image {error}, or set null in the items' column image") from None
    return path if isinstance(path, Url) else folder / path


def read_picture(path: str) -> Any:
    """A picture as PIL's image, RGB.

    Raises:
        ValueError: it is not there, or no picture.
    """
    from PIL import Image

    file = place(path)
    try:
        with told(file), Image.open(io.BytesIO(file.read_bytes())) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # a broken PNG is a SyntaxError
        raise ValueError(f"image {path}: {error}; mend the path in the items' column image, or set null") from None


def check_pictures(images: pa.Array) -> int:
    """How many items have a picture; those on this disk are opened, and not decoded, before hours of work.

    Raises:
        ValueError: some are not there, or are no pictures; it says how many, and the first.
    """
    from PIL import Image

    bad: list[str] = []
    paths = images.drop_null().to_pylist()
    for path in paths:
        if isinstance(place(path), Url):  # a request each: told when it is read
            continue
        try:
            Image.open(path).close()
        except (OSError, Image.DecompressionBombError) as error:
            bad.append(f"{path} ({error})")
    if bad:
        raise ValueError(
            f"{len(bad):,} of {len(paths):,} pictures cannot be read, the first is {bad[0]}; mend the paths in the "
            "items' column image (relative ones begin at the table's folder), or set null"
        )
    return len(paths)


def load_processor(source: str, config: Any) -> Any:
    """A model's processor. What it has for films is left out where torchvision, which that needs, is not installed.

    Raises:
        ImportError, OSError, ValueError: it cannot be loaded.
    """
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        return AutoProcessor.from_pretrained(source)
    except ImportError:
        kind: Any = PROCESSOR_MAPPING.get(type(config), None)
        if kind is None or "video_processor" not in kind.get_attributes():
            raise
    return _stills(kind).from_pretrained(source)


def _stills(kind: Any) -> Any:
    """A processor's class without its part for films. Which parts there are, transformers reads off ``__init__``."""

    def __init__(
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **more: Any
    ) -> None:
        kind.__init__(self, image_processor=image_processor, tokenizer=tokenizer, chat_template=chat_template, **more)

    return type(kind.__name__, (kind,), {"__init__": __init__})


class Frame:
    """What a vision-language model is to read around a text, and in place of a picture.

    Args:
        processor: of the model.
        config: of the model.

    Attributes:
        template: whether the processor has a chat template.
        starts: whether the template begins with the token that the tokenizer begins texts with.
        size: tokens of the template without text and picture; 0 without one.
    """

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor, tokenizer = processor, processor.tokenizer
        self.template = bool(getattr(processor, "chat_template", None))
        token = getattr(processor, "image_token", None)
        if token is None and not self.template:
            raise ValueError(
                f"{type(processor).__name__} has no chat template, and no token for a picture: nobody knows how its "
                "model is shown one; choose another model, or give its folder a chat_template.jinja"
            )
        marks = [getattr(config, f"vision_{end}_token_id", None) for end in ("start", "end")]
        before, after = ("" if mark is None else tokenizer.convert_ids_to_tokens(mark) for mark in marks)
        self.picture = f"{before}{token}{after}\n"
        tokens = [getattr(has, f"{what}_token", None) for has in (processor, tokenizer) for what in ("image", "video")]
        self.reserved: set[str] = {token for token in tokens if token}
        empty, start = self.text("", False), tokenizer.bos_token
        self.starts = self.template and start is not None and empty.startswith(start)
        self.size = len(tokenizer(empty, add_special_tokens=not self.starts)["input_ids"]) if self.template else 0

    @property
    def kind(self) -> str:
        """Of pictures in words."""
        return "by the chat template" if self.template else "before the text"

    def text(self, text: str, picture: bool) -> str:
        """The whole of what is read; a token stands for the picture."""
        for token in self.reserved:  # one in an item's name would be taken for a picture
            text = text.replace(token, " ")
        if not self.template:
            return self.picture + text if picture else text
        parts = [{"type": "image"}] if picture else []
        turn = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        whole: str = self.processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        return whole

    def inputs(self, texts: Sequence[str], pictures: Sequence[Any]) -> dict[str, Tensor]:
        """The model's inputs of texts with a picture each, padded at the right."""
        made: dict[str, Tensor] = self.processor(
            text=[self.text(text, True) for text in texts],
            images=[[picture] for picture in pictures],
            padding=True,
            padding_side="right",
            add_special_tokens=not self.starts,
            return_tensors="pt",
        )
        return dict(made)
