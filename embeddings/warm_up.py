"""Meta ID warm-up: an item's embedding starts from what its attributes mean.

ReST (arXiv 2511.12947), section 4.2. Shapes: N items, F attributes, D columns.
"""

import torch
from torch import Tensor, nn


class MetaWarmUp(nn.Module):
    """E_warm = MLP(SENet(attributes)) + E_id (equations 3 and 4).

    SENet (Hu et al., CVPR 2018; on fields as in FiBiNET, arXiv 1905.09433): z_f = mean of attribute f's columns,
    s = sigmoid(W2 ReLU(W1 z)), and attribute f enters the MLP as s_f times its embedding. An attribute that is not
    known, or was dropped, is zero in z and in the MLP's input. Where none is known the embedding stays E_id, exactly.

    The text leaves the widths open: W1 halves the attributes (but not below two: one ReLU alone can die), the MLP has
    one hidden layer of F D units. Biases start at zero, so that at first the attributes speak and not the biases,
    which PyTorch would draw several times larger than rows of a new table.

    Args:
        dim: D, columns of ids and attributes.
        attributes: F, at least 1.
        dropout: probability with which, in training, each known attribute of a row is taken for unknown. Nothing is
            scaled up: the network learns to do with fewer, as it will have to.

    Raises:
        ValueError: no attribute, or a dropout outside [0, 1).
    """

    def __init__(self, dim: int, attributes: int, dropout: float = 0.0) -> None:
        super().__init__()
        if attributes < 1:
            raise ValueError(f"attributes: got {attributes}, expected 1 or more; without any there is nothing to warm")
        if not 0 <= dropout < 1:
            raise ValueError(f"attribute dropout: got {dropout}, expected a probability in [0, 1)")
        squeezed, width = max(2, attributes // 2), attributes * dim
        self.dropout = dropout
        self.excite = nn.Sequential(
            nn.Linear(attributes, squeezed), nn.ReLU(), nn.Linear(squeezed, attributes), nn.Sigmoid()
        )
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def drops(self) -> bool:
        """Whether attributes are dropped at random now."""
        return self.training and self.dropout > 0

    def content(self, attributes: Tensor, known: Tensor | None = None) -> Tensor:
        """What attributes say of an item: MLP(SENet(attributes)), [N, F, D] to [N, D].

        Args:
            attributes: embeddings.
            known: bool [N, F], False where an attribute is missing; None: all are there.
        """
        if known is None:
            known = torch.ones(attributes.shape[:2], dtype=torch.bool, device=attributes.device)
        if self.drops:
            known = known & (torch.rand(known.shape, device=known.device) >= self.dropout)
        attributes = attributes.masked_fill(~known[:, :, None], 0)
        weights = self.excite(attributes.mean(dim=2))
        content: Tensor = self.mlp((weights[:, :, None] * attributes).flatten(1))
        return content * known.any(dim=1, keepdim=True)

    def forward(self, ids: Tensor, attributes: Tensor, known: Tensor | None = None) -> Tensor:
        """Warmed-up embeddings [N, D].

        Args:
            ids: embeddings of the items' ids, [N, D].
            attributes: their attributes' embeddings, [N, F, D].
            known: bool [N, F]; see ``content``.

        Example:
            >>> known = torch.tensor([[True, True], [True, False], [False, False]])
            >>> ids, attributes = torch.randn(3, 4), torch.randn(3, 2, 4)
            >>> warm = MetaWarmUp(4, 2)(ids, attributes, known)
            >>> warm.shape, torch.equal(warm[2], ids[2])
            (torch.Size([3, 4]), True)
        """
        return ids + self.content(attributes, known)
