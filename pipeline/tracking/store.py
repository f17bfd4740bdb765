"""Chooses the MLflow store that a pipeline is tracked in, explains the choice, and checks that it answers."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from pipeline.config.schema import TrackingConfig
from pipeline.credentials import shown, without_secrets_of
from pipeline.errors import TrackingError
from pipeline.files import takes_no_files
from pipeline.tracking.patience import patience

QUIET = (
    "mlflow",
    "mlflow.store.db.utils",
    "mlflow.models.signature",
    "alembic",
    "sqlalchemy",
    "urllib3.connectionpool",
)
DEFAULT_EXPERIMENT = "minivit"
SQLITE = re.compile(r"sqlite(\+\w+)?:///")
DATABASE = re.compile("postgresql|mysql|mssql|sqlite")  # MLflow creates its tables there on first access
CONFIG, RECORD, DEFAULT = "tracking.uri", "the run's record", "the default"
RETRIES_VARIABLE = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
USER_VARIABLE, PASSWORD_VARIABLE = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
TOKEN_VARIABLE = "MLFLOW_TRACKING_TOKEN"
PRINTING_VARIABLE = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
UNAUTHORIZED = (401, 403)
NO_ANSWER = re.compile(r"Max retries exceeded|Read timed out|Connection (refused|reset|aborted)|could not connect")
REFUSED = re.compile(r"error code 40[13]\b|\b40[13] Client Error|password authentication failed")
FULL = "database or disk is full"  # SQLite's words
CAUSE = re.compile(
    r"(?:Errno -?\d+\] |: |\(')((?:Connection|No route|Name or service|Temporary failure|Read timed out)[^'\"(.)]*)"
)
URI_VARIABLE, NAME_VARIABLE, ID_VARIABLE = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"


@dataclass(frozen=True)
class TrackingStore:
    """A tracking URI with the setting or variable that named it, and the experiment: a name, or an id instead."""

    uri: str
    named_by: str
    experiment: str
    experiment_id: str | None
    artifacts: Path  # where a local store keeps artifacts

    @property
    def setting(self) -> str:
        """What a user changes to select another store."""
        return URI_VARIABLE if self.named_by == URI_VARIABLE else CONFIG

    @property
    def record(self) -> dict[str, str]:
        """What the run's folder records so that `choose_store` finds the runs again."""
        return {"tracking_uri": shown(self.uri), "tracking_uri_from": self.named_by}


def choose_store(
    tracking: TrackingConfig, runs_dir: Path, record: Mapping[str, Any], environment: Mapping[str, str]
) -> TrackingStore:
    """The store of a pipeline: from the config, the environment, the run's record or the default, in this order.

    `record` is what earlier starts of the run recorded (`Store.record`); a default there is ignored, since folders
    move. The experiment comes from the config, then the environment, then `minivit`.
    """
    candidates = {
        CONFIG: tracking.uri,
        URI_VARIABLE: environment.get(URI_VARIABLE),
        RECORD: record.get("tracking_uri") if record.get("tracking_uri_from", DEFAULT) != DEFAULT else None,
    }
    named_by, uri = next(((name, uri) for name, uri in candidates.items() if uri), (DEFAULT, default_uri(runs_dir)))
    name = tracking.experiment or environment.get(NAME_VARIABLE)
    number = None if name else environment.get(ID_VARIABLE) or None
    return TrackingStore(_absolute(uri), named_by, name or DEFAULT_EXPERIMENT, number, runs_dir / "mlflow-artifacts")


