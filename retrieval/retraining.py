"""What a run is made from, and whether that is worth training on: pure functions.

A run is made from data, parameters and code, each told by a digest. Equal in all three to a version that was judged
already, it would make that version again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from retrieval.gate import NOT_MOVED, Outcome, Rule
from retrieval.ledger import CHALLENGER, ROLLBACK, Entry
from retrieval.manifest import digest_of
from retrieval.promotion import History
from retrieval.registry import ModelVersion
from retrieval.tracking import PIPELINE_RUN

TAG = "rankone.made_from"  # of a version; what else made it, afterwards, stands in tags that begin so
TRAINED_AT = "rankone.trained_at"  # of a version: when, in UTC; later than it was registered where it came out again
UNDECIDED = (NOT_MOVED, Rule.OTHER_EVALUATION, Rule.NOT_SCORED)  # rules of rejections that judged no model
SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class MadeFrom:
    """What a run, and the version that it makes, is made from.

    Attributes:
        data: digest of the dataset: images, labels and splits.
        parameters: digest of the parameters that can change a result.
        code: digest of the images, or the code versions, of all steps.
    """

    data: str
    parameters: str
    code: str

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> "MadeFrom | None":
        """Read `text()`; None where it is empty or of another make."""
        try:
            values = json.loads(text)
            return cls(**{field.name: str(values[field.name]) for field in fields(cls)})
        except (KeyError, TypeError, ValueError):
            return None

    def differs_from(self, other: "MadeFrom") -> list[str]:
        """Which of the three differ."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]


def origins(version: ModelVersion) -> list[MadeFrom]:
    """All that a version was made from: by the run that registered it, and by others whose model came out the same."""
    texts = [text for name, text in sorted(version.tags.items()) if name == TAG or name.startswith(f"{TAG}.")]
    return [found for text in texts if (found := MadeFrom.parse(text))]


