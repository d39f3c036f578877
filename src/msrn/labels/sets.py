"""Label sets by name, and label names from a file."""

from difflib import get_close_matches
from pathlib import Path

from msrn.errors import DataError, SourceNotFoundError

LABEL_SETS: dict[str, tuple[str, ...]] = {
    # Alphabetical, as in VOC's own lists and in the published readers.
    "voc2007": (
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    ),
    # COCO's 80 category names, alphabetical. The published readers (ML-GCN's, and MSRN's after it) sort the names of
    # instances_*2014.json, number them from 0 and write that as category.json. The category.json in MSRN's repository
    # is another thing, COCO's category ids to 1..80 in the order of ids; its reader looks for category.json elsewhere.
    # Not known: whether the rows of the published coco_adj.pkl and coco_glove_word2vec.pkl follow the reader's order;
    # there are no names in them.
    "coco2014": (
        *("airplane", "apple", "backpack", "banana", "baseball bat", "baseball glove", "bear", "bed", "bench"),
        *("bicycle", "bird", "boat", "book", "bottle", "bowl", "broccoli", "bus", "cake", "car", "carrot", "cat"),
        *("cell phone", "chair", "clock", "couch", "cow", "cup", "dining table", "dog", "donut", "elephant"),
        *("fire hydrant", "fork", "frisbee", "giraffe", "hair drier", "handbag", "horse", "hot dog", "keyboard"),
        *("kite", "knife", "laptop", "microwave", "motorcycle", "mouse", "orange", "oven", "parking meter", "person"),
        *("pizza", "potted plant", "refrigerator", "remote", "sandwich", "scissors", "sheep", "sink", "skateboard"),
        *("skis", "snowboard", "spoon", "sports ball", "stop sign", "suitcase", "surfboard", "teddy bear"),
        *("tennis racket", "tie", "toaster", "toilet", "toothbrush", "traffic light", "train", "truck", "tv"),
        *("umbrella", "vase", "wine glass", "zebra"),
    ),
    # The names of Groundtruth's files and of Concepts81.txt, alphabetical.
    "nuswide": (
        *("airport", "animal", "beach", "bear", "birds", "boats", "book", "bridge", "buildings", "cars", "castle"),
        *("cat", "cityscape", "clouds", "computer", "coral", "cow", "dancing", "dog", "earthquake", "elk", "fire"),
        *("fish", "flags", "flowers", "food", "fox", "frost", "garden", "glacier", "grass", "harbor", "horses"),
        *("house", "lake", "leaf", "map", "military", "moon", "mountain", "nighttime", "ocean", "person", "plane"),
        *("plants", "police", "protest", "railroad", "rainbow", "reflection", "road", "rocks", "running", "sand"),
        *("sign", "sky", "snow", "soccer", "sports", "statue", "street", "sun", "sunset", "surf", "swimmers"),
        *("tattoo", "temple", "tiger", "tower", "town", "toy", "train", "tree", "valley", "vehicle", "water"),
        *("waterfall", "wedding", "whales", "window", "zebra"),
    ),
}
# The same labels under the names of the other years.
LABEL_SETS["voc2012"] = LABEL_SETS["voc2007"]
LABEL_SETS["coco2017"] = LABEL_SETS["coco2014"]

_MAX_FILE_BYTES = 16 << 20


def read_label_names(name_or_path: str | Path) -> tuple[str, ...]:
    """The labels of a set ("voc2007", "coco2014", "nuswide"), or of a text file with one name a line, in their order.

    Spaces around a name and blank lines are left out.

    Raises:
        SourceNotFoundError: Neither a label set nor a file.
        DataError: The file is not UTF-8 text, holds no names, or holds a name twice.

    Example:
        >>> read_label_names("voc2007")[:3]
        ('aeroplane', 'bicycle', 'bird')
    """
    if str(name_or_path) in LABEL_SETS:
        return LABEL_SETS[str(name_or_path)]
    path = Path(name_or_path).expanduser()
    try:
        if not path.is_file():
            raise SourceNotFoundError(_not_found(name_or_path, path))
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise DataError(f"{path} is larger than 16 MB. Give a text file with one label a line.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SourceNotFoundError(f"{path} cannot be read: {error.strerror or error}. Give a readable file.") from None
    except ValueError:  # not UTF-8, or a path with a null character
        raise DataError(f"{name_or_path!s} is not UTF-8 text. Give a text file with one label a line.") from None
    first_line: dict[str, int] = {}
    repeated = []
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.strip()
        if name in first_line:
            repeated.append(f"'{name}' on lines {first_line[name]} and {number}")
        elif name:
            first_line[name] = number
    if repeated:
        more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
        raise DataError(f"{path} names labels twice: {', '.join(repeated[:3])}{more}. Delete one line of each.")
    if not first_line:
        raise DataError(f"{path} holds no label. Give a text file with one label a line.")
    return tuple(first_line)


def _not_found(name_or_path: str | Path, path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder. Give a text file with one label a line, or one of: {', '.join(LABEL_SETS)}."
    nearest = get_close_matches(str(name_or_path).lower(), LABEL_SETS, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return (
        f"'{name_or_path}' is neither a label set nor a file.{hint} "
        f"Label sets: {', '.join(LABEL_SETS)}; or give a text file with one label a line."
    )
