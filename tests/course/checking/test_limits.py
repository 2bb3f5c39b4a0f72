"""A check ends with a helpful message and restores everything, whatever a learner's function does or returns."""

import contextlib
import decimal
import fractions
import io
import itertools
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch

from qtutor.course.checking import comparing, examine, limits
from qtutor.course.exercises.exercise import Exercise

EXERCISE = Exercise(
    name="test.numbers",
    title="three numbers",
    difficulty=1,
    minutes=1,
    reference=lambda weight: weight.double() + 1,
    cases=lambda: [("ones", (torch.ones(3),)), ("twos", (torch.full((3,), 2.0),))],
    outputs=("sum",),
)


def said(function) -> str:
    verdict = examine(EXERCISE, function)
    assert not verdict.passed
    assert verdict.text.isascii() and len(verdict.text) < 2000
    return verdict.text


def endless_list(weight):
    found = []
    found.append(found)
    return found


def shared_lists(weight):
    """10**9 numbers in three lists of a thousand."""
    found = 1.0
    for _ in range(3):
        found = [found] * 1000
    return found


class Forever(list):
    def __iter__(self):
        return itertools.repeat(0.0)


def of_freed_memory(weight):
    found = weight + 1
    found.untyped_storage().resize_(0)
    return found


def with_yield(weight):
    yield from weight


async def with_async(weight):
    return weight


class Surprise:
    @property
    def __class__(self):
        raise ValueError("no class")


RETURNED = {
    "meta": (lambda w: w.to("meta"), 'a tensor on the device "meta"'),
    "sparse": (lambda w: w.to_sparse(), "a tensor of layout torch.sparse_coo; to_dense()"),
    "rows": (lambda w: w[None].to_sparse_csr(), "a tensor of layout torch.sparse_csr; to_dense()"),
    "nested": (lambda w: torch.nested.nested_tensor([w, w[:2]]), "a nested tensor"),
    "jagged": (lambda w: torch.nested.nested_tensor([w, w[:2]], layout=torch.jagged), "a nested tensor"),
    "half a byte": (lambda w: torch.empty(3, dtype=torch.uint4), "reading it raised NotImplementedError"),
    "quantized": (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.quint8), "a tensor of torch.quint8"),
    "complex tensor": (lambda w: w + 1j, "a tensor of torch.complex64"),
    "complex number": (lambda w: 1j, "a complex number"),
    "complex numpy": (lambda w: np.ones(3) * 1j, "a numpy array of complex128"),
    "objects": (lambda w: np.array([w, None], dtype=object), "a numpy array of object"),
    "dates": (lambda w: np.datetime64("2020-01-01"), "a numpy scalar of datetime64[D]"),
    "freed memory": (of_freed_memory, "whose memory was freed"),
    "expand": (lambda w: w[:1].expand(10**11), "a tensor of shape [100000000000], far more numbers than the answer"),
    "broadcast": (lambda w: np.broadcast_to(1.0, (10**6, 10**6)), "far more numbers than the answer has"),
    "400 MB": (lambda w: torch.zeros(4 * 10**8, dtype=torch.bool), "far more numbers than the answer has"),
    "range": (lambda w: range(10**12), "a range, far more numbers"),
    "long text": (lambda w: "a" * 10**8, "str of length 100000000, far more"),
    "long bytes": (lambda w: bytes(10**8), "bytes of length 100000000, far more"),
    "text": (lambda w: "a" * 10**5, "sum is text, expected shape [3]"),
    "contains itself": (endless_list, "Does one contain itself?"),
    "shared lists": (shared_lists, "a list, far more numbers than the answer has"),
    "endless list": (lambda w: Forever([1]), "far more numbers than the answer has"),
    "empty parts": (lambda w: [[[]] * 1000] * 1000 * 2, "far more numbers than the answer has"),
    "huge int": (lambda w: 2**100000, "a whole number of 100001 bits"),
    "huge fraction": (lambda w: fractions.Fraction(10**400), "a Fraction that does not fit into a float64"),
    "generator": (with_yield, "a generator (yield makes one"),
    "generator expression": (lambda w: (x + 1 for x in w), "a generator (yield makes one"),
    "async": (with_async, "a coroutine (async def makes one"),
    "set": (lambda w: {1, 2, 3}, "a set."),
    "map": (lambda w: map(float, w), "a map."),
    "itself": (lambda w: with_yield, "a function."),
    "surprise": (lambda w: Surprise(), "reading it raised ValueError: no class"),
}


