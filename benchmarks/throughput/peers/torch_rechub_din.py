"""torch-rechub's DIN, trained by its own `CTRTrainer.train_one_epoch`, in memory or through its `DataGenerator`."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.ranking import DIN
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator
from worker import ATTENTION, LEARNING_RATE, MLP, Arrays, Case, Side, serve


def make(case: Case, arrays: Arrays, scratch: Path) -> Side:
    def history(name: str, rows: int) -> SequenceFeature:
        return SequenceFeature(f"hist_{name}", rows, case.dim, pooling="concat", shared_with=name, padding_idx=0)

    model = DIN(
        features=[SparseFeature("user", case.users, case.dim)],
        history_features=[history("item", case.items), history("category", case.categories)],
        target_features=[
            SparseFeature("item", case.items, case.dim, padding_idx=0),
            SparseFeature("category", case.categories, case.dim, padding_idx=0),
        ],
        mlp_params={"dims": list(MLP)},
        attention_mlp_params={"dims": list(ATTENTION)},
    )
    trainer = CTRTrainer(model, optimizer_params={"lr": LEARNING_RATE, "fused": True}, model_path=str(scratch))
    inputs = {
        "user": torch.from_numpy(arrays.user),
        "item": torch.from_numpy(arrays.item),
        "category": torch.from_numpy(arrays.category[arrays.item]),
        "hist_item": torch.from_numpy(arrays.history),
        "hist_category": torch.from_numpy(arrays.category[arrays.history]),
    }
    label = torch.from_numpy(arrays.label)

    def fit() -> None:
        generator = DataGenerator(inputs, label)
        loader, _, _ = generator.generate_dataloader(
            x_val=inputs, y_val=label, x_test=inputs, y_test=label, batch_size=case.batch
        )
        trainer.train_one_epoch(loader)

    return Side(
        version=version("torch-rechub"),
        settings="its DIN, its train_one_epoch on a list of batches; Adam fused=True without weight decay instead of "
        "its plain Adam with; one attention per history feature (its design); Dice in attention and MLP (its defaults)",
        batches=[
            ({name: value[rows] for name, value in inputs.items()}, label[rows]) for rows in arrays.slices(case.batch)
        ],
        step=lambda batch: trainer.train_one_epoch([batch]),
        fit=fit,
        parameters=sum(value.numel() for value in model.parameters()),
        predict=lambda batch: trainer.predict(model, [batch]),
    )


if __name__ == "__main__":
    serve(make)
