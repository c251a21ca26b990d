"""Loops of ``services.trace`` as machine code that is kept on disk and loaded without numba.

numba keeps what it compiles as well, but importing it and finding that again takes half a second,
which is longer than ten million records do. Here numba is imported only to compile; the object file
that LLVM made is kept, and llvmlite, which numba stands on, loads it in a few milliseconds. The
loops take arrays and whole numbers and return a whole number, call nothing of Python, and hold no
lock while they run, so that two threads may run two of them.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import marshal
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Final, TypeAlias

import llvmlite
import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numpy as np

from services.trace.loops import Loop

HOME: Final = os.environ.get("HOME")
FOLDERS: Final = (
    Path(__file__).parent / "__pycache__",
    *((Path(HOME) / ".cache" / "shatterproof",) if HOME else ()),
)
"""Where objects are kept: the first that can be written."""
ENTRY: Final = "entry"
SUM_BYTES: Final = 16
"""Of the check sum that an object begins with on disk."""
LIBC: Final = frozenset({"memset", "memcpy", "memmove"})
"""What an object may ask of the process that it is loaded into."""
_llvm: Any = llvm
"""The package has no annotations."""
Kind: TypeAlias = Any
_engines: list[Any] = []
"""Engines own the code that they loaded."""


class Native:
    """A loop, made native when it is first called; calls must agree in types and dimensions.

    ``compiles`` is told if that takes its seconds, because no object of it is kept here yet.
    """

    def __init__(self, loop: Loop, compiles: Callable[[], None] | None = None) -> None:
        self._loop = loop
        self._compiles = compiles
        self._entry: Callable[[Any], int] | None = None

    def __call__(self, *arguments: Any) -> int:
        """The loop's number. Arrays must be C-contiguous; tuples are NamedTuples."""
        numbers: list[int] = []
        for each in arguments:
            _flatten(each, numbers)
        if self._entry is None:
            kinds = tuple(_kind(each) for each in arguments)
            self._entry = _load(self._loop, kinds, self._compiles)
        return self._entry((ctypes.c_int64 * len(numbers))(*numbers))


def _flatten(argument: Any, numbers: list[int]) -> None:
    """An argument as numbers: of an array its address and shape."""
    given = argument
    if isinstance(argument, np.ndarray):
        assert given.flags.c_contiguous
        numbers += (given.__array_interface__["data"][0], *given.shape)
    elif isinstance(argument, tuple):
        for each in given:
            _flatten(each, numbers)
    else:
        numbers.append(int(given))


def _kind(argument: Any) -> Kind:
    """The dtype and dimensions of an array, class and parts of a NamedTuple, None of a number."""
    given = argument
    if isinstance(argument, np.ndarray):
        return given.dtype.name, given.ndim
    if isinstance(argument, tuple):
        return type(given), tuple(_kind(each) for each in given)
    return None


def _load(
    loop: Loop, kinds: tuple[Kind, ...], compiles: Callable[[], None] | None
) -> Callable[[Any], int]:
    """The loop's entry, from disk or compiled now."""
    _llvm.initialize_native_target()
    _llvm.initialize_native_asmprinter()
    name = f"{loop.function.__name__.strip('_')}.{_digest(loop, kinds)}.o"
    engine = _llvm.create_mcjit_compiler(_llvm.parse_assembly(""), _machine())
    code = _kept(name)
    if code is None:
        if compiles is not None:
            compiles()
        made = _compile(loop, kinds)
        code = _object(made)
        if code is None:
            return made.ctypes
        _keep(name, code)
    engine.add_object_file(_llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(ctypes.c_int64))
    return kind(engine.get_function_address(ENTRY))


def _machine() -> Any:
    target = _llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=_llvm.get_host_cpu_name(),
        features=_llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="jitdefault",
        jit=True,
    )


def _digest(loop: Loop, kinds: tuple[Kind, ...]) -> str:
    """Names what an object was made of: code, constants, processor, compiler."""
    made = hashlib.blake2b(digest_size=16)
    cpu = (_llvm.get_host_cpu_name(), _llvm.get_host_cpu_features().flatten())
    made.update(repr((_spelled(kinds), llvmlite.__version__, sys.version, cpu)).encode())
    for function in (loop.function, *loop.parts):
        # Version 2 writes no references, which depend on who else uses a constant.
        made.update(marshal.dumps(_without_places(function.__code__), 2))
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if isinstance(value, (int, tuple)):
                made.update(f"{name}={value!r};".encode())
    return made.hexdigest()


def _spelled(kinds: tuple[Kind, ...]) -> list[Any]:
    """Kinds with the names of their parts: code finds a part of a NamedTuple by its place."""
    return [
        (kind[0].__name__, kind[0]._fields, _spelled(kind[1]))
        if kind is not None and isinstance(kind[0], type)
        else kind
        for kind in kinds
    ]


