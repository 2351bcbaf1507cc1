"""One tile of the similarity matrix, on the device: products, logits, roles, and the kernels for tiles of any kind.

    acc = X Yᵀ over packed halves      s = acc [· r_i c_j]      t: the logit in log2 units (2^t is one instruction)
    statistics    softmax: per row and column of the tile (max t, sum 2^(t - max)) over negatives;
                  sigmoid: per row the sum of softplus(z)
    coefficients  softmax: g = R_i 2^(t - a_i) + C_j 2^(t - b_j); sigmoid: g = R_i s(z); positives: P_i;
                  distillation: the student's softmax g less the teacher's

Shapes: M rows, N columns, D features (padded); a tile is BLOCK_M x BLOCK_N, a step of its product BLOCK_D. A *strip*
is BLOCK_N columns. Partial results go to memory of their own and are summed in a fixed order: same inputs, same bits.

These kernels take every case, at two exponentials an element and a mask on every load. strips.py has the ones that
large problems spend their time in; what those cannot take comes here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastclip.backends.triton.spec import EMPTY, LN_2, LO_POWER, LOG2_E, Spec

__all__ = ["Spec", "tile_coefficients", "tile_statistics"]


@triton.jit
def product(x, y, logit, row, col, spec: tl.constexpr):
    """Return a tile's products (BLOCK_M, BLOCK_N), fp32: hi hi, or hi lo + lo hi first and hi hi last.

    Where a feature is infinite (logit, see sums.prepare), hi hi alone: infinity times a lo of 0 would be NaN.
    """
    BLOCK_M: tl.constexpr = spec.block_m
    BLOCK_N: tl.constexpr = spec.block_n
    BLOCK_D: tl.constexpr = spec.block_d
    D: tl.constexpr = spec.width
    STEPS: tl.constexpr = D // BLOCK_D
    STRIDE: tl.constexpr = D * spec.halves
    if not spec.tma:
        k = tl.arange(0, BLOCK_D)
        x += (row + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None] * STRIDE + k[None, :]
        y += (col + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None] * STRIDE + k[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    first = 0
    if spec.halves == 2:
        first = tl.where(tl.load(logit + 4) > 0.0, 2 * STEPS, 0)
    for step in range(first, STEPS * (2 * spec.halves - 1)):
        kx = step * BLOCK_D
        ky = kx
        if spec.halves == 2:
            kx = (step % STEPS) * BLOCK_D
            ky = kx + tl.where(step < STEPS, D, 0)
            kx = kx + tl.where((step >= STEPS) & (step < 2 * STEPS), D, 0)
        if spec.tma:
            a = x.load([row, kx])
            b = y.load([col, ky])
        else:
            a = tl.load(x + kx)
            b = tl.load(y + ky)
        acc = tl.dot(a, b.T, acc)
    return acc


@triton.jit
def with_factors(values, rows, cols, place, row_side, col_side, spec: tl.constexpr):
    """Return values times the factors per row and column, where there are any."""
    if spec.factors:
        values *= tl.load(row_side.factor + rows, mask=rows < place.row_end, other=0.0)[:, None]
        values *= tl.load(col_side.factor + cols, mask=cols < place.col_end, other=0.0)[None, :]
    return values


@triton.jit
def logits(s, logit, spec: tl.constexpr):
    """Return logits in log2 units from logit = (c, bias, b, …); the softmax's less b, and without the bias.

    Both are added to the sums' shifts afterwards. The same rounding in every kernel: an error in the exponent of a
    sum's largest term and in that term's coefficient is no error in their ratio. The sigmoid's logits are made in nats
    first: what is near 0 keeps its digits.
    """
    if spec.objective == "softmax":
        return tl.fma(s, tl.load(logit), -tl.load(logit + 2))
    else:
        return tl.fma(s, tl.load(logit), tl.load(logit + 1)) * LOG2_E


@triton.jit
def roles(rows, cols, place, row_side, col_side, spec: tl.constexpr):
    """Return three masks of a tile: entries in the sums, the diagonal's positives, and entries with equal labels."""
    summed = (rows < place.row_end)[:, None] & (cols < place.col_end)[None, :]
    positive = summed
    shared = summed
    if spec.diagonal:
        on = rows[:, None] + place.diagonal == cols[None, :]
        positive = summed & on
        summed = summed & (on == 0)
    if spec.labels:
        row_label = tl.load(row_side.labels + rows, mask=rows < place.row_end, other=0)
        col_label = tl.load(col_side.labels + cols, mask=cols < place.col_end, other=0)
        shared = row_label[:, None] == col_label[None, :]
        if spec.objective != "multi_sigmoid":
            summed = summed & (shared == 0)
    return summed, positive, shared


