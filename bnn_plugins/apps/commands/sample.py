"""Draw pictures from a saved diffusion pipeline, latent, packed on the way, or packed already."""


def forward(argv: list[str]) -> None:
    from ..diffusion.sample import main
    main(argv)
