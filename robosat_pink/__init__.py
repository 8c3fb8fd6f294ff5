"""Training of segmentation networks on slippy-map tiles, behind the /opt/ml contract of SageMaker containers."""
