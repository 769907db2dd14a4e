#!/usr/bin/env bash
# peft 0.21.2 (torch 2.13.0, Python 3.11): which modules does a name in LoraConfig mean?
#
# Guess: target_modules=["lin"] and modules_to_save=["head"] take modules of that name, wherever they are in the model: "head"
# and "ranker.head", not "overhead".
# Seen: so it is for target_modules, which match a whole dotted name. modules_to_save match any name that ends in the same
# letters: with ["head"] a module "overhead" is copied, trained and written into the adapter as well, without a word. A full
# dotted name doesn't help: "a.head" matches "extra.head" too.
#
#   modules: lin, in_lin, head, overhead, a.head, extra.head     trained
#   target_modules=["lin"]                                       lin
#   modules_to_save=["head"]                                     head, overhead, a.head, extra.head
#   modules_to_save=["a.head"]                                   a.head, extra.head
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 peft==0.21.2 numpy==2.4.6
cat > "$work/try.py" <<'P'
import sys
import warnings

warnings.filterwarnings("ignore")
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("lin", "in_lin", "head", "overhead"):
            self.add_module(name, torch.nn.Linear(4, 4))
        for name in ("a", "extra"):
            self.add_module(name, torch.nn.ModuleDict({"head": torch.nn.Linear(4, 4)}))

    def forward(self, x):
        return self.head(self.lin(x))


def trained(**names):
    model = get_peft_model(Model(), LoraConfig(**names))
    folder = f"{sys.argv[1]}/{'-'.join(names['modules_to_save'] or ['none'])}"
    model.save_pretrained(folder)
    written = load_file(f"{folder}/adapter_model.safetensors")
    found = {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}
    copies = sorted({name.split(".modules_to_save")[0] for name in found if "modules_to_save" in name})
    lora = sorted({name.split(".lora_")[0] for name in found if ".lora_" in name})
    assert all(any(f".{name}.weight" in key for key in written) for name in copies), "trained, but not written"
    print(f"{names}: low rank {lora}, copied, trained and written {copies}")
    return lora, copies


assert trained(target_modules=["lin"], modules_to_save=None) == (["lin"], [])
assert trained(target_modules=["lin"], modules_to_save=["head"])[1] == ["a.head", "extra.head", "head", "overhead"]
assert trained(target_modules=["lin"], modules_to_save=["a.head"])[1] == ["a.head", "extra.head"]
P
"$work/venv/bin/python" "$work/try.py" "$work"
