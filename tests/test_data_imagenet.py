import numpy as np
import pytest
from PIL import Image

from vitreous.data.imagenet import CLASSES, corruptions, imagenet_set
from vitreous.data.layouts import open_held_out
from vitreous.errors import InputError


def write(folder, name, value):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(folder / name)


def wordnet(number):
    return f"n{number:08d}"


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_a_subset_is_known_by_the_folders_of_its_200_classes(name, shared, tmp_path):
    """The indices of ImageNet-A and -R are those of the folders' names among all WordNet names, as timm lists them."""
    meta = shared / "data/imagenet_meta"
    everything = (meta / "imagenet_synsets.txt").read_text().split()
    indices = [int(line) for line in (meta / f"{name.replace('-', '_')}_indices.txt").read_text().split()]
    for index in indices:
        write(tmp_path, f"{everything[index]}/0.png", index % 256)
    split, source, _ = open_held_out(f"{name}:{tmp_path}")
    assert (split, len(source)) == ("all", 200)
    assert sorted(everything.index(called) for called in source.classes) == sorted(indices)


def test_a_part_of_a_set_is_refused(tmp_path):
    for number in range(3):
        write(tmp_path, f"{wordnet(number)}/0.png", number)
    with pytest.raises(InputError, match=r"imagenet-a has 200 classes, .* has 3; give the whole set"):
        imagenet_set("imagenet-a", tmp_path)


@pytest.mark.parametrize("name", [*CLASSES, "imagenet-c"])
def test_a_missing_folder_is_named(name, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        corruptions(tmp_path / "x") if name == "imagenet-c" else imagenet_set(name, tmp_path / "x")


def test_corruptions_are_found_with_their_severities(tmp_path):
    for kind, levels in (("fog", "12345"), ("snow", "13")):
        for level in levels:
            write(tmp_path, f"{kind}/{level}/{wordnet(1)}/0.png", 3)
    (tmp_path / "README").write_text("")
    found = corruptions(tmp_path)
    assert {kind: list(levels) for kind, levels in found.items()} == {"fog": [1, 2, 3, 4, 5], "snow": [1, 3]}
    assert found["fog"][5].classes == (wordnet(1),)


def test_a_folder_without_corruptions_is_refused(tmp_path):
    write(tmp_path, "fog/0.png", 1)
    with pytest.raises(InputError, match="holds no CORRUPTION/SEVERITY/CLASS folders"):
        corruptions(tmp_path)
