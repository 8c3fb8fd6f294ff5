"""Drafts an experiment file for tiles that lie in a folder or bucket. Called by `init`."""
