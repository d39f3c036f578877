import pytest

from msrn.data.voc import VOC_LABELS
from msrn.errors import DataError, SourceNotFoundError
from msrn.labels.sets import LABEL_SETS, read_label_names


@pytest.mark.parametrize(("name", "number"), [("voc2007", 20), ("coco2014", 80), ("nuswide", 81)])
def test_published_sets_are_alphabetical(name, number):
    labels = read_label_names(name)
    assert labels == LABEL_SETS[name] == tuple(sorted(set(labels)))
    assert len(labels) == number


def test_voc_reader_has_the_same_labels():
    assert LABEL_SETS["voc2007"] == VOC_LABELS


def test_a_file_keeps_its_order(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffzebra\r\n\n  potted plant \nähre\n".encode())
    assert read_label_names(path) == ("zebra", "potted plant", "ähre")
    assert read_label_names(str(path)) == ("zebra", "potted plant", "ähre")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\ndog\ncat\ndog\n", "names labels twice: 'cat' on lines 1 and 3, 'dog' on lines 2 and 4. Delete"),
        (b"a\n" * 6, "'a' on lines 1 and 4 and 2 more"),
        (b"\n  \n", "holds no label. Give a text file"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_label_names(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_unknown_name_gets_the_nearest(tmp_path):
    with pytest.raises(
        SourceNotFoundError, match=r"'VOC07' is neither .* Did you mean 'voc2007'\? Label sets: voc2007, coco"
    ):
        read_label_names("VOC07")
    with pytest.raises(SourceNotFoundError, match=r"'xyz' is neither a label set nor a file\. Label sets"):
        read_label_names("xyz")
    with pytest.raises(SourceNotFoundError, match="is a folder"):
        read_label_names(tmp_path)
