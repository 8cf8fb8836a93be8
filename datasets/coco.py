"""Prepare COCO: `python datasets/coco.py --source coco --out data/coco`.

The source holds `annotations/instances_{train,val}2017.json` and the folders `train2017/` and
`val2017/`, as unpacked from https://cocodataset.org/#download. For any other data set in COCO's
format name the two places: `--annotations FILE --images DIR --split train`. It is
`retina-ray data import coco` in all but name.
"""

import typer

from retina_ray.cli.data.import_commands import coco

if __name__ == "__main__":
    typer.run(coco)
