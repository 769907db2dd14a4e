"""Search a ranker's settings with Optuna (``pip install optuna``), by AUC on the validation split.

    python docs/tune.py runs/mine/data runs/mine/search --trials 20

Each trial is a run of its own in the search's folder; the study is kept in a file there, so the same line goes on with
it. The test split is looked at once, at the end, for the best trial.
"""

import argparse
from pathlib import Path
from typing import Any

import placerank as pr


def settings(trial: Any, data: Path, run: Path) -> pr.TrainConfig:
    """What a trial trains: change what is searched here, a wrong name or value is told before anything runs."""
    return pr.TrainConfig(
        data=data,
        run=run,
        batch_size=trial.suggest_categorical("batch_size", [256, 512, 1024, 2048]),
        epochs=10,  # at most: a run stops by itself where validations no longer get better
        features=pr.FeatureConfig(embedding_dim=trial.suggest_categorical("embedding_dim", [8, 16, 32])),
        ranker=pr.RankerConfig(tower=trial.suggest_categorical("tower", ["twin", "din"])),
        optimizer=pr.OptimizerConfig(
            dense_lr=trial.suggest_float("dense_lr", 3e-4, 1e-2, log=True),
            table_lr=trial.suggest_float("table_lr", 1e-2, 3e-1, log=True),
        ),
        overwrite=True,
    )


def objective(trial: Any, data: Path, out: Path, nproc: int = 1) -> float:
    """Train one trial; its best validation AUC."""
    run = out / f"trial-{trial.number:03d}"
    trial.set_user_attr("run", str(run))
    auc: float = pr.train(settings(trial, data, run), nproc).best["auc"]
    return auc


def main() -> None:
    """Search, then evaluate the best trial."""
    import optuna

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder that `placerank prepare` made")
    parser.add_argument("out", type=Path, help="folder of the search")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--nproc", type=int, default=1, help="ranks a trial")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="placerank",
        storage=f"sqlite:///{args.out.absolute() / 'study.db'}",
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
    )
    # a rate that is too high ends a trial, not the search
    study.optimize(lambda t: objective(t, args.data, args.out, args.nproc), args.trials, catch=(FloatingPointError,))
    print(f"best validation AUC {study.best_value:.4f} with {study.best_params}")
    print(pr.evaluate(pr.EvaluateConfig(run=Path(study.best_trial.user_attrs["run"]), overwrite=True)))


if __name__ == "__main__":
    main()
