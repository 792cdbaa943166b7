"""The analytic tile model of a CPU: how large a register tile, from the vector unit and the caches alone.

A register tile of `rows` x `vectors` accumulators needs, for each step along the reduced axis, `vectors` loads of B,
`rows` broadcasts of A and `rows * vectors` multiply-adds. The step takes as many cycles as the loads or the
multiply-adds, whichever are more, and at least the latency of a multiply-add (Goto and van de Geijn, Anatomy of
High-Performance Matrix Multiplication, 2008; Low et al., Analytical Modeling Is Enough for High-Performance BLIS,
2016). `docs/tile-model.md` has the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from tvm import tirx

from backends.cpu.quads import QUAD
from backends.cpu.tables import looked_up
from backends.relax.loops import Expr, known, simplify
from backends.relax.values import ConvShape
from optimizer.target import Cpu

MAX_VECTORS = 6
_ROWS_WHEN_SYMBOLIC = 128
_L1_SHARE = 0.7
"""Of the lines of a set of the first-level cache: for A; the others are for B and for the results."""
_LINE_BYTES, _PAGE_BYTES = 64, 4096
"""A set of the first-level cache is chosen by the address within a page (so it can be looked up before the page is)."""
_L2_SHARE = 0.7
_BLOCK_SHARE = 0.55
"""Of the second-level cache: for a panel of B and what is reused while the other passes by; for a block of A."""
_DEPTH_SHARE = 0.32
"""Of the second-level cache: for a panel's block of the reduced axis; a panel that takes no more stays whole."""
_ROWS_SHARE = 0.4
"""Of the second-level cache: for the rows of A beside it."""
_SUMS_SHARE = 0.25
"""Of the second-level cache: for the sums of a task that wait."""
_GROUP_SHARE = 0.125
"""Of the third-level cache, which all cores share: for the panels of a task that other blocks of rows need again."""
_ROWS_OF_BLOCKS = 32
"""With fewer rows, a panel is used too few times for it to matter where it is."""
_ROWS_WHILE_STREAMED = 256
"""While more rows pass by a panel, the processor fetches the next one unasked."""
_ROWS_APART_SHARE = 0.4
"""Of the second-level cache: for all weights, where rows are shared out among the threads."""
_SHORT_STEPS = 32
"""Of four bytes: with so many, finishing a vector takes about a tenth as long as adding it up."""
_CODE_VECTORS = 4
"""Vectors of words of 4-bit codes in a panel's row."""
_SPILL_PENALTY = 1.25
_POINTS, _TAPS = 36, 9
_PATCH_OUTPUTS = 4
"""Of Winograd's F(4, 3): products a patch, and outputs of it along an axis."""
_TRANSFORM_CYCLES = 110
"""Cycles to transform a vector of patches or of results on two pipes: 36 loads, some 130 operations, 36 stores."""
_CHANNELS_TIMES_SIDE = 3584
"""Input channels times the side of the image, in networks for images of 224 pixels: 64 x 56, 128 x 28, 256 x 14..."""
_WINOGRAD_GAIN = 0.8
"""What Winograd's method has to save to be worth its memory and its rounding."""


