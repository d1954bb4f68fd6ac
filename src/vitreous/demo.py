"""The first thing a newcomer runs: handwritten digits, from nothing to a report, in about two minutes."""

from vitreous.console import Console
from vitreous.evaluation.held_out import held_out_images
from vitreous.experiment import Finished
from vitreous.fitting import fit
from vitreous.predict import Prediction, load

SHADES = " .:-=+*#%@"


def demo(*, out: str, minutes: float, console: Console) -> tuple[Finished, list[tuple[str, str, Prediction]]]:
    """Train on scikit-learn's digits into `out`, then predict five held-out images.

    The answer holds the run, and for each image its drawing in characters, its true label, and the prediction.
    """
    finished = fit("digits", minutes=minutes, out=out, console=console)
    assert isinstance(finished, Finished)
    held_out = held_out_images("digits", model=out, console=Console(quiet=True)).source
    model = load(out)
    shown = []
    for i in range(5):
        image = held_out.image(i)
        rows = [image.convert("L").crop((0, y, 8, y + 1)).tobytes() for y in range(8)]
        drawing = "\n".join("".join(SHADES[value * 9 // 255] * 2 for value in row) for row in rows)
        shown.append((drawing, held_out.classes[held_out.labels[i]], model.predict(image, top=1)[0]))
    return finished, shown
