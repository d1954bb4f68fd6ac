"""ImageNet-C: the error under 15 corruptions at five severities (Hendrycks & Dietterich, arXiv:1903.12261, Sec. 4)."""

from typing import Any

ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's mean error over the severities, which the authors measure by."""


def corruption_figures(errors: dict[str, dict[int, float]]) -> dict[str, Any]:
    """What the errors of a model, by corruption and severity, come to.

    Keys: corruptions (for each: error, the mean over severities; relative, that over AlexNet's; by_severity),
    mean_error, and mce: the mean of `relative` over the 15 corruptions of the benchmark, None unless all of them are
    there at all five severities.
    """
    found = {}
    for name, by_severity in errors.items():
        error = sum(by_severity.values()) / len(by_severity)
        relative = error / ALEXNET[name] if name in ALEXNET and len(by_severity) == 5 else None
        found[name] = {"error": error, "relative": relative, "by_severity": by_severity}
    relative = [found[name]["relative"] for name in ALEXNET if name in found]
    whole = len(relative) == len(ALEXNET) and None not in relative
    return {
        "corruptions": found,
        "mean_error": sum(one["error"] for one in found.values()) / len(found),
        "mce": sum(relative) / len(ALEXNET) if whole else None,
    }
