import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.bench.plot import PlotError, Point, check_plot, draw, svg
from tidegate.bench.record import Record
from tidegate.bench.scenarios import Row
from tidegate.bench.sender import OK

SVG = "{http://www.w3.org/2000/svg}"


def rows() -> list[Row]:
    found = []
    for size in (1, 8):
        for callers in (1, 16, 64):
            record = Record(0.0, 10.0)
            for number in range(100 * callers * size):
                record.sending(1.0, None)
                record.ended(1.0, OK, 1.001 + number / 1e5)
            measured = record.measurement(None, None)
            found.append(Row({"max_batch_size": size, "note": "<&>"}, "loads", f"{callers} callers", [measured]))
    return found


def test_html_is_one_file_that_needs_no_network_and_names_what_it_shows(tmp_path: Path) -> None:
    draw(tmp_path / "out.html", rows(), "tidegate bench a<b>.py")
    text = (tmp_path / "out.html").read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "tidegate bench a&lt;b&gt;.py" in text
    assert "src=" not in text
    assert "href" not in text
    assert text.replace("http://www.w3.org/2000/svg", "").count("http") == 0


def test_an_svg_has_a_line_for_p50_and_p99_of_each_configuration_and_a_dot_per_figure(tmp_path: Path) -> None:
    draw(tmp_path / "out.svg", rows(), "title")
    drawing = ElementTree.fromstring((tmp_path / "out.svg").read_text("utf-8"))
    assert len(drawing.findall(f"{SVG}polyline")) == 4
    titles = [title.text or "" for title in drawing.iter(f"{SVG}title")]
    assert len(titles) == 12
    assert any(title.startswith("16 callers: ") and "p99" in title for title in titles)
    legend = [text.text for text in drawing.findall(f"{SVG}text")]
    assert "p50 and p99, max_batch_size 8, note <&>" in legend


figures = st.floats(1e-6, 1e5)


@given(st.lists(st.builds(Point, figures, figures, st.none() | figures, st.text(max_size=5)), max_size=8))
def test_whatever_was_measured_the_drawing_stays_within_its_frame(points: list[Point]) -> None:
    printable = [point._replace(label="x") for point in points]
    drawing = ElementTree.fromstring(svg({"": printable}, "t"))
    width, height = map(float, drawing.attrib["viewBox"].split()[2:])
    for dot in drawing.findall(f"{SVG}circle"):
        assert 0 <= float(dot.attrib["cx"]) <= width
        assert 0 <= float(dot.attrib["cy"]) <= height


def test_a_png_without_matplotlib_names_the_fix(tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib"):
        check_plot(tmp_path / "out.png")
        draw(tmp_path / "out.png", rows(), "title")
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    else:
        with pytest.raises(PlotError, match=r"pip install matplotlib.*or give a \.html or \.svg file"):
            check_plot(tmp_path / "out.png")


@pytest.mark.parametrize(("name", "told"), [("out.pdf", r"must end in \.html"), ("none/out.svg", "no folder")])
def test_what_cannot_be_written_is_told_before_anything_is_measured(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(PlotError, match=told):
        check_plot(tmp_path / name)
