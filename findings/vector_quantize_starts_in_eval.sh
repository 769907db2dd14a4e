#!/usr/bin/env bash
# vector-quantize-pytorch 1.32.0 (torch 2.13.0, CPU, Python 3.11): the first batch of a model that starts by k-means.
#
# Guess: in eval(), and all the more with freeze_codebook=True, a forward pass looks codes up and changes nothing; what
# k-means starts from is the first batch in train().
# Seen: whichever batch comes first becomes the codebook, in eval() too, and freeze_codebook does not keep it. A trainer
# that validates before its first step (as a check, or to have a number to compare with) has put validation items
# into the codebook, and training does not start again: the state says that it has. Without kmeans_init nothing changes.
#
#   changed by a first forward in eval()      kmeans_init=True                          False
#   tensors of a level's state                initted, cluster_size, embed_avg, embed   none
#   the same items' codes, another batch first   others                                 the same
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 vector-quantize-pytorch==1.32.0 einx==0.4.3 numpy==2.4.6
cat > "$work/try.py" <<'P'
import torch
from vector_quantize_pytorch import ResidualVQ

items = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def model(kmeans: bool) -> ResidualVQ:
    torch.manual_seed(1)
    return ResidualVQ(dim=8, num_quantizers=2, codebook_size=4, kmeans_init=kmeans)


for kmeans, expected in ((True, ["cluster_size", "embed", "embed_avg", "initted"]), (False, [])):
    codes = []
    for first in (items[:32], items[32:]):
        rq = model(kmeans).eval()
        before = {name: value.clone() for name, value in rq.state_dict().items()}
        with torch.no_grad():
            rq(first, freeze_codebook=True)
        after = rq.state_dict()
        changed = {name.split(".")[-1] for name in after if not torch.equal(after[name], before[name])}
        assert sorted(changed) == expected, changed
        codes.append(rq(items)[1])
    print(f"kmeans_init={kmeans}: changed {sorted(changed)}, same codes {torch.equal(*codes)}")
    assert torch.equal(*codes) is not kmeans

validated_first = model(True).eval()
validated_first(items[:32])  # "validation"
kept = [layer.codebook.clone() for layer in validated_first.layers]
validated_first.train()
validated_first(items[32:], freeze_codebook=True)  # the first batch of training
assert all(torch.equal(a, layer.codebook) for a, layer in zip(kept, validated_first.layers))
print("the first batch of training starts nothing any more")
P
"$work/venv/bin/python" -W ignore "$work/try.py"
