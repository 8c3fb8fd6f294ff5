"""What our networks are compared with: a random forest and segmentation_models.pytorch. Started by accuracy.py.

    python tests/benchmarks/rivals.py {forest,smp} SCENE SEED SECONDS

Each runs in a process of its own, whose processor time counts from its start, as our command's does. Both read the
tiles with our reader, so that all methods get the same pixels. The last line is JSON: val IoU and number of steps.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import real_tiles
import torch

from robosat_pink.config import ChannelConfig, ClassConfig, DatasetConfig
from robosat_pink.datasets import TilePairs
from robosat_pink.losses import IGNORE
from robosat_pink.training import metrics

TREES = 100
LEAST_LEAF = 10  # training pixels; with 1, which is the default, l7_everest_glacier has a val IoU of .651, not .672
TRAINING_PIXELS = 100_000
LEARNING_RATE = 1e-3
BATCH_SIZE = 4
CROP = 256  # pixels


class Tiles(NamedTuple):
    images: np.ndarray  # (N, C, H, W) float32, as in the files, 0 where missing
    masks: np.ndarray  # (N, H, W) uint8: 0, 1, or 255 = ignore


def read_tiles(scene: str) -> tuple[Tiles, Tiles]:
    """The train and the val tiles."""
    pairs = TilePairs(
        DatasetConfig(**real_tiles.dataset(scene)),
        [ChannelConfig(bands=real_tiles.BANDS)],
        [ClassConfig(name=real_tiles.SCENES[scene].class_name)],
    )
    val_ids = set(real_tiles.val_ids(scene))
    is_val = np.array([tile_id in val_ids for tile_id in pairs.ids])
    assert is_val.sum() == len(val_ids)
    samples = pairs.__getitems__(range(len(pairs)))
    images = np.stack([sample.image.astype(np.float32) for sample in samples])
    masks = np.stack([sample.mask for sample in samples])
    return Tiles(images[~is_val], masks[~is_val]), Tiles(images[is_val], masks[is_val])


def val_iou(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The IoU of class 1 over all valid pixels; both arrays are of one shape, of 0 and 1, and `truth` of 255."""
    is_valid = truth != IGNORE
    counts = np.bincount(2 * truth[is_valid].astype(int) + predicted[is_valid], minlength=4).reshape(2, 2)
    return metrics.scores(counts, ["positive"], math.nan)["iou"]


def forest(scene: str, seed: int, budget_s: float) -> tuple[float, None]:
    """A random forest on the bands of single pixels. It takes what time it needs."""
    from sklearn.ensemble import RandomForestClassifier

    train, val = read_tiles(scene)
    pixels, labels = valid_pixels(train)
    chosen = np.random.default_rng(seed).permutation(len(labels))[:TRAINING_PIXELS]
    model = RandomForestClassifier(TREES, min_samples_leaf=LEAST_LEAF, random_state=seed)
    model.fit(pixels[chosen], labels[chosen])
    pixels, labels = valid_pixels(val)
    return val_iou(labels, model.predict(pixels).astype(int)), None


def valid_pixels(tiles: Tiles) -> tuple[np.ndarray, np.ndarray]:
    """The bands (M, C) and labels (M,) of all valid pixels."""
    is_valid = tiles.masks != IGNORE
    return np.moveaxis(tiles.images, 1, -1)[is_valid], tiles.masks[is_valid]


def smp(scene: str, seed: int, budget_s: float) -> tuple[float, int]:
    """segmentation_models.pytorch's U-Net ResNet-34 from scratch, for `budget_s` of this process's processor time."""
    import segmentation_models_pytorch as library

    torch.manual_seed(seed)
    train, val = read_tiles(scene)
    train_images, val_images = normalised(train.images, train.images), normalised(val.images, train.images)
    model = library.Unet("resnet34", encoder_weights=None, in_channels=len(real_tiles.BANDS), classes=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    dice = library.losses.DiceLoss("binary", ignore_index=IGNORE)
    cross_entropy = library.losses.SoftBCEWithLogitsLoss(ignore_index=IGNORE)
    steps = 0
    for images, masks in batches(train_images, train.masks, seed):
        share = time.process_time() / budget_s
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * share)) / 2
        logits = model(images)
        loss = dice(logits, masks) + cross_entropy(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    model.eval()
    with torch.inference_mode():
        predicted = [model(torch.from_numpy(image[None]))[0, 0].numpy() > 0 for image in val_images]
    return val_iou(val.masks, np.stack(predicted).astype(int)), steps


def normalised(images: np.ndarray, train_images: np.ndarray) -> np.ndarray:
    """The images by mean and standard deviation of the train tiles' pixels; missing pixels, which are 0, stay 0."""
    seen = np.moveaxis(train_images, 1, -1)[train_images.any(axis=1)]
    mean, std = seen.mean(axis=0, dtype=np.float64), seen.std(axis=0, dtype=np.float64)
    is_seen = images.any(axis=1, keepdims=True)
    result = (images - mean[:, None, None]) / std[:, None, None]
    return np.where(is_seen, result, 0).astype(np.float32)


def batches(images: np.ndarray, masks: np.ndarray, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Image (N, C, H, W) and mask (N, 1, H, W), float32: random crops in random symmetries."""
    random = np.random.default_rng(seed)
    while True:
        rows = random.permutation(len(images))
        for start in range(0, len(rows), BATCH_SIZE):
            pairs = [augmented(images[row], masks[row], random) for row in rows[start : start + BATCH_SIZE]]
            crops, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
            yield crops, labels[:, None].float()


def augmented(image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random crop of image (C, H, W) and mask (H, W), turned by a random quarter, and flipped half of the time."""
    top, left = (random.integers(side - CROP + 1) for side in mask.shape)
    quarters, is_flipped = int(random.integers(4)), random.random() < 0.5
    cropped = (array[..., top : top + CROP, left : left + CROP] for array in (image, mask))
    turned = (np.rot90(array, quarters, axes=(-2, -1)) for array in cropped)
    image, mask = (array[..., ::-1] if is_flipped else array for array in turned)
    return image, mask


METHODS = {"forest": forest, "smp": smp}

if __name__ == "__main__":
    method, scene, seed, budget_s = sys.argv[1:]
    torch.set_num_threads(1)
    iou, steps = METHODS[method](scene, int(seed), float(budget_s))
    print(json.dumps({"val_iou": iou, "steps": steps}))
