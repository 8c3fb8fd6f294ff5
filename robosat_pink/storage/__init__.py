"""Lists and reads object storage, with the same calls for s3:// and folders. The entry is `location`."""

from robosat_pink.storage.location import Fetched, Location, Page, Resized, StoredFile, read_file

__all__ = ["Fetched", "Location", "Page", "Resized", "StoredFile", "read_file"]