@pytest.mark.filterwarnings(
    "ignore"
)  # torch: some of these kinds of tensors are experimental; Python: a coroutine is never awaited
@pytest.mark.parametrize("kind", RETURNED)
def test_whatever_is_returned_is_told_in_words(kind):
    function, words = RETURNED[kind]
    started = time.monotonic()
    assert words in said(function)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "right",
    [
        lambda w: [fractions.Fraction(int(x)) + 1 for x in w],
        lambda w: [decimal.Decimal(int(x)) + 1 for x in w],
        lambda w: ((w + 1) * -1j).conj().imag,  # its negative bit is set: the stored numbers have the other sign
        lambda w: torch.nn.Parameter(w + 1),
        lambda w: np.ma.masked_array(w.numpy() + 1, mask=False),
        lambda w: (w + 1).numpy().astype(np.longdouble),
    ],
)
def test_numbers_of_rare_kinds_are_numbers(right):
    assert examine(EXERCISE, right).passed


def test_a_range_and_large_unsigned_numbers_keep_their_values():
    assert comparing.to_array(range(3)).tolist() == [0, 1, 2]
    assert comparing.to_array(np.array([2**63], dtype=np.uint64)).tolist() == [2.0**63]
    assert comparing.to_array(torch.tensor([2**63], dtype=torch.uint64)).tolist() == [2.0**63]
    assert "a whole number of 64 bits" in said(lambda w: 2**63)


class WithoutText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class OfItsOwn(BaseException):
    pass


def raising(error):
    def raises(weight):
        raise error

    return raises


def deep(weight):
    return deep(weight)


def deeper(weight):
    sys.setrecursionlimit(10**9)
    return deep(weight)


RAISED = {
    "without text": (raising(WithoutText()), "raised WithoutText: (its text cannot be shown"),
    "long": (raising(ValueError("a" * 10**7)), "raised ValueError: aaa"),
    "control characters": (raising(ValueError("\x1b[2J \ud800 ok")), "raised ValueError: \\x1b[2J \\ud800 ok"),
    "arrays": (raising(NotImplementedError(np.zeros(2))), "raised NotImplementedError: [0. 0.]"),
    "sys.exit": (lambda w: sys.exit("bye"), "ended the program (exit, quit or sys.exit)"),
    "base": (raising(OfItsOwn("mine")), "raised OfItsOwn: mine"),
    "generator exit": (raising(GeneratorExit()), "raised GeneratorExit"),
    "recursion": (deep, "raised RecursionError: maximum recursion depth exceeded"),
    "a billion calls": (deeper, "raised RecursionError: maximum recursion depth exceeded"),
    "memory": (lambda w: [0] * 10**13, "raised MemoryError: it asked for more memory than a check allows"),
    "tensor memory": (lambda w: torch.zeros(10**13), "raised RuntimeError"),
}


@pytest.mark.parametrize("kind", RAISED)
def test_whatever_is_raised_is_told_in_words(kind):
    function, words = RAISED[kind]
    assert words in said(function)


def until_caught(weight):
    while True:
        try:  # noqa: SIM105 - as learners write it
            time.sleep(0.001)
        except Exception:
            pass


def until_all_is_caught(weight):
    while True:
        try:  # noqa: SIM105
            time.sleep(0.001)
        except:  # noqa: E722
            pass


def until_all_is_caught_twice(weight):
    while True:
        try:
            try:
                sum(range(1000))
            except:  # noqa: E722
                continue
        except BaseException:
            pass


def counting(weight):
    i = 0
    while i < 10:
        i -= 1


def slow_object(weight):
    class Slow(list):
        def __iter__(self):
            while True:
                time.sleep(0.01)

    return Slow([1])


