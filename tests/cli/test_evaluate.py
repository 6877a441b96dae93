"""`tokenflow evaluate reconstruction`: numbers a program can read, and a table."""

import json

import pytest
import torch
from PIL import Image

from tokenflow.evaluation.inception import Inception
from tokenflow.evaluation.lpips import LPIPS


def evaluate(run, model, data, *words):
    return run("evaluate", "reconstruction", "-m", model, "--data", data, *words)


@pytest.fixture(scope="session")
def inception(tmp_path_factory):
    """Weights of the right shapes, at random."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(Inception().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def lpips(tmp_path_factory):
    """The like, in the two files that LPIPS is published in."""
    torch.manual_seed(0)
    folder, made = tmp_path_factory.mktemp("weights"), LPIPS()
    shapes = {f"features.{k}": v.shape for k, v in made.trunk.state_dict().items()}
    trunk = {k: torch.randn(shape) * 0.05 for k, shape in shapes.items()}
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, len(head), 1, 1)
        for i, head in enumerate(made.heads)
    }
    torch.save(trunk, folder / "vgg16.pth")
    torch.save(heads, folder / "heads.pth")
    return folder / "vgg16.pth", folder / "heads.pth"


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """Folder of a small SigLIP, at random."""
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    made = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes))
    folder = tmp_path_factory.mktemp("weights") / "small-siglip"
    made.save_pretrained(folder)
    return folder


def test_a_folder_is_judged_beside_the_baselines(run, model, photos):
    code, out, err = evaluate(run, model, photos, "--json", "--device", "cpu")
    result = json.loads(out)
    assert code == 0 and "3 pictures" in err
    assert result["pictures"] == 3 and result["data"] == str(photos)
    assert {"psnr", "ssim"} <= result["model"].keys() & result["mean_colour"].keys()
    assert result["thumbnail"]["psnr"] > result["mean_colour"]["psnr"]
    assert 0 < result["usage"] <= 1
    assert result["entropy_bits_per_pixel"] < result["bits_per_pixel"]
    assert result["failed"] == []


def test_without_json_it_is_a_table(run, model, photos):
    code, out, _ = evaluate(run, model, photos, "--count", 1)
    assert code == 0 and "mean colour" in out and out.startswith("1 pictures")


def test_drawn_pictures_need_no_folder(run, model, emoji_font):
    code, out, _ = evaluate(run, model, "glyphs", "--count", 3, "--json")
    assert code == 0 and json.loads(out)["pictures"] == 3


def test_rfid_is_given_with_its_weights(run, model, photos, inception):
    code, out, _ = evaluate(run, model, photos, "--inception", inception, "--json")
    result = json.loads(out)
    assert code == 0 and result["rfid"] > 0
    assert "rfid_published_script" not in result


def test_one_picture_has_no_distance(run, model, photos, inception):
    words = ("--inception", inception, "--count", 1)
    code, out, err = evaluate(run, model, photos, *words)
    assert (code, out) == (1, "") and "at least 2" in err


@pytest.mark.parametrize("option", ["--inception", "--lpips-vgg", "--lpips-heads"])
def test_weights_that_are_not_there_are_named(run, model, photos, tmp_path, option):
    words = [option, tmp_path / "none.pth"]
    if option.startswith("--lpips"):
        words = ["--lpips-vgg", words[1], "--lpips-heads", words[1]]
    code, out, err = evaluate(run, model, photos, *words)
    assert (code, out) == (3, "") and "none.pth" in err


def test_a_teachers_distance_is_named_after_it(run, model, photos, teacher):
    code, out, _ = evaluate(run, model, photos, "--teacher", teacher, "--json")
    result = json.loads(out)
    assert code == 0 and "rfid" not in result
    assert result["frechet_teacher"]["teacher"] == "small-siglip"
    assert result["frechet_teacher"]["distance"] > 0


def test_lpips_is_given_with_its_weights(run, model, photos, lpips):
    words = ("--lpips-vgg", lpips[0], "--lpips-heads", lpips[1], "--json")
    code, out, _ = evaluate(run, model, photos, *words)
    assert code == 0 and json.loads(out)["model"]["lpips"] > 0


def test_lpips_needs_both_files(run, model, photos, tmp_path):
    for option in ("--lpips-vgg", "--lpips-heads"):
        code, out, err = evaluate(run, model, photos, option, tmp_path / "a.pth")
        assert (code, out) == (2, "") and "both --lpips-vgg and --lpips-heads" in err


@pytest.fixture
def validation(tmp_path):
    """Two class folders of two pictures."""
    for i in range(4):
        path = tmp_path / "val" / f"n0{i % 2}" / f"{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").convert("RGB").rotate(90 * i).save(path)
    return tmp_path / "val"


def test_the_protocol_takes_all_and_says_what_is_missing(
    run, model, validation, inception
):
    words = ("--protocol", "imagenet", "--inception", inception, "--json")
    code, out, err = evaluate(run, model, validation, *words)
    result = json.loads(out)
    assert code == 0 and result["pictures"] == 4 and result["protocol"] == "imagenet"
    assert "not comparable with the paper" in err
    assert result["rfid_published_script"] > 0
    assert result["rfid_published_script"] != result["rfid"]


def test_the_protocol_refuses_other_pictures(run, model, validation, photos):
    protocol = ("--protocol", "imagenet")
    code, _, err = evaluate(run, model, "glyphs", *protocol)
    assert code == 2 and "folder of class folders" in err
    code, _, err = evaluate(run, model, validation, *protocol, "--count", 2)
    assert code == 2 and "--count" in err
    code, _, err = evaluate(run, model, photos, *protocol)
    assert code == 2 and "one folder for each class" in err


def test_a_grid_is_written_beside_the_numbers(run, model, emoji_font, tmp_path):
    words = ("--count", 9, "--grid", tmp_path / "g.png")
    code, _, err = evaluate(run, model, "glyphs", *words)
    assert code == 0 and "wrote" in err
    assert Image.open(tmp_path / "g.png").size == (2 * 8 * 64, 2 * 2 * 64)


def test_a_grid_of_too_few_pictures_is_a_usage_error(run, model, photos, tmp_path):
    code, _, err = evaluate(run, model, photos, "--grid", tmp_path / "g.png")
    assert code == 2 and "at least 8 pictures" in err


def test_data_that_is_not_there_is_named(run, model, tmp_path):
    code, out, err = evaluate(run, model, tmp_path / "none")
    assert (code, out) == (2, "") and "'photos' or a folder" in err


def test_a_damaged_picture_is_listed_and_the_others_are_judged(run, model, photos):
    code, out, _ = evaluate(run, model, photos, "--json")
    without = json.loads(out)
    (photos / "broken.png").write_text("no picture")
    code, out, err = evaluate(run, model, photos, "--json")
    result = json.loads(out)
    assert code == 1 and "1 of 4 pictures failed" in err
    assert f"failed: {photos / 'broken.png'}: must be a picture" in err
    assert [entry["input"] for entry in result["failed"]] == [
        str(photos / "broken.png")
    ]
    assert result["model"] == without["model"] and result["pictures"] == 3


def test_nothing_but_damaged_pictures_is_a_failure(run, model, tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    code, out, err = evaluate(run, model, tmp_path)
    assert (code, out) == (1, "") and "broken.png" in err
