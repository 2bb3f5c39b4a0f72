"""Records of a .jsonl file: texts and conversations of both layouts, bad lines by number, large files in excerpts."""

import copy
import itertools
import json

import pytest
import torch
from transformers import AddedToken

import qtutor
from qtutor.calibration import records, text
from qtutor.calibration.chat import end_of_turn, messages_of, rendered
from qtutor.calibration.records import check_records
from qtutor.calibration.text import check_text, text_in
from qtutor.errors import QtutorError
from tests.gguf.small_tokenizers import BOS, EOS, byte_level

TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m['role'] }}: {{ m['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant: {% endif %}"
)
ASKED = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Two, or three."}]
SHARED = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Two, or three."}]


@pytest.fixture
def tokenizer():
    made = byte_level("llama-bpe", bos=True)
    made.chat_template = TEMPLATE
    yield made
    made.chat_template = None


def written(path, lines, end="\n"):
    path.write_bytes(end.join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode())
    return path


def expected_ids(tokenizer, lines) -> list[int]:
    """The slow way: the text of every record, tokenized by itself."""
    ids = []
    for line in lines:
        if "text" in line:
            ids += tokenizer(line["text"])["input_ids"]
        else:
            turns = [f"{BOS}{m['role']}: {m['content']}{EOS}\n" for m in ASKED]
            ids += tokenizer("".join(turns), add_special_tokens=False)["input_ids"]
    return ids


def test_texts_and_conversations_become_tokens(tmp_path, tokenizer):
    lines = [{"text": "one two three " * 9, "id": 7}, {"messages": ASKED}, {"conversations": SHARED}] * 4
    file = written(tmp_path / "a.jsonl", lines)
    found = text_in(file, tokenizer, 16, 1000)
    ids = expected_ids(tokenizer, lines)
    assert torch.equal(found.token_ids.flatten(), torch.tensor(ids[: len(ids) // 16 * 16]))
    assert f"of the {len(ids):,} in {file}, 4 texts and 8 conversations" in found.told
    assert f"{found.token_ids.numel():,} tokens ({len(ids) // 16} samples of 16)" in found.told
    # As Windows writes it, with a byte order mark, empty lines, and no line end after the last line.
    text = "\r\n\r\n".join(json.dumps(line) for line in lines)
    (tmp_path / "b.JSONL").write_bytes(text.encode("utf-8-sig"))
    assert torch.equal(text_in(tmp_path / "b.JSONL", tokenizer, 16, 1000).token_ids, found.token_ids)


def test_a_template_writes_the_special_tokens_once(tokenizer):
    ids = tokenizer(rendered(tokenizer, ASKED), add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 2 == ids.count(tokenizer.convert_tokens_to_ids(EOS))
    assert rendered(tokenizer, ASKED[:1], ask=True).endswith(f"How many?{EOS}\n{BOS}assistant: ")


def test_both_layouts_say_the_same():
    assert messages_of(SHARED) == messages_of(ASKED) == ASKED
    parts = [{"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]}]
    assert messages_of(parts) == ASKED[:1]


@pytest.mark.parametrize("line, said", [
    ("{'text': 1}", "it is no JSON"),
    ('{"text": "cut o', "it is no JSON"),
    ("[1, 2]", "it has [1, 2]; a record has one of 'text', 'messages', 'conversations'"),
    ('{"prompt": "a", "answer": "b"}', "it has the keys 'prompt', 'answer'; a record has one of"),
    ("{}", "it has the keys ; a record has one of"),
    ('{"text": 5}', "its 'text' is 5, not a string"),
    ('{"messages": "hello"}', "'hello' is no conversation"),
    ('{"messages": []}', "[] is no conversation"),
    ('{"messages": ["hello"]}', "message 1 is 'hello'; an object with role and content is needed"),
    ('{"messages": [{"role": "user"}]}', "message 1 has the keys 'role'; texts under role and content are needed"),
    ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "texts under role and content are needed"),
    ('{"conversations": [{"from": "narrator", "value": "x"}]}', "texts under from and value are needed"),
    ('{"text": "\\ud83d"}', "half a character"),
    ("[" * 100_000, "it is no JSON"),
])  # fmt: skip
def test_bad_lines_are_named_by_number(tmp_path, line, said):
    good = {"text": "good"}
    file = written(tmp_path / "a.jsonl", [good, good, line, good])
    with pytest.raises(QtutorError) as found:
        check_text(file, 1)
    assert str(found.value).startswith(f"{file}, line 3: ") and said in str(found.value)
    assert len(str(found.value)) < 500
    file = written(tmp_path / "b.jsonl", [good, line, good, line, *[line] * 9])
    with pytest.raises(QtutorError, match=r"line 2: .* Other bad lines: 4, 5, 6, 7, 8 and 5 more; 2 are good"):
        check_text(file, 1)


def test_files_without_records(tmp_path):
    for content in ("\n \n", "\ufeff\n"):
        (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
        with pytest.raises(QtutorError, match=r"a\.jsonl holds no records: a \.jsonl file has an object on each line"):
            check_text(tmp_path / "a.jsonl", 1)
    (tmp_path / "a.json").write_text('[{"text": "a"}]')
    with pytest.raises(QtutorError, match=r"a\.json is one JSON document.*jq -c"):
        check_text(tmp_path / "a.json", 1)
    file = written(tmp_path / "short.jsonl", [{"text": "a b c"}])
    with pytest.raises(QtutorError, match=r"short\.jsonl has \d+ tokens; one sample takes 16\. Name a longer text"):
        text_in(file, byte_level(), 16)


def test_conversations_need_a_template_that_takes_them(tmp_path):
    tokenizer = byte_level()
    file = written(tmp_path / "a.jsonl", [{"text": "a"}, {"messages": ASKED}])
    with pytest.raises(QtutorError, match=r"a\.jsonl, line 2: the tokenizer has no chat template.*instruct"):
        text_in(file, tokenizer, 2)
    try:
        for template, said in [
            ("{{ raise_exception('roles have to alternate') }}", "roles have to alternate"),
            ("{{ messages[5]['content'] }}", "undefined|no element"),
            ("{% for", "unexpected|expected|end"),
            ("{{ ''.__class__.__mro__ }}", "unsafe|access|cannot write"),
        ]:
            tokenizer.chat_template = template
            with pytest.raises(QtutorError, match=rf"line 2: the chat template cannot write this.*({said})"):
                text_in(file, tokenizer, 2)
    finally:
        tokenizer.chat_template = None


def test_a_large_file_is_read_in_whole_lines_from_all_over_it(tmp_path, monkeypatch):
    _, tokenizer = qtutor.load()
    lines = [{"text": f"def function_{number}(x):\n    return x + {number}\n" * 3} for number in range(3000)]
    file = written(tmp_path / "a.jsonl", lines)
    monkeypatch.setattr(text, "WHOLE_RECORDS", 1000)
    found = text_in(file, tokenizer, 32, 20)
    assert found.token_ids.shape == (20, 32)
    texts = [tokenizer.decode(row) for row in found.token_ids]
    assert all(one.startswith("def function_") for one in texts)
    numbers = [int(one.removeprefix("def function_").split("(")[0]) for one in texts]
    assert numbers == sorted(numbers) and numbers[0] == 0 and len(set(numbers)) == 20
    assert max(b - a for a, b in itertools.pairwise(numbers)) < 1.3 * 3000 / 20
    assert f"from all over the {file.stat().st_size:,} bytes" in found.told and "20 texts" in found.told


def test_a_line_that_begins_where_a_part_does_belongs_to_it(tmp_path, monkeypatch):
    _, tokenizer = qtutor.load()
    lines = [{"text": f"def function_{number}(x):\n    return x\n"} for number in range(4)]
    file = written(tmp_path / "a.jsonl", [*lines, ""])  # lines of equal length: the second half begins at a line
    monkeypatch.setattr(text, "WHOLE_RECORDS", 10)
    rows = text_in(file, tokenizer, 8, 2).token_ids
    assert [tokenizer.decode(row)[:14] for row in rows] == ["def function_0", "def function_2"]


def test_a_bad_line_of_a_large_file_has_its_own_number(tmp_path, monkeypatch):
    _, tokenizer = qtutor.load()
    monkeypatch.setattr(text, "WHOLE_RECORDS", 1000)
    monkeypatch.setattr(records, "WHOLE", 1000)  # check_records does not look beyond this
    good = {"text": "x = 1\n" * 40}
    for bad in range(47, 55):  # the second part begins inside one of these lines
        file = written(tmp_path / "a.jsonl", [good] * bad + ["oops"] + [good] * (100 - bad))
        check_records(file)
        with pytest.raises(QtutorError, match=rf"a\.jsonl, line {bad + 1}: it is no JSON.*oops"):
            text_in(file, tokenizer, 20_000, 2)


def test_lines_without_end_are_no_records(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST", 100)
    file = written(tmp_path / "a.jsonl", [{"text": "good"}, {"text": "x" * 1000}, {"text": "good"}, {"text": "y" * 99}])
    with pytest.raises(QtutorError, match=r"line 2: it has more than 100 bytes.* Other bad lines: 4; 2 are good"):
        check_records(file)


def test_the_end_of_a_turn_is_found_in_the_template(tokenizer):
    assert end_of_turn(tokenizer) == [tokenizer.convert_tokens_to_ids(EOS)]
    tokenizer.chat_template = TEMPLATE.replace("<|endoftext|>", "")
    assert end_of_turn(tokenizer) == []  # a line end is not a special token
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert end_of_turn(tokenizer) == []
    tokenizer.chat_template = None
    assert end_of_turn(tokenizer) == []


def test_the_end_of_a_turn_may_be_an_added_token_without_a_name(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<|plain|>", special=False)])
    tokenizer.chat_template = TEMPLATE.replace("<|endoftext|>", "<|im_end|>")
    added = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert added not in tokenizer.all_special_ids and end_of_turn(tokenizer) == [added]
    tokenizer.chat_template = TEMPLATE.replace("<|endoftext|>", "<|plain|>")
    assert end_of_turn(tokenizer) == []


def test_of_many_bytes_only_some_become_tokens(tmp_path, tokenizer, monkeypatch):
    """Without this limit, 20 MB took half a minute. Every line is still checked, and a very long text is cut."""
    monkeypatch.setattr(records, "TOKENIZED", 1000)
    path, seen = tmp_path / "a.jsonl", []

    def counted(text, **options):
        seen.append(text)
        return tokenizer(text, **options)

    lines = [json.dumps({"text": f"value {number:03} is here"}) for number in range(100)]
    path.write_text("\n".join(lines))
    found = text.text_in(path, counted, 8, 4)
    every = -(-path.stat().st_size // 1000)
    assert every == 3 and seen == [f"value {number:03} is here" for number in range(0, 100, every)]
    assert f"in one of every 3 records of {path}, 34 texts" in found.told and found.token_ids.shape == (4, 8)
    path.write_text("\n".join([*lines[:-2], "{", lines[-1]]))
    with pytest.raises(QtutorError, match=r"line 99: it is no JSON"):
        text.text_in(path, counted, 8, 4)
    path.write_text(json.dumps({"text": "abc " * 5000}))
    seen.clear()
    assert text.text_in(path, counted, 8, 4).token_ids.shape == (4, 8) and seen == ["abc " * 250]
    monkeypatch.setattr(text, "WHOLE_RECORDS", 1000)  # now read in parts: 256 characters for each wanted token
    seen.clear()
    text.text_in(path, counted, 8, 4)
    assert seen == [("abc " * 5000)[: 256 * 8]]


def test_no_more_records_are_read_than_needed(tmp_path, tokenizer):
    """A bad record behind the last one that is needed disturbs nobody."""
    lines = [{"text": "one two three four"}, "{bad"]
    file = written(tmp_path / "a.jsonl", lines)
    count = len(records.Records(file, tokenizer).some(0, 1, 10**6))
    assert count > 3 and len(records.Records(file, tokenizer).some(0, file.stat().st_size, count)) == count
    with pytest.raises(QtutorError, match="line 2"):
        records.Records(file, tokenizer).some(0, file.stat().st_size, count + 1)
