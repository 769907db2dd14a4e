"""DeepCTR-Torch's DIN; the step is the body of its `BaseModel.fit` loop, `fit` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import deepctr_torch
import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DIN
from worker import ATTENTION, LEARNING_RATE, MLP, Arrays, Case, Side, serve


def make(case: Case, arrays: Arrays, scratch: Path) -> Side:
    def history(name: str, rows: int) -> VarLenSparseFeat:
        feature = SparseFeat(f"hist_{name}", rows, embedding_dim=case.dim, embedding_name=name)
        return VarLenSparseFeat(feature, maxlen=case.history, length_name="seq_length")

    columns = [
        SparseFeat("user", case.users, embedding_dim=case.dim),
        SparseFeat("item", case.items, embedding_dim=case.dim),
        SparseFeat("category", case.categories, embedding_dim=case.dim),
        history("item", case.items),
        history("category", case.categories),
    ]
    model = DIN(
        columns,
        ["item", "category"],
        dnn_hidden_units=MLP,
        dnn_activation="relu",
        att_hidden_size=ATTENTION,
        att_activation="Dice",
        l2_reg_embedding=0.0,
    )
    model.compile(torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True), "binary_crossentropy")
    model.train()
    inputs = {
        "user": arrays.user,
        "item": arrays.item,
        "category": arrays.category[arrays.item],
        "hist_item": arrays.history,
        "hist_category": arrays.category[arrays.history],
        "seq_length": arrays.length,
    }
    wide = np.concatenate([inputs[name].reshape(case.rows, -1) for name in model.feature_index], axis=-1)

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, y = batch[0].float(), batch[1].float()
        predicted = model(x).squeeze(-1)
        model.optim.zero_grad()
        loss = model.loss_func(predicted, y, reduction="sum")
        total = loss + model.get_regularization_loss() + model.aux_loss
        total.backward()
        model.optim.step()
        return loss / len(y)

    def fit() -> None:
        model.fit(dict(inputs), arrays.label, batch_size=case.batch, epochs=1, verbose=0)

    return Side(
        version=deepctr_torch.__version__,
        settings="its DIN, the body of its fit(); Adam fused=True instead of its plain Adam; its default l2 on "
        "embeddings turned off; Dice in attention, ReLU in the MLP (its DIN cannot run with Dice there)",
        batches=[
            (torch.from_numpy(wide[rows]), torch.from_numpy(arrays.label[rows])) for rows in arrays.slices(case.batch)
        ],
        step=step,
        fit=fit,
        parameters=sum(value.numel() for value in model.parameters()),
    )


if __name__ == "__main__":
    serve(make)
