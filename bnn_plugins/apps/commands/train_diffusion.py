"""Train a binary (or float) diffusion model: the flags of diffusers' example. A config file sets the defaults."""


def forward(argv: list[str]) -> None:
    from ..diffusion.train import main
    print(f'the pipeline is in {main(argv)}')