@dataclass(frozen=True)
class Tiles:
    """Tile choices for one processor."""

    cpu: Cpu

    def lanes(self, dtype: str = "float32") -> int:
        """Elements in a vector register."""
        return max(1, self.cpu.vector_bytes // (8 if dtype == "float64" else 4))

    def together(self, dtype: str) -> int:
        """How many elements of the reduced axis share a lane; a depth below is counted in so many."""
        return {"bfloat16": 2, "uint8": QUAD, "int8": QUAD}.get(dtype, 1)

    def streamed(self, elements: int, rows: int | None) -> bool:
        """Whether so many weights have to come from beyond the second-level cache, and sooner than they do unasked.

        Args:
            elements: of four bytes.
            rows: that each panel of the weights is multiplied with; `None` if that is symbolic. While many of them
                pass, the processor fetches the next panel by itself; asked for too soon, it takes the place of theirs.
        """
        return elements * 4 > self.cpu.l2_bytes and (rows is None or rows <= _ROWS_WHILE_STREAMED)

    @property
    def transform_cycles(self) -> float:
        """Of a vector of patches, or of results, of Winograd's method."""
        return _TRANSFORM_CYCLES * 2 / self.cpu.fma_pipes

    def fits(self, rows: int, vectors: int) -> bool:
        """Whether the accumulators, the vectors of B and one broadcast fit in the registers."""
        return rows * vectors + vectors + 1 <= self.cpu.vector_registers

    def step_cycles(self, rows: int, vectors: int) -> float:
        """Cycles of one step along the reduced axis."""
        cpu = self.cpu
        return max(rows * vectors / cpu.fma_pipes, (rows + vectors) / cpu.load_ports, cpu.fma_latency)

    def sweep_cycles(self, total: int, rows: int, vectors: int) -> float:
        """Cycles of one step for `total` rows, cut into tiles of `rows` and one smaller tile for the rest."""
        rest = total % rows
        return total // rows * self.step_cycles(rows, vectors) + (self.step_cycles(rest, vectors) if rest else 0.0)

    def rows_together(self, apart: int) -> int:
        """Rows of A, so many bytes apart, of which the first-level cache holds a line each beside the lines of B.

        A set of it takes the lines whose addresses are equal in all but the page: rows that lie a multiple of a page
        apart, as those of 1,024 float32, share one set of `ways` lines.
        """
        lines = _PAGE_BYTES // _LINE_BYTES
        shared = math.gcd(max(1, apart // _LINE_BYTES), lines)
        return max(1, int(_L1_SHARE * (self.cpu.l1_bytes // _PAGE_BYTES) * (lines // shared)))

    def is_short(self, steps: int | None, together: int) -> bool:
        """Whether what follows sums of so many steps takes a share of their time that matters; see `tile_rows`."""
        return together == QUAD and steps is not None and steps <= _SHORT_STEPS

    def tile_rows(self, total: int | None, vectors: int, apart: int = 0, *, short: bool = False) -> int:
        """The best number of rows for tiles of so many vectors.

        Args:
            total: of all tiles; `None` if that is symbolic.
            vectors: of columns.
            apart: bytes between the rows of A, 0 where they lie close together.
            short: whether sums are short. Then the rows are no more than the multiply-adds need to hide their latency
                twice over, if that takes no longer: the processor begins the next tile's sums while it finishes these.
        """
        wanted = _ROWS_WHEN_SYMBOLIC if total is None else max(total, 1)
        if apart:
            wanted = min(wanted, self.rows_together(apart))
        options = [r for r in range(1, self.cpu.vector_registers) if self.fits(r, vectors) and r <= wanted] or [1]
        wanted = _ROWS_WHEN_SYMBOLIC if total is None else max(total, 1)
        if short:
            enough = 2 * self.cpu.fma_latency * self.cpu.fma_pipes
            small = [r for r in options if r * vectors >= enough] or options[-1:]
            return min(small, key=lambda r: (self.sweep_cycles(wanted, r, vectors), r))
        return min(options, key=lambda r: (self.sweep_cycles(wanted, r, vectors), -r))

    def depth_blocks(self, rows: int | None, depth: int, width: int) -> int:
        """Into how many blocks the reduced axis of a product with a constant is cut; see `backends.cpu.matmul`.

        It stays whole where all rows fit in the second-level cache beside a panel.

        Args:
            rows: of A; `None` if that is symbolic.
            depth: K, in elements of four bytes.
            width: columns in a panel of B.
        """
        if rows is not None and (rows < _ROWS_OF_BLOCKS or 4 * depth * (rows + width) <= _L2_SHARE * self.cpu.l2_bytes):
            return 1
        return max(1, -(-depth * width * 4 // int(_DEPTH_SHARE * self.cpu.l2_bytes)))

    def rows_beside(self, depth: int) -> int:
        """How many rows of A stay in the second-level cache beside a panel's block of so many steps."""
        return max(1, int(_ROWS_SHARE * self.cpu.l2_bytes) // (4 * depth))

    def panels_together(self, rows: int, depth: int, width: int, *, again: bool) -> int:
        """How many panels a task may have whose sums wait for the next block of the reduced axis.

        Args:
            rows: of A, in a block.
            depth: K, in elements of four bytes.
            width: columns in a panel of B.
            again: whether other blocks of rows need the same panels, which then should stay in the third-level cache.
        """
        most = int(_SUMS_SHARE * self.cpu.l2_bytes) // (4 * rows * width)
        if again:
            most = min(most, max(2, int(_GROUP_SHARE * self.cpu.l3_bytes) // (4 * depth * width)))
        return max(1, most)

    def panel_cycles(
        self, rows: int | None, columns: int, depth: int, dtype: str, vectors: int, taps: int = 1
    ) -> float:
        """Cycles of one step of all rows and columns in panels of so many vectors; see `panel_width`."""
        lanes = self.lanes(dtype)
        total = _ROWS_WHEN_SYMBOLIC if rows is None else max(rows, 1)
        apart, width = depth * 4, vectors * lanes
        rows_of = partial(self.tile_rows, total, apart=apart, short=self.is_short(depth, self.together(dtype)))
        full, rest = divmod(columns, width)
        sweep = full * self.sweep_cycles(total, rows_of(vectors), vectors)
        if rest:
            narrow = -(-rest // lanes)
            sweep += self.sweep_cycles(total, rows_of(narrow), narrow)
        spilled = depth * width * 4 > _L2_SHARE * self.cpu.l2_bytes
        whole = taps > 1 or self.depth_blocks(rows, depth, width) == 1
        return sweep * (_SPILL_PENALTY if spilled and whole else 1.0)

    def panel_width(self, rows: int | None, columns: int, depth: int, dtype: str = "float32", taps: int = 1) -> int:
        """Columns in a panel of packed B.

        Args:
            rows: how many rows are multiplied with B; `None` if that is symbolic.
            columns: N.
            depth: K, of all taps together.
            dtype: of the elements.
            taps: how many matrices are summed over; such a sum is not cut into blocks.
        """
        lanes = self.lanes(dtype)
        cost = partial(self.panel_cycles, rows, columns, depth, dtype, taps=taps)
        options = [v for v in range(1, MAX_VECTORS + 1) if self.fits(1, v)]
        if self.is_short(depth, self.together(dtype)):  # of those that take as long, the one with the smallest tile
            sums = [v * self.tile_rows(rows, v, depth * 4, short=True) for v in options]
            return lanes * min(options, key=lambda v: (cost(v), sums[v - 1], -v))
        return lanes * min(options, key=lambda v: (cost(v), -v))

    def rows_apart(self, weight_bytes: int | None, together: int) -> bool:
        """Whether each thread takes rows of its own, with all columns, rather than columns of its own.

        Results of a byte are stored in parts of a cache line: threads that each hold some columns would take the lines
        of all rows from each other. The weights then have to stay in the second-level cache of each.
        """
        return together == QUAD and weight_bytes is not None and weight_bytes <= _ROWS_APART_SHARE * self.cpu.l2_bytes

    def attends(self, dtype: str, size: int = 0) -> bool:
        """float32, pairs of bfloat16 (`backends.cpu.operands`), bytes where one instruction multiplies four."""
        pairs = dtype == "bfloat16" and size % 2 == 0
        return dtype == "float32" or pairs or (dtype == "uint8" and self.cpu.vnni)

    def looks_up(self) -> bool:
        """See `backends.relax.byte_functions.LooksUp`."""
        return self.cpu.vbmi

    def looked_up(self, code: Expr, table: bytes) -> Expr:
        """See `backends.relax.byte_functions.LooksUp`."""
        return looked_up(code, table)

    def four_bit_width(self, columns: int) -> int:
        """Columns in a panel of 4-bit codes (see `backends.cpu.four_bits`): four vectors, fewer if cores would idle."""
        vectors = _CODE_VECTORS
        while vectors > 1 and -(-columns // (vectors * self.lanes())) < 2 * self.cpu.cores:
            vectors //= 2
        return vectors * self.lanes()

    def row_blocks(self, rows: Expr, depth: int | None, width: int) -> Expr | None:
        """Into how many blocks the rows of A are cut, so that a block stays in the second-level cache.

        With blocks, A is read from memory once and B (K x N) once a block; without, B once and A once a panel, unless
        all of it stays in the cache. What moves is `K * N * R / block` against `K * R * N / width`.

        Args:
            rows: R, how many rows are multiplied with B.
            depth: K, in elements of four bytes; `None` if that is symbolic.
            width: columns in a panel of B.

        Returns:
            `None` where blocks move no less.
        """
        size = known(rows)
        if depth is None:
            return None
        block = int(_BLOCK_SHARE * self.cpu.l2_bytes) // (4 * max(depth, 1))
        if block <= width or (size is not None and size <= block):
            return None
        return simplify(tirx.floordiv(rows + (block - 1), block))

    def winograd_width(self, shape: ConvShape) -> int | None:
        """Columns in a panel of the filters of a 3 x 3 convolution by Winograd's method, F(4, 3).

        A symbolic batch is counted as one image, and symbolic heights and widths are guessed from the channels:
        networks have more of them the smaller their images are. Winograd's products are float32 in every dtype.

        Returns:
            `None` where it would not be faster: input channels that do not fill vectors, images that hardly fill the
            patches, or filters (four times as large as the taps) that take longer to read than the products take.
        """
        if shape.depth % self.lanes():
            return None
        panel = min(2 * self.lanes(), -(-shape.columns // self.lanes()) * self.lanes())
        winograd, direct = self.winograd_cycles(shape, panel)
        return panel if winograd < _WINOGRAD_GAIN * direct else None

    def winograd_cycles(self, shape: ConvShape, panel: int) -> tuple[float, float]:
        """Cycles of Winograd's method with panels of so many columns, and of the direct sum; see `winograd_width`."""
        lanes, depth, columns = self.lanes(), shape.depth, shape.columns
        side = max(_PATCH_OUTPUTS, _CHANNELS_TIMES_SIDE // depth)
        images = 1 if shape.images is None else shape.images
        height, width = shape.height or side, shape.width or side
        patches = images * -(-height // _PATCH_OUTPUTS) * -(-width // _PATCH_OUTPUTS)
        filled = -(-columns // lanes) * lanes
        blocks, size = self.winograd_blocks(patches, depth, panel)
        assert blocks is not None
        vectors = panel // lanes
        sweep = self.sweep_cycles(size, self.tile_rows(size, vectors), vectors)
        products = _POINTS * depth * -(-columns // panel) * blocks * sweep
        stream = _POINTS * depth * filled * 4 / self.cpu.memory_bytes_a_cycle
        transforms = patches * (depth + filled) / lanes * self.transform_cycles
        steps = -(-depth // 2) * 9 if shape.dtype == "bfloat16" and self.cpu.bfloat16 else depth * 9
        direct_panel = self.panel_width(width, columns, steps, taps=_TAPS) // lanes
        row = self.sweep_cycles(width, self.tile_rows(width, direct_panel), direct_panel)
        direct = images * height * row * -(-columns // (direct_panel * lanes)) * steps
        return max(products, stream) + transforms, direct

    def winograd_blocks(self, patches: int | None, depth: int, panel: int) -> tuple[int | None, int]:
        """Into how many blocks the patches are cut, and the patches in a block.

        The transformed patches of a block, and their products with a panel, share the second-level cache. Of a
        symbolic number only the room in a block is known.
        """
        most = max(1, int(_L2_SHARE * self.cpu.l2_bytes) // (_POINTS * 4 * (depth + panel)))
        vectors = panel // self.lanes()
        if patches is None:
            return None, most
        fewest = -(-patches // most)

        def cost(blocks: int) -> float:
            size = -(-patches // blocks)
            return blocks * self.sweep_cycles(size, self.tile_rows(size, vectors), vectors)

        blocks = min(range(fewest, min(patches, 2 * fewest + 2) + 1), key=lambda b: (cost(b), b))
        return blocks, -(-patches // blocks)
