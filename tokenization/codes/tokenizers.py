"""The tokenizers that come with placerank, by name. Register a new one here, and the tests' suite runs on it."""

from .hgit import HGIT, HGITOptions
from .residual_kmeans import KMeansOptions, ResidualKMeans
from .rqvae import RQVAE, RQVAENgram, RQVAEOptions, UnifiedSID
from .tokenizer import TOKENIZERS, Tokenizer, TokenizerConfig, load_tokenizer, register_tokenizer, tokenizer_type

for _tokenizer in (HGIT, ResidualKMeans, RQVAE, UnifiedSID, RQVAENgram):
    register_tokenizer(_tokenizer)

__all__ = [
    "HGIT",
    "RQVAE",
    "TOKENIZERS",
    "HGITOptions",
    "KMeansOptions",
    "RQVAENgram",
    "RQVAEOptions",
    "ResidualKMeans",
    "Tokenizer",
    "TokenizerConfig",
    "UnifiedSID",
    "load_tokenizer",
    "register_tokenizer",
    "tokenizer_type",
]
