"""What a generation model is told: captions, cut and dropped, and their tokens."""

import pytest

from tokenflow.generation import prompts
from tokenflow.training.words import WordsConfig, first_sentence, learn, told

CAPTION = "A red apple. It lies on a table!"


def test_shares_of_the_captions_are_dropped_and_cut():
    config = WordsConfig(dropped=0.1, first_sentence=0.2)
    found = [told(CAPTION, config, 3, number) for number in range(4000)]
    assert 0.08 < found.count("") / 4000 < 0.12
    assert 0.16 < found.count("A red apple.") / 4000 < 0.20  # of those not dropped
    assert set(found) == {"", "A red apple.", CAPTION}


def test_what_is_told_depends_on_seed_and_number_alone():
    config = WordsConfig(dropped=0.5)
    one, again, other = (
        [told(CAPTION, config, seed, n) for n in range(50)] for seed in (1, 1, 2)
    )
    assert one == again != other


def test_a_first_sentence_ends_where_it_should():
    assert first_sentence("one thing") == "one thing"
    assert first_sentence(" Is it 2.5 m? Yes.") == "Is it 2.5 m?"
    assert first_sentence("") == ""


def test_a_learned_vocabulary_fits_the_model_and_comes_back(tmp_path):
    from transformers import AutoTokenizer

    made = learn(["two red apples and a cat"] * 9 + ["a blue car"] * 5, 280)
    assert 261 < len(made) <= 280
    ids = prompts.prefix_ids(made, ["Two red apples", "", "ein Übel"], 16, 0)
    assert ids.shape == (3, 17)
    assert ids[:, -1].tolist() == [3, 3, 3]  # <img>
    assert ids[1].tolist() == [0] * 15 + [1, 3]  # padding, <s>, <img>
    assert (ids[0] == 0).sum() > (ids[2] == 0).sum()  # known words are shorter
    assert prompts.suffix_ids(made).tolist() == [4, 2]
    made.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read("two cats")["input_ids"] == made("two cats")["input_ids"]
    for one in (made, read):
        assert prompts.strange(one, "Two BLUE cats, and a giraffe") == [
            "cats",
            "giraffe",
        ]


def test_words_of_a_large_world_are_not_kept():
    made = learn([f"word{number} and word{number + 1}" for number in range(1200)], 300)
    assert prompts.strange(made, "a giraffe") == []


def test_what_is_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"words.dropped must be in \[0, 1\], got 2"):
        WordsConfig(dropped=2)
    with pytest.raises(ValueError, match="image_start: .* at least 261 .* got 100"):
        learn(["a"], 100)
