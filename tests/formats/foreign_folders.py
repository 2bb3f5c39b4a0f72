"""Small quantized models in the formats of other tools, and functions that tests of such folders use."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import qtutor
from qtutor.core.quantized import QuantizedTensor
from qtutor.formats import foreign_reading
from qtutor.formats.foreign import Layout, resolved_zeros
from qtutor.recipe import OWN_SIZES
from tests.gguf.small_tokenizers import letters
from tests.models import some_ids, tiny


def some(bits, symmetric, rows, columns, group_size, seed=0) -> QuantizedTensor:
    """A matrix of random codes, scales and zero points: every value that the grid has can occur."""
    random = torch.Generator().manual_seed(seed)
    groups = 1 if group_size == -1 else columns // group_size
    codes = torch.randint(0, 2**bits, (rows, columns), generator=random).to(torch.uint8)
    zeros = torch.randint(0, 2**bits, (rows, groups), generator=random).to(torch.uint8)
    scales = torch.rand(rows, groups, generator=random).half()
    return QuantizedTensor(codes, scales, None if symmetric else zeros, qtutor.IntGrid(bits, symmetric), group_size)


def exported(out: Path, form: str, family: str = "llama", options: dict | None = None, **recipe) -> tuple:
    """(model, folder): a tiny decoder that was quantized and written."""
    model = tiny(family, tied=family != "mistral")
    fixed = qtutor.Recipe(**{key: recipe[key] for key in ("method", "levels") if key in recipe}).grid in OWN_SIZES
    size = {} if fixed else {"group_size": 32}
    qtutor.quantize(model, qtutor.Recipe(**size | recipe), progress=False)
    return model, qtutor.export(model, out, form, letters(), **(options or {}))


def check_comes_back(model, folder: Path) -> None:
    """Both ways to load give the same codes, scales, zero points and logits."""
    again, tokenizer = qtutor.load(folder, device="cpu")
    assert tokenizer("ab")["input_ids"] == letters()("ab")["input_ids"]
    for name, layer in model.named_modules():
        if hasattr(layer, "quantized"):
            same(again.get_submodule(name).quantized(), layer.quantized())
    other = qtutor.load_quantized(folder, device="cpu")
    with torch.inference_mode():  # only now: a model loaded inside it uses a different kernel
        exact = model(some_ids()).logits
        assert torch.equal(again(some_ids()).logits, exact)
        assert torch.equal(other(some_ids()).logits, exact)


def same(back, quantized) -> None:
    assert torch.equal(back.codes, quantized.codes) and back.codes.dtype == torch.uint8
    assert torch.equal(back.scales, quantized.scales) and back.scales.dtype == quantized.scales.dtype
    assert torch.equal(resolved_zeros(back), resolved_zeros(quantized))
    assert torch.equal(back.dequantize(), quantized.dequantize())


def round_trip(form, quantized, layout: Layout):
    """Encode, check every shape and dtype, decode, compare. Dtypes are compared by their names in a file."""
    rows, columns = quantized.shape
    tensors = {kind: tensor.contiguous() for kind, tensor in form.encode(quantized, layout).items()}
    names = {torch.int32: "I32", torch.int64: "I64", torch.int8: "I8", torch.uint8: "U8", torch.float16: "F16",
             torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3", torch.uint32: "U32"}  # fmt: skip
    wanted = form.tensors_of_layer(layout, rows, columns)
    assert tensors.keys() <= wanted.keys()
    assert {kind for kind, one in wanted.items() if not one.optional} <= tensors.keys()
    for kind, tensor in tensors.items():
        assert wanted[kind].shape in (None, tuple(tensor.shape)) and names[tensor.dtype] in wanted[kind].dtypes, kind
    back = form.decode(tensors, layout, rows, columns)
    same(back, quantized)
    return tensors


def words(tensor: torch.Tensor) -> list:
    """int32 read as unsigned numbers."""
    return (tensor.long() & 0xFFFFFFFF).tolist()


def edit_tensors(folder: Path, change) -> None:
    """Let ``change`` alter the dict of tensors in a folder with one file of weights."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def edit_settings(folder: Path, change, file: str = "config.json") -> None:
    path = folder / file
    values = json.loads(path.read_text())
    change(values["quantization_config"])
    path.write_text(json.dumps(values))


def refused(folder: Path, *parts: str) -> str:
    """Loading is refused in one paragraph that contains ``parts``. Return this paragraph."""
    with pytest.raises(qtutor.QtutorError) as caught:
        foreign_reading.load(folder, device="cpu")
    text = str(caught.value)
    assert all(part in text for part in parts) and "\n" not in text and len(text) < 1500 and text.isprintable(), text
    return text
