"""After a kill, an interrupt or a failure, the next run continues at the same place and writes the same bytes."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import qtutor
from qtutor import pipeline
from qtutor.calibration import walk
from qtutor.families import decoder_blocks
from qtutor.files import staging, unfinished
from qtutor.formats import shards
from qtutor.pipeline import finishing
from qtutor.pipeline.sinks import folder as folders
from qtutor.pipeline.sinks import states
from tests.forks import fork
from tests.gguf.small_tokenizers import letters
from tests.models import VOCABULARY, some_ids
from tests.pipeline.test_quantize_to import contents

BLOCKS = 4
IDS = some_ids(8, 32)
TRACED = {module.__file__ for module in (pipeline, finishing, walk, folders, states, shards, unfinished, staging)}
RECIPES = {
    "rtn": {},
    "gptq": {"method": "gptq", "propagate": False},
    "gptq, propagated": {"method": "gptq", "propagate": True, "layers": {"*.2.*": "float"}},
    "gptq beside nearest": {"method": "gptq", "propagate": False, "layers": {"*.[ov]_proj": {"method": "rtn"}}},
    "awq": {"method": "awq", "lm_head": True},
    "gptq behind sinq": {"method": "gptq", "propagate": True, "layers": {"*.1.*": {"method": "sinq"}}},
}


def recipe_called(name: str, **options) -> qtutor.Recipe:
    return qtutor.Recipe(**{"group_size": 32, "bits": 3} | RECIPES[name] | options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four small blocks, in a checkpoint saved by transformers."""
    folder = tmp_path_factory.mktemp("source") / "float"
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        max_position_embeddings=64,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    letters().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """A function from a recipe's name to the report and the files of an undisturbed run; each is made once."""
    made = {}

    def of(name: str):
        if name not in made:
            out = tmp_path_factory.mktemp("whole") / "out"
            made[name] = run(source, out, recipe_called(name)), contents(out)
        return made[name]

    return of


def run(source, out, recipe, said=None, ids=IDS):
    tell = [].append if said is None else said.append
    return qtutor.quantize_to(source, out, recipe, ids, device="cpu", progress=False, tell=tell)


def sentences(said) -> str:
    return " ".join(" ".join(str(line).split()) for line in said[1:])


class Counted:
    """Counts the lines that Python runs in the modules in TRACED, and calls ``action`` at line number ``at``."""

    def __init__(self, at: int = -1, action=None):
        self.lines, self.at, self.action = 0, at, action

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename not in TRACED:
            return None
        self.lines += event == "line"
        if self.lines == self.at and self.action:
            action, self.action = self.action, None
            action()
        return self

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *_exception):
        sys.settrace(self.before)


def killed(source, out, recipe, line: int) -> bool:
    """Run in a new process that is killed at a line; returns whether it was killed, and not finished before."""
    child = fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with Counted(line, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                run(source, out, recipe)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


@pytest.mark.parametrize(("name", "count"), [("rtn", 10), ("gptq, propagated", 10)])
def test_kills_at_random_moments_and_the_same_bytes(source, whole, tmp_path, name, count):
    """Each run continues where the one before was killed. An older export is in its place until the end."""
    report, expected = whole(name)
    out, recipe, chance, said = tmp_path / "out", recipe_called(name), random.Random(0), []
    run(source, out, qtutor.Recipe(group_size=32, bits=2))
    older = contents(out)
    with Counted() as counted:
        run(source, tmp_path / "other", recipe)
    kills = 0
    while kills < count:
        if not killed(source, out, recipe, chance.randrange(counted.lines)):
            assert contents(out) == expected
            run(source, out, qtutor.Recipe(group_size=32, bits=2))
            continue
        kills += 1
        assert contents(out) in (older, expected)
    assert run(source, out, recipe, said) == report
    assert contents(out) == expected
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_an_interrupt_at_any_line_loses_nothing(source, whole, tmp_path):
    report, expected = whole("gptq")
    out, recipe = tmp_path / "out", recipe_called("gptq")
    with Counted() as counted:
        run(source, out, recipe)
    shutil.rmtree(out)

    def interrupt():
        raise KeyboardInterrupt

    found = set()
    for line in range(1, counted.lines, counted.lines // 14):
        with Counted(line, interrupt) as counted, contextlib.suppress(KeyboardInterrupt):
            run(source, out, recipe)
            assert counted.action, "the interrupt is lost"  # or the run continued another and had fewer lines
        left = set(os.listdir(tmp_path))
        assert left in (set(), {".out.qtutor-unfinished"}, {"out"}), left
        assert not out.exists() or contents(out) == expected
        found |= left
        if line % 4 == 0 or out.exists():
            assert run(source, out, recipe) == report and contents(out) == expected
            assert os.listdir(tmp_path) == ["out"]
            shutil.rmtree(out)
    assert ".out.qtutor-unfinished" in found


def interrupted_before(block: int, source, out, recipe, said=None, ids=IDS):
    """Interrupt a run when the walk has come to ``block``; returns the folder of the unfinished run."""
    own = folders.IntoFolder.take

    def take(self, item):
        own(self, item)
        if isinstance(item, folders.Arrived) and item.index == block:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folders.IntoFolder, "take", take)
        run(source, out, recipe, said, ids)
    return unfinished.folder_of(out)


def blocks_run(source, out, recipe, said=None, ids=IDS) -> list[int]:
    """The indices of the blocks that a run reaches. It reports every layer once, whoever finished the layer."""
    found, own = [], folders.IntoFolder.take

    def take(self, item):
        if isinstance(item, folders.Arrived):
            found.append(item.index)
        own(self, item)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders.IntoFolder, "take", take)
        report = run(source, out, recipe, said, ids)
    assert len({row.name for row in report.rows}) == len(report.rows) >= 7 * (BLOCKS - 1)  # a recipe may keep a block
    return found


