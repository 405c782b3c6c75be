"""Image files of users: which files of a folder count, and the pixels of one."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from pdiff.errors import PdiffError

ENDINGS = (".png", ".jpg", ".jpeg")
ENDED = f"files that end in {', '.join(ENDINGS)}"
MOST_PIXELS = 1 << 24  # of an image, which is looked at before any of them is unpacked
LEFT_BY_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir")  # and whatever begins with a dot


def visible(where: Path) -> list[Path]:
    """What a user put into a folder, by name; what operating systems leave there is passed over."""
    return sorted(p for p in where.iterdir() if p.name[0] != "." and p.name.lower() not in LEFT_BY_SYSTEMS)


def folders(where: Path) -> list[Path]:
    """The folders that a user put into a folder, by name."""
    return [p for p in visible(where) if p.is_dir()]


def is_named_as_image(path: Path) -> bool:
    """Whether the name of a file ends like that of an image."""
    return path.suffix.lower() in ENDINGS


def read_image(path: Path) -> UInt8[np.ndarray, "height width *channels"]:
    """The pixels of a grey (height, width) or RGB (height, width, 3) file, turned as its EXIF says.

    Raises:
      PdiffError: it cannot be read, is truncated, enormous, no PNG or JPEG whatever its name is, has more than 8
        bits, or is transparent.
    """
    if not path.is_file():
        raise PdiffError(f"{path}: no regular file; allowed: images")
    try:
        # By its contents it could be any of Pillow's formats, of which some are programs for other programs.
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MOST_PIXELS:
                raise PdiffError(f"{path}: of {image.width} x {image.height} pixels; allowed: at most {MOST_PIXELS:,}")
            plain = _without_palette(ImageOps.exif_transpose(image))
            if plain is None:
                raise PdiffError(f"{path}: of mode {image.mode}; allowed: grey or RGB, 8 bits, not transparent")
            return np.asarray(plain)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as e:  # Pillow's readers'
        raise PdiffError(f"{path}: unreadable or damaged: {e}") from e


def _without_palette(image: Image.Image) -> Image.Image | None:
    """The image as grey or RGB where nothing is lost by that: it has a palette, single bits or an opaque alpha."""
    if image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema() == (255, 255):
        return image.convert(image.mode.removesuffix("A"))
    if image.has_transparency_data:
        return None
    if image.mode in ("1", "P"):
        return image.convert("L" if image.mode == "1" else "RGB")
    return image if image.mode in ("L", "RGB") else None


def as_rgb(image: UInt8[np.ndarray, "height width *channels"]) -> UInt8[np.ndarray, "height width 3"]:
    """A grey image with its values in all three channels; an RGB one as it is."""
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, -1)


def resized(image: UInt8[np.ndarray, "height width *channels"], size: Sequence[int]) -> UInt8[np.ndarray, "..."]:
    """The whole image at (height, width), stretched where its proportions are others, and smoothed where it shrinks."""
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
