"""Object storage: list, read and write, with the same calls for s3:// and folders."""

from robosat_pink.storage.location import Fetched, Location, Page, Resized, StoredFile, read_file

__all__ = ["Fetched", "Location", "Page", "Resized", "StoredFile", "read_file"]