@pytest.mark.parametrize(
    ("name", "block"),
    [*((name, block) for name in ("rtn", "gptq, propagated") for block in (1, 3, 4)), ("awq", 3), ("awq", 4)],
)
def test_it_goes_on_with_the_block_that_was_at_hand_and_says_so(source, whole, tmp_path, name, block):
    said, out = [], tmp_path / "out"
    folder = interrupted_before(block, source, out, recipe_called(name), said)
    assert f"the finished part is kept in {folder}: the same call continues from there" in sentences(said)
    said.clear()
    assert blocks_run(source, out, recipe_called(name), said) == list(range(block, BLOCKS + 1))
    where = "going on with what is left" if block == BLOCKS else f"going on with block {block}"
    assert f"{block} of {BLOCKS} decoder blocks are finished ({folder}): {where}." in sentences(said)
    assert ("read from the disk" in sentences(said)) == (name != "rtn" and block < BLOCKS)
    assert contents(out) == whole(name)[1] and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["gptq", "gptq, propagated", "gptq beside nearest", "awq", "gptq behind sinq"])
def test_states_that_were_not_kept_are_made_again(source, whole, tmp_path, monkeypatch, name):
    """A forward pass through the finished blocks computes them. For AWQ this is impossible, so it starts anew."""
    said, out = [], tmp_path / "out"
    little = SimpleNamespace(disk_usage=lambda folder: SimpleNamespace(total=10**9, free=1000))
    monkeypatch.setattr(states, "shutil", little)
    folder = interrupted_before(3, source, out, recipe_called(name))
    assert not list(folder.glob("states*"))
    begun = blocks_run(source, out, recipe_called(name), said)
    if name == "awq":
        assert begun[0] == 0 and "3 of 4 decoder blocks were finished: starting anew" in sentences(said)
    else:
        assert begun[0] == 3 and "by a forward pass through the finished blocks" in sentences(said)
    assert contents(out) == whole(name)[1]


def test_states_leave_room_for_the_rest_of_the_result(source, tmp_path, monkeypatch):
    """The disk has room for the states, but then not for the blocks that are still to be written."""
    out, needed = tmp_path / "out", 4 * IDS.numel() * 32
    little = SimpleNamespace(disk_usage=lambda folder: SimpleNamespace(total=10**9, free=needed + 1))
    monkeypatch.setattr(states, "shutil", little)
    folder = interrupted_before(3, source, out, recipe_called("gptq"))
    assert not list(folder.glob("states*"))


def test_less_and_less_room_is_left_for_what_is_still_to_be_written(source, tmp_path, monkeypatch):
    spare, own = [], states.KeptStates.save
    monkeypatch.setattr(
        states.KeptStates, "save", lambda *given, **named: spare.append(named["spare"]) or own(*given, **named)
    )
    recipe = recipe_called("gptq")
    run(source, tmp_path / "out", recipe)
    total = qtutor.plan(source, recipe, IDS).nbytes
    assert len(spare) > 2 and spare == sorted(spare, reverse=True) and total > spare[0] > spare[-1]


