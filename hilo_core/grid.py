"""Where a latent's tokens lie on the picture."""

from __future__ import annotations

from dataclasses import dataclass

# Pixels a latent cell of the autoencoders in use: 8 (Flux.1, SD3, Qwen, Z-Image), 16 (Flux.2), 32, and 1 (pixel
# models).
VAE_FACTORS = (8, 16, 32, 1)


@dataclass(frozen=True)
class Grid:
    """A token grid over a picture.

    Attributes:
        rows, cols: tokens down and across; a last partly covered token counts.
        latent: ``(h, w)`` of the latent in cells.
        patch: latent cells a token side.
        factor: pixels a latent cell side.
        top, left: pixels the autoencoder crops off before encoding (ComfyUI crops to the centre).
    """

    rows: int
    cols: int
    latent: tuple[int, int]
    patch: int
    factor: int
    top: int = 0
    left: int = 0

    @property
    def count(self) -> int:
        return self.rows * self.cols

    @property
    def token_px(self) -> int:
        return self.patch * self.factor

    @property
    def footprint(self) -> tuple[slice, slice]:
        """The picture's pixels that the latent covers."""
        height, width = self.latent
        return (
            slice(self.top, self.top + height * self.factor),
            slice(self.left, self.left + width * self.factor),
        )

    @classmethod
    def of_latent(cls, picture: tuple[int, int], latent: tuple[int, int], patch: int) -> Grid:
        """The grid of a latent that was encoded from a picture.

        Args:
            picture: ``(H, W)`` in pixels.
            latent: ``(h, w)`` in cells.
            patch: latent cells a token side, as the model patchifies.

        Raises:
            ValueError: no known autoencoder turns this picture into this latent.
        """
        for factor in VAE_FACTORS:
            if (picture[0] // factor, picture[1] // factor) == tuple(latent):
                rows, cols = (-(-side // patch) for side in latent)
                top, left = ((side % factor) // 2 for side in picture)
                return cls(rows, cols, (latent[0], latent[1]), patch, factor, top, left)
        raise ValueError(
            f"the plan was made for a picture of {picture[1]} x {picture[0]} pixels, but the latent is {latent[1]} x "
            f"{latent[0]} cells; give HiLo Token Planner the same picture that was encoded for the sampler"
        )

    @classmethod
    def of_picture(cls, picture: tuple[int, int], factor: int = 8, patch: int = 2) -> Grid:
        """The grid a picture ``(H, W)`` gets from an autoencoder; by default 16 pixel tokens, as Flux, SD3, Qwen-Image
        and Lumina have them."""
        latent = (picture[0] // factor, picture[1] // factor)
        if 0 in latent:
            raise ValueError(
                f"image is {picture[1]} x {picture[0]} pixels, smaller than one latent cell of {factor} x {factor}; "
                "give a larger picture"
            )
        return cls.of_latent(picture, latent, patch)
