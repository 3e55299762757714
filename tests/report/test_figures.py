"""Colours that are legible on light and on dark and told apart by the colour-blind; labels at lines."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from jaxstab.report import figures, picture

LIGHT, DARK = "#ffffff", "#15191e"
SIGHTS = {
    "normal": np.eye(3),
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}
"""Linear RGB as others see it: Machado, Oliveira & Fernandes 2009, severity 1."""
TO_XYZ = np.array(
    [[0.412456, 0.357576, 0.180438], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]]
)


def linear(color: str) -> np.ndarray:
    """Linear RGB of an sRGB colour."""
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """WCAG 2's ratio, 1 to 21."""
    dark, light = sorted(float(TO_XYZ[1] @ linear(c)) for c in (a, b))
    return (light + 0.05) / (dark + 0.05)


def distance(a: str, b: str, sight: str) -> float:
    """CIE 1976's distance of two colours; 2.3 is just noticeable."""

    def lab(color: str) -> np.ndarray:
        seen = np.clip(np.array(SIGHTS[sight]) @ linear(color), 0, 1)
        x, y, z = np.cbrt(TO_XYZ @ seen / [0.95047, 1, 1.08883])
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    return float(np.linalg.norm(lab(a) - lab(b)))


@pytest.fixture
def cycle():
    with figures.style():
        return mpl.rcParams["axes.prop_cycle"].by_key()["color"]


def test_every_colour_stands_out_from_light_and_from_dark(cycle):
    for color in (*cycle, figures.MEASURED, figures.PUBLISHED):
        assert min(contrast(color, LIGHT), contrast(color, DARK)) >= 3, color
    assert contrast(figures.THEORY, figures.MEASURED) >= 3  # theory is seen on what was measured
    # what a dark page would hide is seen, and given the page's own ink there
    assert contrast(figures.THEORY, DARK) < 3
    drawn = f'<svg viewBox="0 0 9 9"><path style="stroke: {figures.THEORY}"/></svg>'
    assert "currentColor" in picture.inline(drawn)[0]


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_are_told_apart(cycle, sight):
    pairs = [*itertools.combinations([*cycle, figures.THEORY], 2)]
    pairs += [(figures.PUBLISHED, c) for c in (figures.MEASURED, figures.THEORY)]
    assert min(distance(a, b, sight) for a, b in pairs) >= 20
    assert distance("#d62728", "#2ca02c", "deuteranopia") < distance("#d62728", "#2ca02c", "normal") / 2


def test_names_stand_where_lines_end_or_leave_and_apart():
    with figures.style():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots()
        axes.set(xlim=(0, 10), ylim=(0, 1))
        for y, name in ((0.5, "a"), (0.501, "b")):
            axes.plot([0, 10], [0, y], label=name)
        axes.plot([0, 10], [0, 2], label="leaves")
        axes.plot([0, 10], [5, 5], label="outside")
        axes.plot([0, 10], [0, 0.2])
        figures.label_lines(axes)
        found = {text.get_text(): text.xy for text in axes.texts}
        plt.close(figure)
    assert set(found) == {"a", "b", "leaves"}
    assert found["a"] == pytest.approx((1, 0.5))
    assert found["b"][1] - found["a"][1] > 0.02
    assert found["leaves"][0] == pytest.approx(0.5)


def test_a_figure_is_told_and_noted():
    with figures.style():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots()
        axes.plot([0, 1])
        figures.describe(figure, "A line from 0 to 1.")
        figures.note(figure, figures.of_seeds(4096), "dashes: theory")
        figure.canvas.draw()
        (legend,) = figure.legends
        plt.close(figure)
    assert figure.get_label() == "A line from 0 to 1."
    assert legend.get_title().get_text() == "line: median, band: 95 % of 4,096 seeds; dashes: theory"


@pytest.mark.parametrize(("known", "names"), [(1.0, ["measured", "theory"]), (np.nan, ["measured"])])
def test_a_legend_does_not_name_a_line_that_is_not_there(known, names):
    with figures.style():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots()
        axes.plot([0, 1], [0, 1], label="measured")
        figures.theory(axes, np.arange(2), np.array([np.nan, known]), label="theory")
        assert axes.get_legend_handles_labels()[1] == names
        plt.close(figure)
