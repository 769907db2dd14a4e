"""FuxiCTR's DIN (model_zoo.LongCTR.DIN), its own `train_step` and its own `LongCTRDataLoader`."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import fuxictr
import numpy as np
import pandas as pd
import torch
from fuxictr.features import FeatureMap
from model_zoo.LongCTR.DIN.DIN import DIN
from model_zoo.LongCTR.longctr_dataloader import LongCTRDataLoader
from worker import ATTENTION, LEARNING_RATE, MLP, Arrays, Case, Side, serve


def make(case: Case, arrays: Arrays, scratch: Path) -> Side:
    features = FeatureMap("throughput", str(scratch))
    features.labels = ["label"]
    features.features = OrderedDict(
        user_id={"source": "user", "type": "categorical", "vocab_size": case.users},
        item_id={"source": "item", "type": "categorical", "vocab_size": case.items, "padding_idx": 0},
        category={"source": "item", "type": "categorical", "vocab_size": case.categories, "padding_idx": 0},
    )
    features.features["user_index"] = features.features["seq_len"] = features.features["item_index"] = {"type": "meta"}
    features.default_emb_dim = case.dim
    features.num_fields = features.get_num_fields()
    features.set_column_index()
    model = DIN(
        features,
        model_id=f"throughput-{case.batch}-{case.dim}-{case.lengths}",
        gpu=-1,
        dnn_hidden_units=list(MLP),
        dnn_activations="ReLU",
        attention_hidden_units=list(ATTENTION),
        attention_hidden_activations="Dice",
        learning_rate=LEARNING_RATE,
        embedding_dim=case.dim,
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["AUC"],
        monitor="AUC",
        monitor_mode="max",
        task="binary_classification",
        model_root=str(scratch),
        verbose=0,
        save_best_only=True,
        early_stop_patience=2,
        eval_steps=None,
    )
    model._max_gradient_norm, model._batch_index = 10.0, 0  # what fit() sets before it calls train_step
    model.optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    model.train()

    def batch(rows: slice) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
        history = arrays.history[rows]  # its loader also pads to the longest of the batch and no further
        history = history[:, : arrays.length[rows].max()]
        items = np.hstack([history, arrays.item[rows][:, None]]).reshape(-1)
        plain = {"user_id": torch.from_numpy(arrays.user[rows]), "label": torch.from_numpy(arrays.label[rows])}
        item = {"item_id": torch.from_numpy(items), "category": torch.from_numpy(arrays.category[items])}
        return plain, item, torch.from_numpy(history > 0).float()

    def fit() -> None:
        model._steps_per_epoch = model._eval_steps = 1 << 60  # no evaluation inside the timed epoch
        model._total_steps = model._stop_training = 0
        model.train_epoch(loader(case, arrays, scratch, features))

    return Side(
        version=fuxictr.__version__,
        settings="its DIN, train_step (with its gradient clipping); Adam fused=True instead of its plain Adam; "
        "no regularizer; Dice in attention, ReLU in the MLP (its defaults)",
        batches=[batch(rows) for rows in arrays.slices(case.batch)],
        step=model.train_step,
        fit=fit,
        parameters=sum(value.numel() for value in model.parameters()),
        predict=lambda batch: model.predict([batch]),
    )


def loader(case: Case, arrays: Arrays, scratch: Path, features: FeatureMap) -> Any:
    """Its loader reads three Parquet files: samples, the item sequence of each user_index, attributes of each item."""
    rows = np.arange(case.rows)
    samples = {
        "user_index": rows,
        "item_index": arrays.item,
        "seq_len": arrays.length,
        "user_id": arrays.user,
        "label": arrays.label.astype(np.int64),
    }
    pd.DataFrame(samples).to_parquet(scratch / "train.parquet")
    pd.DataFrame({"full_item_seq": list(arrays.history)}).to_parquet(scratch / "users.parquet")
    items = {"item_index": np.arange(case.items), "item_id": np.arange(case.items), "category": arrays.category}
    pd.DataFrame(items).to_parquet(scratch / "items.parquet")
    return LongCTRDataLoader(
        features,
        str(scratch / "train.parquet"),
        str(scratch / "users.parquet"),
        str(scratch / "items.parquet"),
        batch_size=case.batch,
        shuffle=True,
        num_workers=0,  # two threads in all
        max_len=case.history,
    )


if __name__ == "__main__":
    serve(make)
