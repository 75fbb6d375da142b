"""A shop of camping, kitchen and office things, made from a seed: what it sells, what is searched, what is wanted.

People search by what they need ('keep warm outside'), and the catalogue names what things are ('fleece blanket'). Which
things meet which need is the hidden relevance: no text says it, only clicks do.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

# how a need is put into words, and which things meet it
NEEDS: dict[tuple[str, ...], tuple[str, ...]] = {
    ('keep warm outside', 'against the cold', 'cosy at minus ten'): ('fleece blanket', 'down jacket', 'wool socks'),
    ('sleep under the stars', 'a night in the woods', 'overnight hike'): ('bivouac bag', 'hammock', 'foam mat'),
    ('cook without a stove', 'meals by the fire', 'outdoor dinner'): ('dutch oven', 'grill grate', 'skewer set'),
    ('light when it is dark', 'see at night', 'power cut'): ('headlamp', 'lantern', 'candle set'),
    ('stay dry', 'rainy season', 'when it pours'): ('poncho', 'rubber boots', 'tarpaulin'),
    ('coffee like in a bar', 'morning wake up', 'for caffeine lovers'): ('moka pot', 'milk frother', 'burr grinder'),
    ('bake at home', 'for bread lovers', 'sunday cake'): ('proofing basket', 'loaf tin', 'stand mixer'),
    ('eat more greens', 'healthy lunch', 'fresh and crisp'): ('salad spinner', 'mandoline', 'herb planter'),
    ('sit better at work', 'my back hurts', 'long hours at the desk'): ('lumbar cushion', 'footrest', 'saddle stool'),
    ('less noise', 'concentrate', 'loud neighbours'): ('earmuffs', 'acoustic panel', 'sound machine'),
    ('tidy up', 'too many cables', 'clear the mess'): ('drawer organiser', 'cable box', 'pegboard'),
    ('gift for a writer', 'notes and ideas', 'write by hand'): ('fountain pen', 'dotted notebook', 'blotting pad'),
}
LOOKS = ('red', 'navy blue', 'forest green', 'black', 'sand', 'bamboo', 'steel', 'recycled')
EXTRAS = ('compact', 'large', 'foldable', 'classic', 'light', 'sturdy')
WISHES = ('', 'please', 'for my sister', 'not too dear', 'soon', 'as a present')
"""What people add that changes nothing: most of the queries of a shop are hardly ever typed twice."""

RIGHT, SIMILAR, WRONG = 1.0, 0.5, 0.02
"""How attractive a thing is that meets the need and looks as asked for, one that only meets it, and any other."""


@dataclass(frozen=True)
class Product:
    object_id: str
    title: str
    kind: str
    look: str


@dataclass(frozen=True)
class Query:
    """What is searched, and which kinds of things, of which look, are wanted."""

    text: str
    kinds: frozenset[str]
    look: str


class Shop:
    """The catalogue and its queries; the same seed makes the same.

    :param products_per_kind: things of every kind, each of another look.
    """

    def __init__(self, seed: int = 0, products_per_kind: int = 6):
        random = np.random.default_rng((seed, 11))
        self.products: list[Product] = []
        for kind in sorted(kind for kinds in NEEDS.values() for kind in kinds):
            for look in random.permutation(LOOKS)[:products_per_kind]:
                title = f'{random.choice(EXTRAS)} {kind}, {look}'
                self.products.append(Product(f'p{len(self.products):04d}', title, kind, str(look)))
        self.queries = [
            Query(', '.join(filter(None, (phrase, look, wish))), frozenset(kinds), look)
            for phrases, kinds in NEEDS.items()
            for phrase, look, wish in product(phrases, LOOKS, WISHES)
        ]
        self.popularity = 1 / (1 + random.permutation(len(self.queries))) ** 0.5
        self.popularity /= self.popularity.sum()

    @property
    def titles(self) -> dict[str, str]:
        """By object id."""
        return {found.object_id: found.title for found in self.products}

    def relevance(self, query: Query) -> np.ndarray:
        """The hidden attractiveness of every product, 0 to 1, float64 [products]."""
        return np.array(
            [
                WRONG if found.kind not in query.kinds else RIGHT if found.look == query.look else SIMILAR
                for found in self.products
            ]
        )

    def word_scores(self, query: Query) -> np.ndarray:
        """A plain search: how many words a product shares with the query, float64 [products]."""
        words = _words(query.text)
        return np.array([len(words & _words(found.title)) / len(words) for found in self.products])


def _words(text: str) -> set[str]:
    return set(text.replace(',', ' ').split())
