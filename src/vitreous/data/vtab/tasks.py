"""The 19 tasks of VTAB-1k (arXiv:1910.04867) as data: groups, splits, files, label rules; order as in ViT's Table 9."""

from dataclasses import dataclass

from vitreous.errors import InputError, did_you_mean

GROUPS = ("natural", "specialized", "structured")
NUM_TRAIN = 800
NUM_VAL = 200


@dataclass(frozen=True)
class Task:
    """One task, with the slices that VTAB takes of the splits which TensorFlow Datasets (TFDS) knows.

    A slice (split, percent) begins `percent` % into the split; training images are always the first 800 of `train`.
    """

    name: str
    title: str
    """As in the tables of the ViT paper."""
    group: str
    num_classes: int
    sizes: dict[str, int]
    """Images in each split of the whole data set."""
    val: tuple[str, int]
    """Where the 200 validation images begin."""
    test: tuple[str, int]
    """Where the test images begin; they go on to the end of the split."""
    files: str
    """The original files, in words."""
    url: str
    rule: str
    """What the label is."""
    note: str = ""
    """What a person who compares figures must know."""

    @property
    def num_test(self) -> int:
        """Images in the test set."""
        split, percent = self.test
        return self.sizes[split] - self.sizes[split] * percent // 100


_CLEVR = {"train": 70_000, "validation": 15_000}
_NORB = {"train": 24_300, "test": 24_300}
_DMLAB = {"train": 65_550, "validation": 22_628, "test": 22_735}
_RETINOPATHY = {"train": 35_126, "validation": 10_906, "test": 42_670}
_CAMELYON = {"train": 262_144, "validation": 32_768, "test": 32_768}
_SUN397 = {"train": 76_128, "validation": 10_875, "test": 21_750}
_FLOWERS = {"train": 1020, "validation": 1020, "test": 6149}
_DTD = {"train": 1880, "validation": 1880, "test": 1880}
_KITTI = {"train": 6347, "validation": 423, "test": 711}
_ROWS = (
    ("caltech101", "Caltech101", "natural", 102, {"train": 3060, "test": 6084}, ("train", 90), ("test", 0)),
    ("cifar100", "CIFAR-100", "natural", 100, {"train": 50_000, "test": 10_000}, ("train", 90), ("test", 0)),
    ("dtd", "DTD", "natural", 47, _DTD, ("validation", 0), ("test", 0)),
    ("flowers102", "Flowers102", "natural", 102, _FLOWERS, ("validation", 0), ("test", 0)),
    ("pets", "Pets", "natural", 37, {"train": 3680, "test": 3669}, ("train", 80), ("test", 0)),
    ("sun397", "Sun397", "natural", 397, _SUN397, ("validation", 0), ("test", 0)),
    ("svhn", "SVHN", "natural", 10, {"train": 73_257, "test": 26_032}, ("train", 90), ("test", 0)),
    ("camelyon", "Camelyon", "specialized", 2, _CAMELYON, ("validation", 0), ("test", 0)),
    ("eurosat", "EuroSAT", "specialized", 10, {"train": 27_000}, ("train", 60), ("train", 80)),
    ("resisc45", "Resisc45", "specialized", 45, {"train": 31_500}, ("train", 60), ("train", 80)),
    ("retinopathy", "Retinopathy", "specialized", 5, _RETINOPATHY, ("validation", 0), ("test", 0)),
    ("clevr-count", "Clevr-Count", "structured", 8, _CLEVR, ("train", 90), ("validation", 0)),
    ("clevr-dist", "Clevr-Dist", "structured", 6, _CLEVR, ("train", 90), ("validation", 0)),
    ("dmlab", "DMLab", "structured", 6, _DMLAB, ("validation", 0), ("test", 0)),
    ("dsprites-loc", "dSpr-Loc", "structured", 16, {"train": 737_280}, ("train", 80), ("train", 90)),
    ("dsprites-ori", "dSpr-Ori", "structured", 16, {"train": 737_280}, ("train", 80), ("train", 90)),
    ("kitti", "KITTI-Dist", "structured", 4, _KITTI, ("validation", 0), ("test", 0)),
    ("snorb-azim", "sNORB-Azim", "structured", 18, _NORB, ("test", 0), ("test", 50)),
    ("snorb-elev", "sNORB-Elev", "structured", 9, _NORB, ("test", 0), ("test", 50)),
)
_FILES = {
    "caltech101": ("101_ObjectCategories.tar.gz, or its folder", "https://data.caltech.edu/records/mzrjq-6wc02"),
    "cifar100": (
        "cifar-100-binary.tar.gz, or train.bin and test.bin",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "dtd": ("dtd-r1.0.1.tar.gz, or its folders images and labels", "https://www.robots.ox.ac.uk/~vgg/data/dtd/"),
    "flowers102": (
        "102flowers.tgz (or its folder jpg), imagelabels.mat and setid.mat",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
    "pets": ("images.tar.gz and annotations.tar.gz, or their folders", "https://www.robots.ox.ac.uk/~vgg/data/pets/"),
    "sun397": ("SUN397.tar, or its folder", "https://vision.princeton.edu/projects/2010/SUN/"),
    "svhn": ("train_32x32.mat and test_32x32.mat", "http://ufldl.stanford.edu/housenumbers/"),
    "camelyon": (
        "camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5, also as .h5.gz",
        "https://zenodo.org/records/2546921",
    ),
    "eurosat": ("EuroSAT.zip (the RGB version), or its folder", "https://zenodo.org/records/7711810"),
    "resisc45": ("the folder NWPU-RESISC45, or a .zip or .tar of it", "https://gcheng-nwpu.github.io/#Datasets"),
    "retinopathy": (
        "trainLabels.csv, retinopathy_solution.csv and folders (or zips) train and test of <name>.jpeg",
        "https://www.kaggle.com/c/diabetic-retinopathy-detection/data",
    ),
    "clevr": ("CLEVR_v1.0.zip, or its folders images and scenes", "https://cs.stanford.edu/people/jcjohns/clevr/"),
    "dmlab": (
        "dmlab.tar.gz, or its files dmlab-{train,validation,test}.tfrecord*",
        "https://storage.googleapis.com/dmlab-vtab/dmlab.tar.gz",
    ),
    "dsprites": (
        "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz, or .hdf5",
        "https://github.com/google-deepmind/dsprites-dataset",
    ),
    "kitti": (
        "data_object_image_2.zip and data_object_label_2.zip, or training/image_2 and training/label_2",
        "https://www.cvlibs.net/datasets/kitti/eval_object.php",
    ),
    "snorb": (
        "smallnorb-5x46789x9x18x6x2x96x96-training-{dat,info}.mat and "
        "smallnorb-5x01235x9x18x6x2x96x96-testing-{dat,info}.mat, also as .mat.gz",
        "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/",
    ),
}
_RULES = {
    "caltech101": "the object, one of 101, or background",
    "cifar100": "the fine label",
    "dtd": "the key attribute, in the first of ten folds",
    "flowers102": "the kind of flower",
    "pets": "the breed",
    "sun397": "the scene",
    "svhn": "the digit; the original's 10 is 0",
    "camelyon": "whether the centre holds tumour tissue",
    "eurosat": "the use of the land",
    "resisc45": "the scene seen from above",
    "retinopathy": "the grade, 0 to 4; validation is the Public part of the solution, test the Private part",
    "clevr-count": "number of objects, less 3",
    "clevr-dist": "the last of 0, 8, 8.5, 9, 9.5, 10 that is under the least z of the objects' pixel_coords",
    "dmlab": "{close, far, very far} x {positive, negative reward}, numbered as in the files",
    "dsprites-loc": "floor(x position / (32 / 16))",
    "dsprites-ori": "floor(orientation / (40 / 16))",
    "kitti": "distance of the nearest car, van or truck: up to 8 m, up to 20 m, farther, none",
    "snorb-azim": "azimuth in steps of 20 degrees, of the first camera's image",
    "snorb-elev": "elevation in steps of 5 degrees from 30, of the first camera's image",
}
_NOTES = {
    "caltech101": "TFDS trains on 30 images a class, chosen by the order of a file system, which cannot be computed",
    "sun397": "TFDS shrinks images over 120,000 pixels to JPEG of quality 72, while these are the originals; its "
    "partition is in sun397_tfds_tr.txt, sun397_tfds_va.txt and sun397_tfds_te.txt of its source code, to lie beside",
    "retinopathy": "the paper's images are btgraham-300: the eyeball scaled to radius 300, less the local mean, cut "
    "to 90 %; images are read here as they lie",
    "kitti": "TFDS splits by drives, which train_rand.txt and train_mapping.txt of devkit_object.zip tell, to lie near",
}
TASKS = {
    row[0]: Task(*row, *(_FILES.get(row[0]) or _FILES[row[0].split("-")[0]]), _RULES[row[0]], _NOTES.get(row[0], ""))
    for row in _ROWS
}


FOLDERS = {
    "cifar100": ("cifar", "cifar-100"),
    "flowers102": ("oxford_flowers102", "flowers"),
    "pets": ("oxford_iiit_pet",),
    "camelyon": ("patch_camelyon",),
    "retinopathy": ("diabetic_retinopathy",),
    "clevr-count": ("clevr_count", "clevr"),
    "clevr-dist": ("clevr_dist", "clevr"),
    "dsprites-loc": ("dsprites_loc", "dsprites"),
    "dsprites-ori": ("dsprites_ori", "dsprites"),
    "snorb-azim": ("smallnorb_azi", "smallnorb"),
    "snorb-elev": ("smallnorb_ele", "smallnorb"),
}
"""What else the folder of a task may be called: as in the copies that were handed out, or one for two tasks."""


def find_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        InputError: if there is none; names near ones.
    """
    if name not in TASKS:
        raise InputError(f"VTAB has no task {name!r}{did_you_mean(name, TASKS)}")
    return TASKS[name]
