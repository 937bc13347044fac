"""Our `ModelConfig` against the descriptors inside NVIDIA's client, which is imported in the same process."""

import pytest
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2

from gpulet.modelconfig import DATA_TYPES, ModelConfig
from gpulet.repository.verdicts import VERDICTS, Use


def described(file):
    """Everything that goes over the wire or into text, by name."""
    found = {}

    def message(one, outer):
        name = f"{outer}{one.name}"
        found[name] = [one.options.map_entry, *sorted(fields(one))]
        for enum in one.enum_type:
            found[f"{name}.{enum.name}"] = [(v.name, v.number) for v in enum.value]
        for inner in one.nested_type:
            message(inner, f"{name}.")

    def fields(one):
        for field in one.field:
            oneof = one.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
            yield field.name, field.number, field.type, field.label, field.type_name, oneof

    for enum in file.enum_type:
        found[enum.name] = [(v.name, v.number) for v in enum.value]
    for one in file.message_type:
        message(one, "")
    return found


def copied(descriptor):
    file = descriptor_pb2.FileDescriptorProto()
    descriptor.CopyToProto(file)
    return described(file)


def test_every_message_field_and_enum_is_as_in_tritonclient():
    theirs = copied(model_config_pb2.DESCRIPTOR)
    ours = copied(ModelConfig.DESCRIPTOR.file)
    assert ours == theirs
    assert len(ours) > 50


def test_bytes_of_one_are_read_by_the_other():
    theirs = model_config_pb2.ModelConfig(name="m", max_batch_size=4)
    theirs.parameters["gpulet.slo_ms"].string_value = "25"
    theirs.dynamic_batching.default_queue_policy.max_queue_size = 3
    ours = ModelConfig.FromString(theirs.SerializeToString())
    assert ours.parameters["gpulet.slo_ms"].string_value == "25"
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
    assert DATA_TYPES[model_config_pb2.TYPE_BF16] == "TYPE_BF16"


def paths(descriptor, outer="", seen=()):
    """Every field that can be set, down to what has no fields or recurs."""
    for field in descriptor.fields:
        path = f"{outer}{field.name}"
        inner = field.message_type
        if inner and inner.fields and inner.full_name not in seen and path not in VERDICTS:
            yield from paths(inner, f"{path}.", (*seen, inner.full_name))
        else:
            yield path


def test_every_field_is_used_or_reported_or_refused_and_only_one_of_them():
    found = list(paths(ModelConfig.DESCRIPTOR))
    assert [path for path in found if path not in VERDICTS] == []
    assert sorted(VERDICTS) == sorted(found)  # no verdict on what is no field, and none inside another


def test_no_field_has_two_verdicts():
    assert not [(a, b) for a in VERDICTS for b in VERDICTS if b.startswith(f"{a}.")]
    assert {v.use for v in VERDICTS.values()} == set(Use)
    assert all(v.about for v in VERDICTS.values())


@pytest.mark.parametrize("path", [p for p, v in VERDICTS.items() if v.use is Use.REFUSED])
def test_a_refusal_says_why_in_one_line(path):
    assert "\n" not in VERDICTS[path].about
    assert not VERDICTS[path].about.endswith(".")
