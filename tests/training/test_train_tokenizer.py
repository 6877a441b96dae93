"""The training loop on a tiny tokenizer: it learns, resumes exactly, wakes entries."""

import json

import pytest
import torch
import torch.nn.functional as F

from tokenflow import TokenFlowTokenizer
from tokenflow.config import TokenFlowConfig
from tokenflow.data import glyphs
from tokenflow.training import run
from tokenflow.training.books import Reviver, quantized_rows
from tokenflow.training.config import TrainConfig
from tokenflow.training.teacher import Teacher, patch_labels, train_teacher
from tokenflow.training.tokenizer import train_tokenizer

TINY = {
    "image_size": 32,
    "grid": 4,
    "scales": [1, 2, 4],
    "semantic_encoder": {
        "width": 32,
        "layers": 1,
        "heads": 2,
        "image_size": 32,
    },
    "semantic_decoder": {"width": 32, "grid": 4, "heads": 2},
    "semantic_target": 32,
    "pixel_encoder": {"multipliers": [1, 1, 1, 1]},
    "pixel_decoder": {"multipliers": [1, 1, 1, 1]},
    "pixel_latent": 32,
    "codebook_size": 128,
}


@pytest.fixture(autouse=True)
def font(emoji_font):
    return emoji_font


@pytest.fixture(autouse=True)
def one_thread():
    """A second thread costs more than it brings to networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe(**changes):
    values = {
        "model": TINY,
        "steps": 6,
        "batch": 4,
        "teacher_minutes": 0.0,
        "teacher_batch": 4,
        "evaluate_pictures": 2,
        "fill_at": (0,),
        "revive_after": 2,
        "warmup": 2,
    }
    return TrainConfig(**{**values, **changes})


def tiny_model():
    torch.manual_seed(0)
    return TokenFlowTokenizer(TokenFlowConfig.preset("mini", **TINY))


def events(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_ends_with_a_model_that_loads_small(tmp_path):
    facts = train_tokenizer(recipe(), tmp_path)
    model = TokenFlowTokenizer.from_pretrained(str(tmp_path / "model"))
    assert facts["steps"] == 6 and facts["pictures"] == 24
    assert model.config.codebook_size == 128
    names = [event["event"] for event in events(tmp_path)]
    assert names[0] == "start" and names[-1] == "end" and "heldout" in names
    assert not list(tmp_path.glob(".*"))  # nothing half-written stays
    with pytest.raises(FileExistsError, match="resume it, or name a new folder"):
        train_tokenizer(recipe(), tmp_path)


def test_a_resumed_run_is_the_run_it_would_have_been(tmp_path):
    halves, whole = tmp_path / "halves", tmp_path / "whole"
    steady = {"final_rate": 1.0, "revive_until": 2.0}  # so that no limit shapes a step
    train_tokenizer(recipe(steps=3, **steady), halves)
    train_tokenizer(recipe(steps=5, **steady), halves, resume=True)
    whole.mkdir()
    name = "teacher.safetensors"
    (whole / name).write_bytes((halves / name).read_bytes())
    train_tokenizer(recipe(steps=5, **steady), whole)
    one, _ = run.read_tensors(whole / run.CHECKPOINT)
    two, _ = run.read_tensors(halves / run.CHECKPOINT)
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]), key


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / run.CHECKPOINT
    run.write_tensors(path, {"x": torch.ones(2)})

    def half_a_file(tensors, beside, metadata):
        beside.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(run, "save_file", half_a_file)
    with pytest.raises(OSError, match="no space left"):
        run.write_tensors(path, {"x": torch.zeros(2)})
    assert torch.equal(run.read_tensors(path)[0]["x"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == [run.CHECKPOINT]


def test_resuming_nothing_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train_tokenizer(recipe(), tmp_path, resume=True)


def test_threads_share_a_batch(tmp_path):
    facts = train_tokenizer(recipe(steps=2, threads=2), tmp_path)
    assert facts["pictures"] == 8
    assert all("loss" in e for e in events(tmp_path) if e["event"] == "step")


def test_threads_do_not_change_what_comes_out(tmp_path):
    tensors = []
    for name in ("0", "1"):
        train_tokenizer(recipe(steps=3, threads=2), tmp_path / name)
        tensors.append(run.read_tensors(tmp_path / name / run.CHECKPOINT)[0])
    for key, value in tensors[0].items():
        assert torch.equal(value, tensors[1][key]), key


@pytest.mark.slow
def test_training_redraws_better_than_before(tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    judged = {"evaluate_pictures": 16, "learning_rate": 4e-3, "ema": 0.9}
    low = train_tokenizer(recipe(steps=1, **judged), few)["psnr"]
    high = train_tokenizer(recipe(steps=120, warmup=20, **judged), many)["psnr"]
    assert high > low + 1  # 1.5 dB when written


def test_a_grid_that_is_not_the_teachers_is_refused(tmp_path):
    coarse = {
        "image_size": 64,
        "semantic_encoder": {"width": 32, "heads": 2, "patch": 16},
        "pixel_encoder": {"multipliers": [1] * 5},
        "pixel_decoder": {"multipliers": [1] * 5},
    }
    with pytest.raises(ValueError, match="8 pixels wide"):
        train_tokenizer(recipe(model={**TINY, **coarse}), tmp_path)


def test_quantized_rows_are_what_the_tokens_stand_for():
    model = tiny_model().train()
    features = torch.randn(2, 24, 4, 4)
    rows = quantized_rows(model, features)
    indices, _ = model.quantizer.quantize(features)
    assert rows.shape == (2 * (1 + 4 + 16), 24)
    assert torch.allclose(rows[:2], features.mean(dim=(2, 3)), atol=1e-6)
    halves = F.normalize(rows[:2, :16], dim=1), F.normalize(rows[:2, 16:], dim=1)
    books = [F.normalize(book, dim=1) for book in model.quantizer.books()]
    weights = 1.0, model.config.pixel_weight
    scores = sum(w * h @ b.T for w, h, b in zip(weights, halves, books, strict=True))
    assert torch.equal(scores.argmax(1), indices[:, 0])


def test_unused_entries_are_woken_in_both_books():
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    reviver = Reviver(model, after=1, most=1000)
    before = [book.detach().clone() for book in model.quantizer.books()]
    for step in range(2):
        output = model(torch.rand(2, 3, 32, 32) * 2 - 1)
        optimizer.zero_grad()
        output.vq_loss.backward()
        woken = reviver.step(optimizer, step, revive=step == 1)
    assert woken > 0
    for book, old in zip(model.quantizer.books(), before, strict=True):
        changed = ((book - old).abs().amax(1) > 1e-6).sum().item()
        assert changed == woken
        assert torch.allclose(book.norm(dim=1), torch.ones(128), atol=1e-4)
    assert reviver.step(optimizer, 3, revive=True) == 0  # nothing seen since


def test_patch_labels_are_the_classes_at_patch_centres():
    cover = torch.full((1, 16, 16), -1)
    cover[0, :8, 8:] = 3
    assert patch_labels(cover, classes=9).tolist() == [[9, 3, 9, 9]]


def test_a_teacher_has_a_token_per_patch_and_is_frozen():
    pictures = glyphs.GlyphPictures("train", size=32)
    teacher = train_teacher(pictures, width=32, minutes=0.0, batch=2)
    assert teacher(torch.zeros(2, 3, 32, 16)).shape == (2, 8, 32)
    assert isinstance(teacher, Teacher) and teacher.classes == len(pictures.codes)
    assert not any(p.requires_grad for p in teacher.parameters())
