"""Capsules that other libraries make are read, and ours are taken and given back: on the host,
where those libraries are."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.runtime import dlpack
from tilewright.ops.types import dtype_of

HOST = 1


class Owner:
    """Memory that is handed out, and notices when nobody has it any more."""

    def __init__(self, content: np.ndarray) -> None:
        self.content = content

    def __dlpack_device__(self) -> tuple[int, int]:
        return HOST, 0

    def __dlpack__(self, **_: Any) -> Any:
        c = self.content
        return dlpack.capsule(self, c.ctypes.data, 0, c.shape, dtype_of(c.dtype), HOST)


@pytest.fixture(params=["numpy", "torch"])
def library(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i4", "i8", "u1", "i1", "?"])
def test_a_library_takes_an_array_and_gives_it_back(library: Any, dtype: str) -> None:
    content = np.arange(6).reshape(2, 3).astype(dtype)
    owner = Owner(content)
    taken = library.from_dlpack(owner)
    np.testing.assert_array_equal(np.asarray(taken), content)
    seen = weakref.ref(owner)
    del owner
    gc.collect()
    assert seen() is not None, "freed in use"
    del taken
    gc.collect()
    assert seen() is None, "never given back"


def test_a_capsule_that_nobody_takes_is_given_back() -> None:
    owner = Owner(np.zeros(3, np.float32))
    capsule = owner.__dlpack__()
    seen = weakref.ref(owner)
    del owner
    assert seen() is not None
    del capsule
    assert seen() is None


def test_capsules_of_others_are_described() -> None:
    torch = pytest.importorskip("torch")
    for t, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.int64, "i64"),
                    (torch.bool, "bool"), (torch.float16, "f16"), (torch.uint8, "u8")):  # fmt: skip
        x = torch.zeros(4, 6).to(t)[1:, ::2]
        told = dlpack.describe(x.__dlpack__())
        assert (told.shape, told.strides) == ((3, 3), (6, 2))
        assert told.address == x.data_ptr() and (told.device, told.number) == (HOST, 0)
        assert str(told.dtype) == name
    told = dlpack.describe(torch.zeros(2, dtype=torch.complex64).__dlpack__())
    assert told.dtype is None and "DLPack type" in told.type_name
    told = dlpack.describe(torch.tensor(3.0).__dlpack__())
    assert told.shape == () and not told.strides


def test_what_is_no_capsule() -> None:
    with pytest.raises(ValueError, match="PyCapsule"):
        dlpack.describe(object())
