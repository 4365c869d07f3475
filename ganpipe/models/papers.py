"""The papers whose networks and settings this project has; the one place that spells their names."""

# The family of a recipe, which is its name up to the first "-", and its paper.
PAPERS = {
    "dcgan": "Radford, Metz & Chintala 2015, DCGAN",
    "marchesi2017": "Marchesi 2017, megapixel images",
    "celeba64": "Vlad, Face image generation using GANs",
    "stiff2018": "Stiff, von Keyserlingk & Stuart 2018",
    "xin2024": "Xin 2024",
    "beyond": "ganpipe, after Deng et al. 2026",
    "photographs": "ganpipe, with a DCGAN",
}
# An architecture of model.architecture, and the family whose paper describes it.
FAMILIES = {"dcgan": "dcgan", "celeba64": "celeba64", "upsample": "stiff2018"}
FAMILIES |= {"residual": "xin2024", "resize": "beyond"}


def recipe_paper(recipe: str) -> str:
    """Return the paper of a recipe such as "xin2024-5"; empty for a recipe of the user's own."""
    family, _, variant = recipe.partition("-")
    return PAPERS.get(family, "") + (f", experiment {variant}" if family == "xin2024" else "")


def architecture_paper(architecture: str) -> str:
    """Return an architecture's name with its paper, such as "residual (Xin 2024)"."""
    return f"{architecture} ({PAPERS[FAMILIES[architecture]]})"
