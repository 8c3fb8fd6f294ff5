"""Object storage: list and read, with the same calls for s3:// and folders. `location` is the entry."""

from robosat_pink.storage.location import Fetched, Location, Page, Resized, StoredFile, read_file

__all__ = ["Fetched", "Location", "Page", "Resized", "StoredFile", "read_file"]
