import json
from pathlib import Path

from vitreous import planning


def test_the_demo_ends_with_figures_paths_and_what_to_type_next(vitreous, monkeypatch):
    monkeypatch.setattr(planning, "PROBE_S", 0.05)
    answer = vitreous("demo", "--minutes", "0.0001")
    assert answer.code == 0
    assert answer.out.count("a ") >= 5
    assert "top-1" in answer.out
    assert "vitreous predict runs/demo IMAGES" in answer.out
    for line in answer.out.splitlines():
        name, _, path = line.partition(" ")
        if name in ("run", "model", "report"):
            assert Path(path.strip()).exists()
    again = vitreous("demo", "--minutes", "0.0001", "--json")
    figures = json.loads(again.out)
    assert figures["num_images"] == 359
    assert "runs/demo has been trained" in again.err
    assert "step 20/20" not in again.err
