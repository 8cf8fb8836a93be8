"""Prepare a Pascal VOC data set: `python datasets/voc.py --source VOC2007 --out data/voc`.

The source holds `Annotations/*.xml`, `JPEGImages/*.jpg` and `ImageSets/Main/<split>.txt`. VOC
itself is at http://host.robots.ox.ac.uk/pascal/VOC/; many smaller sets come in the same layout,
among them BCCD (blood cells, https://github.com/Shenggan/BCCD_Dataset). It is
`retina-ray data import voc` in all but name.
"""

import typer

from retina_ray.cli.data.import_commands import voc

if __name__ == "__main__":
    typer.run(voc)
