"""A T5 of transformers and its weights in our blocks: what tests and benchmarks hold decoding against."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from placerank.rankers.generative.decoding import Softmax
from placerank.rankers.generative.layers import Memory, Transformer

TIGER = {"columns": 128, "heads": 6, "head_columns": 64, "hidden": 1024, "layers": 4}
"""The sizes of TIGER, as published."""


def small_t5(
    *, vocabulary: int, columns: int, heads: int, head_columns: int, hidden: int, layers: int, seed: int
) -> Any:
    """A T5 of transformers (ReLU, tied embeddings, no dropout) with random weights that leave logits apart."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": vocabulary, "d_model": columns, "d_kv": head_columns, "d_ff": hidden}
    sizes |= {"num_layers": layers, "num_heads": heads, "feed_forward_proj": "relu", "dropout_rate": 0.0}
    sizes |= {"pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(**sizes)).eval()
    with torch.no_grad():
        model.shared.weight.normal_()
        for stack in (model.encoder, model.decoder):
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_()
    return model


@torch.no_grad()
def of_stack(stack: Any) -> Transformer:
    """A T5Stack as one of ours."""
    config, memory = stack.config, stack.config.is_decoder
    ours = Transformer(
        columns=config.d_model, heads=config.num_heads, head_columns=config.d_kv, hidden=config.d_ff,
        layers=len(stack.block), dropout=0.0, causal=memory, memory=memory,
    ).eval()  # fmt: skip

    def attention(to: Any, of: Any) -> None:
        to.maps.weight.copy_(torch.cat([of.q.weight, of.k.weight, of.v.weight]))
        to.out.weight.copy_(of.o.weight)

    ours.bias.weight.copy_(stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    blocks: Any = ours.blocks
    for to, of in zip(blocks, stack.block, strict=True):
        to.norm.weight.copy_(of.layer[0].layer_norm.weight)
        attention(to.attention, of.layer[0].SelfAttention)
        if memory:
            to.memory_norm.weight.copy_(of.layer[1].layer_norm.weight)
            attention(to.memory_attention, of.layer[1].EncDecAttention)
        to.hidden_norm.weight.copy_(of.layer[-1].layer_norm.weight)
        to.hidden.weight.copy_(of.layer[-1].DenseReluDense.wi.weight)
        to.out.weight.copy_(of.layer[-1].DenseReluDense.wo.weight)
    ours.norm.weight.copy_(stack.final_layer_norm.weight)
    return ours


def of_t5(model: Any) -> tuple[Transformer, Transformer]:
    """Encoder and decoder of a ``T5ForConditionalGeneration``."""
    return of_stack(model.encoder), of_stack(model.decoder)


class T5Tokens:
    """A T5 over the codes of semantic IDs, token 1 + level K + code, for our decoding and for its own.

    Args:
        model: of ``small_t5``, with 1 + L K words.
        levels, codes: L and K.
    """

    softmax: Softmax = "own"

    def __init__(self, model: Any, levels: int, codes: int) -> None:
        self.model, self.levels, self.K = model, levels, codes
        self.encoder, self.decoder = (ours.to(model.device) for ours in of_t5(model))

    def embed(self, level: int, codes: Tensor) -> Tensor:
        """Input of codes of a level."""
        return F.embedding(codes.long() + (1 + (level - 1) * self.K), self.model.shared.weight)

    def logits(self, level: int, hidden: Tensor, nodes: Tensor, about: Tensor | None) -> Tensor:
        """Log p of a level's codes among all words: tied embeddings, scaled as T5's are."""
        log_p = F.linear(hidden * hidden.shape[1] ** -0.5, self.model.lm_head.weight).log_softmax(dim=1)
        first = 1 + (level - 1) * self.K
        return log_p[:, first : first + self.K]

    @torch.no_grad()
    def memory(self, tokens: Tensor) -> Memory:
        """Of histories of one length, int64 [B, M]."""
        rows = self.encoder(self.model.shared(tokens))
        lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        return Memory.of_padded(rows, lengths, self.model.shared.weight[:1].expand(len(tokens), -1))

    def words(self, codes: NDArray[np.integer]) -> NDArray[np.integer]:
        """Codes [N, L] as words."""
        return 1 + np.arange(self.levels) * self.K + codes

    def prefix_function(self, codes: NDArray[np.integer]) -> Callable[[int, Tensor], list[int]]:
        """What transformers' generate asks for the words that may follow a prefix: a dictionary of all prefixes."""
        following: dict[tuple[int, ...], set[int]] = {}
        for row in self.words(codes).tolist():
            for level, word in enumerate(row):
                following.setdefault(tuple(row[:level]), set()).add(word)
        lists = {prefix: sorted(words) for prefix, words in following.items()}
        return lambda _, sequence: lists.get(tuple(sequence[1:].tolist()), [0])

    @torch.no_grad()
    def encoded(self, tokens: Tensor) -> Any:
        """What transformers' encoder makes of histories, for ``generate``."""
        return self.model.encoder(tokens)

    def generate(
        self, tokens: Tensor, codes: NDArray[np.integer], beams: int, prefix: Any = None, encoded: Any = None
    ) -> list[tuple[tuple[int, ...], float]]:
        """transformers' beams for histories [B, M], among codes [N, L]: semantic IDs and log p, best first, B lists
        one after the other.

        Without ``prefix`` it makes the dictionary of prefixes of the codes; with ``encoded`` it leaves out the encoder.
        """
        known = {} if encoded is None else {"encoder_outputs": copy.copy(encoded)}
        out = self.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), num_beams=beams, num_return_sequences=beams,
            max_new_tokens=self.levels, min_new_tokens=self.levels, length_penalty=0.0, do_sample=False,
            prefix_allowed_tokens_fn=prefix or self.prefix_function(codes), return_dict_in_generate=True,
            output_scores=True, **known,
        )  # fmt: skip
        own = out.sequences[:, 1:].cpu() - 1 - torch.arange(self.levels) * self.K
        pairs = zip(map(tuple, own.tolist()), out.sequences_scores.tolist(), strict=True)
        return [(ids, log_p) for ids, log_p in pairs if log_p > -1e8]

    @torch.no_grad()
    def teacher_forced(self, tokens: Tensor, codes: NDArray[np.integer]) -> Tensor:
        """Log p [N] of codes [N, L] after one history [1, M] by transformers, each a sequence of its own."""
        words = torch.from_numpy(self.words(codes))
        start = torch.zeros(len(words), 1, dtype=torch.int64)
        out = self.model(tokens.expand(len(words), -1), decoder_input_ids=torch.cat([start, words[:, :-1]], dim=1))
        return out.logits.log_softmax(dim=2).gather(2, words[..., None]).sum((1, 2))
