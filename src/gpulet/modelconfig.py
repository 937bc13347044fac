"""Triton's `ModelConfig`, the message that a `config.pbtxt` is."""

from typing import Any, Final

from gpulet.protos import load

CONFIG_PROTO: Final = "repository/model_config.proto"
PACKAGE: Final = "inference"
ModelConfig: Final[type[Any]] = load(CONFIG_PROTO)["ModelConfig"]
"""Protobuf makes the class while we run, so no checker knows its fields."""
DATA_TYPES: Final = tuple(v.name for v in ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values)
