"""The files that results are written to: Parquet, CSV, JSON Lines, XMP sidecars, and what Label Studio and FiftyOne import.

Every writer takes the rows one at a time and leaves its file whole or absent. A row is what `Prediction.to_dict` gives: `path`,
`labels` (each with `name` and `probability`, best first), and `error` where the image could not be read.
"""

import csv
import errno
import hashlib
import os
import posixpath
import re
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from msrn.data.cells import can_be_listed, is_unknown, labels_cell, path_cell
from msrn.data.records import import_parquet
from msrn.errors import MSRNError
from msrn.files import JSONLinesWriter, is_utf8, json_text, replace_file, replace_folder

Row = dict[str, Any]

_ROW_GROUP = 8192
_SEPARATOR = "|"  # the first of those that tables of labels are read with
_XMP = "adobe:ns:meta/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_XMP_BASIC = "http://ns.adobe.com/xap/1.0/"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MOST_NAME = 250  # bytes; file systems allow 255, with .xmp behind
_MOST_FOLDERS = 200  # to make and remove them takes a call within a call for each
_PACKET_ID = "W5M0MpCehiHzreSzNTczkc9d"


@dataclass(frozen=True)
class About:
    """What the formats that annotation tools import say of the model.

    Attributes:
        label_names: All labels.
        model: A name for the model and its version.
    """

    label_names: tuple[str, ...]
    model: str


def write_parquet(rows: Iterable[Row], out: Path, about: About) -> None:
    """Columns `path`, `labels` (names, best first) and `probabilities`; images that could not be read are left out."""
    pyarrow, parquet = import_parquet(out)
    schema = pyarrow.schema(
        [
            ("path", pyarrow.string()),
            ("labels", pyarrow.list_(pyarrow.string())),
            ("probabilities", pyarrow.list_(pyarrow.float64())),
        ]
    )
    with replace_file(out) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        readable = _readable(rows)
        while group := list(islice(readable, _ROW_GROUP)):
            columns = {
                "path": [row["path"] for row in group],
                "labels": [[label["name"] for label in row["labels"]] for row in group],
                "probabilities": [[label["probability"] for label in row["labels"]] for row in group],
            }
            writer.write_table(pyarrow.table(columns, schema=schema))


def write_csv(rows: Iterable[Row], out: Path, about: About) -> None:
    """Columns `path`, `labels` and `probabilities`, the last two with `|` between the values; a table that `msrn train` reads.

    An image with none of the labels has `[]`. Labels that would be read as something else stand in a list, as in `["a, b"]`; so
    do those that a spreadsheet would take for a formula, and such a path has `./` before it.
    """
    with replace_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "labels", "probabilities"))
        for row in _readable(rows):
            cell = labels_cell([label["name"] for label in row["labels"]])
            probabilities = _SEPARATOR.join(str(label["probability"]) for label in row["labels"])
            writer.writerow((path_cell(row["path"]), cell, probabilities))


def write_jsonl(rows: Iterable[Row], out: Path, about: About) -> None:
    """One object an image, as `msrn predict --json` prints it; images that could not be read are left out."""
    with JSONLinesWriter(out) as writer:
        for row in _readable(rows):
            writer.write(row)


