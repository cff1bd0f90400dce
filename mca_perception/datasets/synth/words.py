"""Invented brand names, product names and descriptions for procedural products."""

from __future__ import annotations

import numpy as np

_ONSETS = [
    "b",
    "br",
    "c",
    "ch",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gl",
    "h",
    "j",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "r",
    "s",
    "sh",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
]
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "io", "oo", "y"]
_CODAS = ["", "l", "n", "r", "s", "x", "k", "m", "nd", "rt"]
_SUFFIXES = ["", "", "", "co", "ly", "ix", "ora", "ex", "lab", "max", "ia", "well", "line"]

_NOUNS: dict[str, list[str]] = {
    "box": [
        "Green Tea",
        "Oat Cereal",
        "LED Bulb",
        "Phone Case",
        "Board Game",
        "Protein Bars",
        "Printer Ink",
        "Razor Set",
        "Puzzle",
        "Night Cream",
        "Headphones",
        "Crackers",
        "Vitamin C",
        "Toy Car",
        "Spark Plug",
    ],
    "book": [
        "Silent Rivers",
        "Modern Cooking",
        "The Long Road",
        "Algebra",
        "Night Garden",
        "Wild Birds",
        "City Maps",
        "Winter Tales",
        "Yoga Basics",
        "Old Kingdoms",
        "Sea Stories",
        "First Words",
    ],
    "bottle": [
        "Shampoo",
        "Body Lotion",
        "Olive Oil",
        "Dish Soap",
        "Orange Juice",
        "Conditioner",
        "Cleaner",
        "Sun Milk",
        "Soy Sauce",
        "Mouthwash",
        "Hand Wash",
        "Supplements",
    ],
    "can": [
        "Cola",
        "Tomato Soup",
        "Sparkling Water",
        "Sweet Corn",
        "Energy Drink",
        "Chickpeas",
        "Cat Food",
        "Hair Spray",
        "Paint",
        "Coffee",
    ],
    "jar": ["Honey", "Face Cream", "Peanut Butter", "Jam", "Hair Wax", "Curry Paste", "Whey Powder"],
    "pouch": [
        "Coffee Beans",
        "Trail Mix",
        "Dog Treats",
        "Rice",
        "Potato Chips",
        "Gummies",
        "Pasta",
        "Sea Salt",
        "Flour",
        "Wipes",
        "Seeds",
        "Bath Salts",
    ],
    "tube": ["Toothpaste", "Hand Cream", "Face Wash", "Glue", "Sun Gel", "Oil Paint", "Foot Balm"],
    "blister": [
        "Batteries",
        "USB Stick",
        "Scissors",
        "Lip Balm",
        "Super Glue",
        "Toy Figure",
        "Earbuds",
        "Hooks",
        "Screw Set",
        "Pen Set",
        "Key Light",
    ],
    "mailer": ["T-Shirt", "Leggings", "Socks", "Scarf", "Pillow Case", "Beanie", "Hoodie", "Table Cloth"],
    "photo": ["Item"],
}
_ADJECTIVES = [
    "Classic",
    "Organic",
    "Ultra",
    "Fresh",
    "Original",
    "Extra",
    "Daily",
    "Premium",
    "Soft",
    "Bold",
    "Pure",
    "Active",
    "Kids",
    "Mini",
    "Family",
    "Lite",
    "Rich",
    "Mild",
    "Citrus",
    "Berry",
    "Vanilla",
    "Mint",
]
_SIZES = [
    "50 ml",
    "100 ml",
    "250 ml",
    "500 g",
    "1 kg",
    "6 pcs",
    "12 pack",
    "2 x 40",
    "75 g",
    "330 ml",
    "XL",
    "No. 7",
]
FILLER = [
    "store in a cool dry place",
    "made with care",
    "new formula",
    "see base for date",
    "keep out of reach",
    "contains 24 units",
    "batch 0417 lot 88",
    "distributed by",
    "ingredients: water",
    "serving size 30 g",
    "www.example.com",
    "do not crush",
    "recycle me",
    "warranty 2 years",
    "model no. 5521",
]


def brand_word(rng: np.random.Generator) -> str:
    """Return a pronounceable invented brand, such as ``Trealix``."""
    syllables = int(rng.integers(1, 3))
    parts = [
        str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) + str(rng.choice(_CODAS))
        for _ in range(syllables)
    ]
    word = "".join(parts) + str(rng.choice(_SUFFIXES))
    return word.upper() if rng.random() < 0.4 else word.capitalize()


def product_words(rng: np.random.Generator, kind: str) -> tuple[str, str, str]:
    """Return (title, adjective, size text) for a product of the given kind."""
    return str(rng.choice(_NOUNS[kind])), str(rng.choice(_ADJECTIVES)), str(rng.choice(_SIZES))
