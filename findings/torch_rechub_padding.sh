#!/usr/bin/env bash
# torch-rechub 0.9.0 (torch 2.13.0, Python 3.11): whether DIN's score depends on how far a history is padded.
#
# Guess: no. A SequenceFeature has padding_idx, of which its docstring says that entries with that id are masked, so two
# visits padded to 2, 5, 10 or 50 entries with id 0 are the same two visits.
# Seen: that mask is for features pooled by sum or mean. DIN's histories are pooled by "concat", and its activation unit
# has no mask: it adds each padded entry's vector times its weight. They count for nothing only where row 0 of their
# table is zero, which padding_idx does for the history's own table. Where the history shares the target's table
# (shared_with, as in the library's examples) that table was made for the target, and padding_idx on the history
# changes nothing. With softmax in the unit padded entries take weight from visits even where their vectors are zero.
#
#   a history of two visits, padded to                    2        5        10       50
#   table shared with the target, padding_idx=0           0.42287  0.42643  0.42947  0.41606
#   the same without padding_idx                          the same four numbers
#   a table of its own, padding_idx=0                     0.45434  in all four
#   a table of its own, padding_idx=0, softmax            another number each time
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 torch-rechub==0.9.0
cat > "$work/try.py" <<'P'
import torch
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.ranking import DIN


def scores(shared, padding, softmax=False):
    torch.manual_seed(0)
    model = DIN(
        features=[SparseFeature("user", 10, 8)],
        history_features=[
            SequenceFeature("history", 50, 8, pooling="concat", shared_with="item" if shared else None, padding_idx=padding)
        ],
        target_features=[SparseFeature("item", 50, 8)],
        mlp_params={"dims": [16]},
        attention_mlp_params={"dims": [8], "use_softmax": softmax},
    ).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):  # rows of trained size; the library begins with 1e-4
            torch.nn.init.normal_(module.weight)
            if module.padding_idx is not None:
                torch.nn.init.zeros_(module.weight[module.padding_idx])
    found = []
    for length in (2, 5, 10, 50):
        history = torch.zeros(1, length, dtype=torch.int64)
        history[0, :2] = torch.tensor([3, 7])
        batch = {"user": torch.tensor([1]), "item": torch.tensor([4]), "history": history}
        with torch.no_grad():
            found.append(round(model(batch).item(), 5))
    return found


cases = {
    "shared table, padding_idx=0": scores(True, 0),
    "shared table": scores(True, None),
    "own table, padding_idx=0": scores(False, 0),
    "own table, padding_idx=0, softmax": scores(False, 0, True),
}
for name, found in cases.items():
    print(f"{name:<34} {found}")
shared, without, own, softmax = cases.values()
assert len(set(shared)) == 4 and max(shared) - min(shared) > 0.005, "padding of a shared table no longer counts"
assert shared == without, "padding_idx of a shared table does something now"
assert len(set(own)) == 1, "padding of a table of its own counts"
assert len(set(softmax)) == 4, "padding no longer takes part in the softmax"
P
"$work/venv/bin/python" "$work/try.py"
