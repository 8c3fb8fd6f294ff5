"""The experiment file, read and checked, as frozen dataclasses."""

from robosat_pink.config.loading import load_config, to_tree
from robosat_pink.config.model import ModelConfig
from robosat_pink.config.sections import (
    CacheConfig,
    ChannelConfig,
    ClassConfig,
    Config,
    DatasetConfig,
    RuntimeConfig,
    SamplingConfig,
    class_values,
    shared_groups,
)
from robosat_pink.config.split import SplitConfig

__all__ = [
    "CacheConfig",
    "ChannelConfig",
    "ClassConfig",
    "Config",
    "DatasetConfig",
    "ModelConfig",
    "RuntimeConfig",
    "SamplingConfig",
    "SplitConfig",
    "class_values",
    "load_config",
    "shared_groups",
    "to_tree",
]
