"""What is read of a Parquet file's footer, and that none that is damaged ends the process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from msrn.data.parquet_footer import read_row_groups

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
ROWS = {
    "path": ["a.jpg", "b.jpg"] * 500,
    "labels": [["cat", "dog"], []] * 500,
    "number": list(range(1000)),
    "more": [{"is": True, "text": "x"}] * 1000,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "many row groups": {"row_group_size": 100},
    "no dictionary": {"use_dictionary": False},
    "no statistics": {"write_statistics": False},
    "newer pages": {"data_page_version": "2.0", "write_page_index": True},
    "another encoding": {"use_dictionary": False, "column_encoding": {"path": "DELTA_BYTE_ARRAY"}},
}

CHANGE_EACH_BYTE = """
import sys
from pathlib import Path
from msrn.data.records import read_records
from msrn.errors import MSRNError
path = Path(sys.argv[1])
data = path.read_bytes()
for place in range(len(data) - 8 - int.from_bytes(data[-8:-4], "little"), len(data)):
    for change in (1, 2, 128):
        path.write_bytes(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :])
        try:
            list(read_records(path, lambda kind, message, line: None))
        except MSRNError:
            pass
"""


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_what_pyarrow_reads(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table(ROWS), path, **options)
    metadata = parquet.read_metadata(path)
    groups = read_row_groups(path)
    assert [group.num_rows for group in groups] == [
        metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)
    ]
    for number, group in enumerate(groups):
        assert len(group.columns) == metadata.num_columns
        for place, column in enumerate(group.columns):
            expected = metadata.row_group(number).column(place)
            assert ".".join(column.path) == expected.path_in_schema
            assert column.num_values == expected.num_values
            assert column.num_bytes == expected.total_uncompressed_size
            assert column.has_dictionary == expected.has_dictionary_page
            assert len(column.encodings) == len(set(expected.encodings))


def test_no_damage_of_a_footer_ends_the_process(tmp_path: Path) -> None:
    """As it does where pyarrow is asked for a column's metadata."""
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({name: ROWS[name][:4] for name in ("path", "labels")}), path)
    done = subprocess.run([sys.executable, "-c", CHANGE_EACH_BYTE, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"\xff\xff\xff\xffPAR1", b"\x49\x1c\x00" + b"\x03\0\0\0PAR1", b"PAR1" * 4]
)
def test_what_is_no_footer(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(ValueError, match="its footer is damaged"):
        read_row_groups(tmp_path / "x.parquet")