def origin_tag(made_from: str, present: Mapping[str, str]) -> dict[str, str]:
    """The tag that records on a version with these tags what it was made from as well.

    None is overwritten: a version that came out of two sets of parameters, say because the gate is asked for more, is
    no news to a run with either.
    """
    if not made_from or made_from in (text for name, text in present.items() if name.startswith(TAG)):
        return {}
    return {f"{TAG}.{digest_of(made_from)[:12]}" if TAG in present else TAG: made_from}


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        skip: whether there is nothing to do.
        reason: why, as a sentence without its full stop.
        version: the version that is equal in data, parameters and code; None where there is none.
        again: where that version is to be trained again: which, and when it last was. A cache that sees this text
            has nothing to give, and once the training is judged the text is another one.
    """

    skip: bool
    reason: str
    version: int | None = None
    again: str = ""


def parameters_digest(values: Mapping[str, str], leave_out: Mapping[str, str]) -> str:
    """Digest of parameters given as texts: "3" and "3.0", "True" and "true" are the same.

    Args:
        values: by name.
        leave_out: names that change no result.
    """
    return digest_of({name: _plain(text) for name, text in values.items() if name not in leave_out})


def _plain(text: str) -> Any:
    try:
        value = json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text
    return _whole(value)


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def plan_of(
    made_from: MadeFrom,
    versions: Sequence[ModelVersion],
    champion: ModelVersion | None,
    history: History,
    now: float,
    skip_unchanged: bool = True,
    force: bool = False,
    maximum_age_days: float = 0.0,
    pipeline_run: str = "",
) -> Plan:
    """Whether to train.

    There is nothing to train on where data, parameters and code are those of a version that has had its chance: the
    champion, or else the last one that `standing` knows of. What was rejected by the champion of now, or rolled back
    from, would come out the same again.

    Args:
        made_from: of this run.
        versions: of the registered model.
        champion: among them.
        history: of its aliases.
        now: seconds since 1970.
        skip_unchanged: whether anything is skipped at all.
        force: train whatever is found.
        maximum_age_days: train where all versions made from the same are older; 0 for no limit.
        pipeline_run: key of this run. What an earlier attempt of it has registered counts for nothing.
    """
    ranked = sorted(versions, key=lambda version: (version == champion, version.version), reverse=True)
    others = [each for each in ranked if not pipeline_run or each.tags.get(PIPELINE_RUN) != pipeline_run]
    equal = [each for each in others if made_from in origins(each)]
    same = next((each for each in equal if standing(each, champion, history)), None)
    if same is None:
        return Plan(False, _news(made_from, champion, equal))
    what = f"data, parameters and code are those of version {same.version}, {standing(same, champion, history)}"
    trained = max(map(trained_at, equal))
    again = f"version {same.version}, trained {datetime.fromtimestamp(trained, UTC):%Y-%m-%dT%H:%M:%SZ}"
    days = (now - trained) / SECONDS_A_DAY
    if force:
        return Plan(False, f"{what}; force asks for training all the same", same.version, again)
    if maximum_age_days and days > maximum_age_days:
        old = f"its training was {days:.1f} days ago, longer than maximum_age_days = {maximum_age_days:g}"
        return Plan(False, f"{what}; {old}", same.version, again)
    if not skip_unchanged:
        return Plan(False, f"{what}; skip_unchanged is off, so the run goes on", same.version)
    return Plan(True, what, same.version)


def standing(version: ModelVersion, champion: ModelVersion | None, history: History) -> str:
    """What became of a version that was judged; empty where it is to be judged, or judged again.

    A verdict holds against the champion that it was found against. Where that is another one by now, or where no
    verdict on the model was found (UNDECIDED), the same model may fare otherwise.
    """
    if champion is not None and version.version == champion.version:
        return "the champion"
    if been := _was_champion(version.version, history.champion):
        return been
    outcome, rule = version.tags.get("rankone.outcome", ""), version.tags.get("rankone.rule", "")
    against = champion.version if champion else None
    if version.tags.get("rankone.judged_against", "") != str(against or ""):
        return ""
    if outcome == Outcome.REJECTED and rule not in UNDECIDED:
        return f"which the gate rejected ({rule})"
    proposed = [entry for entry in history.challenger if entry.to == version.version]
    if outcome == Outcome.WAITING and proposed and proposed[-1].against == against:
        waits = history.aliases.get(CHALLENGER) == version.version
        return "which waits for approval" if waits else "which was not approved"
    return ""


def trained_at(version: ModelVersion) -> float:
    """When a version was last trained, in seconds since 1970; when it was registered, where nothing else is known."""
    try:
        return datetime.fromisoformat(version.tags[TRAINED_AT]).timestamp()
    except (KeyError, ValueError):
        return version.created


def _was_champion(version: int, entries: Sequence[Entry]) -> str:
    places = [place for place, entry in enumerate(entries) if entry.to == version]
    if not places:
        return ""
    after = entries[places[-1] + 1 :]
    if not after:
        return "which was champion until somebody moved the alias by hand"
    if after[0].action == ROLLBACK:
        return f"which entry {after[0].number} of the ledger rolled back from"
    return f"which was champion until version {after[0].to}"


def _news(made_from: MadeFrom, champion: ModelVersion | None, equal: Sequence[ModelVersion]) -> str:
    if champion is None:
        news = "there is no champion yet"
    elif not (before := origins(champion)):
        news = f"what the champion, version {champion.version}, was made from is not recorded"
    elif differing := min(map(made_from.differs_from, before), key=len):
        listed = " and ".join(filter(None, [", ".join(differing[:-1]), differing[-1]]))
        differ = "differs from that" if differing == ["code"] else "differ from those"
        news = f"{listed} {differ} of the champion, version {champion.version}"
    else:
        news = f"this run made the champion, version {champion.version}, in an earlier attempt"
    return f"{news}; version {equal[0].version} is made from the same and is to be judged again" if equal else news