@pytest.mark.parametrize("short", [0, 1])
def test_states_are_kept_while_they_and_the_spare_bytes_fit(tmp_path, monkeypatch, short):
    kept, given = states.KeptStates(tmp_path, (1, 2, 3, 4)), torch.randn(2, 3, 4)
    disk = SimpleNamespace(total=10**9, free=given.nbytes + 1000 - short)
    monkeypatch.setattr(states, "shutil", SimpleNamespace(disk_usage=lambda folder: disk))
    assert kept.save(1, (given,), spare=1000) == (not short)
    found = kept.load(1)
    assert found is None if short else torch.equal(found[0], given)


def test_states_are_kept_where_the_disk_reports_no_sizes(tmp_path, monkeypatch):
    disk = SimpleNamespace(disk_usage=lambda folder: SimpleNamespace(total=0, free=0))
    monkeypatch.setattr(states, "shutil", disk)
    assert states.KeptStates(tmp_path, (1, 2, 3, 4)).save(1, (torch.randn(2, 3, 4),), spare=1000)


def change_scales(monkeypatch, layer: str, change) -> None:
    """From now on, all layers whose names end with ``layer`` come with changed scales."""
    own = folders.IntoFolder.take

    def take(self, item):
        if isinstance(item, folders.Packed) and item.name.endswith(layer):
            item.module.scales = change(item.module.scales)
        own(self, item)

    monkeypatch.setattr(folders.IntoFolder, "take", take)


@pytest.mark.parametrize("change", [lambda scales: scales[:1], lambda scales: scales.to(torch.int16)])
def test_a_tensor_that_is_not_as_planned_is_never_written(source, tmp_path, monkeypatch, change):
    """It would overwrite its neighbours in the file."""
    change_scales(monkeypatch, "1.mlp.up_proj", change)
    with pytest.raises(
        ValueError, match=r"1\.mlp\.up_proj\.scales is torch\.(float|int)16 \[.*but the plan has torch\.float16 "
    ):
        run(source, tmp_path / "out", recipe_called("rtn"))
    assert not (tmp_path / "out").exists()


def test_floating_point_numbers_are_converted_to_the_planned_dtype(source, whole, tmp_path, monkeypatch):
    _, expected = whole("rtn")  # before anything is changed
    change_scales(monkeypatch, "", torch.Tensor.double)
    run(source, tmp_path / "out", recipe_called("rtn"))
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("begun", [False, True])
def test_states_that_cannot_be_written_leave_nothing_behind(tmp_path, monkeypatch, begun):
    kept, own = states.KeptStates(tmp_path, (1, 2, 3, 4)), states.save_file

    def full(tensors, path):
        if begun:
            own(tensors, path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(states, "save_file", full)
    assert kept.save(1, (torch.randn(2, 3, 4),), spare=0) is False
    assert not list(tmp_path.iterdir()) and kept.load(1) is None


def test_states_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    kept, order = states.KeptStates(tmp_path, (1, 2, 3, 4)), []
    own = SimpleNamespace(
        fsync=lambda handle: order.append("flushed"),
        replace=lambda old, new: (order.append("named"), os.replace(old, new)),
    )
    monkeypatch.setattr(states, "os", own)
    assert kept.save(1, (torch.randn(2, 3, 4),), spare=0) and order == ["flushed", "named"]


def test_states_that_another_process_removes_are_gone_as_well(tmp_path, monkeypatch):
    kept = states.KeptStates(tmp_path, (1, 2, 3, 4))
    for index in (1, 2):
        assert kept.save(index, (torch.randn(2, 3, 4),), spare=0)
    glob = Path.glob

    def removed_meanwhile(folder, pattern):
        found = list(glob(folder, pattern))
        (folder / "states-00001.safetensors").unlink()
        return found

    monkeypatch.setattr(Path, "glob", removed_meanwhile)
    kept.keep_only(2)
    assert [path.name for path in tmp_path.iterdir()] == ["states-00002.safetensors"]


def test_states_take_the_room_of_one_block(source, tmp_path):
    folder = interrupted_before(3, source, tmp_path / "out", recipe_called("gptq, propagated"))
    (file,) = folder.glob("states*")
    assert file.name == "states-00003.safetensors"
    assert 0 < file.stat().st_size - 2 * 4 * IDS.numel() * 32 < 500


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"bits": 4}, "another recipe"),
        ({"layers": {"*.o_proj": "float"}}, "another recipe"),
        ({"ids": some_ids(8, 32, seed=1)}, "another calibration text"),
        ({"ids": IDS[:4], "act_order": "none"}, "another calibration text and another recipe"),
    ],
)
def test_another_recipe_or_text_starts_anew_and_says_so(source, tmp_path, change, what):
    out, said, change = tmp_path / "out", [], dict(change)
    interrupted_before(2, source, out, recipe_called("gptq"))
    ids = change.pop("ids", IDS)
    assert blocks_run(source, out, recipe_called("gptq", **change), said, ids)[0] == 0
    assert f"an unfinished run for {out} had {what}: starting anew" in sentences(said)
    run(source, tmp_path / "other", recipe_called("gptq", **change), ids=ids)
    assert contents(out) == contents(tmp_path / "other")


