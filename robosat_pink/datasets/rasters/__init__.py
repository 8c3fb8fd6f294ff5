"""Decodes the bytes of a tile file to an array and its valid pixels."""
