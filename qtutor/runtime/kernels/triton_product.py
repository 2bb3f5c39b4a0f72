"""The product that Triton compiles for a GPU; :mod:`.cuda` calls it. Triton is imported with this module.

A program multiplies ROWS rows by all tokens, one block of columns after the other. A block is within one group, so a
row has one scale in a block. Each thread reads whole words, along a row, and does not wait for other threads before the
end: every word has a sum of its own, and the sums of a row are added up once. Tensor cores are not used: at one token,
reading memory takes the time, and tensor cores would need 16 tokens.

A block adds ``scale * (sum code * x - zero * sum x)``: the zero point is outside the sum over codes.
"""

import triton
import triton.language as tl


@triton.jit
def times(of_rows, of_tokens, TOKENS: tl.constexpr):
    """``[ROWS, n]`` times ``[TOKENS, n]``: ``[TOKENS, ROWS, n]``, or ``[ROWS, n]`` for one token. One n may be 1."""
    if TOKENS == 1:
        result = of_rows * of_tokens
    else:
        result = of_rows[None, :, :] * of_tokens[:, None, :]
    return result


@triton.jit
def apart(x, TOKENS: tl.constexpr, WORDS: tl.constexpr, CODES: tl.constexpr):
    """``[TOKENS, WORDS * CODES]`` as CODES tensors ``[TOKENS, WORDS]``: the inputs of the first, second ... codes.

    x is loaded in one piece, and a thread keeps the inputs of its words: loading each tensor by itself would take as
    many instructions as there are codes.
    """
    if CODES == 8:
        even, odd = tl.split(tl.reshape(x, (TOKENS, WORDS, 2, 2, 2)))  # the last axis: it has bit 0 of the place
        even_0, even_1 = tl.split(even)  # bit 1
        odd_0, odd_1 = tl.split(odd)
        x0, x4 = tl.split(even_0)  # bit 2
        x2, x6 = tl.split(even_1)
        x1, x5 = tl.split(odd_0)
        x3, x7 = tl.split(odd_1)
        parts = (x0, x1, x2, x3, x4, x5, x6, x7)
    else:
        even, odd = tl.split(tl.reshape(x, (TOKENS, WORDS, 2, 2)))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        parts = (x0, x1, x2, x3)
    return parts


# Triton would compile again when one of these becomes 1 or a multiple of 16, which would gain nothing.
@triton.jit(do_not_specialize=["tokens", "group_blocks", "share_blocks", "middle"])
def product(
    x,  # [tokens, columns]
    packed,  # the words of one row after the other; for 3 bits the bytes, three to a word
    scales,  # [groups, rows]
    zeros,  # uint8 [groups, rows], read if EACH
    levels,  # float32, read if LEVELS
    y,  # [shares, tokens, rows]
    tokens,
    rows,
    columns,
    row_words,  # words of a row
    group_blocks,  # blocks of a group
    share_blocks,  # blocks of a share: the columns are shared out among programs if rows are few
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
    of_tokens = x + token * columns + tl.arange(0, WORDS * CODES)[None, :]
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
        x_block = tl.load(of_tokens + block * WORDS * CODES, mask=token < tokens, other=0).to(tl.float32)
        inputs = apart(x_block, TOKENS, WORDS, CODES)
        sums = tl.zeros((TOKENS, WORDS), tl.float32)
        for i in tl.static_range(CODES):
            # An int32 shifts in copies of its sign bit from above; the mask removes them.
            code = (codes >> (BITS * i)) & ((1 << BITS) - 1)
            values = tl.load(levels + code) if LEVELS else code.to(tl.float32)
            part += times(values, inputs[i], TOKENS)
            sums += inputs[i]
        of_group = block // group_blocks * rows + row
        if EACH:
            part -= times(tl.load(zeros + of_group, mask=there, other=0).to(tl.float32)[:, None], sums, TOKENS)
        elif not LEVELS:
            part -= times(tl.full((ROWS, 1), 1.0, tl.float32) * middle, sums, TOKENS)
        scale = tl.load(scales + of_group, mask=there, other=0).to(tl.float32)
        total += part * times(scale[:, None], ones, TOKENS)
    at = y + (tl.program_id(1) * tokens + token) * rows + row[None, :]
    tl.store(at, tl.reshape(tl.sum(total, axis=-1), (TOKENS, ROWS)), mask=(token < tokens) & there[None, :])
