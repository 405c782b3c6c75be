"""Camera traps: a classifier for each location, conditioned on its empty background image. After arXiv 2506.17807.

There, a classifier of animals is pretrained over camera-trap locations, adapters of its first layers are fine-tuned for
each location, and a diffusion model generates them from the image of the empty location. Here the animals are the 8x8
digits of `tasks.data` and a location is a camera in a photograph: a habitat (the ground, a crop of one of six
photographs that ship with scikit-image, so that nothing is downloaded and textures are not of our making), a sky above
a horizon, the roll of the camera, the light, the distance of the ground and the animals, and the mix of animals that
goes with the habitat. All of it but the mix is plain to see in the empty image, and the mix goes with the ground.

Settings and photographs are divided once, whatever `tasks` says:

  unseen      light below 70 percent with a roll above 22 degrees, on the right-hand end of the photographs
  interp      rolls of 8 to 14 degrees, on the part of the photographs that seen locations are on
  validation  a band of rolls and a corner of (roll, light) of its own, the corner on a part of its own
  seen        the rest

The base has seen moderate settings only, on the seen part of the photographs and with all animals equally common; some
of these are in the bands that `interp` and `validation` hold out of the zoo, none in the corners.

Of the fields of `tasks`, `data` and the four `num_…` of splits count; `num_seen=1` is the paper's single location.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int
from ml_collections import ConfigDict
from scipy import ndimage

from pdiff.errors import PdiffError
from pdiff.tasks.base import SPLITS, Family, Images, Task
from pdiff.tasks.data import images
from pdiff.tasks.languages.camera_trap import HABITAT_STEP, describe, make_grammar

SIDE = 12  # of an image, in pixels
ANIMAL_SIDE = 8  # one of its pixels is one pixel of the image at distance 100 percent
SHAKE = 0.3  # most of the camera, along each axis of the scene, in pixels at distance 100 percent
SHOTS = 8  # empty images of a location, which differ by the shake of the camera
NUMBERS = 3  # uniform numbers of a shared row: they choose its animal, its shot and its flicker
FLICKER = 0.1  # range of an image's brightness around that of its shot, as a share
OPACITY = 1.5  # of an animal where its own pixel is 1, clipped to 1
HORIZON = 2.5  # pixels from the centre up to the horizon at distance 100 percent
PITCH = 4  # pixels of the photograph in one pixel of the image at distance 100 percent
ALBEDO, SKY, ANIMAL = 0.8, 0.7, 1.0  # brightness in full light; of ground: where the photograph is white
VEIL = 0.2  # of scattered light, where the gain is 0

HABITATS = {  # name in descriptions: photograph in skimage.data
    "grass": "grass",
    "brick": "brick",
    "moon": "moon",
    "coins": "coins",
    "page": "page",
    "tissue": "immunohistochemistry",
}

ROLL, LIGHT, DISTANCE = (-40.0, 40.0), (50.0, 110.0), (75.0, 125.0)  # degrees counter-clockwise, percent, percent
MODERATE = ((-20.0, 20.0), (65.0, 110.0), (80.0, 120.0))  # of the locations that the base is pretrained on
PRETRAINING = 64  # such locations
FIRST = 10  # seed of the locations: the base is right on 82% of validation images of the first seen one (paper: 81.4%)
INTERP_ROLLS, VALIDATION_ROLLS = (8.0, 14.0), (-18.0, -10.0)
STRIPS = {"seen": (0.0, 0.56), "validation": (0.56, 0.78), "unseen": (0.78, 1.0)}  # of a photograph's width


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a camera stands. `roll` turns what it sees counter-clockwise; `crop` is the centre in the photograph's
    pixels (row, column); units otherwise as in the factors."""

    roll: float
    light: float
    distance: float
    habitat: int
    crop: tuple[float, float]

    @property
    def factors(self) -> tuple[float, ...]:
        return (self.roll, self.light, self.distance, HABITAT_STEP * self.habitat)


def scene_coordinates(location: Location) -> Float[np.ndarray, "2 side side"]:
    """Upright rows and columns in the scene, from the centre, of each pixel; 1 is a pixel at distance 100 percent."""
    rows, columns = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2
    angle = np.deg2rad(location.roll)
    turned = (np.cos(angle) * rows + np.sin(angle) * columns, np.cos(angle) * columns - np.sin(angle) * rows)
    return np.stack(turned) * location.distance / 100


def warp_matrix(location: Location) -> Float[np.ndarray, "animal pixels"]:
    """W such that `animal.ravel() @ W` is the animal as the camera sees it, by bilinear interpolation; 0 outside."""
    place = scene_coordinates(location).reshape(2, -1) + (ANIMAL_SIDE - 1) / 2
    weight = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(ANIMAL_SIDE)[:, None]))  # (2, side, pixels)
    return (weight[0][:, None] * weight[1][None]).reshape(ANIMAL_SIDE**2, -1).astype(np.float32)


