"""How an exported network is loaded and images are sized for it, as Python."""

from metricjax.data.transforms import TransformConfig


def rule(config: TransformConfig) -> str:
    """How images are brought to the network's size, in words."""
    side, larger = config.image_size, round(config.image_size * 256 / 224)
    if config.recipe == "random_resized_crop":
        how = f"the shorter side to {larger} pixels, then the middle {side} x {side}"
    elif config.recipe == "pad_crop":
        how = (
            f"the longer side to {larger} pixels, padded to a square, then the middle "
            f"{side} x {side}"
        )
    else:
        how = f"squashed to {side} x {side}, whatever the image's proportions"
    return f"{how}; bilinear, antialiased where it shrinks (Pillow, code below)."


def snippet(config: TransformConfig, file: str, kind: str) -> str:
    """Markdown: a Python program that embeds two images, and what it needs.

    Args:
      config: how images are prepared.
      file: name of the exported file.
      kind: "stablehlo" or "onnx".
    """
    imports = ["import numpy as np", "from PIL import Image, ImageOps"]
    if kind == "onnx":
        imports.insert(1, "import onnxruntime")
        needs = "onnxruntime, numpy and Pillow"
        call = (
            f'session = onnxruntime.InferenceSession("{file}")\n'
            '(embeddings,) = session.run(["embeddings"], {"images": images})'
        )
    else:
        imports.insert(1, "from jax import export")
        needs = "jax, flatbuffers and Pillow"
        call = (
            f'with open("{file}", "rb") as opened:\n'
            "    network = export.deserialize(bytearray(opened.read()))\n"
            "embeddings = np.asarray(network.call(images))"
        )
    mode = "L" if config.channels == 1 else "RGB"
    side = config.image_size
    lines = "\n".join(imports)
    code = f"""\
{lines}


def prepared(path):
    image = ImageOps.exif_transpose(Image.open(path)).convert("{mode}")
{_sizing(config, mode)}
    return np.asarray(image).reshape({side}, {side}, {config.channels})


paths = ["first.png", "second.png"]
images = np.stack([prepared(path) for path in paths])
{call}
similarities = embeddings @ embeddings.T
print(similarities)"""
    return f"With {needs}, and nothing of metricjax:\n\n```python\n{code}\n```"


def _sizing(config: TransformConfig, mode: str) -> str:
    side, larger = config.image_size, round(config.image_size * 256 / 224)
    bilinear = "Image.Resampling.BILINEAR"
    if config.recipe == "random_resized_crop":
        return f"""\
    factor = {larger} / min(image.size)
    width, height = (round(side * factor) for side in image.size)
    left, top = (width - {side}) // 2, (height - {side}) // 2
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + {side}) * across, (top + {side}) * down)
    image = image.resize(({side}, {side}), {bilinear}, box, reducing_gap=3.0)"""
    if config.recipe == "pad_crop":
        mean = tuple(round(255 * value) for value in config.statistics[0].tolist())
        colour = mean[0] if mode == "L" else mean
        edge = (larger - side) // 2
        return f"""\
    factor = {larger} / max(image.size)
    size = [max(1, round(side * factor)) for side in image.size]
    inner = image.resize(size, {bilinear}, reducing_gap=3.0)
    image = Image.new("{mode}", ({larger}, {larger}), {colour})
    image.paste(inner, [({larger} - side) // 2 for side in size])
    image = image.crop(({edge}, {edge}, {edge + side}, {edge + side}))"""
    return f"    image = image.resize(({side}, {side}), {bilinear}, reducing_gap=3.0)"
