"""A text in another language is noticed at import, English and what cannot be told is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.importers import add
from client.language import other_language
from tests.vault_of_notes import vault_of_notes

ENGLISH = (
    "I sold the old boat at last, and the man who bought it said that he would paint it green before the summer.",
    "Ok so I talked to her about the roof and she said we can do it in May if there is some money left by then.",
    "Dear Anna, thank you for your letter. I have not been to the harbour since you left, but my brother has.",
)
OTHERS = (
    "Gestern habe ich das alte Boot endlich verkauft, und der Käufer will es vor dem Sommer grün streichen.",
    "Hier, j'ai enfin vendu le vieux bateau, et l'homme qui l'a acheté veut le peindre en vert avant l'été prochain.",
    "Ayer por fin vendí la barca vieja y el hombre que la compró quiere pintarla de verde antes del verano.",
    "Myin eilen viimein vanhan veneen, ja ostaja haluaa maalata sen vihreäksi ennen kuin kesä taas alkaa täällä.",
    "Вчера я наконец продал старую лодку, и покупатель хочет до лета покрасить её в зелёный цвет и выйти в море.",
    "昨日やっと古いボートを売りました。買った人は夏になる前に緑色に塗り直して、海へ出るつもりだそうです。私は少し寂しいです。"
    "それでも来年の春には、兄と一緒に小さな新しい船を探しに行こうと思っています。",
    "Ieri ho venduto finalmente la vecchia barca, e il compratore vuole dipingerla di verde prima che arrivi l'estate.",
)


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_english(text: str) -> None:
    assert not other_language(text)


@pytest.mark.parametrize("text", OTHERS)
def test_another_language_is_noticed(text: str) -> None:
    assert other_language(text)


@pytest.mark.parametrize("text", ["", "   ", "42 17 99", "Milch, Brot, Eier", "def f(x):\n    return x"])
def test_of_few_words_nothing_is_told(text: str) -> None:
    assert not other_language(text)


def test_an_import_counts_what_is_in_another_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with vault_of_notes(tmp_path, monkeypatch, ENGLISH) as vault:
        place = tmp_path / "more"
        place.mkdir()
        for number, text in enumerate((*OTHERS[:3], ENGLISH[0] + " Again.")):
            (place / f"{number}.txt").write_text(text)
        counts = add(vault, place)
        assert (counts.new, counts.foreign) == (4, 3) and counts.to_json()["foreign"] == 3