def default_uri(runs_dir: Path) -> str:
    """The SQLite store shared by all runs in a folder; absolute, as MLflow's own follows the working directory."""
    return sqlite_uri(runs_dir / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    text = str(path.resolve())
    quoted = text.replace("%", "%25").replace("?", "%3F")  # SQLAlchemy takes % for an escape, ? for the path's end
    # With a named driver, MLflow leaves the folder to SQLAlchemy; otherwise it would make one with the quoted name.
    return f"sqlite:///{text}" if quoted == text else f"sqlite+pysqlite:///{quoted}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other store, and for one in memory."""
    match = SQLITE.match(uri)
    path = uri[match.end() :].partition("?")[0] if match else ""
    return Path(unquote(path)) if path not in ("", ":memory:") else None


def _absolute(uri: str) -> str:
    path = sqlite_path(uri)
    if path is None or "?" in uri or path.is_absolute():
        return uri
    return sqlite_uri(path)


def describe_store(store: TrackingStore) -> str:
    """The store, why it was chosen, and how to view its runs."""
    served = urlsplit(store.uri).scheme in ("http", "https")
    see = f"at {shown(store.uri)}" if served else f"with: mlflow ui --backend-store-uri {shlex.quote(shown(store.uri))}"
    named_by = f"named by {store.named_by}" if store.named_by != DEFAULT else DEFAULT
    return f"MLflow store: {named_by}, experiment {store.experiment_id or store.experiment!r}; see it {see}"


def client_for(uri: str, setting: str = "tracking.uri") -> Any:
    """An MLflow client for a tracking URI. Raises `TrackingError` within about ten seconds if it does not answer."""
    os.environ.setdefault(RETRIES_VARIABLE, "1")  # failures are retried later; training must not wait
    os.environ[PRINTING_VARIABLE] = "true"  # or MLflow prints the URI of each run that ends, with its password
    from mlflow import MlflowClient

    for name in QUIET:  # failures are raised anyway; after the import, which sets its own levels
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        patience.not_heard()
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # MLflow raises what its store raises: SQLAlchemy, requests, its own
        raise TrackingError(f"{setting}: {unanswered(uri, error)}") from None
    patience.heard()
    return client


def unanswered(uri: str, error: Exception) -> str:
    """Why a store could not be reached, and how to fix it."""
    if refuses_password(error):
        return (
            f"the MLflow store at {shown(uri)} refuses the user or the password; correct {USER_VARIABLE} and "
            f"{PASSWORD_VARIABLE}, or {TOKEN_VARIABLE}"
        )
    if FULL in str(error):
        return f"the MLflow store at {shown(uri)} is on a disk that is full; make room and run the same command again"
    return (
        f"the MLflow store at {shown(uri)} does not answer ({reason(error, uri)}); start it, correct the "
        "URI, or omit it to use the SQLite store in the runs folder"
    )


def refuses_password(error: BaseException) -> bool:
    """Whether a server or database rejects the credentials."""
    response = getattr(error, "response", None)
    if getattr(response, "status_code", None) in UNAUTHORIZED:
        return True
    return bool(REFUSED.search(str(error)))


def reason(error: Exception, uri: str = "") -> str:
    """The cause of an error of MLflow or its store, in one line, with the store's credentials hidden."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if match := CAUSE.search(text):
        text = match[1]
    return without_secrets_of(uri, text)[:200]


def find_experiment(client: Any, store: TrackingStore) -> Any:
    """The experiment of a store; None if none of that name exists yet.

    Raises `TrackingError` if it was deleted in MLflow, or if an id does not exist.
    """
    from mlflow.exceptions import MlflowException

    if store.experiment_id is None:
        found = client.get_experiment_by_name(store.experiment)
    else:
        try:
            found = client.get_experiment(store.experiment_id)
        except MlflowException as error:
            raise TrackingError(
                f"{ID_VARIABLE}: {shown(store.uri)} has no experiment {store.experiment_id} ({reason(error)}); correct "
                "it, or set tracking.experiment to a name"
            ) from None
    if found is not None and found.lifecycle_stage != "active":
        restore = f"{URI_VARIABLE}={shlex.quote(shown(store.uri))} mlflow experiments restore --experiment-id"
        raise TrackingError(
            f"tracking.experiment: the experiment {found.name!r} was deleted in MLflow; restore it with "
            f"`{restore} {found.experiment_id}`, or take another with tracking.experiment=NAME"
        )
    return found


def check_store(store: TrackingStore) -> None:
    """Raise `TrackingError` if a run could not be tracked, as far as can be seen without writing anything."""
    path, found = sqlite_path(store.uri), None
    if path is not None and (not path.is_file() or not path.stat().st_size):
        if why := takes_no_files(path):
            raise unwritable_store(store, path, why)
    elif path is not None or not DATABASE.match(store.uri):
        found = find_experiment(client_for(store.uri, store.setting), store)
    default = store.artifacts.resolve().as_uri() if path is not None else ""
    place = urlsplit(found.artifact_location if found else default)
    local = place.path and place.scheme in ("", "file")
    if local and (why := takes_no_files(Path(url2pathname(place.path), "run"))):
        raise unstorable(store, place.geturl(), "an artifact", why)


@contextmanager
def sole_user(store: TrackingStore) -> Iterator[None]:
    """Within this context no other process sets up the same SQLite store, whose tables MLflow creates without a lock.

    Creates the folder. Raises `TrackingError` if it cannot be written.
    """
    path = sqlite_path(store.uri)
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("a")
    except OSError as error:
        raise unwritable_store(store, path, error.strerror) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unwritable_store(store: TrackingStore, path: Path, why: str | None) -> TrackingError:
    return TrackingError(f"{store.setting}: the MLflow store {path} cannot be written: {why}")


def unstorable(store: TrackingStore, place: str, what: str, why: str) -> TrackingError:
    """The error for an artifact that cannot be written to the experiment's artifact location."""
    served = urlsplit(store.uri).scheme in ("http", "https") and urlsplit(place).scheme in ("", "file")
    remedy = (
        "start `mlflow server` with --artifacts-destination, so that the server stores them"
        if served
        else "make that location writable"
    )
    return TrackingError(
        f"{store.setting}: {what} cannot be stored at {shown(place)}, where the experiment {store.experiment!r} keeps "
        f"its artifacts ({why}); {remedy}, or take another experiment with tracking.experiment=NAME"
    )
