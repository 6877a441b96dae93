"""`tokenflow evaluate reconstruction`: numbers a program can read, and a table."""

import json


def test_a_folder_is_judged_beside_the_baselines(run, model, photos):
    words = ("--model", model, "--data", photos, "--json", "--device", "cpu")
    code, out, err = run("evaluate", "reconstruction", *words)
    result = json.loads(out)
    assert code == 0 and "2 pictures" in err
    assert result["pictures"] == 2 and result["data"] == str(photos)
    assert {"psnr", "ssim"} <= result["model"].keys() & result["mean_colour"].keys()
    assert result["thumbnail"]["psnr"] > result["mean_colour"]["psnr"]
    assert 0 < result["usage"] <= 1


def test_without_json_it_is_a_table(run, model, photos):
    words = ("--model", model, "--data", photos, "--count", 1)
    code, out, _ = run("evaluate", "reconstruction", *words)
    assert code == 0 and "mean colour" in out and out.startswith("1 pictures")


def test_a_grid_of_too_few_pictures_is_a_usage_error(run, model, photos, tmp_path):
    words = ("--model", model, "--data", photos, "--grid", tmp_path / "g.png")
    code, _, err = run("evaluate", "reconstruction", *words)
    assert code == 2 and "at least 8 pictures" in err


def test_data_that_is_not_there_is_named(run, model, tmp_path):
    words = ("--model", model, "--data", tmp_path / "none")
    code, out, err = run("evaluate", "reconstruction", *words)
    assert (code, out) == (2, "") and "'glyphs', 'photos' or a folder" in err


def test_a_damaged_picture_is_a_failure_and_named(run, model, photos):
    (photos / "broken.png").write_text("no picture")
    code, out, err = run("evaluate", "reconstruction", "-m", model, "--data", photos)
    assert (code, out) == (1, "")
    assert err.startswith("failed: ") and "broken.png" in err
