#!/usr/bin/env bash
# huggingface_hub 2.4.0 (Python 3.11): ModelHubMixin.save_pretrained into a folder that holds an earlier model.
#
# Guess: weights, config.json and the model card are those of the model that is saved.
# Seen: weights and config are rewritten, a README.md that is there is kept: the card of yesterday's model, with its
# figures, lies beside today's weights, and nothing says so. push_to_hub pushes what save_pretrained leaves.
#
#   saved 0.6, then 0.9    weights 0.9    config.json {"auc": 0.9}    README.md AUC 0.6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install huggingface_hub==2.4.0 jinja2==3.1.6
cat > "$work/saves.py" <<'P'
import sys
from pathlib import Path

from huggingface_hub import ModelHubMixin


class Model(ModelHubMixin, model_card_template="---\nlicense: mit\n---\nAUC {{ auc }}\n"):
    def __init__(self, auc: float) -> None:
        self.auc = auc

    def _save_pretrained(self, save_directory: Path) -> None:
        (save_directory / "weights").write_text(str(self.auc))

    def generate_model_card(self, *args, **kwargs):
        return super().generate_model_card(*args, auc=self.auc, **kwargs)


folder = Path(sys.argv[1])
for auc in (0.6, 0.9):
    Model(auc).save_pretrained(folder)
read = {file.name: file.read_text() for file in folder.iterdir()}
print(f"weights {read['weights']}   config.json {read['config.json']!r}   README.md {read['README.md']!r}")
assert read["weights"] == "0.9" and '"auc": 0.9' in read["config.json"]
assert "AUC 0.6" in read["README.md"] and "0.9" not in read["README.md"]
P
"$work/venv/bin/python" "$work/saves.py" "$work/model"
