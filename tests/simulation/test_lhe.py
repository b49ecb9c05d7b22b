"""Cutting Les Houches files into blocks."""

import gzip

import pytest

from topreco.simulation import lhe

HEADER = """<LesHouchesEvents version="3.0">
<header>
<initrwgt></initrwgt>
</header>
<init>
 2212 2212 6.5e+03 6.5e+03 0 0 247000 247000 3 1
 1.0 0.1 1.0 1
</init>
"""


def content(n, end="</LesHouchesEvents>\n"):
    return HEADER + "".join(f"<event>\n event {i}\n</event>\n" for i in range(n)) + end


@pytest.mark.parametrize("n", [1, 4, 5, 8])
@pytest.mark.parametrize("compressed", [False, True])
def test_split_covers_the_file(tmp_path, n, compressed):
    path = tmp_path / ("a.lhe.gz" if compressed else "a.lhe")
    data = content(n).encode()
    path.write_bytes(gzip.compress(data) if compressed else data)
    assert lhe.count_events(path) == n
    blocks = list(lhe.split(path, 4))
    assert [block.count("<event>") for block in blocks] == [4] * (n // 4) + [n % 4] * (n % 4 > 0)
    joined = [line for block in blocks for line in block.splitlines() if line.startswith(" event")]
    assert joined == [f" event {i}" for i in range(n)]
    for block in blocks:
        assert block.startswith("<LesHouchesEvents")
        assert block.endswith("</LesHouchesEvents>\n")
        assert "2212 2212 6.5e+03 6.5e+03 0 0 247000 247000 -4 1" in block


def test_cut_off_files_are_refused(tmp_path):
    path = tmp_path / "a.lhe"
    path.write_text(content(3, "<event>\n"))
    with pytest.raises(ValueError, match="4 events begin, 3 end"):
        lhe.count_events(path)
    compressed = tmp_path / "a.lhe.gz"
    compressed.write_bytes(gzip.compress(content(300).encode())[:-20])
    with pytest.raises(ValueError, match="not a complete gzip file"):
        lhe.count_events(compressed)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.lhe"
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match="no line <event>"):
        lhe.count_events(path)
    path.write_text("<event>\n</event>\n")
    with pytest.raises(ValueError, match="no valid block <init>"):
        list(lhe.split(path, 4))