def _without_places(code: CodeType) -> CodeType:
    """Code as it is wherever the repository lies."""
    return code.replace(co_filename="", co_firstlineno=0, co_linetable=b"")


def _kept(name: str) -> bytes | None:
    """An object from disk, if it is there and whole: LLVM would not survive another."""
    for folder in FOLDERS:
        try:
            data = (folder / name).read_bytes()
        except OSError:
            continue
        code = data[SUM_BYTES:]
        if _sum(code) == data[:SUM_BYTES]:
            return code
    return None


def _sum(code: bytes) -> bytes:
    return hashlib.blake2b(code, digest_size=SUM_BYTES).digest()


def _keep(name: str, code: bytes) -> None:
    """Keep an object, whole or not at all; if that cannot be done it is compiled again."""
    for folder in FOLDERS:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as own:
                file = Path(own) / name
                file.write_bytes(_sum(code) + code)
                file.replace(folder / name)
        except OSError:
            continue
        for old in folder.glob(f"{name.partition('.')[0]}.*.o"):
            if old.name != name:
                old.unlink(missing_ok=True)
        return


def _compile(loop: Loop, kinds: tuple[Kind, ...]) -> Any:
    """A loop as numba's C function of the address of a table of numbers."""
    import numba  # type: ignore[import-untyped]  # noqa: PLC0415 (see the module)

    module: Any = numba
    options = {"_nrt": False, "error_model": "numpy", "forceinline": True}
    # Each module keeps its constants; what was compiled is known to all by its name.
    functions = (*loop.parts, loop.function)
    scopes = {id(each.__globals__): dict(each.__globals__) for each in functions}
    entry: dict[str, Any] = {}
    for each in functions:
        here = FunctionType(each.__code__, scopes[id(each.__globals__)])
        compiled = module.njit(**options)(here)
        for scope in (*scopes.values(), entry):
            scope[each.__name__] = compiled
    views = _views(kinds, entry, itertools.count())
    source = f"def entry(t):\n    return {loop.function.__name__}({views})\n"
    exec(compile(source, ENTRY, "exec"), entry)  # noqa: S102 (text of ours alone)
    signature = module.int64(module.types.CPointer(module.int64))
    return module.cfunc(signature, **options)(entry[ENTRY])


def _object(made: Any) -> bytes | None:
    """A C function of numba as an object file; None if it does not stand alone."""
    assembled = _llvm.parse_assembly(made.inspect_llvm().replace(made.native_name, ENTRY))
    foreign = {each.name for each in assembled.functions if each.is_declaration}
    if {name for name in foreign if not name.startswith("llvm.")} - LIBC:
        return None
    return _machine().emit_object(assembled)


def _views(kinds: tuple[Kind, ...], scope: dict[str, Any], at: Iterator[int]) -> str:
    """Arguments made of the table ``t`` of numbers, as text; what it names is put into a scope."""
    parts: list[str] = []
    for kind in kinds:
        if kind is None:
            parts.append(f"t[{next(at)}]")
        elif isinstance(kind[0], str):
            dtype, dimensions = kind
            name = f"{dtype}_{dimensions}"
            scope[name] = _viewer(dtype, dimensions)
            address = next(at)
            shape = "".join(f"t[{next(at)}]," for _ in range(dimensions))
            parts.append(f"{name}(t[{address}], ({shape}))")
        else:
            made, inner = kind
            scope[made.__name__] = made
            parts.append(f"{made.__name__}({_views(inner, scope, at)})")
    return ", ".join(parts)


def _viewer(dtype: str, dimensions: int) -> Any:
    """A function of numba: the array at an address, of a shape; nobody owns it, nothing raises."""
    from numba import types  # type: ignore[import-untyped]  # noqa: PLC0415
    from numba.extending import intrinsic  # type: ignore[import-untyped]  # noqa: PLC0415
    from numba.np import arrayobj  # type: ignore[import-untyped]  # noqa: PLC0415

    made: Any = types
    arrays: Any = arrayobj
    kind = made.Array(getattr(made, dtype), dimensions, "C")

    def view(_typing: Any, address: Any, shape: Any) -> Any:
        def build(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            array = arrays.make_array(kind)(context, builder)
            size = context.get_constant(made.intp, np.dtype(dtype).itemsize)
            sizes = [builder.extract_value(values[1], axis) for axis in range(dimensions)]
            strides = [size]
            for each in sizes[:0:-1]:
                strides.insert(0, builder.mul(strides[0], each))
            arrays.populate_array(
                array,
                data=builder.inttoptr(values[0], array.data.type),
                shape=sizes,
                strides=strides,
                itemsize=size,
                meminfo=None,
            )
            return array._getvalue()

        return kind(address, shape), build

    return intrinsic(view)