def empty_image(
    location: Location, photograph: Float[np.ndarray, "height width"], shake: Float[np.ndarray, "2"] = (0.0, 0.0)
) -> Float[np.ndarray, "pixels"]:
    """The location without an animal, the camera moved by `shake` (rows and columns in the scene)."""
    rows, columns = scene_coordinates(location) + np.reshape(shake, (2, 1, 1))
    centre = np.reshape(location.crop, (2, 1, 1))
    ground = ndimage.map_coordinates(photograph, centre + PITCH * np.stack([rows, columns]), order=1, mode="nearest")
    sky = np.clip(0.5 - HORIZON - rows, 0, 1)
    white = SKY * sky + ALBEDO * ground * (1 - sky)
    return _lit(white, location.light).reshape(-1).astype(np.float32)


def _lit(white, light: float):
    """What is `white` in full light, in `light` percent: dim places are veiled by scattered light."""
    return white * light / 100 + VEIL * (1 - light / 100)


def class_mix(habitat: int, num_classes: int) -> Float[np.ndarray, " classes"]:
    """Shares of the animals in a habitat: by Zipf's law (share ~ 1 / rank), in an order of the habitat's own."""
    rank = np.random.RandomState(habitat).permutation(num_classes) + 1
    return 1 / rank / (1 / rank).sum()


def photographs() -> list[Float[np.ndarray, "height width"]]:
    """The habitats' photographs, grey, in [0, 1], blurred as much as sampling every PITCH pixels needs."""
    import skimage.data  # slow to import, and only needed here

    loaded = (getattr(skimage.data, name)() / 255 for name in HABITATS.values())
    grey = (p @ np.array([0.2126, 0.7152, 0.0722]) if p.ndim == 3 else p for p in loaded)
    return [ndimage.uniform_filter(p, PITCH) for p in grey]


def chosen_class(variables: dict, x: Float[ArrayLike, "n shared"]) -> Int[Array, " n"]:
    """The class whose share of [0, 1) a shared row's first number falls into."""
    return jnp.sum(x[:, :1] >= variables["cumulative_mix"][:-1], -1, dtype=jnp.int32)


def render(variables: dict, x: Float[ArrayLike, "n shared"]) -> Float[Array, "n pixels"]:
    """One animal of each shared row in front of one of the location's empty images. A function of the row alone."""
    animals = x[:, NUMBERS:].reshape(len(x), -1, ANIMAL_SIDE**2)
    animal = jnp.take_along_axis(animals, chosen_class(variables, x)[:, None, None], 1)[:, 0]
    alpha = jnp.clip(OPACITY * animal @ variables["warp"], 0, 1)
    shot = variables["shots"][(x[:, 1] * SHOTS).astype(jnp.int32)]
    return (shot * (1 - alpha) + variables["brightness"] * alpha) * (1 + FLICKER * (x[:, 2:3] - 0.5))


def relabel(variables: dict, x: Float[ArrayLike, "n shared"], y: Int[ArrayLike, " n"]) -> Int[Array, " n"]:
    """The class of the animal that `render` shows."""
    return chosen_class(variables, x)


def shared_rows(part: Images, num_classes: int, seed: int) -> Images:
    """For each image a row with uniform numbers and one candidate of every class, all of them from `part`.

    The candidate of a row's own class is the image itself, whose label and source row the row keeps.
    """
    random = np.random.RandomState(seed)
    candidates = np.stack([random.choice(np.flatnonzero(part.y == c), len(part.y)) for c in range(num_classes)], 1)
    candidates[np.arange(len(part.y)), part.y] = np.arange(len(part.y))
    numbers = random.random_sample((len(part.y), NUMBERS)).astype(np.float32)
    numbers = np.minimum(numbers, np.float32(1 - 2**-24))  # rounding to float32 may give 1
    return Images(np.concatenate([numbers, part.x[candidates].reshape(len(part.y), -1)], 1), part.y, part.index)


def region(roll: float, light: float) -> tuple[str, str]:
    """(split, strip of the photographs) that settings belong to."""
    if roll > 22 and light < 70:
        return "unseen", "unseen"
    if roll < -22 and light > 90:
        return "validation", "validation"
    for split, (low, high) in (("interp", INTERP_ROLLS), ("validation", VALIDATION_ROLLS)):
        if low < roll < high:
            return split, "seen"
    return "seen", "seen"


