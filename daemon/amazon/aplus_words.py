"""The few words that code itself writes into an A+ document, in each language it can write. Data only.

Everything else in a document is the seller's own words or a provider's. The sentences hold for one thing
as for many, for he, she and it: they are colon sentences, because a title's gender and number are unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Words:
    """Labels as they stand inside a sentence; {brand} and {title} are filled in."""

    product: str
    brand: str
    category: str
    dimensions: str
    length: str
    width: str
    height: str
    in_the_box: str
    specifications: str
    features: str
    about: str
    presents: str
    and_: str
    colon: str = ": "
    decimal_mark: str = ","


WORDS: Mapping[str, Words] = {
    "en": Words(
        "product", "brand", "category", "dimensions", "length", "width", "height", "in the box",
        "specifications", "features", "about this product", "{brand} presents {title}.", "and", decimal_mark=".",
    ),
    "de": Words(
        "Produkt", "Marke", "Kategorie", "Maße", "Länge", "Breite", "Höhe", "Lieferumfang",
        "technische Daten", "Merkmale", "über dieses Produkt", "{brand} präsentiert: {title}.", "und",
    ),
    "fr": Words(
        "produit", "marque", "catégorie", "dimensions", "longueur", "largeur", "hauteur",
        "contenu de la boîte", "caractéristiques techniques", "points forts", "à propos de ce produit",
        "{brand} présente : {title}.", "et", " : ",
    ),
    "es": Words(
        "producto", "marca", "categoría", "dimensiones", "longitud", "anchura", "altura",
        "contenido de la caja", "especificaciones", "características", "acerca de este producto",
        "{brand} presenta: {title}.", "y",
    ),
    "it": Words(
        "prodotto", "marca", "categoria", "dimensioni", "lunghezza", "larghezza", "altezza",
        "contenuto della confezione", "specifiche tecniche", "caratteristiche",
        "informazioni su questo prodotto", "{brand} presenta: {title}.", "e",
    ),
    "nl": Words(
        "product", "merk", "categorie", "afmetingen", "lengte", "breedte", "hoogte",
        "inhoud van de doos", "specificaties", "kenmerken", "over dit product",
        "{brand} presenteert: {title}.", "en",
    ),
    "pt": Words(
        "produto", "marca", "categoria", "dimensões", "comprimento", "largura", "altura",
        "conteúdo da caixa", "especificações", "características", "sobre este produto",
        "{brand} apresenta: {title}.", "e",
    ),
    "sv": Words(
        "produkt", "varumärke", "kategori", "mått", "längd", "bredd", "höjd", "i förpackningen",
        "specifikationer", "egenskaper", "om produkten", "{brand} presenterar: {title}.", "och",
    ),
    "pl": Words(
        "produkt", "marka", "kategoria", "wymiary", "długość", "szerokość", "wysokość",
        "zawartość opakowania", "dane techniczne", "cechy", "o tym produkcie",
        "{brand} przedstawia: {title}.", "i",
    ),
    "tr": Words(
        "ürün", "marka", "kategori", "ölçüler", "uzunluk", "genişlik", "yükseklik", "kutu içeriği",
        "teknik özellikler", "özellikler", "bu ürün hakkında", "{brand} sunar: {title}.", "ve",
    ),
}  # fmt: skip
"""ISO 639-1 language -> its words."""


def words_for(locale: str) -> Words | None:
    """The words of a locale such as "en-US", or None when code cannot write that language."""
    return WORDS.get(locale.partition("-")[0])


def capitalise(text: str) -> str:
    """The first letter in upper case, the rest as it is; "iPhone" keeps its own spelling."""
    return text if text[1:2].isupper() else text[:1].title() + text[1:]
