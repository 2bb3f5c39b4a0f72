"""``serving.pick``: how many tokens each text reads in a step."""

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def pick(running, waiting, budget, free, size):
    reads = [0] * (len(running) + len(waiting))
    spent = 0
    for place, unread in enumerate(running):  # texts that write come before all prompts
        if unread == 1:
            reads[place] = 1
            spent += 1
    for place, unread in enumerate(running):
        while unread > 1 and reads[place] < unread and spent < budget:
            reads[place] += 1
            spent += 1
    for place, unread in enumerate(waiting, start=len(running)):
        needed = sum(1 for at in range(unread) if at % size == 0)  # blocks for the whole text
        if spent == budget or needed > free:
            break
        free -= needed
        while reads[place] < unread and spent < budget:
            reads[place] += 1
            spent += 1
    return reads


def cases():
    return [
        ("three texts that write", ([1, 1, 1], [], 8, 4, 4)),
        ("a prompt that waits, and room for all of it", ([1], [6], 16, 4, 4)),
        ("a prompt longer than what is left of the budget", ([1, 1], [10], 8, 4, 4)),
        ("a prompt that is half read, before one that writes", ([9, 1], [], 6, 4, 4)),
        ("two prompts that are half read", ([5, 7, 1], [], 9, 4, 4)),
        ("the budget is spent: no waiting text is let in", ([1, 9], [3], 6, 4, 4)),
        ("two wait, and the budget ends in the second", ([1], [5, 6], 9, 8, 4)),
        ("too few blocks for the first waiting prompt; the second would fit", ([1], [9, 3], 32, 2, 4)),
        ("blocks for the first, none left for the second", ([], [8, 3], 32, 2, 4)),
        ("a prompt that is read in part needs blocks for all of it", ([1], [12], 4, 2, 4)),
        ("exactly as many blocks as a prompt needs, the last of them not full", ([1], [5], 8, 2, 4)),
        ("nothing to do", ([], [], 8, 4, 4)),
        ("just enough blocks, in blocks of 16", ([1, 1, 20], [33, 16, 5], 64, 4, 16)),
    ]


@solution
def right(running, waiting, budget, free, size):
    left = budget - running.count(1)
    reads = []
    for unread in running:
        count = 1 if unread == 1 else min(unread, left)
        left -= count if unread > 1 else 0
        reads.append(count)
    for unread in waiting:
        needed = -(-unread // size)
        if not left or needed > free:
            break
        free -= needed
        count = min(unread, left)
        left -= count
        reads.append(count)
    return reads + [0] * (len(running) + len(waiting) - len(reads))


NEEDED, STOP = "-(-unread // size)", "if not left or needed > free:\n            break"

MISTAKES = {
    "texts that write get their token only if prompts before them leave one. Texts that write come first: take their "
    "tokens from the budget before anything else.": right.edit(
        ("budget - running.count(1)", "budget"),
        ("1 if unread == 1 else min(unread, left)", "min(unread, left)"),
        ("count if unread > 1 else 0", "count"),
    ),
    "the tokens of the texts that write are not taken from the budget.": right.edit(" - running.count(1)", ""),
    "every running text takes one token away from the budget of the prompts. Only texts that write do so, unread == "
    "1.": right.edit("running.count(1)", "len(running)"),
    "a prompt is read whole, beyond the budget. It may use only what is left of the budget, and goes on in the next "
    "step.": right.edit(
        ("else min(unread, left)", "else unread"),
        ("count = min(unread, left)\n        left", "count = unread\n        left"),
        ("if not left or", "if left <= 0 or"),
    ),
    "a prompt that does not fit into the rest of the budget is not started. It is read in chunks.": (
        right.edit("if not left or needed", "if unread > left or needed")
    ),
    "a running prompt that is half read gets one token. It may take what is left of the budget.": (
        right.edit("1 if unread == 1 else min(unread, left)", "1")
    ),
    "a running prompt that is half read gets nothing. It goes on with what is left of the budget.": (
        right.edit("1 if unread == 1 else min(unread, left)", "1 if unread == 1 else 0")
    ),
    "the tokens that a prompt reads are not subtracted from what is left, so the next one reads as many again.": (
        right.edit("        left -= count\n        reads", "        reads")
    ),
    "there are too few blocks for the first waiting text, but a later one is let in. First come, first served: stop "
    "there.": right.edit(STOP, "if not left or needed > free:\n            reads.append(0)\n            continue"),
    "the free blocks are not checked. A text is let in only if its blocks are free.": (
        right.edit("if not left or needed > free", "if not left")
    ),
    "the blocks of a text that was let in are not subtracted from the free ones.": right.edit("free -= needed", "pass"),
    "blocks are rounded down. A block that is only partly filled is needed whole.": right.edit(
        NEEDED, "unread // size"
    ),
    "one block too many is requested if the last block is exactly full.": right.edit(NEEDED, "unread // size + 1"),
    "you treated each token as a block. A block has `size` tokens.": right.edit(NEEDED, "unread"),
    "you requested blocks only for the tokens that this step reads. A text is let in with blocks for all of its "
    "tokens.": right.edit(NEEDED, "-(-min(unread, left) // size)"),
    "a text is let in only if more blocks are free than it needs. Exactly as many are enough.": right.edit(
        "needed > free", "needed >= free"
    ),
    "no waiting text is let in.": right.edit("for unread in waiting:", "for unread in waiting[:0]:"),
    "only the first waiting text is let in. There may be room for more in the same step.": (
        right.edit("for unread in waiting:", "for unread in waiting[:1]:")
    ),
    "waiting texts are let in from the shortest to the longest. First come, first served.": (
        right.edit("for unread in waiting:", "for unread in sorted(waiting):")
    ),
    "every text gets one token, prompts too. A prompt is read as far as the budget allows.": right.edit(
        ("1 if unread == 1 else min(unread, left)", "1"),
        ("        count = min(unread, left)\n        left", "        count = 1\n        left"),
    ),
}

PICK = Exercise(
    name="serving.pick",
    title="The scheduler's choice",
    difficulty=3,
    minutes=25,
    reference=pick,
    cases=cases,
    outputs=("tokens read",),
    mistakes=MISTAKES,
)