@pytest.mark.parametrize(
    "endless", [until_caught, until_all_is_caught, until_all_is_caught_twice, counting, slow_object]
)
def test_an_endless_loop_ends(endless, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    before = signal.getsignal(signal.SIGALRM)
    started = time.monotonic()
    text = said(endless)
    assert time.monotonic() - started < 4  # 0.3, and up to 20 more rings for functions that catch everything
    assert "test.numbers: stopped. Your function was still running after 0.3 seconds" in text
    assert "It was working on this input: ones." in text
    assert endless is slow_object or f"in {endless.__name__}, line " in text
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and sys.gettrace() is None


def test_the_time_is_that_of_all_inputs_together(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    text = said(lambda w: time.sleep(0.2))
    assert "still running after 0.3 seconds" in text and "on this input: twos." in text


def test_an_alarm_of_others_is_kept():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with limits.time_limit(10):
            time.sleep(0.2)
        assert not rung or rung == [1]
        time.sleep(0.05)
        assert rung == [1]  # it was due within the time limit
        signal.setitimer(signal.ITIMER_REAL, 100)
        with limits.time_limit(10):
            pass
        assert 99 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_alarm_is_put_back_whatever_is_raised(error):
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(error), limits.bounded():
        raise error
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_other_threads_have_no_alarm(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.05)
    found = []

    def patient(weight):
        time.sleep(0.1)
        return weight + 1

    thread = threading.Thread(target=lambda: found.append(examine(EXERCISE, patient).passed))
    thread.start()
    thread.join()
    assert found == [True]


def test_without_alarms_there_is_no_limit(monkeypatch):
    monkeypatch.delattr(signal, "setitimer")  # as on Windows
    with limits.time_limit(0.01):
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_a_list_that_grows_ends():
    code = """
    from qtutor.course.checking import examine, limits
    from tests.course.checking.test_limits import EXERCISE
    import resource
    limits.MEMORY = 300 * 2**20

    def grows(weight):
        found = []
        while True:
            found.append(bytearray(10**6))

    print(examine(EXERCISE, grows).text)
    print(examine(EXERCISE, lambda w: w + 1).text)
    print(resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=100)
    assert "raised MemoryError: it asked for more memory" in done.stdout, done.stderr
    assert done.stdout.endswith("right on all 2 inputs.\nTrue\n")


def test_megabytes_of_print_are_cut_off(capsys):
    def prints(weight):
        for _ in range(1000):
            print("a" * 1000)
            print("b" * 1000, file=sys.stderr, flush=True)
        return weight + 1

    assert examine(EXERCISE, prints).passed
    out, err = capsys.readouterr()
    assert limits.PRINTED < len(out) < limits.PRINTED + 100 and len(err) < limits.PRINTED + 100
    assert out.startswith("aaa") and out.endswith("(the rest of what your function prints is left out)\n")


def test_few_lines_of_print_are_shown(capsys):
    def prints(weight):
        print(weight.tolist())
        sys.stdout.close()
        return weight + 1

    assert examine(EXERCISE, prints).passed
    assert capsys.readouterr().out == "[1.0, 1.0, 1.0]\n[2.0, 2.0, 2.0]\n" and not sys.stdout.closed


def test_a_stream_that_is_replaced_is_put_back():
    def replaces(weight):
        sys.stdout = sys.stderr = io.StringIO()
        return weight + 1

    before = sys.stdout, sys.stderr
    assert examine(EXERCISE, replaces).passed and (sys.stdout, sys.stderr) == before


def changes_everything(weight):
    torch.set_default_dtype(torch.float16)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    np.seterr(all="raise")
    np.set_printoptions(precision=1)
    sys.setrecursionlimit(5000)
    return weight.tolist()


def settings():
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
        np.geterr(),
        np.get_printoptions(),
        sys.getrecursionlimit(),
    ]


def test_settings_are_put_back():
    before = settings()
    said(changes_everything)
    assert settings() == before
    assert torch.overrides._get_current_function_mode() is None  # a default device is a mode, which slows every call


@pytest.mark.parametrize(
    "spoils",
    [
        lambda w: w.resize_(0),
        lambda w: w.untyped_storage().resize_(0),
        lambda w: w.set_(),
        lambda w: setattr(w, "data", w.to(torch.complex64)),
        lambda w: w.fill_(float("nan")),
    ],
)
def test_an_argument_that_is_destroyed_is_noticed(spoils):
    def function(weight):
        found = weight + 1
        spoils(weight)
        return found

    assert "your function wrote into its argument weight" in said(function)


def test_an_argument_may_be_deleted():
    def function(weight):
        found = weight + 1
        del weight
        return found

    assert examine(EXERCISE, function).passed


def test_an_object_without_signature_is_told_too():
    class Odd:
        __signature__ = property(lambda self: 1 / 0)

        def __call__(self, weight):
            return weight + 1

    assert examine(EXERCISE, Odd()).passed


def test_no_alarm_rings_inside_of_contextlib():
    @contextlib.contextmanager
    def ringing():
        ring(signal.SIGALRM, sys._getframe(1))
        yield

    with limits.time_limit(60):
        ring = signal.getsignal(signal.SIGALRM)
        with ringing():
            pass
        with pytest.raises(limits.TimeUp):
            ring(signal.SIGALRM, sys._getframe())
