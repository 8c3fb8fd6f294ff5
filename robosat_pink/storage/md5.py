"""Compares an object's content with its MD5, which most stores report as its ETag. Called by `location`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable

from obstore import exceptions

# ETags of multipart uploads have another form. ETags of objects that S3 encrypts by KMS have this form, but are no MD5.
MD5_ETAG = re.compile('"[0-9a-f]{32}"')

_stores_with_md5: set[Hashable] = set()  # stores of which at least one ETag was the object's MD5
_stores_without_md5: set[Hashable] = set()  # stores of which an ETag of this form was no MD5


class MD5Check:
    """The check of one object of a store, over all attempts to read it."""

    def __init__(self, store: Hashable) -> None:
        self._store = store
        self._mismatches: set[bytes] = set()

    def verify(self, content: memoryview, etag: str) -> None:
        """Raises obstore's GenericError, which is retried, if the MD5 differs from the ETag.

        If two attempts return the same bytes, and no ETag of this store has been an MD5 before, the bytes count as
        right and ETags of this store as no MD5s: the store is not checked from then on.
        """
        if self._store in _stores_without_md5 or not MD5_ETAG.fullmatch(etag):
            return
        digest = hashlib.md5(content, usedforsecurity=False)
        if digest.hexdigest() == etag.strip('"'):
            _stores_with_md5.add(self._store)
        elif digest.digest() in self._mismatches and self._store not in _stores_with_md5:
            _stores_without_md5.add(self._store)
        else:
            self._mismatches.add(digest.digest())
            raise exceptions.GenericError(
                "what came differs from the object's MD5 (if ETags of this store are no MD5s, set dataset.verify_md5 "
                "to false)"
            )
