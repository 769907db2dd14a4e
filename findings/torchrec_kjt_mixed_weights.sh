#!/usr/bin/env bash
# torchrec 1.8.0 (fbgemm-gpu-cpu 1.8.0, torch 2.13.0, Python 3.11): a KeyedJaggedTensor of features with and without weights.
#
# Guess: KeyedJaggedTensor.from_jt_dict gives weights of 1 to a feature that has none, or refuses the mix.
# Seen: it takes the weights that are there, end to end, though there are fewer of them than values. So they belong to
# whichever features come first: those of "a" are told as those of "b" where "b" comes before it, and "a" has none. Nothing
# is raised or logged there; a weighted collection raises at its lookup, about split sizes, not about weights.
#
#   {"a": with weights [0.5, 0.25], "b": without}   a: [0.5, 0.25]   b: []
#   {"b": without, "a": with weights [0.5, 0.25]}   b: [0.5, 0.25]   a: []
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 fbgemm-gpu-cpu==1.8.0 numpy==2.4.6 tensordict==0.15.3 \
    torchmetrics==1.0.3 tqdm pyre-extensions iopath pandas psutil
"$work/venv/bin/pip" -q install --no-deps torchrec==1.8.0
cat > "$work/try.py" <<'P'
import logging
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, JaggedTensor, KeyedJaggedTensor

ones = torch.tensor([1, 1])
a = JaggedTensor(values=torch.tensor([1, 2]), lengths=ones, weights=torch.tensor([0.5, 0.25]))
b = JaggedTensor(values=torch.tensor([3, 4]), lengths=ones)
tables = EmbeddingBagCollection(
    tables=[EmbeddingBagConfig(name=n, num_embeddings=8, embedding_dim=4, feature_names=[n]) for n in "ab"],
    is_weighted=True,
)
for features in ({"a": a, "b": b}, {"b": b, "a": a}):
    joined = KeyedJaggedTensor.from_jt_dict(features)
    found = {name: joined[name].weights().tolist() for name in features}
    first, second = features
    try:
        tables(joined)
        raised = "nothing"
    except RuntimeError as error:
        raised = str(error)
    print(f"values {joined.values().tolist()}, weights {found}; lookup: {raised}")
    assert found == {first: [0.5, 0.25], second: []}, "weights go with their own feature now"
    assert "split_sizes" in raised, "the lookup raises otherwise"
P
"$work/venv/bin/python" "$work/try.py"
