"""RecBole's DIN, trained by its own `Trainer._train_epoch`, in memory or through its `TrainDataLoader`.

Its dataset needs files: a tiny interaction file, and user and item files that give the tables their sizes. The samples
are then set as its own `Interaction`, which is what its loader slices.

RecBole builds the attention unit with the sizes of the MLP; the worker builds it again, from its own
`SequenceAttLayer`, with the attention sizes that all sides have here.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np

np.long = np.int64  # type: ignore[attr-defined]  # names it uses that numpy 1.24 removed
np.bool = np.bool_  # type: ignore[attr-defined]

import torch  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data.dataloader.general_dataloader import TrainDataLoader  # noqa: E402
from recbole.data.dataset import SequentialDataset  # noqa: E402
from recbole.data.interaction import Interaction  # noqa: E402
from recbole.model.layers import SequenceAttLayer  # noqa: E402
from recbole.model.sequential_recommender import DIN  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from worker import ATTENTION, LEARNING_RATE, MLP, Arrays, Case, Side, serve  # noqa: E402


def _files(case: Case, arrays: Arrays, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\tlabel:float\ttimestamp:float"]
    lines += [f"{row + 1}\t{row + 1}\t{row % 2}\t{row}" for row in range(64)]
    (folder / "city.inter").write_text("\n".join(lines) + "\n")
    users = "\n".join(map(str, range(1, case.users)))
    (folder / "city.user").write_text(f"user_id:token\n{users}\n")
    items = "\n".join(f"{item}\t{arrays.category[item]}" for item in range(1, case.items))
    (folder / "city.item").write_text(f"item_id:token\tcategory:token\n{items}\n")


def make(case: Case, arrays: Arrays, scratch: Path) -> Side:
    _files(case, arrays, scratch / "city")
    settings = {
        "data_path": str(scratch),
        "dataset": "city",
        "checkpoint_dir": str(scratch / "saved"),
        "load_col": {
            "inter": ["user_id", "item_id", "label", "timestamp"],
            "user": ["user_id"],
            "item": ["item_id", "category"],
        },
        "LABEL_FIELD": "label",
        "train_neg_sample_args": None,
        "MAX_ITEM_LIST_LENGTH": case.history,
        "embedding_size": case.dim,
        "mlp_hidden_size": list(MLP),
        "dropout_prob": 0.0,
        "learning_rate": LEARNING_RATE,
        "train_batch_size": case.batch,
        "use_gpu": False,
        "worker": 0,
        "show_progress": False,
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "mode": "labeled", "group_by": None},
        "metrics": ["AUC"],
        "valid_metric": "AUC",
    }
    config = Config(model="DIN", dataset="city", config_dict=settings)
    dataset = SequentialDataset(config)
    dataset._change_feat_format()
    model = DIN(config, dataset)
    attention = [model.att_list[0], *ATTENTION]
    model.attention = SequenceAttLayer(
        model.attention.mask_mat, attention, activation="Sigmoid", softmax_stag=False, return_seq_weight=False
    )
    model.attention.apply(model._init_weights)
    trainer = Trainer(config, model)
    trainer.optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

    def ids(field: str, values: np.ndarray, rows: int) -> torch.Tensor:
        table = np.zeros(rows, dtype=np.int64)
        for token, row in dataset.field2token_id[field].items():
            table[0 if token == "[PAD]" else int(token)] = row
        return torch.from_numpy(table[values])

    samples = Interaction(
        {
            model.USER_ID: ids("user_id", arrays.user, case.users),
            model.POS_ITEM_ID: ids("item_id", arrays.item, case.items),
            model.ITEM_SEQ: ids("item_id", arrays.history, case.items),
            model.ITEM_SEQ_LEN: torch.from_numpy(arrays.length),
            model.LABEL_FIELD: torch.from_numpy(arrays.label),
        }
    )

    def fit() -> None:
        dataset.inter_feat = samples
        trainer._train_epoch(TrainDataLoader(config, dataset, None, shuffle=True), 0)

    return Side(
        version=version("recbole"),
        settings="its DIN, its Trainer._train_epoch on a list of batches; Adam fused=True instead of its plain Adam; "
        "attention unit built with the common sizes; sigmoid in attention, Dice and batch norm in the MLP (its "
        "defaults); the user embedding is looked up but not fed to the MLP (its design)",
        batches=[samples[rows] for rows in arrays.slices(case.batch)],
        step=lambda batch: trainer._train_epoch([batch], 0),
        fit=fit,
        parameters=sum(value.numel() for value in model.parameters()),
    )


if __name__ == "__main__":
    serve(make)
