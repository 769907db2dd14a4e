#!/usr/bin/env bash
# torch 2.13.0 (gloo, Python 3.11): errors after a process group, in a program that joins and leaves groups (a notebook, a
# service that trains now and then, a test run).
#
# Guess: init_process_group marks a rank's uncaught errors with "[rank0]: ", and destroy_process_group takes the mark back.
# Seen: each init wraps sys.excepthook once more, and nothing unwraps it: after n groups, all of them left, every line of an
# error has the mark n times.
#
#   0 groups   ValueError: ...
#   1 group    [rank0]: ValueError: ...
#   3 groups   [rank0]: [rank0]: [rank0]: ValueError: ...
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 numpy==2.4.6
cat > "$work/joins.py" <<'P'
import os
import sys

import torch.distributed as dist

os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2], RANK="0", WORLD_SIZE="1")
for _ in range(int(sys.argv[1])):
    dist.init_process_group("gloo")
    dist.destroy_process_group()
raise ValueError("this is the error")
P
for groups in 0 1 3; do
    told=$("$work/venv/bin/python" "$work/joins.py" "$groups" $((29600 + RANDOM % 300)) 2>&1 | tail -1 || true)
    marks=$(grep -o '\[rank0\]: ' <<< "$told" | wc -l || true)
    echo "$groups groups   $told"
    test "$marks" -eq "$groups"
done
