"""What is said of a model: its name's noun, with the colours measured on it.

A name such as `kitchenCabinetDrawer 1` is split into words; the first words that are a noun of the list, the longest
phrase there, are what it is called. Names without one ('Wonder', 'Bob', 'resource_A') have no caption.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
from skimage.color import rgb2lab

from guidance.pocket.meshes import ColouredMesh, keys
from guidance.pocket.objects import PALETTE, Array

SHARE = 0.22  # of the surface that a colour must cover to be named, beside the first

NOUNS = frozenset(
    phrase.strip()
    for phrase in """
    alpaca, alien, ambulance, anchor, angler fish, apple, arcade machine, arch, archery range, armor, arrow, astronaut,
    avocado, axe, backpack, bag, baguette, banana, barbarian, barn, barracks, barrel, bat, bathtub, battery, bear,
    bear trap, bed, bedroll, bee, beet, bell, bell tower, bench, birch tree, blender, boat, bomb, bone, bonfire, book,
    bookcase, bottle, bowl, box, bread, brick, bridge, broccoli, bucket, building, bull, burger, bus, bus stop, bush,
    butterfly fish, cabbage, cabinet, cactus, cake, campfire, can, candelabrum, candle, candy bar, cannon, cannonball,
    capsule, car, carrot, cart, carton, castle, cat, cauldron, cauliflower, celery, chair, chalice, chandelier, cheese,
    cherry, chest, chicken coop, chicken leg, chocolate, church, closet, clownfish, club, coat rack, cocktail, coconut,
    coffee machine, coffin, coin, column, compass, computer, console, container, cookie, corn, corn dog, couch, cow,
    crab, crate, crater, croissant, cross, crossbow, crown, cruise ship, crypt, crystal, cube, cup, cupcake, dagger,
    deer, delivery truck, desk, dinosaur, dish rack, dog, dolphin, donkey, donut, door, dragon, drawer, dryer, dumpster,
    egg, eggplant, farmer, ferris wheel, fire hydrant, fire truck, firetruck, fireplace, first aid kit, fish, flag,
    flower, fountain, fox, fridge, fries, frog, fruit, frying pan, garage, garbage truck, gas can, gazebo, gear, gem,
    gift, glove, goldfish, grape, grave, gravestone, grenade, guitar, ham, hammer, hay, heart, hedge, helmet, hill,
    honey, horse, hot dog, hot tub, house, ice cream, ice cream cone, ice cream truck, inn, jar, katana, keg, ketchup,
    key, keyboard, king, knife, knight, koi, ladder, lamp, lander, lantern, laptop, leek, lemon, lettuce, lever,
    lid, lifeboat, light, lion fish, lionfish, loaf, locomotive, log, lollypop, loot box, mage, mailbox, man, manta ray,
    market, mech, meteor, microwave, mill, mine, mirror, motorcycle, mountain, muffin, mug, mushroom, mussel, mustard,
    necklace, newspaper box, night stand, nun, nurse, office chair, onion, orange, oven, padlock, pallet, palm tree,
    pan, pancake, paper towel, parchment, parrot fish, pawn, pear, penguin, pepper, pepper mill, piano, pie,
    pillar, pillow, pine tree, pineapple, pipe, piranha, pirate, pistol, pizza, pizza cutter, planet, plant, planter,
    plaque, plate, pod, police car, popsicle, portal, post, pot, potato, potion, potted plant, pouch, priest, pudding,
    puffer fish, pumpkin, quiver, race car, radio, radish, raft, rat, revolver, rib cage, rifle, ring, robot,
    rock, rogue, rolling pin, rover, sack, salad, sandwich, satellite dish, sausage, saw, sawmill, scientist, scroll,
    scythe, sedan, shark, shelf, shield, ship, shotgun, shovel, shower, shrine, sign, silo, sink, skeleton, skull,
    slime, snake, snowman, soda, sofa, solar panel, soldier, spaceship, space truck, spacesuit, speaker, spell book,
    spellbook, spider, spike, sports sedan, stable, staff, stag, stair, star, station wagon, statue, steak, stool,
    store, stove, strawberry, street light, streetlight, sushi, suv, sword, swordfish, table, tank, target, tavern,
    taxi,
    teapot, television, temple, tent, tetra, toilet, tomato, torch, tower, town center, tractor, traffic light, train,
    trash can, trashcan, tree, tree stump, truck, trunk, tuna, turkey, turret, umbrella, urn, van, vase, vessel, waffle,
    wand, washing machine, wasp, watch tower, water bottle, water tower, watermelon, watermill, weapon rack, well,
    whale, wheelbarrow, willow, wind turbine, windmill, wine bottle, witch, wolf, woman, wood log, worm, zombie
    """.replace("\n", " ").split(",")
)
# Words of a name, as they are split, and what is said for them.
CALLED = {
    "ac": "air conditioner", "ar": "rifle", "armour": "armor", "bird cage": "rib cage", "bunk bed": "bed",
    "bush berries": "bush", "cab": "taxi", "cherries": "cherry", "chr": "toy man", "chr lady": "toy woman",
    "chr nun": "nun", "chr nurse": "nurse", "chr robot": "robot", "chr zombie": "zombie", "common tree": "tree",
    "containers": "container", "crates": "crate", "fryingpan": "frying pan", "female": "woman", "firehydrant":
    "fire hydrant", "grapes": "grape", "houses": "house", "houseplant": "potted plant", "husky": "dog",
    "logs": "log", "male": "man", "mushrooms": "mushroom", "obj arcade": "arcade machine", "obj busstop": "bus stop",
    "obj grave": "gravestone", "obj hydrant": "fire hydrant", "obj newsbox": "newspaper box", "obj potty": "toilet",
    "obj stlight": "street light", "obj trlight": "traffic light", "palm": "palm tree", "pancakes": "pancake",
    "puffer": "puffer fish", "ribcage": "rib cage", "rocks": "rock", "shelves": "shelf", "shiba inu": "dog",
    "smg": "rifle", "sniper": "rifle", "space craft": "spaceship", "alien saucer": "flying saucer", "spacetruck":
    "space truck", "stoolbar": "stool", "trafficlight": "traffic light", "tree pine": "pine tree", "tv": "television",
    "veh fire": "fire truck", "veh lunch": "food truck", "veh mini": "car", "veh police": "police car", "veh wagon":
    "station wagon", "watertower": "water tower", "windturbine": "wind turbine", "solarpanel": "solar panel",
    "car police": "police car", "car taxi": "taxi", "car sedan": "car", "car hatchback": "car", "bottle wine":
    "wine bottle", "wine red": "wine bottle", "wine white": "wine bottle", "trex": "dinosaur",
    "apatosaurus": "dinosaur",
    "stegosaurus": "dinosaur", "triceratops": "dinosaur", "velociraptor": "dinosaur", "parasaurolophus": "dinosaur",
    "building church": "church", "building castle": "castle", "building home": "house", "building well": "well",
    "building windmill": "windmill", "building watermill": "watermill", "building tower": "tower", "building bridge":
    "bridge", "building market": "market", "building tavern": "tavern", "building mine": "mine", "story": "house",
    "boat sail": "sailing boat", "sail ship": "sailing ship", "viking boat": "viking boat", "bed bunk": "bed",
    "waterplant": "plant", "gravemarker": "gravestone", "kitchentable": "table", "kitchencabinet": "cabinet",
    "kitchencounter": "kitchen counter", "extractorhood": "extractor hood", "lootbox": "loot box", "anglerfish":
    "fish", "goblin shark": "shark", "food dinner": "plate", "race futrure": "race car",
}  # fmt: skip


def noun(name: str) -> str | None:
    """What a model of that name is, in the singular; None where the name does not say."""
    words = split(name)
    for start in range(len(words)):
        for end in range(min(len(words), start + 4), start, -1):
            phrase = " ".join(words[start:end])
            if phrase in CALLED:
                return CALLED[phrase]
            if phrase in NOUNS:
                return phrase
    return None


def called(split: str) -> dict[str, list[str]]:
    """Keys of a split's models by what their names call them."""
    return _called(keys(split))


