"""The index of a dataset: one row for each image that is kept."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from retrieval.dataset import INDEX_SCHEMA
from retrieval.sources import Record
from retrieval.staging import Seen


def index_of(
    records: Sequence[Record], seen: Sequence[Seen], rows: np.ndarray, splits: Sequence[str]
) -> tuple[pa.Table, list[str]]:
    """The table of dataset.INDEX_SCHEMA and the sorted class names.

    Args:
        records: all that were listed.
        seen: what decoding found, one a record.
        rows: of the records that are kept, ascending.
        splits: one a row.
    """
    class_names = sorted({records[row].class_name for row in rows})
    label_of = {name: label for label, name in enumerate(class_names)}
    columns = {
        "id": range(len(rows)),
        "label": [label_of[records[row].class_name] for row in rows],
        "class_name": [records[row].class_name for row in rows],
        "split": splits,
        "source": [records[row].name for row in rows],
        "sha256": [seen[row].sha256 for row in rows],
        "width": [seen[row].width for row in rows],
        "height": [seen[row].height for row in rows],
    }
    return pa.table(columns, schema=INDEX_SCHEMA), class_names
