"""MLflow: one MLflow run per run directory, in `mlflow.db` of the working directory unless its own settings say where.

`MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` are MLflow's; `mlflow ui` in the same folder shows the same store.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before the import: MLflow reports its use unless this is set
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it announces every table that it makes

STORE = "mlflow.db"  # where `mlflow ui` looks by itself
EXPERIMENT = "atopipe"
RECORD = "mlflow.json"  # which MLflow run a run directory or a sweep belongs to
PARENT, FOLDER_TAG = "mlflow.parentRunId", "atopipe.directory"
STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
LONGEST = 500  # characters of a parameter, in every version of MLflow
AT_ONCE = 100  # parameters that a request may hold


class MLflow:
    """Metrics `train.loss` by epoch and `flops.ratio`; settings as parameters; files as artifacts."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id

    def parameters(self, values: Mapping[str, str]) -> None:
        """Those that are not recorded yet: MLflow lets no parameter change."""
        known = self.client.get_run(self.run_id).data.params
        fresh = [Param(name, value[:LONGEST]) for name, value in values.items() if name not in known]
        for start in range(0, len(fresh), AT_ONCE):
            self.client.log_batch(self.run_id, params=fresh[start : start + AT_ONCE])

    def epoch(self, stage: str, epoch: int, values: Mapping[str, float], seconds: float) -> None:
        self._log({f"{stage}.{name}": value for name, value in values.items()}, seconds, epoch)

    def metrics(self, values: Mapping[str, float], seconds: float) -> None:
        self._log(values, seconds, 0)

    def close(self, outcome: str, files: Sequence[Path]) -> None:
        for file in files:
            self.client.log_artifact(self.run_id, str(file))
        self.client.set_terminated(self.run_id, STATUS[outcome])

    def _log(self, values: Mapping[str, float], seconds: float, step: int) -> None:
        entries = [Metric(name, value, int(1000 * seconds), step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=entries)


def open_tracker(root: Path, *, force: bool) -> MLflow:
    """The MLflow run that this run directory had before in the same store, or a new one; with `force` a new one.

    That of a member of a sweep is a child of the sweep's, which lies two folders above.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(STORE).resolve()}"
    client = MlflowClient(tracking_uri=uri)
    record, parent = root / RECORD, _known(root.parent.parent / RECORD)
    known = _known(record)
    if known.get("store") == uri and not force and _is_there(client, known["run"]):
        return MLflow(client, known["run"])
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    experiment = client.get_experiment_by_name(name)
    place = experiment.experiment_id if experiment else client.create_experiment(name)
    tags = {FOLDER_TAG: root.name, **({PARENT: parent["run"]} if parent.get("store") == uri else {})}
    run_id = client.create_run(place, run_name=root.name, tags=tags).info.run_id
    record.write_text(json.dumps({"store": uri, "run": run_id}) + "\n", encoding="utf-8")
    return MLflow(client, run_id)


def _known(record: Path) -> dict[str, str]:
    """The store and the id of the MLflow run that a file names; empty where there is none."""
    known: dict[str, str] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    return known


def _is_there(client: MlflowClient, run_id: str) -> bool:
    """Take up a run again; False where it was deleted."""
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException:
        return False
    return True