def test_another_checkpoint_starts_anew(source, tmp_path):
    model, tokenizer = qtutor.load(source, device="cpu")
    decoder_blocks(model)[3].mlp.up_proj.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path / "float")
    tokenizer.save_pretrained(tmp_path / "float")
    out, said = tmp_path / "out", []
    interrupted_before(2, source, out, recipe_called("rtn"))
    assert blocks_run(tmp_path / "float", out, recipe_called("rtn"), said)[0] == 0
    assert "had another checkpoint: starting anew" in sentences(said)


def test_the_same_checkpoint_elsewhere_goes_on(source, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in source.iterdir():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    interrupted_before(2, source, tmp_path / "out", recipe_called("rtn"))
    assert blocks_run(elsewhere, tmp_path / "out", recipe_called("rtn"))[0] == 2


def damage_weights(folder):
    path = folder / "new" / "model.safetensors"
    data = bytearray(path.read_bytes())
    place = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["model.layers.1.mlp.up_proj.packed"]
    data[8 + int.from_bytes(data[:8], "little") + place["data_offsets"][0]] ^= 1
    path.write_bytes(data)


def damage_line(folder):
    lines = (folder / "done.jsonl").read_text().splitlines(keepends=True)
    (folder / "done.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])  # as after a power cut


def damage_rows(folder):
    pieces = [json.loads(line) for line in (folder / "done.jsonl").read_text().splitlines()]
    pieces[0]["rows"] = [{"name": 3}]
    (folder / "done.jsonl").write_text("".join(json.dumps(piece) + "\n" for piece in pieces))


def damage_work(folder):
    (folder / "work.json").write_text("[" * 10_000)


def damage_file(folder):
    os.truncate(folder / "new" / "model.safetensors", 1000)


@pytest.mark.parametrize(
    ("damage", "block"),
    [(damage_weights, 1), (damage_line, 2), (damage_rows, 0), (damage_work, 0), (damage_file, 0)],
)
@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_what_was_damaged_is_made_anew(source, whole, tmp_path, name, damage, block):
    out = tmp_path / "out"
    folder = interrupted_before(3, source, out, recipe_called(name))
    damage(folder)
    assert blocks_run(source, out, recipe_called(name))[0] == block
    assert contents(out) == whole(name)[1] and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["rtn", "gptq"])
@pytest.mark.parametrize("nth", [1, 30, 90])
def test_a_full_disk_keeps_what_is_finished(source, whole, tmp_path, monkeypatch, name, nth):
    out, calls, said, own = tmp_path / "out", [], [], shards.Shards.write

    def full(self, *arguments):
        calls.append(arguments)
        if len(calls) >= nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        own(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "write", full)
        with pytest.raises(qtutor.QtutorError, match=r"out cannot be written: No space left on device\. Whatever"):
            run(source, out, recipe_called(name), said)
    kept = [] if nth == 1 else [".out.qtutor-unfinished"]
    assert os.listdir(tmp_path) == kept and ("the finished part is kept" in sentences(said)) == bool(kept)
    run(source, out, recipe_called(name))
    assert contents(out) == whole(name)[1] and os.listdir(tmp_path) == ["out"]


def test_what_is_written_already_needs_no_more_room(source, whole, tmp_path, monkeypatch):
    """The disk has too little room for the whole result, and enough for what is left of it."""
    out, expected = tmp_path / "out", whole("rtn")[1]
    interrupted_before(3, source, out, recipe_called("rtn"))
    disk = SimpleNamespace(total=10**9, free=sum(map(len, expected.values())) - 1)
    monkeypatch.setattr("qtutor.files.target.shutil.disk_usage", lambda base: disk)
    assert blocks_run(source, out, recipe_called("rtn"))[0] == 3 and contents(out) == expected
    with pytest.raises(qtutor.QtutorError, match="will take at least"):
        run(source, tmp_path / "other", recipe_called("rtn"))


def test_a_run_that_only_had_to_put_its_folder_in_place_says_so(source, whole, tmp_path, monkeypatch):
    """It was stopped when all was written, and before the folder had its name."""
    said, out = [], tmp_path / "out"

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "read_back", stopped)
        run(source, out, recipe_called("rtn"))
    assert blocks_run(source, out, recipe_called("rtn"), said) == []
    assert f"{BLOCKS} of {BLOCKS} decoder blocks are finished" in sentences(said)
    assert "going on with what is left." in sentences(said) and contents(out) == whole("rtn")[1]


