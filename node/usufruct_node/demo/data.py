"""Real input of the demonstration: the `lfw_subset` patches that ship inside scikit-image, and features of them.

200 grey patches of 25x25, 100 with a face and 100 without. Source: scikit-image, `skimage.data.lfw_subset`; after Huang et al.,
"Labeled Faces in the Wild" (2007).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from skimage.data import lfw_subset
from skimage.feature import hog

from usufruct.features import Column, Extractor, FeatureSchema

SCALE = 48
"""Integer units per 1.0: coarse, so that the worst case of a score summed over 80 rows fits the plaintext modulus."""

_HOG = {"orientations": 8, "pixels_per_cell": (8, 8), "cells_per_block": (2, 2)}
_SEED = 20261123


@dataclass(frozen=True, slots=True)
class Patches:
    """Patches of one organisation. They never leave it."""

    images: npt.NDArray[np.float64]
    """Shape (n, 25, 25)."""
    is_face: npt.NDArray[np.bool_]
    """Shape (n,)."""


def split_patches() -> dict[str, Patches]:
    """The patches shuffled with a fixed seed: 80 to each clinic, 40 to the university."""
    images = lfw_subset().astype(np.float64)
    is_face = np.arange(len(images)) < 100
    order = np.random.default_rng(_SEED).permutation(len(images))
    parts = np.split(order, [80, 160])
    names = ("clinic-north", "clinic-south", "university")
    return {name: Patches(images[part], is_face[part]) for name, part in zip(names, parts, strict=True)}


def hog_features(patches: Patches) -> npt.NDArray[np.float64]:
    """Histograms of oriented gradients, shape (n, 128): 2x2 blocks of 2x2 cells of 8 orientations, blocks of norm 1."""
    return np.array([hog(image, **_HOG) for image in patches.images])


def hog_schema() -> FeatureSchema:
    """What a column is, and how large a row can be: four blocks of norm 1 give a norm of 2."""
    settings = repr(sorted(_HOG.items())).encode()
    return FeatureSchema(
        name="hog-2x2x8",
        kind="descriptor",
        columns=tuple(Column(name=f"hog-{i:03d}", minimum=0.0, maximum=1.0) for i in range(128)),
        extractor=Extractor(name="skimage.feature.hog", sha256=hashlib.sha256(settings).hexdigest()),
        max_l2=2.0,
        scale=SCALE,
    )
