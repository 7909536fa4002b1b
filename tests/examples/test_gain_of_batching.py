import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

Ask = Callable[..., str]


def test_grouping_by_length_pads_less_and_the_plot_is_drawn(ask: Ask, tmp_path: Path) -> None:
    plot = tmp_path / "gain.svg"
    printed = ask("gain_of_batching", "speech", "--count", "64", "--sizes", "1", "8", "--plot", str(plot))
    measured = r" +[\d,]+ +([\d.]+) +(\d+)%"
    rows = re.findall(rf"^ +(\d+){measured}{measured}$", printed, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "8"]
    assert rows[0][1:] == ("1.0", "0", "1.0", "0")
    _, _, grouped, batch, ungrouped = rows[1]
    assert float(batch) == 8
    assert int(grouped) < int(ungrouped)
    lines = ElementTree.parse(plot).findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4
