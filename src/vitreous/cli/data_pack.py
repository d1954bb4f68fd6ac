"""The command that packs data into shards: data pack."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitreous.cli.app import Whole, print_json
from vitreous.cli.data import data
from vitreous.errors import InputError

if TYPE_CHECKING:
    from vitreous.data.pack import Packed

UNITS = {"": 1, "K": 10**3, "KI": 2**10, "M": 10**6, "MI": 2**20, "G": 10**9, "GI": 2**30}


@data.command
def pack(
    src: str,
    dst: str,
    /,
    *,
    shard_size: str = "256MB",
    resize_max: Whole | None = None,
    quality: Whole = 90,
    workers: Whole | None = None,
    json: bool = False,
) -> int:
    """Pack data into a few large tars, which any reader of WebDataset reads and vitreous reads in any order.

    Stopped at any moment, the same command goes on where it was.

    Parameters
    ----------
    src
        Data, as for fit.
    dst
        A new folder for the shards; give it as DATA afterwards.
    shard_size
        How large a tar may become: 256MB, 1GB, 500MiB.
    resize_max
        Resize images whose longer side has more pixels than this, and store them as JPEG. Others keep their bytes.
    quality
        Of those JPEGs, 1 to 100.
    workers
        Threads that read, check and resize; one for each core by default. The result is the same.
    json
        Print a JSON object.
    """
    from vitreous.console import Console
    from vitreous.data.pack import BAD_IMAGES, pack
    from vitreous.data.pack_shard import Settings

    for name, value, largest in (
        ("quality", quality, 100),
        ("resize-max", resize_max, 65_500),
        ("workers", workers, 4096),
    ):
        if value is not None and not 1 <= value <= largest:
            raise InputError(f"--{name} is {value}; it must lie between 1 and {largest:,}")
    console, begun, folder = Console(), time.monotonic(), Path(dst).expanduser()
    settings = Settings(shard_bytes=num_bytes(shard_size), resize_max=resize_max, quality=quality)
    packed = pack(src, folder, settings=settings, workers=workers, console=console)
    for note in packed.notes:
        console.say(f"  {note}")
    if packed.bad:
        console.say(f"{len(packed.bad):,} images are left out (all in {folder / BAD_IMAGES}):")
        for _, name, reason in packed.bad[:5]:
            console.say(f"  {name}: {reason}")
    answer = summary(packed, seconds=time.monotonic() - begun)
    if json:
        print_json({"folder": str(folder), **answer})
        return 0
    for split, found in answer["splits"].items():
        print(f"{split:5}  {found['images']:,} images in {found['shards']:,} shards, {found['bytes'] / 1e6:,.1f} MB")
    print(f"packed in {answer['seconds']:,.1f} s ({packed.num_written:,} shards written); next: vitreous fit {dst}")
    return 0


def summary(packed: "Packed", *, seconds: float) -> dict[str, Any]:
    """Plain figures of what was packed."""
    splits = {}
    for shard in packed.index.shards:
        found = splits.setdefault(shard.split, {"images": 0, "shards": 0, "bytes": 0})
        for name, more in (("images", shard.num_images), ("shards", 1), ("bytes", shard.num_bytes)):
            found[name] += more
    left_out = [dict(zip(("split", "file", "reason"), image)) for image in packed.bad]
    return {
        "splits": splits,
        "num_classes": len(packed.index.classes),
        "left_out": left_out,
        "notes": packed.notes,
        "shards_written": packed.num_written,
        "seconds": round(seconds, 3),
    }


def num_bytes(text: str) -> int:
    """`256MB` as a number of bytes.

    Raises:
        InputError: if it is none, or below 10 kB.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMG]?I?)B?", text.strip().upper())
    number = float(found[1]) * UNITS.get(found[2], 0) if found else 0
    if not 10_000 <= number < 1e15:
        raise InputError(f"--shard-size is {text!r}; give a size from 10KB up, such as 256MB or 1GB")
    return int(number)