@triton.jit
def softplus(t):
    """Return log(1 + e^z) in nats for z = t ln 2, to 3 ulp.

    log(1 + u) / u is a polynomial on u in [0, 1] (minimax, relative error 3e-8): the hardware's logarithm is only
    good to 2^-22 absolute near 1, where a negative's whole loss lies.
    """
    u = tl.exp2(-tl.abs(t))
    p = 0.005232691299170256
    p = tl.fma(u, p, -0.029505226761102676)
    p = tl.fma(u, p, 0.07822593301534653)
    p = tl.fma(u, p, -0.13663244247436523)
    p = tl.fma(u, p, 0.19106006622314453)
    p = tl.fma(u, p, -0.2484298199415207)
    p = tl.fma(u, p, 0.3331909775733948)
    p = tl.fma(u, p, -0.4999949336051941)
    p = tl.fma(u, p, 0.9999999403953552)
    return tl.fma(u, p, tl.where(t > 0.0, t * LN_2, 0.0))


@triton.jit
def sigmoid(t):
    """Return 1 / (1 + e^-z) for z = t ln 2."""
    return 1.0 / (1.0 + tl.exp2(-t))  # 0 where 2^-t is infinite


@triton.jit
def permitted(flags, spec: tl.constexpr):
    """Return 1 if a guarded kernel may work, else 0: a decision on the device, which the host need not know."""
    found = 0
    for start in range(0, flags.count, 1024):
        at = start + tl.arange(0, 1024)
        found = tl.maximum(found, tl.max(tl.load(flags.at + at, mask=at < flags.count, other=0), 0))
    if spec.guard == "flagged":
        return tl.where(found > 0, 1, 0)
    else:
        return tl.where(found > 0, 0, 1)


@triton.jit
def marked(marks, tile, strip, place, spec: tl.constexpr):
    """Return whether a tile of the main kernels', counted from the block's first, has equal labels off the diagonal."""
    WIDTH: tl.constexpr = spec.edges if spec.edges > 0 else spec.block_n
    row, col = place.row // spec.block_m + tile, place.col // WIDTH + strip
    return tl.load(marks.at + row.to(tl.int64) * marks.stride + col) > 0


@triton.jit
def grouped(tile, tiles_m, tiles_n, spec: tl.constexpr):
    """Return (row of tiles, strip) of the tile-th tile: down `group` rows before going right, for the L2 cache."""
    first = tile // (spec.group * tiles_n) * spec.group
    height = tl.minimum(tiles_m - first, spec.group)
    inside = tile % (spec.group * tiles_n)
    return first + inside % height, inside // height


@triton.jit(do_not_specialize=["place"])
def tile_statistics(x, y, row_side, col_side, logit, row_out, col_out, flags, place, spec: tl.constexpr):
    """Write the statistics of a block's tiles, as many programs as there are sharing them.

    row_out: (shift, sum), each (strips, rows of the block); col_out likewise (rows of tiles, columns of the block).
    """
    BLOCK_M: tl.constexpr = spec.block_m
    BLOCK_N: tl.constexpr = spec.block_n
    height, width = place.row_end - place.row, place.col_end - place.col
    tiles_m, tiles_n = tl.cdiv(height, BLOCK_M), tl.cdiv(width, BLOCK_N)
    tiles = tiles_m * tiles_n
    if spec.guard != "":
        tiles *= permitted(flags, spec)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        pm, strip = grouped(tile, tiles_m, tiles_n, spec)
        row, col = place.row + pm * BLOCK_M, place.col + strip * BLOCK_N
        rows, cols = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
        s = with_factors(product(x, y, logit, row, col, spec), rows, cols, place, row_side, col_side, spec)
        t = logits(s, logit, spec)
        summed, positive, shared = roles(rows, cols, place, row_side, col_side, spec)
        row_at = strip.to(tl.int64) * height + rows - place.row
        if spec.objective == "softmax":
            t = tl.where(summed, t, float("-inf"))
            shift = tl.maximum(tl.max(t, 1), EMPTY)
            tl.store(row_out[0] + row_at, shift, mask=rows < place.row_end)
            tl.store(row_out[1] + row_at, tl.sum(tl.exp2(t - shift[:, None]), 1), mask=rows < place.row_end)
            if spec.columns:
                shift = tl.maximum(tl.max(t, 0), EMPTY)
                col_at = pm.to(tl.int64) * width + cols - place.col
                tl.store(col_out[0] + col_at, shift, mask=cols < place.col_end)
                tl.store(
                    col_out[1] + col_at, tl.sum(tl.exp2(t - shift[None, :]), 0), mask=cols < place.col_end
                )
        else:
            if spec.objective == "multi_sigmoid":
                t = tl.where(shared, -t, t)
            loss = tl.where(summed, softplus(t), 0.0)
            tl.store(row_out[1] + row_at, tl.sum(loss, 1), mask=rows < place.row_end)


