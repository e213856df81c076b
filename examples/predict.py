"""A detector of Trainyard without Trainyard: onnxruntime, numpy and Pillow.

python predict.py FOLDER PICTURE...      FOLDER: what `trainyard model download VERSION FOLDER` wrote
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
labels = manifest["labels"]
wanted = manifest["onnx"]["input"]
least = manifest["evaluation"]["scoreThresholdPercent"] / 100
session = onnxruntime.InferenceSession(str(folder / "model-nms.onnx"))

for name in sys.argv[2:]:
    picture = Image.open(name).convert("RGB")

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

    # Out of the output: image, x1, y1, x2, y2, score, label; in pixels of the input.
    (detections,) = session.run(["detections"], {wanted["name"]: images})
    for _, x1, y1, x2, y2, score, label in sorted(detections.tolist(), key=lambda row: -row[5]):
        if score >= least:
            box = [(x1 - left) / x, (y1 - top) / y, (x2 - left) / x, (y2 - top) / y]
            print(f"{name}\t{labels[int(label)]}\t{score:.3f}\t" + "\t".join(f"{side:.1f}" for side in box))
