"""What a set of ranks adds to its parts so that any few of them can be lost: pure arithmetic.

A set has ``members`` parts and survives ``losses`` of them. Its parity is spread as in RAID 5 and 6
(Moody et al. 2010, "Scalable Checkpoint/Restart", section III): in stripe s the members s, s+1, ...
s+losses-1 (modulo members) hold parity, each of the others puts in one piece of its part. With one
loss the parity is the exclusive or; with more its rows are a Cauchy matrix over GF(256), of which
every square part can be inverted (Bloemer et al. 1995).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fabricctl.state.ckpt import bytes as raw

MEMBERS_MOST = 64  # more save little memory and make a rebuild read more


@dataclass(frozen=True)
class Code:
    """The shape of a set; ``0 < losses < members``."""

    members: int
    losses: int

    @property
    def pieces(self) -> int:
        """Into how many pieces each part is cut."""
        return self.members - self.losses

    def piece_bytes(self, size: int) -> int:
        """Of a part of so many bytes; its last piece may be shorter."""
        return -(-size // self.pieces)

    def stripe_of(self, member: int, piece: int) -> int:
        return (member - self.losses - piece) % self.members

    def piece_of(self, member: int, stripe: int) -> int:
        """Which piece of a member is in a stripe; negative: it holds parity there."""
        return (member - stripe) % self.members - self.losses

    def row_of(self, member: int, stripe: int) -> int | None:
        """Which row of a stripe's parity a member holds; None: it puts in a piece."""
        row = (member - stripe) % self.members
        return row if row < self.losses else None

    def factor(self, row: int, member: int) -> int:
        """What a member's piece is multiplied by in a row of the parity."""
        return 1 if self.losses == 1 else raw.inverse((self.members + row) ^ member)

    def recoverable(self, member: int, parts: Collection[int], parity: Collection[int]) -> bool:
        """Whether a member's part follows from the parts and the parity of those members."""
        return all(
            self.recipe(member, self.stripe_of(member, piece), parts, parity) is not None
            for piece in range(self.pieces)
        )

    def recipe(
        self, member: int, stripe: int, parts: Collection[int], parity: Collection[int]
    ) -> Mapping[tuple[bool, int], int] | None:
        """A lost member's piece of a stripe as a sum: ``(of parity, member)`` -> factor.

        None when too much is lost.
        """
        inside = [m for m in range(self.members) if self.row_of(m, stripe) is None]
        lost = [m for m in inside if m == member or m not in parts]
        rows = [m for m in parity if self.row_of(m, stripe) is not None][: len(lost)]
        if len(rows) < len(lost):
            return None
        numbers = [(m - stripe) % self.members for m in rows]
        weights = _solve(
            [[self.factor(row, m) for m in lost] for row in numbers], lost.index(member)
        )
        recipe = {(True, m): weight for m, weight in zip(rows, weights, strict=True) if weight}
        for m in inside:
            if m in lost:
                continue
            factor = 0
            for row, weight in zip(numbers, weights, strict=True):
                factor ^= raw.multiply(weight, self.factor(row, m))
            if factor:
                recipe[False, m] = factor
        return recipe


def _solve(matrix: list[list[int]], wanted: int) -> list[int]:
    """Weights w with sum over rows w[r] * matrix[r][c] = 1 for the wanted column, else 0."""
    count = len(matrix)
    # The transposed system, by Gauss and Jordan.
    rows = [[matrix[r][c] for r in range(count)] + [int(c == wanted)] for c in range(count)]
    for at in range(count):
        pivot = next(r for r in range(at, count) if rows[r][at])
        rows[at], rows[pivot] = rows[pivot], rows[at]
        scale = raw.inverse(rows[at][at])
        rows[at] = [raw.multiply(scale, value) for value in rows[at]]
        for r in range(count):
            if r != at and (by := rows[r][at]):
                rows[r] = [a ^ raw.multiply(by, b) for a, b in zip(rows[r], rows[at], strict=True)]
    return [row[count] for row in rows]
