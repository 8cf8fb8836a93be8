"""The names of `retina_ray.ops.rotated` under the path that they once had."""

from retina_ray.ops.rotated import *  # noqa: F403
