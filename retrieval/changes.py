"""What a run is made from, whether that is new, and what is new of the images: pure functions.

A run is made from data, parameters and code, each told by a digest. Equal in all three to a version that was judged
already, it would make that version again.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

from retrieval.manifest import digest_of
from retrieval.registry import ModelVersion

TAG = "rankone.made_from"  # of a version
IMAGES_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "class_name", "split", "sha256")])
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


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        skip: whether there is nothing to do.
        reason: why, as a sentence.
        version: the version that is equal in data, parameters and code; None where there is none.
    """

    skip: bool
    reason: str
    version: int | None = None


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
    now: float,
    skip_unchanged: bool = True,
    force: bool = False,
    maximum_age_days: float = 0.0,
) -> Plan:
    """Whether to train.

    A version is the same when data, parameters and code are. The champion goes first, then the version that was
    registered last: what was rejected, or rolled back from, would come out the same again.

    Args:
        made_from: of this run.
        versions: of the registered model.
        champion: among them.
        now: seconds since 1970.
        skip_unchanged: whether anything is skipped at all.
        force: train whatever is found.
        maximum_age_days: train where the version is older; 0 for no limit.
    """
    ranked = sorted(versions, key=lambda version: version.version, reverse=True)
    ranked = ([champion] if champion else []) + [each for each in ranked if champion is None or each != champion]
    same = next((each for each in ranked if MadeFrom.parse(each.tags.get(TAG, "")) == made_from), None)
    if same is None:
        return Plan(False, _news(made_from, champion))
    is_champion = champion is not None and same.version == champion.version
    what = f"data, parameters and code are those of version {same.version}, {_standing(same, is_champion)}"
    days = (now - same.created) / SECONDS_A_DAY
    if force:
        return Plan(False, f"{what}; force asks for training all the same", same.version)
    if maximum_age_days and days > maximum_age_days:
        age = f"{days:.1f} days old, more than maximum_age_days = {maximum_age_days:g}"
        return Plan(False, f"{what}; that is {age}", same.version)
    if not skip_unchanged:
        return Plan(False, f"{what}; skip_unchanged is off, so the run goes on", same.version)
    return Plan(True, what, same.version)


def _news(made_from: MadeFrom, champion: ModelVersion | None) -> str:
    if champion is None:
        return "there is no champion yet"
    before = MadeFrom.parse(champion.tags.get(TAG, ""))
    if before is None:
        return f"what the champion, version {champion.version}, was made from is not recorded"
    differing = made_from.differs_from(before)
    listed = " and ".join(filter(None, [", ".join(differing[:-1]), differing[-1]]))
    return f"{listed} differ{'s' if len(differing) == 1 else ''} from those of the champion, version {champion.version}"


def _standing(version: ModelVersion, is_champion: bool) -> str:
    if is_champion:
        return "the champion"
    outcome = version.tags.get("rankone.outcome", "")
    if outcome == "rejected":
        return f"which the gate rejected ({version.tags.get('rankone.rule', '')})"
    return "which is no longer champion" if outcome == "promoted" else "which waits for approval"


@dataclass(frozen=True)
class Differences:
    """How the images differ from those of before; counts of images, and names of classes.

    Attributes:
        before: images of before.
        now: images of now.
        new: at a place where none was.
        removed: of before, at a place where none is.
        changed: other pixels at the same place.
        other_class: at the same place under another class.
        other_split: at the same place in another split.
        new_classes: with how many images.
        removed_classes: with how many images they had.
        by_class: of each class that differs, new, changed and removed images.
    """

    before: int
    now: int
    new: int
    removed: int
    changed: int
    other_class: int
    other_split: int
    new_classes: dict[str, int]
    removed_classes: dict[str, int]
    by_class: dict[str, tuple[int, int, int]]


def image_list(index: pa.Table) -> pa.Table:
    """What is kept of a dataset's index: IMAGES_SCHEMA, in the order of the places."""
    return index.select(IMAGES_SCHEMA.names).cast(IMAGES_SCHEMA).sort_by("source")


def differences(before: pa.Table, now: pa.Table) -> Differences:
    """Compare two lists of images, of IMAGES_SCHEMA, place by place.

    A place is where an image came from, relative to the source's root: a file that was renamed is one removed and one
    new.
    """
    old, fresh = _by_place(before), _by_place(now)
    shared = old.keys() & fresh.keys()
    new, removed = fresh.keys() - old.keys(), old.keys() - fresh.keys()
    changed = {place for place in shared if old[place]["sha256"] != fresh[place]["sha256"]}
    had, has = (Counter(row["class_name"] for row in rows.values()) for rows in (old, fresh))
    counts = [
        Counter(rows[place]["class_name"] for place in places)
        for rows, places in ((fresh, new), (fresh, changed), (old, removed))
    ]
    return Differences(
        before=len(old),
        now=len(fresh),
        new=len(new),
        removed=len(removed),
        changed=len(changed),
        other_class=sum(old[place]["class_name"] != fresh[place]["class_name"] for place in shared),
        other_split=sum(old[place]["split"] != fresh[place]["split"] for place in shared),
        new_classes={name: n for name, n in sorted(has.items()) if name not in had},
        removed_classes={name: n for name, n in sorted(had.items()) if name not in has},
        by_class={name: (counts[0][name], counts[1][name], counts[2][name]) for name in sorted(set().union(*counts))},
    )


def _by_place(images: pa.Table) -> dict[str, dict[str, str]]:
    return {row["source"]: row for row in images.to_pylist()}


def sentence(found: Differences) -> str:
    """The differences in a few words."""
    counts = {
        "new": found.new,
        "changed": found.changed,
        "removed": found.removed,
        "under another class": found.other_class,
        "in another split": found.other_split,
    }
    parts = [f"{count:,} {what}" for what, count in counts.items() if count]
    classes = [
        f"{len(names)} {what} class{'es' if len(names) > 1 else ''}"
        for what, names in (("new", found.new_classes), ("removed", found.removed_classes))
        if names
    ]
    return ", ".join(parts + classes) or "no image is new, changed or removed"
