"""The product that Triton compiles for a GPU; :mod:`.cuda` calls it. Triton is imported with this module.

A program multiplies ROWS rows by all tokens, a block of columns after the other. A block lies within one group, so a
row has one scale in it. Each thread reads whole words, along a row, and never meets another thread before the end:
every word has a sum of its own, and the sums of a row are added up once. Tensor cores are left alone: at one token
memory is what takes the time, and they would want 16 tokens.

What a block adds is ``scale * (sum code * x - zero * sum x)``: the zero point stands outside of the sum over codes.
"""

import triton
import triton.language as tl


@triton.jit
def times(of_rows, of_tokens, TOKENS: tl.constexpr):
    """``[ROWS, n]`` times ``[TOKENS, n]``: ``[TOKENS, ROWS, n]``, or ``[ROWS, n]`` for one token. n may be 1 in one."""
    if TOKENS == 1:
        result = of_rows * of_tokens
    else:
        result = of_rows[None, :, :] * of_tokens[:, None, :]
    return result


# Triton compiles anew where one of these becomes 1 or a multiple of 16, which would gain nothing.
@triton.jit(do_not_specialize=["tokens", "group_blocks", "share_blocks", "middle"])
def product(
    x,  # [tokens, columns]
    packed,  # the words of a row after those of another; of 3 bits the bytes, three of them a word
    scales,  # [groups, rows]
    zeros,  # uint8 [groups, rows], read if EACH
    levels,  # float32, read if LEVELS
    y,  # [shares, tokens, rows]
    tokens,
    rows,
    columns,
    row_words,  # words of a row
    group_blocks,  # blocks of a group
    share_blocks,  # blocks of a share: the columns are shared out among programs where rows are few
    middle,  # the zero point of all groups, unless EACH
    BITS: tl.constexpr,
    EACH: tl.constexpr,  # every group has its zero point
    LEVELS: tl.constexpr,  # codes stand for levels of a codebook, which have no zero point
    TOKENS: tl.constexpr,  # a power of two, tokens or more
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,  # of a block
    STAGES: tl.constexpr,  # blocks that are fetched ahead
):
    CODES: tl.constexpr = 4 if BITS == 8 else 8  # in a word
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows  # the last program may have fewer
    word = tl.arange(0, WORDS)
    token = tl.arange(0, TOKENS)[:, None]
    of_rows = row.to(tl.int64)[:, None] * row_words + word[None, :]  # 64 bits: a matrix may have 2**31 bytes
    of_tokens = x + token * columns + word[None, :] * CODES
    ones = tl.full((TOKENS, 1), 1.0, tl.float32)
    total = times(tl.zeros((ROWS, WORDS), tl.float32), ones, TOKENS)
    first = tl.program_id(1) * share_blocks
    last = tl.minimum(first + share_blocks, row_words // WORDS)
    for block in tl.range(first, last, num_stages=STAGES):
        at = of_rows + block * WORDS
        if BITS == 3:
            codes = tl.load(packed + 3 * at, mask=there[:, None], other=0).to(tl.int32)
            codes |= tl.load(packed + 3 * at + 1, mask=there[:, None], other=0).to(tl.int32) << 8
            codes |= tl.load(packed + 3 * at + 2, mask=there[:, None], other=0).to(tl.int32) << 16
        else:
            codes = tl.load(packed + at, mask=there[:, None], other=0).to(tl.int32)
        part = times(tl.zeros((ROWS, WORDS), tl.float32), ones, TOKENS)
        inputs = tl.zeros((TOKENS, WORDS), tl.float32)
        for i in tl.static_range(CODES):
            # The sign that int32 drags in from above lies beyond the mask.
            code = (codes >> (BITS * i)) & ((1 << BITS) - 1)
            values = tl.load(levels + code) if LEVELS else code.to(tl.float32)
            x_i = tl.load(of_tokens + (block * WORDS * CODES + i), mask=token < tokens, other=0).to(tl.float32)
            part += times(values, x_i, TOKENS)
            inputs += x_i
        of_group = block // group_blocks * rows + row
        if EACH:
            part -= times(tl.load(zeros + of_group, mask=there, other=0).to(tl.float32)[:, None], inputs, TOKENS)
        elif not LEVELS:
            part -= times(tl.full((ROWS, 1), 1.0, tl.float32) * middle, inputs, TOKENS)
        scale = tl.load(scales + of_group, mask=there, other=0).to(tl.float32)
        total += part * times(scale[:, None], ones, TOKENS)
    sums = tl.reshape(tl.sum(total, axis=-1), (TOKENS, ROWS))
    tl.store(
        y + (tl.program_id(1) * tokens + token) * rows + row[None, :], sums, mask=(token < tokens) & there[None, :]
    )