@cache
def _called(models: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in models:
        name = noun(key.split("/", 1)[1])
        if name is not None:
            found.setdefault(name, []).append(key)
    return found


def split(name: str) -> list[str]:
    """Lower-case words, without numbers and single letters."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return [word for word in re.findall(r"[a-z]+", parted.lower()) if len(word) > 1]


def colour_names(mesh: ColouredMesh) -> list[str]:
    """The one or two colours that cover most of it, by area, as the palette calls them; the larger first."""
    corners = mesh.points[mesh.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(across, axis=1)
    shares = np.bincount(nearest(mesh.colours.mean(1)), area, len(PALETTE)) / area.sum()
    order = np.argsort(-shares, kind="stable")
    return [list(PALETTE)[k] for k in order[:2] if k == order[0] or shares[k] >= SHARE]


def nearest(colours: Array) -> np.ndarray:
    """[M] numbers of the palette's colours that look nearest to colours [M, 3] (CIE Lab)."""
    palette = rgb2lab(np.array(list(PALETTE.values()))[None])[0]
    return np.linalg.norm(rgb2lab(colours[None])[0][:, None] - palette, axis=2).argmin(1)


def caption(mesh: ColouredMesh) -> str | None:
    """'a red and white burger'; None where its name has no noun."""
    called = noun(mesh.key.split("/", 1)[1])
    return None if called is None else f"a {' and '.join(colour_names(mesh))} {called}"
