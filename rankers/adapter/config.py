"""Settings of RecLLM-Adapter. Imports nothing of it: settings are read where they are not run, too."""

from dataclasses import dataclass

from ...data.plain import check_numbers


@dataclass(kw_only=True)
class LanguageConfig:
    """The language model of the teacher or of the student."""

    model: str | None = None
    """A causal language model of Hugging Face with its tokenizer, by folder or name: its weights stay as they are, what
    is added is trained. Default: a small one is made of Llama's blocks, with a tokenizer of the places' texts, and
    trained whole; the sizes below are its own."""
    columns: int = 48
    """Of its hidden states."""
    layers: int = 1
    """Blocks."""
    heads: int = 4
    """Attention heads, of columns / heads each."""
    hidden: int = 96
    """Columns between the linear layers of a block."""

    def __post_init__(self) -> None:
        check_numbers(self, "language", least=dict.fromkeys(("columns", "layers", "heads", "hidden"), 1))
        _check_widths(self, "language")
        if self.columns % (2 * self.heads):
            raise ValueError(
                f"language.columns={self.columns}: expected a multiple of twice language.heads={self.heads}: positions "
                "turn pairs of columns"
            )


@dataclass(kw_only=True)
class AdapterConfig:
    """What is added to a language model."""

    columns: int = 64
    """Of places, visits and preferences."""
    heads: int = 4
    """Of cross-attention, of columns / heads each."""
    every: int = 1
    """Cross-attention follows every so manieth block of the language model."""
    history: int = 50
    """The last so many visits are attended to."""
    cross_attention: bool = True
    """Off: the language model reads the question alone; the aggregator still looks at visits."""

    def __post_init__(self) -> None:
        check_numbers(self, "adapter", least=dict.fromkeys(("columns", "heads", "every", "history"), 1))
        _check_widths(self, "adapter")
        if self.columns % self.heads:
            raise ValueError(f"adapter.columns={self.columns}: expected a multiple of adapter.heads={self.heads}")


def _check_widths(config: LanguageConfig | AdapterConfig, prefix: str) -> None:
    """That nobody asks for what no memory holds."""
    for name, value in vars(config).items():
        if isinstance(value, int) and value > 65_536:
            raise ValueError(f"{prefix}.{name}={value}: expected at most 65,536")
