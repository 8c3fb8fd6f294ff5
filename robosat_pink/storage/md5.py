"""Comparing what came with the object's MD5, which most stores give as its ETag. Called by `location`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable

from obstore import exceptions

# ETags of multipart uploads have another form. Those of objects that S3 encrypts by KMS have this one and are no MD5.
MD5_ETAG = re.compile('"[0-9a-f]{32}"')

_stores_with_md5: set[Hashable] = set()  # at least one ETag was the object's MD5
_stores_without_md5: set[Hashable] = set()  # an ETag of this form was none


class MD5Check:
    """For one object of a store, over all attempts to read it."""

    def __init__(self, store: Hashable) -> None:
        self._store = store
        self._mismatches: set[bytes] = set()

    def verify(self, content: memoryview, etag: str) -> None:
        """Raises obstore's GenericError, which is retried, where the MD5 differs from the ETag.

        Where two attempts bring the same bytes, they are right, and ETags of this store are no MD5s: it is not
        checked from then on, unless one of its ETags has been an MD5 before.
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


def forget_stores() -> None:
    """For tests: as in a new process."""
    _stores_with_md5.clear()
    _stores_without_md5.clear()
