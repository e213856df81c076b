"""A version of Trainyard without Trainyard: onnxruntime, numpy and Pillow. Boxes, a class or tags, whatever the version finds.

python predict.py FOLDER PICTURE...      FOLDER: what `trainyard model download VERSION FOLDER` wrote
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
labels = manifest["labels"]
wanted = manifest["onnx"]["input"]
least = manifest["evaluation"]["scoreThresholdPercent"] / 100
graph = "model-nms.onnx" if manifest["task"] == "Detection" else "model.onnx"
session = onnxruntime.InferenceSession(str(folder / graph))

for name in sys.argv[2:]:
    # RGB as in training: turned as EXIF says, 16 bits brought to 8, what is transparent on white.
    picture = ImageOps.exif_transpose(Image.open(name))
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture).astype(np.float32)
        most = 65535 if picture.mode.startswith("I;16") or values.max() > 255 else 255
        picture = Image.fromarray(np.clip(values * (255 / most), 0, 255).astype(np.uint8))
    elif picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")

    # Into the input: Letterbox keeps the shape and pads, CenterCrop keeps it and cuts, Stretch does not keep it.
    x = wanted["width"] / picture.width
    y = wanted["height"] / picture.height
    if wanted["resize"] != "Stretch":
        x = y = min(x, y) if wanted["resize"] == "Letterbox" else max(x, y)
    left = round((wanted["width"] - x * picture.width) / 2)
    top = round((wanted["height"] - y * picture.height) / 2)
    canvas = Image.new("RGB", (wanted["width"], wanted["height"]), (wanted["padValue"],) * 3)
    canvas.paste(
        picture.resize((round(x * picture.width), round(y * picture.height)), Image.Resampling.BILINEAR), (left, top)
    )
    images = np.asarray(canvas, np.float32).transpose(2, 0, 1)[None] / 255
    (output,) = session.run(None, {wanted["name"]: images})

    # Out of the output: a score for each label; of classes the best one counts, of tags each that is sure enough.
    if manifest["task"] != "Detection":
        best = np.argsort(-output[0])
        chosen = best[:1] if manifest["task"] == "Classification" else best[output[0][best] >= least]
        for label in chosen:
            print(f"{name}\t{labels[label]}\t{output[0][label]:.3f}")
        continue

    # Or a row for each box: image, x1, y1, x2, y2, score, label; in pixels of the input.
    for _, x1, y1, x2, y2, score, label in sorted(output.tolist(), key=lambda row: -row[5]):
        if score >= least:
            box = [(x1 - left) / x, (y1 - top) / y, (x2 - left) / x, (y2 - top) / y]
            print(f"{name}\t{labels[int(label)]}\t{score:.3f}\t" + "\t".join(f"{side:.1f}" for side in box))