def test_files_of_the_run_before_do_not_stay(source, whole, tmp_path):
    """That run may have had another tokenizer, with a file that this one does not write."""
    out = tmp_path / "out"
    folder = interrupted_before(2, source, out, recipe_called("rtn"))
    (folder / "new" / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "new" / "more").mkdir()
    (folder / "new" / "more" / "vocab.txt").write_text("a")
    assert blocks_run(source, out, recipe_called("rtn"))[0] == 2 and contents(out) == whole("rtn")[1]


def test_a_block_is_on_the_disk_before_it_is_noted(source, tmp_path, monkeypatch):
    """A power cut after the note must not lose what the note is about."""
    done, write, note, flush = [], shards.Shards.write, unfinished.Unfinished.note, shards.Shards.flush

    def spy(name, own):
        return lambda self, *given: (done.append(name), own(self, *given))[1]

    def fsync(handle):
        done.append("fsync")
        os.fsync(handle)

    monkeypatch.setattr(shards.Shards, "write", spy("write", write))
    monkeypatch.setattr(shards.Shards, "flush", spy("flush", flush))
    monkeypatch.setattr(unfinished.Unfinished, "note", spy("note", note))
    monkeypatch.setattr(folders, "os", SimpleNamespace(fsync=fsync))
    run(source, tmp_path / "out", recipe_called("rtn"))
    steps = [name for name, before in zip(done, ["", *done]) if name != before]
    assert steps == (BLOCKS + 1) * ["write", "flush", "fsync", "note"]


def test_two_runs_for_one_place_do_not_meet(source, tmp_path):
    out, met = tmp_path / "out", []
    own = folders.IntoFolder.finish

    def finish(self):
        child = fork()
        if child == 0:
            try:
                run(source, out, recipe_called("rtn"))
            except qtutor.QtutorError as error:
                os._exit(5 if "another run is writing" in str(error) else 6)
            os._exit(7)
        met.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        own(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders.IntoFolder, "finish", finish)
        run(source, out, recipe_called("rtn"))
    assert met == [5] and os.listdir(tmp_path) == ["out"]


def test_what_others_put_there_meanwhile_is_not_removed(source, tmp_path):
    """The finished work is kept, too, and a later run puts it in place when nothing is in the way."""
    out, recipe, own = tmp_path / "out", recipe_called("rtn"), folders.IntoFolder.finish
    run(source, out, qtutor.Recipe(group_size=32))

    def finish(self):
        own(self)
        (out / "MY_NOTES.txt").write_text("mine")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(qtutor.QtutorError, match="MY_NOTES"):
        patch.setattr(folders.IntoFolder, "finish", finish)
        run(source, out, recipe)
    assert (out / "MY_NOTES.txt").read_text() == "mine"
    (out / "MY_NOTES.txt").unlink()
    assert blocks_run(source, out, recipe) == [] and os.listdir(tmp_path) == ["out"]
    assert json.loads((out / "qtutor.json").read_text())["recipe"]["bits"] == 3


def test_all_is_as_readable_as_anything_new(source, tmp_path):
    """This holds although the files are made in a folder that only its owner can read, and in two runs."""
    out = tmp_path / "out"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    assert interrupted_before(2, source, out, recipe_called("rtn")).stat().st_mode & 0o077 == 0
    run(source, out, recipe_called("rtn"))
    assert out.stat().st_mode == (tmp_path / "folder").stat().st_mode
    assert {path.stat().st_mode for path in out.iterdir()} == {(tmp_path / "folder" / "file").stat().st_mode}
