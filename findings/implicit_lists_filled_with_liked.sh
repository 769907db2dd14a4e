#!/usr/bin/env bash
# implicit 0.7.3 (numpy 2.4.6, scipy 1.17.1, Python 3.11): recommend() with fewer unseen items than N.
#
# Guess: filter_already_liked_items (on unless told) leaves what the user has out, so the list is shorter, or the rest
# is marked by an id of -1.
# Seen: the list has N items, filled with those that were to be left out. What tells them apart depends on the model:
# matrix factorisation gives them the least float32 as a score, nearest neighbours give 0.0, which an unseen item
# without any neighbour has too. Candidates by items= are filled the same way.
#
#   a user with items 0 to 3 of 5, N=4       items          scores
#   AlternatingLeastSquares                  4, 3, 2, 1     its score, then -3.4e38 three times
#   CosineRecommender                        4, 3, 2, 1     1.5, 0.0, 0.0, 0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install implicit==0.7.3 numpy==2.4.6 scipy==1.17.1
cat > "$work/try.py" <<'P'
import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import CosineRecommender
from scipy.sparse import csr_matrix

users, items = [0, 0, 0, 0, 1, 1, 1, 2, 2], [0, 1, 2, 3, 0, 1, 4, 3, 4]
visits = csr_matrix((np.ones(9, np.float32), (users, items)), shape=(3, 5))
least = float(np.finfo(np.float32).min)
for model, filler in (
    (AlternatingLeastSquares(factors=4, random_state=0, num_threads=1), least),
    (CosineRecommender(K=5, num_threads=1), 0.0),
):
    model.fit(visits, show_progress=False)
    listed, scores = model.recommend(0, visits[0], N=4)
    print(type(model).__name__, listed.tolist(), scores.tolist())
    assert listed[0] == 4 and sorted(listed[1:].tolist()) == [1, 2, 3]
    assert all(float(score) == filler for score in scores[1:])
    of_three, _ = model.recommend(0, visits[0], N=3, items=np.array([0, 1, 4]))
    assert sorted(of_three.tolist()) == [0, 1, 4]
P
OPENBLAS_NUM_THREADS=1 "$work/venv/bin/python" -W ignore "$work/try.py"
