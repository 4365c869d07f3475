"""How an interrupted training goes on: its folder and lock, checkpoints, and copies for other machines."""
