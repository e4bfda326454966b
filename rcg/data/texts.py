"""A column of texts of a data set in tables: Parquet, or what `datasets` writes, here or in any store."""

from __future__ import annotations

from rcg.core.errors import UserError
from rcg.data.blobs import Blob
from rcg.data.pages import require_arrow
from rcg.data.places import Packed, find
from rcg.data.tables import TableFormat, readable, record_batches


def read_texts(spec: str, column: str) -> list[str]:
    """The texts of a column, in the order of the rows; missing ones are left out.

    Args:
        spec: `x.parquet`, `x.arrow`, a folder that `save_to_disk` wrote, `hf:NAME[/CONFIG][:SPLIT[:COLUMN]]`, an address.
        column: which one, unless `spec` says so.

    Raises:
        UserError: no tables there, no such column, or damaged ones; pyarrow is missing.
    """
    packed = find(spec)
    if not isinstance(packed, Packed) or not isinstance(packed.format, TableFormat):
        raise UserError(f"{spec} holds no tables; give .parquet or .arrow files, or what `datasets` saved.")
    column = packed.format.columns.image or column  # of `hf:`, whatever the column is of
    return [text for blob in packed.blobs for text in _texts(blob, column, packed.format.parquet)]


def _texts(blob: Blob, column: str, parquet: bool) -> list[str]:
    pa = require_arrow()
    with readable(pa, blob, "cannot be read", "fetch it again"), blob.open() as file:
        if parquet:
            table = pa.parquet.ParquetFile(file)
            names, read = table.schema_arrow.names, lambda: table.read([column])[column].to_pylist()
        else:
            batches = record_batches(pa, pa.py_buffer(file.read()))
            names = batches[0].schema.names if batches else [column]
            read = lambda: [value for batch in batches for value in batch.column(column).to_pylist()]  # noqa: E731
        if column not in names:
            raise UserError(f"{blob.where} has no column {column!r}; name one with --column ({', '.join(names)}).")
        return [str(value) for value in read() if value is not None]
