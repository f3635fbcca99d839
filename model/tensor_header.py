"""The header of a safetensors file (github.com/huggingface/safetensors), without PyTorch.

8 bytes little-endian length of the header, the header as JSON, then the raw tensors one after the other. So
a file can be written with no more than the shapes of its tensors known in advance.
"""

import json
from collections.abc import Iterable, Mapping, Sequence

Entry = tuple[str, str, Sequence[int], int]
"""Name, dtype in the format's words ("F32"), shape, bytes."""


def header_bytes(tensors: Iterable[Entry], text: Mapping[str, str] | None = None) -> bytes:
    """What stands before the tensors, which follow in this order; `text` is kept beside them."""
    entries: dict[str, object] = {} if text is None else {"__metadata__": dict(text)}
    offset = 0
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(entries).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start at a multiple of 8
    return len(encoded).to_bytes(8, "little") + encoded
