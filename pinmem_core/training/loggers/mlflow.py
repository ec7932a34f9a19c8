"""MLflow. `MLFLOW_TRACKING_URI` names the store; the default is the folder `mlflow` of the run."""

import os
import re
import time
from pathlib import Path

from pinmem_core.events import Event, Images, Metrics, RunStarted
from pinmem_core.training.loggers.base import Logger, remembered_id, require_package, writing

_EXPERIMENT = "pinmem"
_LONGEST = 6000
"""Maximum length of a parameter's value."""


class MLflow(Logger):
    """Write events to one MLflow run, which a resumed run continues; `mlflow-id` holds its id."""

    def __init__(self, run: Path, after: int = 0) -> None:
        mlflow = require_package("mlflow", "MLflow", "mlflow")
        self._error = mlflow.exceptions.MlflowException
        self._metric = mlflow.entities.Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # A store of files needs no server and no database; MLflow wants to be asked for it.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (run / "mlflow").absolute().as_uri()
        self._target = f"the MLflow store {uri}"
        with writing(self._target, self._error):
            self._client = mlflow.MlflowClient(uri)
            experiment = self._client.get_experiment_by_name(_EXPERIMENT)
            number = (
                experiment.experiment_id
                if experiment
                else self._client.create_experiment(_EXPERIMENT)
            )
            file = run / "mlflow-id"
            new = "" if file.exists() else self._new_run(number, run.name)
            self._id = remembered_id(file, new)
            self._client.update_run(self._id, status="RUNNING")

    def _new_run(self, experiment: str, name: str) -> str:
        identity: str = self._client.create_run(experiment, run_name=name).info.run_id
        return identity

    def __call__(self, event: Event) -> None:
        """Write metrics, pictures as artifacts, and the configuration as parameters."""
        with writing(self._target, self._error):
            match event:
                case RunStarted():
                    for key, value in _flat(event.config).items():
                        self._client.log_param(self._id, key, str(value)[:_LONGEST])
                case Metrics():
                    now = int(1000 * time.time())
                    values = [
                        self._metric(_name(name), value, now, event.iteration)
                        for name, value in event.values.items()
                    ]
                    self._client.log_batch(self._id, metrics=values)
                case Images():
                    for name, image in event.images.items():
                        path = f"images/{_name(name)}/{event.iteration:08}.png"
                        self._client.log_image(self._id, image, path)

    def close(self) -> None:
        """Mark the MLflow run as finished."""
        with writing(self._target, self._error):
            self._client.set_terminated(self._id)


def _name(name: str) -> str:
    """Return a name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def _flat(settings: object, prefix: str = "") -> dict[str, object]:
    """Return settings by dotted key."""
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings}
    return {
        key: value
        for name, inner in settings.items()
        for key, value in _flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


LOGGERS = {"mlflow": MLflow}
