"""What the client writes it reads again, and nothing that a server says surprises it."""

from contextlib import suppress

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gpulet.client.calls import Answer, Infer, results
from gpulet.client.tensors import BF16, datatype
from gpulet.errors import ServerError

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NUMBERS = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="?"),
    arrays.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)
BRAINS = arrays.arrays(np.uint16, SHAPES).map(lambda bits: bits.view(BF16))
WORDS = arrays.arrays(object, SHAPES, elements=st.binary(max_size=6), fill=st.nothing())
ARRAYS = st.one_of(arrays.arrays(NUMBERS, SHAPES), BRAINS, WORDS, arrays.arrays(np.float32, (3, 4)).map(np.transpose))


def echoed(call):
    """The answer of a server that gives back what it was sent."""
    size = int(call.headers["Inference-Header-Content-Length"])
    header = orjson.dumps({"model_name": "m", "outputs": orjson.loads(call.body[:size])["inputs"]})
    return Answer(200, {"inference-header-content-length": str(len(header))}, header + call.body[size:])


@given(st.dictionaries(st.text(max_size=3), ARRAYS, max_size=3))
def test_what_is_sent_comes_back_bit_by_bit(inputs):
    found = results(echoed(Infer("m", inputs).call()))
    assert list(found) == list(inputs)
    for name, array in inputs.items():
        assert datatype(found[name]) == datatype(array)
        assert found[name].shape == array.shape
        if array.dtype == object:
            assert found[name].tolist() == array.tolist()
        else:
            assert found[name].tobytes() == array.astype(found[name].dtype).tobytes()


@given(ARRAYS, st.data())
def test_a_cut_answer_is_an_error_and_nothing_else(array, data):
    whole = echoed(Infer("m", {"x": array}).call())
    cut = data.draw(st.integers(0, len(whole.body)))
    changed = whole.body[:cut] + data.draw(st.binary(max_size=3)) + whole.body[cut + data.draw(st.integers(0, 3)) :]
    try:
        found = results(Answer(200, whole.headers, changed))
    except ServerError:
        return
    assert all(isinstance(value, np.ndarray) for value in found.values())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=2), lambda x: st.lists(x, max_size=3)
)
OUTPUT = st.fixed_dictionaries(
    {"name": JSON, "datatype": st.sampled_from(["FP32", "BYTES", "BF16", "INT8", "?"]) | JSON, "shape": JSON},
    optional={"data": JSON, "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": JSON}) | JSON},
)


@given(st.lists(OUTPUT, max_size=2) | JSON, st.binary(max_size=8))
def test_a_server_that_talks_nonsense_is_an_error_and_nothing_else(outputs, binary):
    header = orjson.dumps({"outputs": outputs})
    answer = Answer(200, {"inference-header-content-length": str(len(header))}, header + binary)
    with suppress(ServerError):
        results(answer)
