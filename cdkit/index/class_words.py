"""Everyday things, as prompts that ask for a class: part of the queries that recall is measured with."""

from __future__ import annotations

TEMPLATE = "a photo of a {}"
# fmt: off
WORDS = [
    "airplane", "apple", "backpack", "ball", "banana", "barn", "basket", "bathtub", "beach", "bear", "bed", "bench",
    "bicycle", "bird", "blanket", "boat", "book", "boot", "bottle", "bowl", "box", "bread", "bridge", "brush",
    "bucket", "building", "bus", "butterfly", "button", "cabin", "cable", "cake", "camera", "candle", "car",
    "carpet", "carrot", "castle", "cat", "chair", "cheese", "chicken", "child", "church", "circle", "city", "clock",
    "cloud", "coat", "coffee", "coin", "computer", "cookie", "couch", "cow", "crab", "cross", "crown", "cup",
    "curtain", "deer", "desk", "dinosaur", "dish", "doctor", "dog", "doll", "dolphin", "donkey", "door", "dragon",
    "dress", "drum", "duck", "eagle", "egg", "elephant", "engine", "eye", "face", "farm", "fence", "field",
    "fireplace", "fish", "flag", "flower", "fork", "fountain", "fox", "frog", "garden", "ghost", "giraffe", "glass",
    "glove", "goat", "guitar", "hammer", "hat", "heart", "helicopter", "helmet", "horse", "hospital", "house",
    "island", "jacket", "jar", "jellyfish", "kettle", "key", "keyboard", "kitchen", "kite", "knife", "ladder",
    "lake", "lamp", "leaf", "lemon", "library", "lighthouse", "lion", "lizard", "map", "market", "mask", "mirror",
    "monkey", "moon", "motorcycle", "mountain", "mouse", "mug", "mushroom", "necklace", "needle", "newspaper",
    "octopus", "orange", "oven", "owl", "painting", "palace", "panda", "parrot", "pen", "pencil", "penguin",
    "piano", "pie", "pig", "pillow", "pizza", "plate", "pot", "potato", "pumpkin", "rabbit", "raccoon", "ring",
    "river", "road", "robot", "rocket", "rooster", "rope", "sandwich", "school", "scissors", "shark", "sheep",
    "ship", "shirt", "shoe", "snail", "snake", "sofa", "spider", "spoon", "square", "squirrel", "stadium", "star",
    "statue", "stove", "strawberry", "street", "suitcase", "sun", "swan", "sword", "table", "teapot", "teddy",
    "telephone", "temple", "tent", "tiger", "toaster", "tomato", "towel", "tower", "toy", "tractor", "train",
    "tree", "triangle", "truck", "trumpet", "turtle", "umbrella", "vase", "violin", "waterfall", "whale", "wheel",
    "window", "wolf", "zebra",
]
# fmt: on


def class_prompts() -> list[str]:
    """`a photo of a airplane` and so on; the article stays as CLIP's own templates have it."""
    return [TEMPLATE.format(word) for word in WORDS]
