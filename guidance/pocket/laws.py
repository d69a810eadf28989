"""By how much training objects vary and where their views stand: the numbers that the stream of single objects
(families.py, meshes.py, data.py) and that of many at once (many.py, many_render.py) share.

A pair is the ends of a uniform draw; a deviation that of a normal one. Sizes are shares of an object's.
"""

import math

# Light: the height above the horizon of a unit vector, and what is lit without any.
LIGHT_HEIGHT = 0.3, 0.95
AMBIENT = 0.55, 0.8

# Share of all objects that each of families.FURTHER has.
FURTHER = {
    "doll": 0.12, "frame": 0.02, "pet": 0.06, "meal": 0.02, "shoe": 0.02, "bag": 0.02, "robot": 0.04, "gadget": 0.05,
    "instrument": 0.02, "prop": 0.06, "machine": 0.06, "monster": 0.05,
}  # fmt: skip

# Shapes of models.
STRETCH = 0.06  # deviation of the logarithm, for each axis
DEFORMED = 0.6  # share that is bent out of shape:
TAPER, TAPER_MOST = 0.25, 0.5  # deviation, bound
TWIST = 0.25  # deviations: radians about y for each unit of height
SHEAR, CURVE = 0.12, 0.15  # sideways with height and with its square
JOINED = 0.25  # share that has another model at it,
JOINED_SIZE = 0.4, 0.9  # this large beside it,
OVERLAP = 0.02  # and this deep in it

# Colours of models: by one number of 0 to 1, below the first they are kept, up to the second hues are turned, above the
# third lights and darks are moved, above the fourth all is tinted.
KEPT, HUES_UNTIL, POWER_FROM, TINT_FROM = 0.4, 0.8, 0.6, 0.9
POWER = 0.35  # deviation of the exponent's logarithm
TINT_SHARE, TINT = (0.2, 0.7), (0.05, 0.95)
TEXTURED = 0.12  # share that carries a pattern or a photograph

# Known views: mostly from the front, mostly level.
FRONTAL, FRONTAL_SPREAD_RAD = 0.7, 0.6
LEVEL, RAISED_RAD = 0.4, (math.radians(-5), math.radians(25))

# Views to be guessed: anywhere round, a share at the known one's height.
SAME_HEIGHT, TILT_RAD = 0.2, (math.radians(-30), math.radians(30))
MIRRORED = 0.5  # share of the objects that are seen in a mirror
