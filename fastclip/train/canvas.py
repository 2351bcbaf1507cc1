"""Draw on a sheet of paper with matplotlib: text, pictures and rectangles, placed by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

INK, MUTED, FAINT = "#1d2733", "#6b7785", "#e3e7ec"
BLUE, ORANGE, GREEN = "#2f6fde", "#e2711d", "#12a150"
SHADES = ("#ffffff", "#e6f0fb", "#b7d3f2", "#74a9e3", "#2f6fde", "#163f8f")  #: from little to much
SHARPNESS = 2  #: pixels of the file per unit of the drawing


def colour_map() -> Any:
    """Return the colour map over SHADES: a number in [0, 1] -> a colour."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("fastclip", SHADES)


def pyplot() -> Any:
    """Return matplotlib.pyplot, drawing to files, in this program's style."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": MUTED,
            "axes.edgecolor": "#b8c0c9",
            "xtick.color": MUTED,
            "ytick.color": MUTED,
        }
    )
    return plt


def write_figure(figure: Any, path: Path) -> None:
    """Save a figure as a PNG and forget it."""
    figure.savefig(path, dpi=100 * SHARPNESS, facecolor=figure.get_facecolor())
    pyplot().close(figure)


class Sheet:
    """A sheet of paper with its origin at the top left, in units of one pixel."""

    def __init__(self, width: float, height: float, paper: Any = "white") -> None:
        plt = pyplot()
        self.figure = plt.figure(figsize=(width / 100, height / 100), facecolor=paper)
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set_xlim(0, width)
        self.ax.set_ylim(height, 0)
        self.ax.axis("off")

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        colour: str = INK,
        weight: str = "normal",
        anchor: str = "left",
        rotation: float = 0,
        line_spacing: float = 1.2,
    ) -> None:
        """Write a text whose left middle, left bottom (anchor "bottom") or centre is at (x, y)."""
        # A dollar sign in a caption is no formula.
        self.ax.text(
            x,
            y,
            text.replace("$", r"\$"),
            fontsize=size * 0.95,
            color=colour,
            fontweight=weight,
            ha="center" if anchor == "centre" else "left",
            va="bottom" if anchor == "bottom" else "center",
            rotation=rotation,
            rotation_mode="anchor",
            linespacing=line_spacing,
        )

    def picture(
        self,
        x: float,
        y: float,
        width: float,
        pixels: np.ndarray,
        *,
        height: float | None = None,
        frame: str | None = None,
        rounding: float = 7,
    ) -> None:
        """Place a picture with its top left at (x, y), with rounded corners, framed if a colour is given."""
        from matplotlib.patches import FancyBboxPatch

        height = width if height is None else height
        image = self.ax.imshow(
            pixels, extent=(x, x + width, y + height, y), interpolation="antialiased", aspect="auto", zorder=2
        )
        if rounding:
            style = f"round,pad=0,rounding_size={rounding}"
            edge = FancyBboxPatch((x, y), width, height, boxstyle=style, fc="none", ec="none")
            self.ax.add_patch(edge)
            image.set_clip_path(edge)
        if frame is not None:
            style = f"round,pad=2.5,rounding_size={rounding + 2}"
            self.ax.add_patch(
                FancyBboxPatch((x, y), width, height, boxstyle=style, fc="none", ec=frame, lw=2.6, zorder=3)
            )

    def rectangle(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: Any = "none",
        edge: Any = "none",
        line: float = 0,
    ) -> None:
        """Draw a rectangle with its top left at (x, y)."""
        from matplotlib.patches import Rectangle

        self.ax.add_patch(
            Rectangle((x, y), width, height, fc=fill, ec=edge, lw=line, zorder=3 if line else 1)
        )

    def write(self, path: Path) -> None:
        """Save the sheet as a PNG."""
        write_figure(self.figure, path)