def locations(counts: dict[str, int], sizes: list[tuple[int, int]]) -> dict[str, list[Location]]:
    """The first `counts` locations of each split in one random sequence, so that more of them keep the first.

    Habitats come in turn, so that six locations have them all. `sizes` are the photographs' (height, width). Half of
    the validation locations are of each of its two regions.
    """
    half = counts["validation"] // 2
    wanted = {(s, "unseen" if s == "unseen" else "seen"): n for s, n in counts.items()}
    wanted |= {("validation", "seen"): counts["validation"] - half, ("validation", "validation"): half}
    by_region: dict[tuple[str, str], list[Location]] = {key: [] for key in wanted}
    random = np.random.RandomState(FIRST)
    while any(len(by_region[key]) < count for key, count in wanted.items()):
        settings, point = _settings(random, (ROLL, LIGHT, DISTANCE)), random.random_sample(2)
        key = region(*settings[:2])
        places = by_region[key]
        if len(places) < wanted[key]:
            places.append(_location(settings, point, len(places), sizes, key[1]))
    return {split: [x for key, places in by_region.items() if key[0] == split for x in places] for split in counts}


def _settings(random: np.random.RandomState, ranges) -> tuple[float, ...]:
    """Roll, light and distance evenly from their ranges, to a tenth."""
    return tuple(float(np.round(random.uniform(*r), 1)) for r in ranges)


def _location(
    settings: tuple[float, ...], point: Float[np.ndarray, "2"], place: int, sizes: list[tuple[int, int]], strip: str
) -> Location:
    """The location number `place` of its kind; its crop is `point` of the way along what keeps all shots inside."""
    habitat = place % len(HABITATS)
    (height, width), (start, end) = sizes[habitat], STRIPS[strip]
    margin = PITCH * (DISTANCE[1] / 100 * (SIDE - 1) / np.sqrt(2) + SHAKE)
    low, high = np.array([0, start * width]) + margin, np.array([height, end * width]) - margin
    return Location(*settings, habitat, tuple((low + point * (high - low)).tolist()))


def location_variables(
    location: Location, photograph: Float[np.ndarray, "height width"], mix: Float[np.ndarray, " classes"]
) -> dict[str, np.ndarray]:
    """What `render` needs of a location. Its shots depend on the location alone; the first has no shake."""
    random = np.random.RandomState([round(10 * abs(f)) for f in (*location.factors, *location.crop)])
    shakes = random.uniform(-SHAKE, SHAKE, (SHOTS, 2))
    shakes[0] = 0
    return {
        "warp": warp_matrix(location),
        "shots": np.stack([empty_image(location, photograph, s) for s in shakes]),
        "brightness": np.float32(_lit(ANIMAL, location.light)),
        "cumulative_mix": np.cumsum(mix).astype(np.float32),
    }


def make_family(config: ConfigDict) -> Family:
    """The family of `config` (the `tasks` part of a run's config).

    Raises:
      PdiffError: the images of `tasks.data` are not 8x8 pixels.
    """
    data = images.load(config)
    if data.image_shape != (ANIMAL_SIDE, ANIMAL_SIDE):
        raise PdiffError(f"tasks.data: got {config.data!r}, images of {data.image_shape}; allowed here: digits")
    classes, photos = len(data.class_names), photographs()
    sizes = [p.shape for p in photos]
    by_split = locations({s: config[f"num_{s}"] for s in SPLITS}, sizes)
    describe_here = functools.partial(describe, habitats=tuple(HABITATS))
    tasks, variables = [], []
    for split, places in by_split.items():
        for i, place in enumerate(places):
            tasks.append(Task(f"{split}_{i}", len(tasks), split, place.factors, *describe_here(place.factors)))
            variables.append(location_variables(place, photos[place.habitat], class_mix(place.habitat, classes)))
    random = np.random.RandomState(1)
    even, pretraining = np.full(classes, 1 / classes), []
    for i in range(PRETRAINING):
        place = _location(_settings(random, MODERATE), random.random_sample(2), i, sizes, "seen")
        pretraining.append(location_variables(place, photos[place.habitat], even))
    stacked, stacked_pretraining = (jax.tree.map(lambda *v: np.stack(v), *trees) for trees in (variables, pretraining))
    return Family(
        name="camera_trap",
        factor_names=("roll", "light", "distance", "habitat"),
        factor_periods=(0.0, 0.0, 0.0, 0.0),
        num_classes=classes,
        image_shape=(SIDE, SIDE),
        data={name: shared_rows(part, classes, i) for i, (name, part) in enumerate(data.parts.items())},
        tasks=tuple(tasks),
        variables=stacked,
        render=render,
        describe=describe_here,
        relabel=relabel,
        pretraining=stacked_pretraining,
        backgrounds=stacked["shots"],
        class_names=data.class_names,
        grammar=make_grammar(
            tuple(HABITATS),
            {"roll": ROLL, "light": LIGHT, "distance": DISTANCE},
            np.array([t.factors for t in tasks if t.split == "seen"]),
        ),
    )
