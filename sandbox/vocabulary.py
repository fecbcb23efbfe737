"""What the sandbox's questions and programs both call things, in English, German and Russian.

German and Russian change a noun's form with its place in the sentence, so a shape has several: as the subject, several
of them after "how many", and after "left of". A program knows a word by its stem, as the forms below share it.
"""

LANGUAGES = ("en", "de", "ru")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 90, 200), "yellow": (240, 205, 40),
    "orange": (250, 130, 20), "purple": (130, 70, 180), "grey": (128, 128, 128),
}  # fmt: skip
NAMES: dict[str, dict[str, str]] = {  # of colours and shapes, as an answer says them
    "en": {name: name for name in (*COLOURS, "circle", "square", "triangle", "diamond")} | {"yes": "yes", "no": "no"},
    "de": {
        "red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb", "orange": "orange", "purple": "violett",
        "grey": "grau", "circle": "Kreis", "square": "Quadrat", "triangle": "Dreieck", "diamond": "Raute",
        "yes": "ja", "no": "nein",
    },
    "ru": {
        "red": "красный", "green": "зелёный", "blue": "синий", "yellow": "жёлтый", "orange": "оранжевый",
        "purple": "фиолетовый", "grey": "серый", "circle": "круг", "square": "квадрат", "triangle": "треугольник",
        "diamond": "ромб", "yes": "да", "no": "нет",
    },
}  # fmt: skip
SHAPES: dict[str, dict[str, tuple[str, str, str]]] = {  # as the subject, several of them, after "left of"
    "circle": {"en": ("the circle", "circles", "the circle"), "de": ("der Kreis", "Kreise", "vom Kreis"),
               "ru": ("круг", "кругов", "круга")},
    "square": {"en": ("the square", "squares", "the square"), "de": ("das Quadrat", "Quadrate", "vom Quadrat"),
               "ru": ("квадрат", "квадратов", "квадрата")},
    "triangle": {"en": ("the triangle", "triangles", "the triangle"), "de": ("das Dreieck", "Dreiecke", "vom Dreieck"),
                 "ru": ("треугольник", "треугольников", "треугольника")},
    "diamond": {"en": ("the diamond", "diamonds", "the diamond"), "de": ("die Raute", "Rauten", "von der Raute"),
                "ru": ("ромб", "ромбов", "ромба")},
}  # fmt: skip
SIDES: dict[str, dict[str, tuple[str, str]]] = {  # beside another shape, and the farthest of all
    "left": {"en": ("to the left of", "farthest left"), "de": ("links", "am weitesten links"),
             "ru": ("слева от", "левее всех")},
    "right": {"en": ("to the right of", "farthest right"), "de": ("rechts", "am weitesten rechts"),
              "ru": ("справа от", "правее всех")},
    "above": {"en": ("above", "highest up"), "de": ("oberhalb", "am höchsten"), "ru": ("выше", "выше всех")},
    "below": {"en": ("below", "lowest down"), "de": ("unterhalb", "am tiefsten"), "ru": ("ниже", "ниже всех")},
}  # fmt: skip
GENITIVE = {  # Russian: "of red colour"
    "red": "красного", "green": "зелёного", "blue": "синего", "yellow": "жёлтого", "orange": "оранжевого",
    "purple": "фиолетового", "grey": "серого",
}  # fmt: skip


def said(value: bool | int | str, language: str) -> str:
    """An answer as people say it: a truth as yes or no, a colour or shape by its name, all else as it is."""
    if isinstance(value, bool):
        return NAMES[language]["yes" if value else "no"]
    return NAMES[language].get(str(value), str(value))
