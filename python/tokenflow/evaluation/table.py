"""The result of `evaluate_reconstruction` as a small table."""

from typing import Any

_HEAD = f"{'':<22}{'PSNR dB':>9}{'SSIM':>8}{'bits/pixel':>12}"


def as_text(result: dict[str, Any]) -> str:
    """Return the result as lines to read."""
    thumb, best = result["thumbnail"], result["model"]
    side, bits = thumb["side"], result["bits_per_pixel"]
    lines = [
        f"{result['pictures']} pictures of {result['size']} x {result['size']} pixels, "
        f"{result['tokens']} tokens each; bytes, data range {result['data_range']}",
        _HEAD,
        _row("tokenizer", best, bits),
        _row(f"thumbnail {side} x {side}", thumb, thumb["bits_per_pixel"]),
        _row("mean colour", result["mean_colour"], 24 / result["size"] ** 2),
        "SSIM as the published script computes it: "
        f"{best['ssim_published_script']:.3f}",
    ]
    if "lpips" in best:
        lines.append(f"LPIPS: {best['lpips']:.4f}")
    if "rfid" in result:
        lines.append(f"rFID: {result['rfid']:.3f}")
    if "rfid_published_script" in result:
        lines.append(
            "rFID against originals as the published script writes them: "
            f"{result['rfid_published_script']:.3f}"
        )
    if "frechet_teacher" in result:
        apart = result["frechet_teacher"]
        lines.append(f"fréchet_teacher ({apart['teacher']}): {apart['distance']:.4f}")
    lines.append(
        f"codebook: {result['usage']:.1%} of {result['codebook_size']} entries used, "
        f"perplexity {result['perplexity']:.0f}, "
        f"entropy {result['entropy_bits_per_pixel']:.3f} bits/pixel"
    )
    for row in result["scales"]:
        height, width = row["scale"]
        lines.append(
            f"  scale {height} x {width}: usage {row['usage']:.1%}, "
            f"perplexity {row['perplexity']:.0f}"
        )
    speed = result["pictures_per_second"]
    lines.append(
        f"pictures per second: encode {speed['encode']:.1f}, "
        f"decode {speed['decode']:.1f}"
    )
    return "\n".join(lines)


def _row(name: str, quality: dict[str, float], bits: float) -> str:
    psnr, ssim = quality["psnr"], quality["ssim"]
    return f"{name:<22}{psnr:>9.2f}{ssim:>8.3f}{bits:>12.3f}"
