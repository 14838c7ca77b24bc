"""Where MLflow keeps a ledger: one run a registered model, in an experiment of its own.

The experiment is `rankone-ledger.<model>`, apart from the runs that people tidy up, and with permissions of its own. An
entry is a parameter of the run, so MLflow's page shows the ledger as a table.
"""

import functools
import secrets

from retrieval.ledger import LedgerError, MissingVersionError, Page
from retrieval.tracking import artifact_location, client, error_code, tracking_uri

EXPERIMENT = "rankone-ledger"
KIND = "rankone.kind"
MADE_AT_ONCE = ("UNIQUE constraint failed", "duplicate key value", "Duplicate entry")  # SQLite, PostgreSQL, MySQL
NOTE = "Every move of the aliases of {name}, written once each. It is the audit trail of production: do not delete it."


class Ledger:
    """The `Book` of a registered model."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self) -> Page:
        """Everything written so far; nothing where there is no ledger yet."""
        run = ledger_run(self._name)
        if not run:
            return Page({}, {})
        data = client().get_run(run).data
        return Page(dict(data.params), dict(data.tags))

    def claim(self, place: str, text: str) -> bool:
        """Write an entry; False where another one is. Makes the ledger when missing."""
        try:
            client().log_param(ledger_run(self._name) or make_ledger(self._name), place, text)
        except Exception as error:
            if error_code(error) != "INVALID_PARAMETER_VALUE" or "already logged" not in str(error):
                raise
            return False
        return True

    def mark(self, place: str, text: str) -> None:
        """Write a mark."""
        client().set_tag(ledger_run(self._name), place, text)

    def aliases(self) -> dict[str, int]:
        """The versions of the aliases; none where the model is missing."""
        try:
            found = client().get_registered_model(self._name).aliases
        except Exception as error:
            if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: int(version) for alias, version in found.items()}

    def set_alias(self, alias: str, version: int) -> None:
        """Move an alias, whatever it was.

        Raises:
            MissingVersionError: there is no such version.
        """
        try:
            _add_or_move(self._name, alias, str(version))
        except Exception as error:
            if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise MissingVersionError(
                f"The ledger of {self._name} says that {alias} is version {version}, and that version was deleted. "
                "`rankone promote VERSION --reason ...` makes another one champion; `rankone models` lists them."
            ) from error

    def delete_alias(self, alias: str) -> None:
        """Remove an alias, if it is there."""
        client().delete_registered_model_alias(self._name, alias)


def _add_or_move(name: str, alias: str, version: str) -> None:
    """Set an alias: MLflow looks for it, then adds or moves it, and another process may have added it in between."""
    try:
        client().set_registered_model_alias(name, alias, version)
    except Exception as error:
        if not any(text in str(error) for text in MADE_AT_ONCE):
            raise
        client().set_registered_model_alias(name, alias, version)


def ledger_run(name: str) -> str:
    """Id of the run that is the ledger of a model; empty where there is none yet."""
    try:
        return _ledger_run(tracking_uri(), name)
    except LookupError:
        return ""


@functools.cache
def _ledger_run(_uri: str, name: str) -> str:
    found = client().get_experiment_by_name(_experiment(name))
    if found is None:
        raise LookupError(name)  # so that it is not remembered
    runs = client().search_runs([found.experiment_id], f"tags.`{KIND}` = 'ledger'", max_results=2)
    if found.lifecycle_stage != "active" or len(runs) != 1:
        raise LedgerError(
            f"The ledger of {name} was deleted or doubled in MLflow: its experiment '{_experiment(name)}' is "
            f"{found.lifecycle_stage} and has {len(runs)} ledgers. Restore the experiment and its run; without it "
            "nobody can say which version should be champion."
        )
    return runs[0].info.run_id


def make_ledger(name: str) -> str:
    """Make the ledger of a model, or find the one that another process makes at the same time.

    It is made aside, under a name of its own, and renamed when it is whole: of those who rename, one succeeds.
    """
    aside = client().create_experiment(f"{_experiment(name)}.{secrets.token_hex(8)}", artifact_location())
    tags = {KIND: "ledger", "rankone.registered_model": name, "mlflow.note.content": NOTE.format(name=name)}
    run = client().create_run(aside, tags=tags, run_name=f"ledger of {name}")
    client().set_terminated(run.info.run_id)
    try:
        client().rename_experiment(aside, _experiment(name))
    except Exception:
        found = client().get_experiment_by_name(_experiment(name))
        if found is None:
            raise
        if found.experiment_id != aside:  # another process was first
            client().delete_experiment(aside)
    return ledger_run(name)


def _experiment(name: str) -> str:
    return f"{EXPERIMENT}.{name}"


def experiment_of(name: str) -> str:
    """Id of the experiment of a model's ledger, made when missing."""
    return str(client().get_run(ledger_run(name) or make_ledger(name)).info.experiment_id)
