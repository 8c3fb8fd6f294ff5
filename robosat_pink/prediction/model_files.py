"""The files that training left: in a folder, below an s3:// prefix, or in SageMaker's model.tar.gz. Read by `model`."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robosat_pink.datasets.earlier_split import HOLDOUT_IDS, TRAIN_IDS, VAL_IDS
from robosat_pink.errors import CheckpointError, DataError
from robosat_pink.storage import location
from robosat_pink.storage.error_advice import NotFound
from robosat_pink.storage.location import MAX_FILE_BYTES

WEIGHTS, ARCHIVE = "best.pth", "model.tar.gz"
READ_FROM_ARCHIVE = (WEIGHTS, TRAIN_IDS, VAL_IDS, HOLDOUT_IDS, "MODEL_CARD.md")
IS_ARCHIVE = re.compile(r"\.(tar\.gz|tgz|tar)$")
IS_WEIGHTS = re.compile(r"\.pth?$")


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint, and the other files beside it."""

    name: str  # of the checkpoint, in messages
    weights: bytes
    folder: str  # what contains the files, in messages
    store: Mapping[str, Any]  # options of `store_options`
    archived: Mapping[str, bytes] | None = None  # the files of an archive by name

    def read(self, name: str) -> bytes:
        """The content of a file beside the checkpoint. Raises NotFound if there is none of that name."""
        if self.archived is None:
            return location.read_file(f"{self.folder}/{name}", **self.store)
        if name not in self.archived:
            raise NotFound(f"{self.folder}: holds no {name}")
        return self.archived[name]


def find(text: str, store: Mapping[str, Any]) -> ModelFiles:
    """The files of the model at a folder, s3:// prefix, channel:NAME, archive or checkpoint.

    A folder or prefix has best.pth or model.tar.gz. Raises DataError if nothing is there, CheckpointError for an
    archive that is damaged or has no best.pth.
    """
    text = (os.path.abspath(text) if os.path.exists(text) else text).rstrip("/")
    if IS_ARCHIVE.search(text):
        return _in_archive(text, location.read_file(text, **store), store)
    if IS_WEIGHTS.search(text) or os.path.isfile(text):
        return ModelFiles(text, location.read_file(text, **store), text.rpartition("/")[0], store)
    try:
        return ModelFiles(f"{text}/{WEIGHTS}", location.read_file(f"{text}/{WEIGHTS}", **store), text, store)
    except DataError as error:  # S3 answers 403, not 404, without permission to list the bucket
        try:
            archive = location.read_file(f"{text}/{ARCHIVE}", **store)
        except DataError:
            if isinstance(error, NotFound):
                advice = f"accepted: a folder or prefix with {WEIGHTS} or {ARCHIVE}, or the name of a checkpoint"
                raise NotFound(f"predict.model = {text}: holds neither {WEIGHTS} nor {ARCHIVE}; {advice}") from error
            raise error from None
        return _in_archive(f"{text}/{ARCHIVE}", archive, store)


def _in_archive(name: str, content: bytes, store: Mapping[str, Any]) -> ModelFiles:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                file = Path(member.name).name
                if member.isfile() and file in READ_FROM_ARCHIVE and file not in files:
                    opened = archive.extractfile(member)
                    assert opened is not None
                    files[file] = opened.read(MAX_FILE_BYTES)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{name}: not an archive that can be read: {error}; take an earlier one") from error
    if WEIGHTS not in files:
        raise CheckpointError(f"{name}: holds no {WEIGHTS}; accepted: the model.tar.gz of a finished training")
    return ModelFiles(f"{name}: {WEIGHTS}", files[WEIGHTS], name, store, files)
