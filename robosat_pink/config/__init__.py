"""The experiment file: read, checked, and handed out as frozen dataclasses."""

from robosat_pink.config.sections import (
    CacheConfig,
    ChannelConfig,
    ClassConfig,
    Config,
    DatasetConfig,
    ModelConfig,
    RuntimeConfig,
    SplitConfig,
    class_values,
    load_config,
    shared_groups,
    to_tree,
)

__all__ = [
    "CacheConfig",
    "ChannelConfig",
    "ClassConfig",
    "Config",
    "DatasetConfig",
    "ModelConfig",
    "RuntimeConfig",
    "SplitConfig",
    "class_values",
    "load_config",
    "shared_groups",
    "to_tree",
]
