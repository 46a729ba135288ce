"""`python -m forgellm.cli`, for environments whose scripts are not on the PATH. Nothing else."""

from forgellm.cli import main

main(prog_name="forgellm")
