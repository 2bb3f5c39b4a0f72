"""The sink that writes a folder of ours block by block, and continues where an earlier run was killed.

Each layer is written to its place in the files of the result (:mod:`qtutor.formats.shards`), and then forgotten. After
a block, all of its bytes are flushed to the disk. Only then is the block noted as finished, with the digest of its
bytes; so every noted block is on the disk. A later run trusts a note only if the digest still fits.
"""

import contextlib
import copy
import os
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn

from qtutor.calibration.mapped import Weights
from qtutor.calibration.walk import Start
from qtutor.core.quantized import all_finite
from qtutor.errors import QtutorError
from qtutor.families import decoder_blocks
from qtutor.files.staging import remove_tree
from qtutor.files.unfinished import Unfinished, bytes_in
from qtutor.formats import folders
from qtutor.formats.shards import Kind, Shards
from qtutor.pipeline.planning import Plan
from qtutor.pipeline.sinks import Arrived, Item, Packed
from qtutor.pipeline.sinks.states import KeptStates
from qtutor.report import LayerReport


class IntoFolder:
    """Writes to ``run.new``, the folder that will become the result; a context manager.

    plan: that of the run. weights: those of the float model, for tensors that stay as they are. tell: a function that
    is called with a sentence if an earlier run is continued. start: where the walk has to begin. rows: those of the
    report, for all finished blocks.
    """

    def __init__(self, run: Unfinished, plan: Plan, weights: Weights, tell: Callable[[str], None]):
        self.run, self.plan, self.weights, self.tell = run, plan, weights, tell
        self.blocks = len(decoder_blocks(plan.packed))
        self.pieces = self._pieces(folders.kinds(folders.stored_tensors(plan.packed)))
        self.states = KeptStates(run.folder, plan.states_shape)
        self.start, self.rows = Start(), []
        self._pending: list[LayerReport] = []  # rows of the current piece
        self._written: set[str] = set()  # and its tensors that are written
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> "IntoFolder":
        new, files = self.run.new, self.plan.files
        for found in set(new.iterdir()) - {new / file.name for file in files}:
            remove_tree(found) if found.is_dir() else found.unlink()  # settings and tokenizer are written anew
        self.shards = self._closing.enter_context(Shards(new, list(files)))
        self._go_on()
        return self

    def __exit__(self, *_exception) -> None:
        self._closing.close()

    @property
    def whole(self) -> bool:
        """Whether every piece is finished."""
        return len(self.run.done) == len(self.pieces)

    def take(self, item: Item) -> None:
        if isinstance(item, Arrived):
            if item.index > len(self.run.done):
                self._note(item)
        elif isinstance(item, Packed):
            for name, tensor in item.module.state_dict().items():
                self._write(f"{item.name}.{name}", tensor)
            self._pending.append(item.row)
        else:
            self._write(item.name, item.value)

    def finish(self) -> None:
        """Write what is outside the blocks."""
        if not self.whole:
            self._note(Arrived(len(self.pieces)))

    def _pieces(self, kinds: dict[str, Kind]) -> list[dict[str, Kind]]:
        """The tensors that are finished together: those of each block, and last those outside of the blocks."""
        begin, pieces = f"{self.plan.family.blocks}.", [{} for _ in range(self.blocks + 1)]
        for name, kind in kinds.items():
            number = int(name[len(begin) :].partition(".")[0]) if name.startswith(begin) else self.blocks
            pieces[number][name] = kind
        return pieces

    def _go_on(self) -> None:
        """Find the pieces that an earlier run finished and that are unchanged since; the rest is made anew."""
        for piece, names in zip(self.run.done, self.pieces):
            rows = _rows_of(piece)
            if rows is None or piece.get("digest") != self.shards.digest(names):
                break
            self.rows.append(rows)
        count = len(self.rows)
        self.run.keep_first(count)
        if not count:
            return
        done = min(count, self.blocks)
        self.start, how = Start(done), ""
        if self.plan.states and done < self.blocks:
            self.start, how = self._start_at(done)
        where = f"going on with block {done}" if done < self.blocks else "going on with what is left"
        if self.start.index:
            self.tell(f"{done} of {self.blocks} decoder blocks are finished ({self.run.folder}): {where}.{how}")
        else:
            self.run.keep_first(0)
            self.rows = []
            self.tell(f"{done} of {self.blocks} decoder blocks were finished: starting anew.{how}")

    def _start_at(self, done: int) -> tuple[Start, str]:
        """Where the walk begins if all blocks before number ``done`` are finished; and a sentence that says how."""
        states = self.states.load(done)
        if states is not None:
            return Start(done, states), " The calibration states that enter this block are read from the disk."
        if not self.plan.recipe.transforms:
            how = " The calibration states are computed again, by a forward pass through the finished blocks."
            return Start(done, refill=self._refill), how
        # AWQ's blocks hand on the outputs of scaled float weights, and these weights are kept nowhere.
        return Start(), " The calibration states after them were not kept, and AWQ's cannot be computed again."

    def _write(self, name: str, tensor: torch.Tensor) -> None:
        dtype, shape = self.pieces[len(self.run.done)][name]
        if tuple(tensor.shape) != shape or (tensor.dtype != dtype and not tensor.is_floating_point()):
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, but the plan has {dtype} {list(shape)}")
        tensor = tensor.to(dtype)
        if tensor.is_floating_point() and not all_finite(tensor):
            raise QtutorError(
                f"{name}: {int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} numbers are NaN or infinite. The "
                "model would write nonsense: repair the checkpoint first."
            )
        self.shards.write(name, tensor)
        self._written.add(name)

    def _note(self, arrived: Arrived) -> None:
        """The current piece is finished: write its tensors that stay in float, flush all to the disk, then note it."""
        names = self.pieces[len(self.run.done)]
        for name in names.keys() - self._written:
            tensor = self.weights.tensor(name)
            self._write(name, tensor)
            self.weights.release([tensor])
        for handle in self.shards.flush():
            os.fsync(handle)
        if arrived.states:
            self.states.save(arrived.index, arrived.states, spare=self.plan.nbytes - bytes_in(self.run.new))
        rows = [asdict(row) for row in self._pending]
        self.run.note({"digest": self.shards.digest(names), "rows": rows})
        self.states.keep_only(arrived.index)
        self.rows.append(self._pending)
        self._pending, self._written = [], set()

    def _refill(self, block: str, module: nn.Module) -> None:
        """Put the dequantized weights of ``block`` into its float32 copy, if the walk went on with those weights."""
        own = {name: recipe for name, recipe in self.plan.recipes.items() if name.startswith(f"{block}.")}
        if not self.plan.propagate and not any(recipe.rounder.follows for recipe in own.values()):
            return
        stored = {name: kind for piece in self.pieces for name, kind in piece.items()}
        for name in own:
            layer = copy.deepcopy(self.plan.packed.get_submodule(name))
            tensors = {key: self.shards.read(f"{name}.{key}", stored[f"{name}.{key}"]) for key in layer.state_dict()}
            layer.load_state_dict(tensors, assign=True)
            weight = module.get_submodule(name.removeprefix(f"{block}.")).weight
            weight.copy_(layer.dequantized())


def _rows_of(piece: dict) -> list[LayerReport] | None:
    """The rows that were noted with a piece; ``None`` if the note is damaged."""
    try:
        return [LayerReport(**{**row, "shape": tuple(row["shape"])}) for row in piece["rows"]]
    except (KeyError, TypeError):
        return None
