"""Triton kernels of the nearest-codeword search: tensor cores in half precision, a proven bound, float64 to decide.

NEAREST.md beside this file has the design, the proof of the bound and the measured times. In short:

1. ``_codebook_range``, ``_codebook_operand``: codewords, centred and scaled by a power of two, become float16 columns
   (one or both halves of a float32) beside four columns that carry ``|c|^2 / 2``: one product gives the ranking score.
2. ``_search``: for each row the two best groups of ``GROUP`` codewords, and the best score outside these two.
3. ``_refine``: decides in float64 among the codewords of these groups. Rows where a codeword outside of them may be
   nearer, given the bound on the error of the scores, are listed.
4. ``_collect``: for the listed rows all groups within the bound; ``_settle`` decides among them in float64, or among
   all codewords where they are too many (a codebook of duplicates).

Nothing is read back to the host, so a search can be captured in a CUDA graph.
"""

# Kernels are written in Triton's language: their arguments are pointers, integers and compile-time constants.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

# Scaled latents and codewords have their largest element in [2^6, 2^7): there float16 reaches 30 bits down before its
# smallest number, and squared norms stay far from its largest.
SCALE = tl.constexpr(6)
# Columns beside those of the codeword: a float32 bias as the sum of three float16, and what makes all scores positive.
BIAS_COLUMNS = tl.constexpr(4)
# Exponent of the codebook's side of the last of them.
OFFSET = tl.constexpr(10)
# Columns of the block that carries the bias where the main block has no room: the least that a tensor core multiplies.
EXTRA_COLUMNS = tl.constexpr(16)
# Head of the workspace of one codebook, float32: largest element and penalty; after scaling the largest squared norm of
# a codeword, of what float16 loses of it, of its low half, and the largest bias; the number of listed rows (int32);
# from MEAN on the centre [D].
RANGE, PENALTY_RANGE, NORM, LOSS, LOW, BIAS, LISTED, MEAN = (tl.constexpr(i) for i in range(8))
# The centre is the mean of so many codewords: any vector would do, and this one costs nothing.
SAMPLE = tl.constexpr(64)
# Partial results of each row, int32 or the bits of float32: the slack, then for each split the best group and its
# score, the second best and its score, and the best score outside of the two.
FIELDS = tl.constexpr(5)
# Candidates of a listed row: their number, then the groups.
CANDIDATES = tl.constexpr(16)
BIG = tl.constexpr(2**31 - 1)
INFINITE = tl.constexpr(0x7F800000)  # the bits of an infinite float32


@triton.jit
def _exponent(x):
    """floor(log2(x)) of a positive float32 as int32; -127 for zero and subnormal numbers."""
    return ((x.to(tl.int32, bitcast=True) >> 23) & 255) - 127


