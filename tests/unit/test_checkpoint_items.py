"""What may be protected, and that it comes back as it was."""

import numpy as np
import pytest

from fabricctl.errors import DataError
from fabricctl.state import Share
from fabricctl.state.ckpt.items import item_of, ready


def test_arrays_come_back_as_they_were_or_are_refused() -> None:
    """Pointers of Python objects would come back as a crash, a mask not at all."""
    times = np.array(["2026-01-01", "NaT"], dtype="datetime64[s]")
    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    for array in (times, columns, np.array(3.0), np.zeros(2, dtype=[("a", "f8"), ("b", "i2")])):
        item, was = item_of("x", array), array.copy()
        saved = memoryview(bytes(item.save()))
        array[...] = np.zeros((), dtype=array.dtype)
        item.check(saved)
        item.load(saved)
        np.testing.assert_array_equal(array, was)
    with pytest.raises(DataError, match="holds Python objects; put it into a dict"):
        item_of("x", np.array(["a", None], dtype=object))
    with pytest.raises(DataError, match="has a mask"):
        item_of("x", np.ma.masked_array([1.0, 2.0], mask=[True, False]))
    with pytest.raises(DataError, match="rows do not lie together"):
        item_of("x", Share(columns, 0, 2))


def test_an_array_by_columns_is_not_filled_with_one_by_rows() -> None:
    rows = np.arange(6.0).reshape(2, 3)
    columns = np.asfortranarray(rows * 0)
    data = memoryview(bytes(rows))
    with pytest.raises(DataError, match="buffer was saved, buffer by columns is protected"):
        ready({"x": item_of("x", columns)}, [["x", "buffer", 0, data.nbytes, 0, None]], data)
    assert not columns.any()


def test_tensors_of_every_kind_come_back_in_place() -> None:
    torch = pytest.importorskip("torch", reason="pip install fabricctl[torch]")
    ones = torch.ones(2, 3, dtype=torch.bfloat16)  # numpy has no such type
    kinds = [
        ones,
        ones.t(),
        ones[:, 1],
        ones[0, 0],
        torch.ones(0),
        torch.ones(2, dtype=torch.bool),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.nn.Parameter(torch.ones(3)),
    ]
    for tensor in kinds:
        was, place = tensor.detach().clone(), tensor.data_ptr()
        item = item_of("x", tensor)
        saved = memoryview(bytes(item.save()))
        with torch.no_grad():
            tensor.zero_()
        item.check(saved)
        item.load(saved)
        assert torch.equal(tensor, was) and tensor.data_ptr() == place
    weights = torch.nn.Parameter(torch.ones(3))
    item = item_of("x", weights)
    weights.data = torch.full((3,), 2.0)  # as loading a model may do it
    assert bytes(item.save()) == bytes(memoryview(np.full(3, 2.0, dtype="f4")))
