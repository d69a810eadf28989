"""Which triangles the signs at a grid's corners make, on a CPU, compiled; what march.py does by torch's operations.

R corners along a side, numbered i R^2 + j R + k; an edge from corner p by way w, the bits (4 x, 2 y, z) of its step,
has the number 8 p + w. inside [R, R, R] bool; numbers [4] of a tetrahedron's corners, from paths [6, 4] of ways.
"""

from __future__ import annotations

from numba import njit


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def triangles(inside, paths, odd, cases, pairs, faces):  # type: ignore[no-untyped-def]
    """How many triangles there are; faces [F, 3], where it has rows, gets each one's edges, by number."""
    side = inside.shape[0]
    count = 0
    for i in range(side - 1):
        for j in range(side - 1):
            for k in range(side - 1):
                code = 0
                for w in range(8):
                    code |= inside[i + (w >> 2), j + (w >> 1 & 1), k + (w & 1)] << w
                if code == 0 or code == 255:
                    continue
                first = (i * side + j) * side + k
                for t in range(6):
                    own = 0
                    for c in range(4):
                        own |= (code >> paths[t, c] & 1) << c
                    for n in range(2):
                        if cases[own, n, 0] < 0:
                            break
                        if len(faces):
                            for c in range(3):
                                edge = cases[own, n, 2 - c if odd[t] else c]
                                start, end = paths[t, pairs[edge, 0]], paths[t, pairs[edge, 1]]
                                corner = first + ((start >> 2) * side + (start >> 1 & 1)) * side + (start & 1)
                                faces[count, c] = 8 * corner + (end ^ start)
                        count += 1
    return count


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def renumber(faces, place, found):  # type: ignore[no-untyped-def]
    """How many edges faces [F, 3] join; found [3 F] gets their numbers, growing, and faces their places there. place
    [8 R^3] comes in as 0."""
    for f in range(faces.shape[0]):
        for c in range(3):
            place[faces[f, c]] = 1
    count = 0
    for edge in range(place.shape[0]):
        if place[edge]:
            found[count] = edge
            place[edge] = count
            count += 1
    for f in range(faces.shape[0]):
        for c in range(3):
            faces[f, c] = place[faces[f, c]]
    return count