@triton.jit
def edges_of(place, spec: tl.constexpr):
    """Return how many tiles (BLOCK_M x EDGES) `edge` looks at before those that may be marked."""
    height, width = place.row_end - place.row, place.col_end - place.col
    ragged = tl.where(height % spec.block_m > 0, tl.cdiv(width, spec.edges), 0)
    return 3 * (height // spec.block_m) + ragged


@triton.jit
def edge(index, tiles_n, place, marks, spec: tl.constexpr):
    """Return (row, column, exists) in the block of the index-th tile that the main coefficient kernel leaves out.

    Of every row of its tiles (BLOCK_M x EDGES) the two that may hold positives and the ragged last one, then all of
    the ragged last row, then all whole tiles, of which those exist that are marked and not on the diagonal.
    """
    BLOCK_M: tl.constexpr = spec.block_m
    EDGES: tl.constexpr = spec.edges
    PARTS: tl.constexpr = EDGES // spec.block_n
    full_m, full_n = (place.row_end - place.row) // BLOCK_M, (place.col_end - place.col) // EDGES
    part = index % PARTS
    index = index // PARTS
    pm, kind = index // 3, index % 3
    first = (
        pm * BLOCK_M + place.row + place.diagonal - place.col
    )  # where in the block the row's first positive is
    strip = tl.where(kind == 2, full_n, tl.maximum(first, 0) // EDGES + kind)
    exists = (kind == 2) & (full_n < tiles_n)
    if spec.diagonal:
        exists = exists | ((kind < 2) & (strip < full_n) & (first + BLOCK_M > strip * EDGES))
    last = index - 3 * full_m
    exists = (exists & (last < 0)) | (last >= 0)
    strip = tl.where(last >= 0, last, strip)
    pm = tl.where(last >= 0, full_m, pm)
    if spec.labels:
        whole = index - edges_of(place, spec)
        if whole >= 0:
            pm, strip = whole // full_n, whole % full_n
            exists = marked(marks, pm, strip, place, spec)
            if spec.diagonal:
                first = pm * BLOCK_M + place.row + place.diagonal - place.col
                exists = exists & ((first >= (strip + 1) * EDGES) | (first + BLOCK_M <= strip * EDGES))
    return pm * BLOCK_M, strip * EDGES + part * spec.block_n, exists


@triton.jit
def softmax_coefficients(t, rows, cols, weights, place, spec: tl.constexpr):
    """Return R_i 2^(t - a_i) + C_j 2^(t - b_j) of a tile."""
    inside_m, inside_n = rows < place.row_end, cols < place.col_end
    factor = tl.load(weights.row_factor + rows, mask=inside_m, other=0.0)[:, None]
    shift = tl.load(weights.row_shift + rows, mask=inside_m, other=0.0)[:, None]
    g = factor * tl.exp2(t - shift)
    if spec.columns:
        factor = tl.load(weights.col_factor + cols, mask=inside_n, other=0.0)[None, :]
        shift = tl.load(weights.col_shift + cols, mask=inside_n, other=0.0)[None, :]
        g += factor * tl.exp2(t - shift)
    return g


@triton.jit(do_not_specialize=["place", "stride", "marks"])
def tile_coefficients(
    x,
    y,
    row_side,
    col_side,
    logit,
    weights,
    teacher,
    marks,
    out,
    totals,
    flags,
    place,
    stride,
    spec: tl.constexpr,
):
    """Write the coefficients of a block's tiles (all, or the edges), as many programs as there are sharing them.

    out: (hi, lo), each (rows of the block, stride), lo None if there is none; times r_i c_j where products need that.
    totals: (sum of G·s, sum of G), one number a program each. With a teacher: (sum of G·s, sum of the teacher's
    coefficients times the student's z), and hi may be None, too.
    """
    BLOCK_M: tl.constexpr = spec.block_m
    BLOCK_N: tl.constexpr = spec.block_n
    TAUGHT: tl.constexpr = spec.teacher
    height, width = place.row_end - place.row, place.col_end - place.col
    tiles_m, tiles_n = tl.cdiv(height, BLOCK_M), tl.cdiv(width, BLOCK_N)
    tiles = tiles_m * tiles_n
    if spec.edges > 0:
        tiles_n = tl.cdiv(width, spec.edges)
        tiles = edges_of(place, spec)
        if spec.labels:
            tiles += (height // BLOCK_M) * (width // spec.edges)
        tiles *= spec.edges // BLOCK_N
    if spec.guard != "":
        tiles *= permitted(flags, spec)
    gs_total = 0.0
    g_total = 0.0
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        if spec.edges > 0:
            row, col, exists = edge(tile, tiles_n, place, marks, spec)
        else:
            pm, strip = grouped(tile, tiles_m, tiles_n, spec)
            row, col, exists = pm * BLOCK_M, strip * BLOCK_N, True
        if exists:
            row, col = place.row + row, place.col + col
            rows, cols = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
            if TAUGHT is not None:  # first: only one of the two products is ever held
                q = product(teacher.x, teacher.y, teacher.logit, row, col, TAUGHT)
                q = with_factors(q, rows, cols, place, teacher.row_side, teacher.col_side, TAUGHT)
                q = logits(q, teacher.logit, TAUGHT)
                q = softmax_coefficients(q, rows, cols, teacher.weights, place, TAUGHT)
            s = with_factors(
                product(x, y, logit, row, col, spec), rows, cols, place, row_side, col_side, spec
            )
            t = logits(s, logit, spec)
            summed, positive, shared = roles(rows, cols, place, row_side, col_side, spec)
            inside_m, inside_n = rows < place.row_end, cols < place.col_end
            if spec.objective == "softmax":
                g = softmax_coefficients(t, rows, cols, weights, place, spec)
            else:
                factor = tl.load(weights.row_factor + rows, mask=inside_m, other=0.0)[:, None]
                if spec.objective == "multi_sigmoid":
                    g = factor * tl.where(shared, -sigmoid(-t), sigmoid(t))
                else:
                    g = factor * sigmoid(t)
            if TAUGHT is not None:
                g -= q
                z = s * (tl.load(logit) * LN_2)
                g_total += tl.sum(tl.sum(tl.where(summed, q * z, 0.0), 1), 0)
            g = tl.where(summed, g, 0.0)
            if spec.diagonal:
                g = tl.where(positive, tl.load(weights.positive + rows, mask=inside_m, other=0.0)[:, None], g)
            gs_total += tl.sum(tl.sum(tl.where(g == 0.0, 0.0, g * s), 1), 0)
            if spec.bias:
                g_total += tl.sum(tl.sum(g, 1), 0)
            g = with_factors(g, rows, cols, place, row_side, col_side, spec)
            at = (rows - place.row).to(tl.int64)[:, None] * stride + (cols - place.col)[None, :]
            inside = inside_m[:, None] & inside_n[None, :]
            if out[0] is not None:
                hi = g.to(out[0].dtype.element_ty)
                tl.store(out[0] + at, hi, mask=inside)
                if spec.halves == 2 and not spec.exact:
                    tl.store(out[1] + at, ((g - hi.to(tl.float32)) * LO_POWER).to(tl.float16), mask=inside)
    tl.store(totals[0] + tl.program_id(0), gs_total)
    tl.store(totals[1] + tl.program_id(0), g_total)
