"""What teacher and student learn by: cross-entropy over places, reasons and intents, KL to a teacher.

The mind map names BPR (a pair at a time) for places, and no weights; these are settings of ``placerank adapt``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def sampled_softmax(scores: Tensor, log_q: Tensor) -> Tensor:
    """Mean of -s_0 + log(exp s_0 + Σ_j exp(s_j - log q_j)): a softmax over all places, estimated from some of them.

    q_j is how often place j is drawn on average, so the sum over what was drawn is on average that over all (Bengio and
    Senécal, IEEE Transactions on Neural Networks 2008; Jean et al., ACL 2015, equation 12).

    Args:
        scores: the visited place first, float [B, 1 + N].
        log_q: of the others, float [B, N]; inf for one that does not count.
    """
    logits = torch.cat([scores[:, :1], scores[:, 1:] - log_q], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(scores), dtype=torch.int64))


def sentence_rows(
    logits: Tensor, questions: Sequence[int], sentences: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Of texts that are a question and then a sentence, what was said of the sentence's tokens, and these.

    Args:
        logits: of each token's next, [B, T, V].
        questions: tokens of the question, each.
        sentences: tokens of the sentence, each.

    Returns:
        [S, V] and int64 [S], S tokens of all sentences.
    """
    row = torch.tensor([i for i, s in enumerate(sentences) for _ in s])
    at = torch.tensor([q - 1 + j for q, s in zip(questions, sentences, strict=True) for j in range(len(s))])
    return logits[row, at], torch.tensor([t for s in sentences for t in s])


def to_teacher(own: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ own) of softmaxes over the last dimension at a temperature, mean over rows, times its square.

    As in Hinton et al. 2015, so that gradients keep their size. Entries of -inf, in both, are left out.
    """
    p = (teacher / temperature).softmax(-1)
    log_own, log_p = ((x / temperature).log_softmax(-1) for x in (own, teacher))
    apart = (log_p - log_own).masked_fill(p == 0, 0.0)
    return (p * apart).sum(-1).mean() * temperature**2