def write_label_studio(rows: Iterable[Row], out: Path, about: About) -> None:
    """Tasks with a prediction each, for Label Studio's import.

    The project's labelling interface has `<Image name="image" value="$image"/>` and `<Choices name="labels" toName="image"
    choice="multiple">`. Local files are named as Label Studio serves them: by `/data/local-files/?d=` and the path below its
    document root, which is taken to be `/`.
    """
    tasks = (
        {
            "data": {"image": _local_file(row["path"])},
            "predictions": [
                {
                    "model_version": about.model,
                    "score": min((label["probability"] for label in row["labels"]), default=0.0),
                    "result": [
                        {
                            "from_name": "labels",
                            "to_name": "image",
                            "type": "choices",
                            "value": {"choices": [label["name"] for label in row["labels"]]},
                        }
                    ],
                }
            ],
        }
        for row in _readable(rows)
    )
    with replace_file(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        _write_items(file, map(json_text, tasks))
        file.write("]\n")


def write_fiftyone(rows: Iterable[Row], out: Path, about: About) -> None:
    """A labels file of a `FiftyOneImageClassificationDataset`, images by their absolute paths."""
    entries = (
        f"{json_text(_absolute(row['path']))}: "
        + json_text([{"label": label["name"], "confidence": label["probability"]} for label in row["labels"]])
        for row in _readable(rows)
    )
    with replace_file(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"classes": ' + json_text(about.label_names) + ', "labels": {')
        _write_items(file, entries)
        file.write("}}\n")


def write_sidecars(rows: Iterable[Row], out: Path, about: About) -> None:
    """A folder with an XMP file an image, named as the image with `.xmp` behind, below the image's own path.

    Keywords are `dc:subject`, which is also where the IPTC's keywords stand in XMP; an image that could not be read has none.

    Raises:
        MSRNError: Two images have the same place, such as `a/x.png` and `/a/x.png`, or one lies hundreds of folders deep;
            nothing is written.
    """
    with replace_folder(out) as temporary:
        for row in _readable(rows):
            name = f"{_below(row['path'])}.xmp"
            if name.count("/") > _MOST_FOLDERS:
                raise MSRNError(
                    f"{row['path']}: it lies more than {_MOST_FOLDERS} folders deep, and so would its sidecar. The same command "
                    "with --format jsonl writes what was found into one file."
                )
            sidecar = _sidecar([label["name"] for label in row["labels"]], about.model)
            try:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                with (temporary / name).open("xb") as file:
                    file.write(sidecar)
            except (FileExistsError, NotADirectoryError):
                place = temporary / name
                if place.is_file() and place.read_bytes() == sidecar:  # as for an image listed twice
                    continue
                raise MSRNError(
                    f"{row['path']}: the sidecar of another image has its place already, {name}. The same command with --format "
                    "jsonl writes what was found into one file; or name all images by absolute paths."
                ) from None
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                raise MSRNError(
                    f"{row['path']}: its sidecar below {out} would have a longer path than a file can have. Give a shorter --out, "
                    "or --format jsonl, which writes what was found into one file."
                ) from error


def write_errors(rows: Iterable[Row], out: Path) -> int:
    """Write the images that could not be read, as JSON Lines of `path` and `error`; no file where there are none.

    Returns:
        How many.
    """
    failed = (row for row in rows if "error" in row)
    first = next(failed, None)
    if first is None:
        out.unlink(missing_ok=True)
        return 0
    count = 0
    with JSONLinesWriter(out) as writer:
        for row in chain([first], failed):
            writer.write({"path": row["path"], "error": row["error"]})
            count += 1
    return count


def _fit_table(row: Row) -> Row:
    """A row as a table holds it. Tables are text: of an image whose name is not UTF-8 they could only name another file."""
    if is_utf8(row["path"]):
        return row
    reason = (
        "the name is not UTF-8, and no table holds others. Rename the file, or write to a name that ends in .jsonl."
    )
    return {"error": f"{row['path']}: {reason}", **row, "labels": []}


def _as_it_is(row: Row) -> Row:
    return row


def _check_parquet(about: About, out: Path, sources: Sequence[str]) -> None:
    import_parquet(out)


def _check_csv(about: About, out: Path, sources: Sequence[str]) -> None:
    awkward = [name for name in about.label_names if _SEPARATOR in name]
    if awkward:
        raise MSRNError(
            f"the label '{awkward[0]}' has a '{_SEPARATOR}' in it, which a CSV file would split. Give a name that ends in "
            ".parquet or .jsonl."
        )
    unknown = [name for name in about.label_names if is_unknown(name)]
    if unknown:
        raise MSRNError(
            f"the label '{unknown[0]}' means in tables that nothing is known. Give a name that ends in .parquet or .jsonl."
        )
    changed = [name for name in about.label_names if not can_be_listed(name) or not is_utf8(name)]
    if changed:
        raise MSRNError(
            f"the label {changed[0]!r} would be read back as another: it has blanks around it, a carriage return in it, or is not "
            "UTF-8. Give a name that ends in .jsonl."
        )


def _check_tool(about: About, out: Path, sources: Sequence[str]) -> None:
    packed = [source for source in sources if source.endswith(".tar")]
    if packed:
        raise MSRNError(f"annotation tools open no images in {packed[0]}. Unpack it, or choose another format.")


def _check_nothing(about: About, out: Path, sources: Sequence[str]) -> None:
    pass


class Writer(NamedTuple):
    """A format.

    Attributes:
        write: Writes the rows.
        check: Raises where it could not, before any work is done for it.
        fit: Makes an error of a row that the format cannot hold.
    """

    write: Callable[[Iterable[Row], Path, About], None]
    check: Callable[[About, Path, Sequence[str]], None] = _check_nothing
    fit: Callable[[Row], Row] = _as_it_is


FORMATS: dict[str, Writer] = {
    "parquet": Writer(write_parquet, _check_parquet, _fit_table),
    "csv": Writer(write_csv, _check_csv, _fit_table),
    "jsonl": Writer(write_jsonl),
    "xmp": Writer(write_sidecars),
    "label-studio": Writer(write_label_studio, _check_tool),
    "fiftyone": Writer(write_fiftyone, _check_tool),
}
_OF_SUFFIX = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", "": "xmp"}


def find_format(out: Path, asked: str | None = None) -> str:
    """The format to write: the one asked for, or that of the file's ending; no ending is a folder of sidecars.

    Raises:
        MSRNError: There is no such format, or the ending tells none.
    """
    if asked is not None:
        if asked not in FORMATS:
            raise MSRNError(f"there is no format '{asked}'. Choose one of {', '.join(FORMATS)}.")
        return asked
    found = _OF_SUFFIX.get(out.suffix.lower())
    if found is None:
        raise MSRNError(
            f"--out {out}: the ending tells no format. Give .parquet, .csv, .jsonl, a folder (XMP sidecars), or --format: "
            f"{', '.join(FORMATS)}."
        )
    return found


def _readable(rows: Iterable[Row]) -> Iterator[Row]:
    return (row for row in rows if "error" not in row)


def _write_items(file: Any, items: Iterable[str]) -> None:
    """One a line, with commas between."""
    for number, item in enumerate(items):
        file.write(",\n" if number else "\n")
        file.write(item)
    file.write("\n")


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)  # noqa: PTH100


def _local_file(path: str) -> str:
    if "://" in path:
        return path
    absolute = _absolute(path).lstrip("/")
    return f"/data/local-files/?d={urllib.parse.quote(absolute, errors='surrogateescape')}"


def _below(path: str) -> str:
    """Where an image's sidecar lies in the folder: by its path, without a way out of it."""
    parts = [part for part in posixpath.normpath(path.replace("://", "/").replace(os.sep, "/")).split("/") if part]
    return "/".join("_" if part == ".." else _short(part) for part in parts)


def _short(name: str) -> str:
    """A name that leaves room for an ending; of a longer one the beginning and a digest."""
    data = name.encode("utf-8", "surrogateescape")
    if len(data) <= _MOST_NAME:
        return name
    return data[: _MOST_NAME - 17].decode("utf-8", "ignore") + "-" + hashlib.sha256(data).hexdigest()[:16]


def _sidecar(names: list[str], model: str) -> bytes:
    for prefix, space in (("x", _XMP), ("rdf", _RDF), ("dc", _DC), ("xmp", _XMP_BASIC)):
        ET.register_namespace(prefix, space)
    root = ET.Element(f"{{{_XMP}}}xmpmeta")
    description = ET.SubElement(
        ET.SubElement(root, f"{{{_RDF}}}RDF"),
        f"{{{_RDF}}}Description",
        {f"{{{_RDF}}}about": "", f"{{{_XMP_BASIC}}}CreatorTool": model},
    )
    if names:
        bag = ET.SubElement(ET.SubElement(description, f"{{{_DC}}}subject"), f"{{{_RDF}}}Bag")
        for name in names:
            ET.SubElement(bag, f"{{{_RDF}}}li").text = _NOT_XML.sub("", name)
    ET.indent(root)
    begin = f'<?xpacket begin="\ufeff" id="{_PACKET_ID}"?>\n'
    return (begin + ET.tostring(root, encoding="unicode") + '\n<?xpacket end="w"?>\n').encode("utf-8")