@triton.jit
def _power(e):
    """2^e as float32, exact, for e in -126..127 (clamped)."""
    return ((tl.minimum(tl.maximum(e, -126), 127) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _codebook_exponent(head_ptr, PENALTY: tl.constexpr):
    """Exponent of the power of two that scales the codebook."""
    e = -_exponent(tl.load(head_ptr + RANGE)) + SCALE  # Triton 3.8's interpreter cannot subtract from a constant
    if PENALTY:  # penalty * scale^2 stays below 2^28
        e = tl.minimum(e, (26 - _exponent(tl.load(head_ptr + PENALTY_RANGE))) >> 1)
    return tl.minimum(tl.maximum(e, -60), 60)


@triton.jit
def _centred(x_ptr, mean_ptr, offset, d, mask, CENTRE: tl.constexpr):
    """Block of float32 elements ``x[offset] - mean[d]``."""
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    if CENTRE:
        x = x - tl.load(mean_ptr + d, mask=mask, other=0.0)
    return x


@triton.jit
def _codebook_range(
    codebook_ptr, penalty_ptr, head_ptr,
    N, stride_g, stride_n, stride_d,
    D: tl.constexpr, CENTRE: tl.constexpr, PENALTY: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The centre of the codebook and the largest elements after centring."""
    g = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    codebook_ptr += g.to(tl.int64) * stride_g
    head_ptr += g * (MEAN + D)
    sample = (tl.arange(0, SAMPLE).to(tl.int64) * N // SAMPLE)[:, None]  # [SAMPLE, 1]
    largest = tl.zeros([BLOCK_N], tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)[None, :]  # [1, BLOCK_D]
        c = tl.load(
            codebook_ptr + n[:, None].to(tl.int64) * stride_n + d * stride_d,
            mask=(n[:, None] < N) & (d < D), other=0.0,
        ).to(tl.float32)  # fmt: skip
        if CENTRE:
            s = tl.load(codebook_ptr + sample * stride_n + d * stride_d, mask=(d < D) & (sample < N), other=0.0)
            s = s.to(tl.float32) * (1.0 / SAMPLE)
            mean = tl.sum(tl.where(tl.abs(s) < 2.0**100, s, 0.0), 0)[None, :]  # [1, BLOCK_D]
            if tl.program_id(0) == 0:
                tl.store(head_ptr + MEAN + d, mean, mask=d < D)
            c = c - mean
        c = tl.abs(c)
        largest = tl.maximum(largest, tl.max(c, 1))
        total += tl.sum(c * 2.0**-20, 1)  # infinite or NaN if an element is, and else finite
    finite = (total < float("inf")) & (n < N)
    tl.atomic_max(head_ptr + RANGE, tl.max(tl.where(finite, largest, 0.0), 0))
    if PENALTY:
        p = tl.abs(tl.load(penalty_ptr + g * N + n, mask=n < N, other=0.0))
        tl.atomic_max(head_ptr + PENALTY_RANGE, tl.max(tl.where(p < float("inf"), p, 0.0), 0))


@triton.jit
def _codebook_operand(
    codebook_ptr, penalty_ptr, head_ptr, operand_ptr,
    N, n_padded, stride_g, stride_n, stride_d, shift,
    D: tl.constexpr, DOT: tl.constexpr, CENTRE: tl.constexpr, PENALTY: tl.constexpr,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr, BIAS_AT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Codewords as one side of the product: ``operand [n_padded, COLUMNS]`` float16.

    Columns ``part * D + d`` hold -high, -high, -low (or -high alone); from ``BIAS_AT`` on three parts of the bias, and
    the offset. A codeword that is not finite, and what pads the codebook, gets an infinite bias.
    """
    g = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    codebook_ptr += g.to(tl.int64) * stride_g
    head_ptr += g * (MEAN + D)
    row = n[:, None].to(tl.int64)
    scale = _power(_codebook_exponent(head_ptr, PENALTY))
    norm = tl.zeros([BLOCK_N], tl.float32)
    loss = tl.zeros([BLOCK_N], tl.float32)
    low = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)[None, :]
        used = (n[:, None] < N) & (d < D)
        c = scale * _centred(codebook_ptr, head_ptr + MEAN, row * stride_n + d * stride_d, d, used, CENTRE)
        more_norm, more_loss, more_low = _split_norms(c, PARTS)
        norm += more_norm
        loss += more_loss
        low += more_low
    finite = (norm < float("inf")) & (n < N)
    bias = norm * 0.5
    if DOT:
        bias = bias * 0.0
    if PENALTY:
        penalty = tl.load(penalty_ptr + g * N + n, mask=n < N, other=0.0)
        finite = finite & (tl.abs(penalty) < float("inf"))
        bias += (penalty * scale) * (scale * 0.5)
    tl.atomic_max(head_ptr + NORM, tl.max(tl.where(finite, norm, 0.0), 0))
    tl.atomic_max(head_ptr + LOSS, tl.max(tl.where(finite, loss, 0.0), 0))
    tl.atomic_max(head_ptr + LOW, tl.max(tl.where(finite, low, 0.0), 0))
    tl.atomic_max(head_ptr + BIAS, tl.max(tl.where(finite, tl.abs(bias), 0.0), 0))
    bias = tl.where(finite, bias * _power(-shift), float("inf"))
    first = bias.to(tl.float16)
    rest = tl.where(finite, bias - first.to(tl.float32), 0.0)
    second = rest.to(tl.float16)
    third = (rest - second.to(tl.float32)).to(tl.float16)

    operand_ptr += g.to(tl.int64) * n_padded * COLUMNS
    for column in range(0, COLUMNS, 16):
        k = column + tl.arange(0, 16)[None, :]  # [1, 16]
        taken = finite[:, None] & (k < PARTS * D)
        element = scale * _centred(
            codebook_ptr, head_ptr + MEAN, row * stride_n + (k % D) * stride_d, k % D, taken, CENTRE
        )
        high = element.to(tl.float16)
        value = -tl.where(k // D == 2, (element - high.to(tl.float32)).to(tl.float16), high)
        value = tl.where(taken, value, 0.0)
        value = tl.where(k == BIAS_AT, first[:, None], value)
        value = tl.where(k == BIAS_AT + 1, second[:, None], value)
        value = tl.where(k == BIAS_AT + 2, third[:, None], value)
        value = tl.where(k == BIAS_AT + 3, 2.0**OFFSET, value)
        tl.store(operand_ptr + row * COLUMNS + k, value.to(tl.float16))


@triton.jit
def _split_norms(x, PARTS: tl.constexpr):
    """Squared norms of the rows of ``x [R, C]``: (all, what float16 loses, the low half), ``[R]`` each."""
    norm = tl.sum(x * x, 1)
    left = x - x.to(tl.float16).to(tl.float32)
    low = tl.zeros_like(norm)
    if PARTS == 3:
        half = left.to(tl.float16).to(tl.float32)
        low = tl.sum(half * half, 1)
        left = left - half
    return norm, tl.sum(left * left, 1), low


@triton.jit
def _latent_scales(
    z_ptr, head_ptr, offset_m, mask_m, stride_d, shift,
    D: tl.constexpr, CENTRE: tl.constexpr, PENALTY: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scales of a block of rows, ``[BLOCK_M]`` each, and by how much the scores of two codewords may be wrong.

    Returns (mask of the finite rows, scale of the row, scale of the bias column, of the offset column, slack, the first
    BLOCK_D elements of the scaled rows).
    The slack is twice the bound on the error of one score (NEAREST.md, section 3); infinite if float16 cannot hold the
    scales, -1 for a row that is not finite.
    """
    d = tl.arange(0, BLOCK_D)[None, :]  # [1, BLOCK_D]
    first = _centred(
        z_ptr, head_ptr + MEAN, offset_m[:, None] + d * stride_d, d, mask_m[:, None] & (d < D), CENTRE
    )  # all there is, if D <= BLOCK_D
    largest = tl.max(tl.abs(first), 1)
    for start in range(BLOCK_D, D, BLOCK_D):
        used = mask_m[:, None] & (d < D - start)
        offset = offset_m[:, None] + (d + start) * stride_d
        z = _centred(z_ptr, head_ptr + MEAN, offset, d + start, used, CENTRE)
        largest = tl.maximum(largest, tl.max(tl.abs(z), 1))
    # The row's largest element, or the codebook's if that is larger, comes to [2^SCALE, 2^(SCALE + 1)).
    codebook_e = _codebook_exponent(head_ptr, PENALTY)
    row_e = tl.minimum(-_exponent(largest) + SCALE, codebook_e)
    scale = _power(row_e)
    inside = row_e - codebook_e + shift >= -24  # float16 can hold it

    first = first * scale[:, None]
    norm, loss, low = _split_norms(first, PARTS)
    for start in range(BLOCK_D, D, BLOCK_D):
        used = mask_m[:, None] & (d < D - start)
        offset = offset_m[:, None] + (d + start) * stride_d
        z = scale[:, None] * _centred(z_ptr, head_ptr + MEAN, offset, d + start, used, CENTRE)
        more_norm, more_loss, more_low = _split_norms(z, PARTS)
        norm += more_norm
        loss += more_loss
        low += more_low
    finite = norm < float("inf")  # scaled, a finite row has a finite norm
    first = tl.where(finite[:, None], first, 0.0)
    bias_scale = tl.where(inside & finite, _power(row_e - codebook_e + shift), 1.0)
    norm = tl.sqrt(norm)
    c_norm = tl.sqrt(tl.load(head_ptr + NORM))
    error = tl.sqrt(loss) * c_norm + norm * tl.sqrt(tl.load(head_ptr + LOSS))
    if PARTS == 3:
        error += tl.sqrt(low) * tl.sqrt(tl.load(head_ptr + LOW))
    # 2^lift_e is more than any score: added to all, they are positive, and ordered as the integers of the same bits.
    most = norm * c_norm + _power(row_e - codebook_e) * tl.load(head_ptr + BIAS)
    lift_e = tl.maximum(_exponent(most * 1.001) + 1 - OFFSET, -14)
    error += (COLUMNS + max(32, COLUMNS // 9)) * 2.0**-23 * (most + _power(lift_e + OFFSET))
    slack = tl.where(inside, error * 2.002, float("inf"))
    return finite & mask_m, scale, bias_scale, _power(lift_e), tl.where(finite, slack, -1.0), first


@triton.jit
def _latent_columns(
    z_ptr, head_ptr, offset_m, mask_m, stride_d, scale, bias_scale, lift, start,
    D: tl.constexpr, CENTRE: tl.constexpr, PARTS: tl.constexpr, BIAS_AT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Columns ``start .. start + WIDTH`` of the latents' side of the product: high, low, high; then the scales."""
    k = start + tl.arange(0, WIDTH)[None, :]  # [1, WIDTH]
    used = mask_m[:, None] & (k < PARTS * D)
    offset = offset_m[:, None] + (k % D) * stride_d
    z = _centred(z_ptr, head_ptr + MEAN, offset, k % D, used, CENTRE) * scale[:, None]
    high = z.to(tl.float16)
    value = high
    if PARTS == 3:
        value = tl.where(k // D == 1, (z - high.to(tl.float32)).to(tl.float16), high)
    value = tl.where(used, value, 0.0)
    value = tl.where((k >= BIAS_AT) & (k < BIAS_AT + 3), bias_scale[:, None], value)
    return tl.where(k == BIAS_AT + 3, lift[:, None], value).to(tl.float16)  # [BLOCK_M, WIDTH]


@triton.jit
def _latent_operand(
    first, z_ptr, head_ptr, offset_m, mask_m, stride_d, scale, bias_scale, lift,
    D: tl.constexpr, CENTRE: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, BIAS_AT: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, CODEWORDS_FIRST: tl.constexpr,
):  # fmt: skip
    """The latents' side of the product, whole: the block of BLOCK_K columns and the extra block."""
    if PARTS == 1 and BLOCK_K == BLOCK_D and COLUMNS > BLOCK_K:
        a = first.to(tl.float16)
    else:
        a = _latent_columns(
            z_ptr, head_ptr, offset_m, mask_m, stride_d, scale, bias_scale, lift, 0,
            D, CENTRE, PARTS, BIAS_AT, BLOCK_K,
        )  # fmt: skip
    a_extra = _latent_columns(
        z_ptr, head_ptr, offset_m, mask_m, stride_d, scale, bias_scale, lift, BLOCK_K,
        D, CENTRE, PARTS, BIAS_AT, EXTRA_COLUMNS,
    )  # fmt: skip
    if CODEWORDS_FIRST:
        a = tl.trans(a)
        a_extra = tl.trans(a_extra)
    return a, a_extra


@triton.jit
def _tile_pointers(
    operand_ptr, tile, COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    CODEWORDS_FIRST: tl.constexpr,
):  # fmt: skip
    """Pointers to the block of BLOCK_K columns and to the extra block of a tile of codewords."""
    operand_ptr += tile.to(tl.int64) * (BLOCK_N * COLUMNS)
    n = tl.arange(0, BLOCK_N) * COLUMNS
    k = tl.arange(0, BLOCK_K)
    k_extra = BLOCK_K + tl.arange(0, EXTRA_COLUMNS)
    if CODEWORDS_FIRST:
        block_ptr = operand_ptr + n[:, None] + k[None, :]  # [BLOCK_N, BLOCK_K]
        extra_ptr = operand_ptr + n[:, None] + k_extra[None, :]
    else:
        block_ptr = operand_ptr + n[None, :] + k[:, None]  # [BLOCK_K, BLOCK_N]
        extra_ptr = operand_ptr + n[None, :] + k_extra[:, None]
    return block_ptr, extra_ptr


@triton.jit
def _tile_scores(a, a_extra, block_ptr, extra_ptr, EXTRA: tl.constexpr, CODEWORDS_FIRST: tl.constexpr):
    """Scores of a tile: ``[BLOCK_M, BLOCK_N]``, or ``[BLOCK_N, BLOCK_M]`` if codewords come first."""
    if CODEWORDS_FIRST:
        score = tl.dot(tl.load(block_ptr), a)
        if EXTRA:
            score = tl.dot(tl.load(extra_ptr), a_extra, score)
    else:
        score = tl.dot(a, tl.load(block_ptr))
        if EXTRA:
            score = tl.dot(a_extra, tl.load(extra_ptr), score)
    return score


@triton.jit
def _wide_tile_scores(
    z_ptr, head_ptr, offset_m, mask_m, stride_d, scale, bias_scale, lift, block_ptr,
    D: tl.constexpr, CENTRE: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, BIAS_AT: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scores ``[BLOCK_M, BLOCK_N]`` of a tile with more columns than fit at once: latents are read for each tile."""
    score = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for column in range(0, COLUMNS, BLOCK_K):
        a = _latent_columns(
            z_ptr, head_ptr, offset_m, mask_m, stride_d, scale, bias_scale, lift, column,
            D, CENTRE, PARTS, BIAS_AT, BLOCK_K,
        )  # fmt: skip
        score = tl.dot(a, tl.load(block_ptr + column), score)
    return score


@triton.jit
def _group_minimum(score, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Smallest score of each group of codewords, as int32: ``[BLOCK_M, BLOCK_N]`` to ``[BLOCK_M, SLOTS]``.

    A group of 8 is what one thread of the tensor cores' layout holds of a row of latents, so the minimum is taken
    within a thread; see ``_group_codeword``. It is a chain, not a tree: two integer steps of a chain are one
    instruction on Hopper. Groups of 1 leave the scores as they are, whichever side comes first.
    """
    SLOTS: tl.constexpr = BLOCK_N // GROUP
    score = score.to(tl.int32, bitcast=True)
    if GROUP == 1:
        low = score
    else:
        x, y = tl.split(tl.reshape(score, [BLOCK_M, SLOTS // 4, 4, 4, 2]))  # [BLOCK_M, SLOTS // 4, 4, 4]
        x = tl.reshape(tl.permute(x, [0, 1, 3, 2]), [BLOCK_M, SLOTS // 4, 4, 2, 2])
        y = tl.reshape(tl.permute(y, [0, 1, 3, 2]), [BLOCK_M, SLOTS // 4, 4, 2, 2])
        a, b = tl.split(x)
        c, d = tl.split(y)
        a, e = tl.split(a)
        b, f = tl.split(b)
        c, g = tl.split(c)
        d, h = tl.split(d)
        low = tl.minimum(tl.minimum(tl.minimum(tl.minimum(a, b), c), d), e)
        low = tl.reshape(tl.minimum(tl.minimum(tl.minimum(low, f), g), h), [BLOCK_M, SLOTS])
    return low


@triton.jit
def _group_codeword(group, i, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Codeword ``i`` of each group, ``[R]`` int32. A group is a tile's number times SLOTS plus the slot in it.

    A slot of a group of 8 is a lane and a block of columns: it holds columns ``8 j + 2 lane + {0, 1}`` for four j.
    """
    SLOTS: tl.constexpr = BLOCK_N // GROUP
    n = group
    if GROUP > 1:
        slot = group % SLOTS
        n = group // SLOTS * BLOCK_N + slot // 4 * (4 * GROUP) + i // 2 * 8 + slot % 4 * 2 + i % 2
    return n


@triton.jit
def _add_products(total, z_ptr, codebook_ptr, mask, DOT: tl.constexpr):
    """float64 terms of distances, or of negative inner products, added to ``total [R, C]``."""
    z = tl.load(z_ptr, mask=mask, other=0.0).to(tl.float64)
    c = tl.load(codebook_ptr, mask=mask, other=0.0).to(tl.float64)
    if DOT:
        total -= z * c
    else:
        total += (z - c) * (z - c)
    return total


@triton.jit
def _decide(
    best, index, z_ptr, codebook_ptr, penalty_ptr, offset_m, n, used, stride_zd, stride_cn, stride_cd,
    D: tl.constexpr, DOT: tl.constexpr, PENALTY: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The nearer of codeword ``n [R]`` (where ``used``) and what was found before: (score, index), ``[R]``.

    float64; the smaller index of two equal scores; scores that are not finite count as infinite.
    """
    d = tl.arange(0, BLOCK_D)[None, :]  # [1, BLOCK_D]
    z_ptr += offset_m[:, None] + d * stride_zd  # [R, BLOCK_D]
    codebook_ptr += n[:, None].to(tl.int64) * stride_cn + d * stride_cd
    total = tl.zeros([n.shape[0], BLOCK_D], tl.float64)
    if D <= 8 * BLOCK_D:  # unrolled, so that more loads are on their way
        for start in tl.static_range(0, D, BLOCK_D):
            total = _add_products(
                total, z_ptr + start * stride_zd, codebook_ptr + start * stride_cd, used[:, None] & (d < D - start), DOT
            )
    else:
        for start in range(0, D, BLOCK_D):
            total = _add_products(
                total, z_ptr + start * stride_zd, codebook_ptr + start * stride_cd, used[:, None] & (d < D - start), DOT
            )
    score = tl.sum(total, 1)
    if PENALTY:
        score += tl.load(penalty_ptr + n, mask=used, other=0.0).to(tl.float64)
    score = tl.where(used & (tl.abs(score) < float("inf")), score, float("inf"))
    better = used & ((score < best) | ((score == best) & (n < index)))
    return tl.where(better, score, best), tl.where(better, n, index)


@triton.jit
def _decide_group(
    best, index, group, wanted, z_ptr, codebook_ptr, penalty_ptr, offset_m, N, stride_zd, stride_cn, stride_cd,
    D: tl.constexpr, DOT: tl.constexpr, PENALTY: tl.constexpr, EXACT_D: tl.constexpr,
    BLOCK_N: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """:func:`_decide` for all codewords of ``group [R]`` (where ``wanted``)."""
    for i in tl.static_range(GROUP):
        n = _group_codeword(group, i, BLOCK_N, GROUP)
        best, index = _decide(
            best, index, z_ptr, codebook_ptr, penalty_ptr, offset_m, n, wanted & (n < N),
            stride_zd, stride_cn, stride_cd, D, DOT, PENALTY, EXACT_D,
        )  # fmt: skip
    return best, index


@triton.jit
def _conclude(still_open, threshold, index, m, mask, g, head_ptr, listed_ptr, candidates_ptr, index_ptr, M, N, room):
    """Writes the index of the rows, and lists those that are still open; ``head_ptr`` points to the head of ``g``."""
    tl.store(index_ptr + g.to(tl.int64) * M + m, tl.where(index < N, index, 0).to(tl.int64), mask=mask)
    opened = still_open.to(tl.int32)
    total = tl.sum(opened, 0)
    if total > 0:
        place = tl.atomic_add((head_ptr + LISTED).to(tl.pointer_type(tl.int32)), total) + tl.cumsum(opened, 0) - opened
        at = g.to(tl.int64) * 2 * M + place
        tl.store(listed_ptr + at, m, mask=still_open)
        tl.store(listed_ptr + at + M, threshold.to(tl.int32, bitcast=True), mask=still_open)
        # Where the bound says nothing all codewords are candidates: as good as too many.
        found = tl.where(threshold < float("inf"), 0, CANDIDATES)
        tl.store(candidates_ptr + (g.to(tl.int64) * room + place) * CANDIDATES, found, mask=still_open & (place < room))


@triton.jit
def _search(
    z_ptr, head_ptr, operand_ptr, partial_ptr,
    M, tiles, tiles_per_split, stride_g, stride_m, stride_d, shift,
    D: tl.constexpr, CENTRE: tl.constexpr, PENALTY: tl.constexpr,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr, BIAS_AT: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr, CODEWORDS_FIRST: tl.constexpr,
):  # fmt: skip
    """The two best groups of codewords for each row, among the tiles of one split.

    A tile is BLOCK_N consecutive codewords. Its scores are reduced to SLOTS groups of GROUP codewords. Each slot
    remembers its best group and the score of its second best, from tile to tile.
    """
    SLOTS: tl.constexpr = BLOCK_N // GROUP
    g = tl.program_id(2)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    z_ptr += g.to(tl.int64) * stride_g
    head_ptr += g * (MEAN + D)
    offset_m = m.to(tl.int64) * stride_m
    mask_m, scale, bias_scale, lift, slack, first = _latent_scales(
        z_ptr, head_ptr, offset_m, m < M, stride_d, shift, D, CENTRE, PENALTY, PARTS, COLUMNS, BLOCK_M, BLOCK_D
    )
    partial_ptr += g.to(tl.int64) * M * (1 + FIELDS * splits)
    if split == 0:
        tl.store(partial_ptr + m, slack.to(tl.int32, bitcast=True), mask=m < M)

    first_tile = split * tiles_per_split
    last_tile = tl.minimum(first_tile + tiles_per_split, tiles)
    operand_ptr += g.to(tl.int64) * tiles * (BLOCK_N * COLUMNS)
    WHOLE: tl.constexpr = COLUMNS - BLOCK_K <= EXTRA_COLUMNS  # all columns in one block, or in one and the extra block
    EXTRA: tl.constexpr = WHOLE and COLUMNS > BLOCK_K
    SLOT_AXIS: tl.constexpr = 0 if CODEWORDS_FIRST else 1
    if CODEWORDS_FIRST:
        slots = tl.arange(0, SLOTS)[:, None]
        best = tl.full([SLOTS, BLOCK_M], INFINITE, tl.int32)
        second = tl.full([SLOTS, BLOCK_M], INFINITE, tl.int32)
        tile = tl.zeros([SLOTS, BLOCK_M], tl.int32)
    else:
        slots = tl.arange(0, SLOTS)[None, :]
        best = tl.full([BLOCK_M, SLOTS], INFINITE, tl.int32)
        second = tl.full([BLOCK_M, SLOTS], INFINITE, tl.int32)
        tile = tl.zeros([BLOCK_M, SLOTS], tl.int32)
    if WHOLE:
        a, a_extra = _latent_operand(
            first, z_ptr, head_ptr, offset_m, mask_m, stride_d, scale, bias_scale, lift,
            D, CENTRE, PARTS, COLUMNS, BIAS_AT, BLOCK_K, BLOCK_D, CODEWORDS_FIRST,
        )  # fmt: skip
    block_ptr, extra_ptr = _tile_pointers(operand_ptr, first_tile, COLUMNS, BLOCK_N, BLOCK_K, CODEWORDS_FIRST)
    for j in range(first_tile, last_tile):
        if WHOLE:
            score = _tile_scores(a, a_extra, block_ptr, extra_ptr, EXTRA, CODEWORDS_FIRST)
        else:
            score = _wide_tile_scores(
                z_ptr, head_ptr, offset_m, mask_m, stride_d, scale, bias_scale, lift, block_ptr,
                D, CENTRE, PARTS, COLUMNS, BIAS_AT, BLOCK_K, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        block_ptr += BLOCK_N * COLUMNS
        extra_ptr += BLOCK_N * COLUMNS
        low = _group_minimum(score, BLOCK_M, BLOCK_N, GROUP)
        second = tl.minimum(second, tl.maximum(best, low))
        tile = tl.where(low < best, j, tile)
        best = tl.minimum(best, low)

    group = tile * SLOTS + slots
    winner = tl.min(best, SLOT_AXIS)  # [BLOCK_M]
    first_group = tl.min(tl.where(best == tl.expand_dims(winner, SLOT_AXIS), group, BIG), SLOT_AXIS)
    others = tl.where(group == tl.expand_dims(first_group, SLOT_AXIS), INFINITE, best)
    runner_up = tl.min(others, SLOT_AXIS)
    second_group = tl.min(tl.where(others == tl.expand_dims(runner_up, SLOT_AXIS), group, BIG), SLOT_AXIS)
    others = tl.where(group == tl.expand_dims(second_group, SLOT_AXIS), INFINITE, others)
    rest = tl.min(tl.minimum(second, others), SLOT_AXIS)
    partial_ptr += M + split.to(tl.int64) * M * FIELDS + m
    tl.store(partial_ptr, first_group, mask=m < M)
    tl.store(partial_ptr + M, winner, mask=m < M)
    tl.store(partial_ptr + 2 * M, second_group, mask=m < M)
    tl.store(partial_ptr + 3 * M, runner_up, mask=m < M)
    tl.store(partial_ptr + 4 * M, rest, mask=m < M)


@triton.jit
def _refine(
    z_ptr, codebook_ptr, penalty_ptr, head_ptr, partial_ptr, listed_ptr, candidates_ptr, index_ptr,
    M, N, splits, room, stride_zg, stride_zm, stride_zd, stride_cg, stride_cn, stride_cd,
    D: tl.constexpr, DOT: tl.constexpr, PENALTY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EXACT_D: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Decides among the codewords of the best groups; lists the rows where that is not enough."""
    g = tl.program_id(1)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    mask = m < M
    z_ptr += g.to(tl.int64) * stride_zg
    codebook_ptr += g.to(tl.int64) * stride_cg
    penalty_ptr += g * N
    head_ptr += g * (MEAN + D)
    offset_m = tl.minimum(m, M - 1).to(tl.int64) * stride_zm
    partial_ptr += g.to(tl.int64) * M * (1 + FIELDS * splits) + m
    slack = tl.load(partial_ptr, mask=mask, other=0).to(tl.float32, bitcast=True)
    finite = mask & (slack >= 0)
    split_ptr = partial_ptr + M
    winner = tl.full([BLOCK_M], INFINITE, tl.int32)
    rest = tl.full([BLOCK_M], INFINITE, tl.int32)
    first = tl.zeros([BLOCK_M], tl.int32)  # the group of the winner
    for _ in range(splits):
        value = tl.load(split_ptr + M, mask=mask, other=INFINITE)
        first = tl.where(value < winner, tl.load(split_ptr, mask=mask, other=0), first)
        rest = tl.minimum(rest, tl.load(split_ptr + 4 * M, mask=mask, other=INFINITE))
        winner = tl.minimum(winner, value)
        split_ptr += FIELDS * M
    threshold = winner.to(tl.float32, bitcast=True) + slack
    still_open = finite & ~(rest.to(tl.float32, bitcast=True) > threshold)
    contested = finite & ~still_open

    best = tl.full([BLOCK_M], float("inf"), tl.float64)
    index = tl.full([BLOCK_M], BIG, tl.int32)
    if GROUP == 1:  # one codeword within the bound is the answer, and no latents need be read
        split_ptr = partial_ptr + M
        candidates = tl.zeros([BLOCK_M], tl.int32)
        for _ in range(splits):
            for field in tl.static_range(0, 4, 2):
                value = tl.load(split_ptr + (field + 1) * M, mask=mask, other=INFINITE).to(tl.float32, bitcast=True)
                candidates += (value <= threshold).to(tl.int32)
            split_ptr += FIELDS * M
        index = tl.where(contested & (candidates == 1), first, index)
        contested = contested & (candidates > 1)
    split_ptr = partial_ptr + M
    for _ in range(splits):
        for field in tl.static_range(0, 4, 2):
            value = tl.load(split_ptr + (field + 1) * M, mask=mask, other=INFINITE).to(tl.float32, bitcast=True)
            wanted = contested & (value <= threshold)
            if tl.max(wanted.to(tl.int32), 0) > 0:
                group = tl.load(split_ptr + field * M, mask=wanted, other=0)
                best, index = _decide_group(
                    best, index, group, wanted,
                    z_ptr, codebook_ptr, penalty_ptr, offset_m, N, stride_zd, stride_cn, stride_cd,
                    D, DOT, PENALTY, EXACT_D, BLOCK_N, GROUP,
                )  # fmt: skip
        split_ptr += FIELDS * M
    _conclude(still_open, threshold, index, m, mask, g, head_ptr, listed_ptr, candidates_ptr, index_ptr, M, N, room)


@triton.jit
def _collect(
    z_ptr, head_ptr, operand_ptr, listed_ptr, candidates_ptr,
    M, tiles, tiles_per_chunk, room, stride_g, stride_m, stride_d, shift,
    D: tl.constexpr, CENTRE: tl.constexpr, PENALTY: tl.constexpr,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr, BIAS_AT: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr, CODEWORDS_FIRST: tl.constexpr,
):  # fmt: skip
    """All groups within the bound, for the listed rows. A task is a block of rows and a chunk of the tiles."""
    SLOTS: tl.constexpr = BLOCK_N // GROUP
    WHOLE: tl.constexpr = COLUMNS - BLOCK_K <= EXTRA_COLUMNS
    EXTRA: tl.constexpr = WHOLE and COLUMNS > BLOCK_K
    g = tl.program_id(1)
    z_ptr += g.to(tl.int64) * stride_g
    head_ptr += g * (MEAN + D)
    operand_ptr += g.to(tl.int64) * tiles * (BLOCK_N * COLUMNS)
    listed_ptr += g.to(tl.int64) * 2 * M
    candidates_ptr += g.to(tl.int64) * room * CANDIDATES
    count = tl.minimum(tl.load((head_ptr + LISTED).to(tl.pointer_type(tl.int32))), room)
    chunks = tl.cdiv(tiles, tiles_per_chunk)
    for task in range(tl.program_id(0), tl.cdiv(count, BLOCK_M) * chunks, tl.num_programs(0)):
        position = task // chunks * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = position < count
        m = tl.load(listed_ptr + position, mask=mask, other=0)
        threshold = tl.load(listed_ptr + M + position, mask=mask, other=0).to(tl.float32, bitcast=True)
        mask = mask & (threshold < float("inf"))
        offset_m = m.to(tl.int64) * stride_m
        mask_m, scale, bias_scale, lift, _, first = _latent_scales(
            z_ptr, head_ptr, offset_m, mask, stride_d, shift, D, CENTRE, PENALTY, PARTS, COLUMNS, BLOCK_M, BLOCK_D
        )
        if WHOLE:
            a, a_extra = _latent_operand(
                first, z_ptr, head_ptr, offset_m, mask_m, stride_d, scale, bias_scale, lift,
                D, CENTRE, PARTS, COLUMNS, BIAS_AT, BLOCK_K, BLOCK_D, CODEWORDS_FIRST,
            )  # fmt: skip
        first_tile = task % chunks * tiles_per_chunk
        block_ptr, extra_ptr = _tile_pointers(operand_ptr, first_tile, COLUMNS, BLOCK_N, BLOCK_K, CODEWORDS_FIRST)
        for j in range(first_tile, tl.minimum(first_tile + tiles_per_chunk, tiles)):
            if WHOLE:
                score = _tile_scores(a, a_extra, block_ptr, extra_ptr, EXTRA, CODEWORDS_FIRST)
            else:
                score = _wide_tile_scores(
                    z_ptr, head_ptr, offset_m, mask_m, stride_d, scale, bias_scale, lift, block_ptr,
                    D, CENTRE, PARTS, COLUMNS, BIAS_AT, BLOCK_K, BLOCK_M, BLOCK_N,
                )  # fmt: skip
            block_ptr += BLOCK_N * COLUMNS
            extra_ptr += BLOCK_N * COLUMNS
            low = _group_minimum(score, BLOCK_M, BLOCK_N, GROUP)
            if CODEWORDS_FIRST:
                low = tl.trans(low)  # [BLOCK_M, SLOTS]
            hit = (low.to(tl.float32, bitcast=True) <= threshold[:, None]) & mask[:, None]
            if tl.max(tl.max(hit.to(tl.int32), 1), 0) > 0:
                row_ptr = candidates_ptr + position[:, None].to(tl.int64) * CANDIDATES + tl.zeros_like(low)
                place = 1 + tl.atomic_add(row_ptr, 1, mask=hit)
                group = j * SLOTS + tl.arange(0, SLOTS)[None, :] + tl.zeros_like(low)
                tl.store(row_ptr + place, group, mask=hit & (place < CANDIDATES))


@triton.jit
def _settle(
    z_ptr, codebook_ptr, penalty_ptr, head_ptr, listed_ptr, candidates_ptr, index_ptr,
    M, N, room, stride_zg, stride_zm, stride_zd, stride_cg, stride_cn, stride_cd,
    D: tl.constexpr, DOT: tl.constexpr, PENALTY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EXACT_D: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Decides the listed rows: among their candidates, or among all codewords if there are too many."""
    g = tl.program_id(1)
    count = tl.load((head_ptr + g * (MEAN + D) + LISTED).to(tl.pointer_type(tl.int32)))
    z_ptr += g.to(tl.int64) * stride_zg
    codebook_ptr += g.to(tl.int64) * stride_cg
    penalty_ptr += g * N
    listed_ptr += g.to(tl.int64) * 2 * M
    candidates_ptr += g.to(tl.int64) * room * CANDIDATES
    for task in range(tl.program_id(0), tl.cdiv(count, BLOCK_M), tl.num_programs(0)):
        position = task * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = position < count
        m = tl.load(listed_ptr + position, mask=mask, other=0)
        offset_m = m.to(tl.int64) * stride_zm
        row_ptr = candidates_ptr + position.to(tl.int64) * CANDIDATES
        found = tl.load(row_ptr, mask=mask & (position < room), other=CANDIDATES)
        found = tl.where(mask, found, 0)
        overflow = found >= CANDIDATES
        found = tl.where(overflow, 0, found)
        best = tl.full([BLOCK_M], float("inf"), tl.float64)
        index = tl.full([BLOCK_M], BIG, tl.int32)
        for i in range(tl.max(found, 0)):
            wanted = i < found
            group = tl.load(row_ptr + 1 + i, mask=wanted, other=0)
            best, index = _decide_group(
                best, index, group, wanted,
                z_ptr, codebook_ptr, penalty_ptr, offset_m, N, stride_zd, stride_cn, stride_cd,
                D, DOT, PENALTY, EXACT_D, BLOCK_N, GROUP,
            )  # fmt: skip
        if tl.max(overflow.to(tl.int32), 0) > 0:
            for start in range(0, N, 4):
                for member in tl.static_range(4):
                    n = tl.full([BLOCK_M], start + member, tl.int32)
                    best, index = _decide(
                        best, index, z_ptr, codebook_ptr, penalty_ptr, offset_m, n, overflow & (n < N),
                        stride_zd, stride_cn, stride_cd, D, DOT, PENALTY, EXACT_D,
                    )  # fmt: skip
        tl.store(index_ptr + g.to(tl.int64) * M + m, tl.where(index < N, index, 0).to(tl.int64), mask=mask)


@triton.jit
def _subtract(
    z_ptr, codebook_ptr, index_ptr, residual_ptr, M, stride_zm, stride_zd, stride_cn, stride_cd,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]  # [1, BLOCK_D]
    mask = (m < M) & (d < D)
    n = tl.load(index_ptr + m, mask=m < M, other=0)
    m = m.to(tl.int64)
    z = tl.load(z_ptr + m * stride_zm + d * stride_zd, mask=mask).to(tl.float32)
    c = tl.load(codebook_ptr + n * stride_cn + d * stride_cd, mask=mask).to(tl.float32)
    tl.store(residual_ptr + m * D + d, z - c, mask=mask)
