"""Trains segmentation networks on slippy-map tiles, in containers that follow SageMaker's /opt/ml contract."""
