"""Loss curves as a picture: training loss, and validation at each length, against steps or tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping

from bertchen.report.metrics import Rows, series


def draw_curves(runs: Mapping[str, Rows], out: str | os.PathLike[str], by: str = "step", title: str = "") -> None:
    """Writes a PNG (or SVG, by the name's ending) with one panel for training loss and one for validation.

    Args:
        runs: name of a run to its rows.
        out: file to write.
        by: `step`, or `time/token` for tokens.
        title: over the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (training, validation) = pyplot.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    styles = ("-", "--", ":", "-.")
    for number, (name, rows) in enumerate(runs.items()):
        style = styles[number % len(styles)]
        steps, losses = series(rows, "loss/train/total", by)
        training.plot(steps, losses, style, label=name, linewidth=1)
        labels = sorted(
            {key.split("/")[1] for row in rows for key in row if key.endswith("/MaskedCrossEntropy")},
            key=lambda label: int(label.rpartition("_")[2]) if label.rpartition("_")[2].isdigit() else 0,
        )
        for color, label in enumerate(labels):
            steps, losses = series(rows, f"metrics/{label}/MaskedCrossEntropy", by)
            validation.plot(steps, losses, style, marker=".", color=f"C{color}", label=f"{name}, {label}")
    for axis, name in ((training, "training"), (validation, "validation")):
        axis.set_title(f"{name}: masked cross entropy")
        axis.set_xlabel("tokens" if by == "time/token" else "steps")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    training.set_ylabel("nats a token")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
