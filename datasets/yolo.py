"""Prepare a YOLO data set: `python datasets/yolo.py --data pets/data.yaml --out data/pets`.

`data.yaml` names the splits and the classes, as Ultralytics (https://docs.ultralytics.com) and the
tools that export its format write it; nothing is downloaded. It is `retina-ray data import yolo` in
all but name.
"""

import typer

from retina_ray.cli.data.import_commands import yolo

if __name__ == "__main__":
    typer.run(yolo)
